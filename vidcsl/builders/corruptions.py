"""Corruptions, by name."""

from fvcore.common.config import CfgNode

from vidcsl.robustness.corruptions import find, names


def build_corruptions(cfg: CfgNode) -> list[str]:
    """Full names ("P/jpeg"), whole suites spelt out, each once."""
    suites = {"all": names(), "P": names("P"), "C": names("C")}
    chosen = [suites[name] if name in suites else [find(name)[0]] for name in cfg.CORRUPT.NAMES]
    return list(dict.fromkeys(full for group in chosen for full in group))
