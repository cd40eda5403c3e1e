"""Corruptions, by name."""

from fvcore.common.config import CfgNode

from vidcsl.robustness.corruptions import SUITES, find, names, scored_names


def build_corruptions(cfg: CfgNode) -> list[str]:
    """Full names ("P/jpeg"), whole suites spelt out, each once."""
    suites = {"all": names(), **{suite: scored_names(suite) for suite in SUITES}}
    chosen = [suites[name] if name in suites else [find(name)[0]] for name in cfg.CORRUPT.NAMES]
    return list(dict.fromkeys(full for group in chosen for full in group))
