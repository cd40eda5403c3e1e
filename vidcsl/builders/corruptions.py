"""Corruptions, by name."""

from collections.abc import Sequence

from fvcore.common.config import CfgNode

from vidcsl.errors import UserError
from vidcsl.robustness.corruptions import SEVERITIES, SUITES, find, names, scored_names
from vidcsl.robustness.corruptions.training import RandomCorruption


def build_corruptions(cfg: CfgNode) -> list[str]:
    """Full names ("P/jpeg") of those to test, whole suites spelt out, each once."""
    return full_names(cfg.CORRUPT.NAMES)


def build_random_corruption(cfg: CfgNode) -> RandomCorruption | None:
    """Corruption of training clips; None where its probability is 0.

    Raises:
        UserError: a name is unknown, there is none, or a severity is not one of 1 to 5.
    """
    options = cfg.AUGMENT
    if not options.CORRUPTION_PROBABILITY:
        return None
    chosen, severities = full_names(options.CORRUPTIONS), options.CORRUPTION_SEVERITIES
    if not chosen or not severities or not set(severities) <= set(SEVERITIES):
        raise UserError(
            "AUGMENT.CORRUPTION_PROBABILITY needs AUGMENT.CORRUPTIONS, and severities from 1 to 5 "
            f"in AUGMENT.CORRUPTION_SEVERITIES, not {list(severities)}"
        )
    return RandomCorruption(
        names=chosen, severities=severities, probability=options.CORRUPTION_PROBABILITY
    )


def full_names(given: Sequence[str]) -> list[str]:
    """Full names of corruptions, of whole suites (P, C, V: what their scores count) or of all."""
    suites = {"all": names(), **{suite: scored_names(suite) for suite in SUITES}}
    chosen = [suites[name] if name in suites else [find(name)[0]] for name in given]
    return list(dict.fromkeys(full for group in chosen for full in group))
