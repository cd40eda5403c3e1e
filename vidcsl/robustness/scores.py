"""Robustness in a few numbers. Pure functions of accuracies in [0, 1]."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import NormalDist, fmean
from typing import Any

from vidcsl.errors import UserError
from vidcsl.robustness.corruptions.suites import SCORED, SUITES

# The accuracies of each corruption, one a severity.
Accuracies = Mapping[str, Sequence[float]]


def gamma_absolute(clean: float, perturbed: float) -> float:
    """1 - (clean - perturbed): 1 where nothing is lost (Schiappa et al., CVPR 2023)."""
    return 1 - (clean - perturbed)


def gamma_relative(clean: float, perturbed: float) -> float | None:
    """1 - (clean - perturbed) / clean (Schiappa et al., CVPR 2023); None where clean is 0."""
    return 1 - (clean - perturbed) / clean if clean > 0 else None


def mean_performance(accuracies: Accuracies) -> float:
    """Accuracy averaged over severities, then corruptions: mPC (Yi et al., NeurIPS 2021)."""
    return fmean(fmean(severities) for severities in accuracies.values())


def relative_performance(clean: float, accuracies: Accuracies) -> float | None:
    """Mean accuracy under corruption over the clean one: rPC; None where clean is 0."""
    return mean_performance(accuracies) / clean if clean > 0 else None


def robustness_scores(clean: float, suites: Mapping[str, Accuracies]) -> dict[str, Any]:
    """The four published scores, and over what they were taken.

    The gammas belong to suite P, mPC and rPC to suite C. Where a score's own suite was not run,
    the score is taken over the other one, and `over` says so: such a number must not be set
    beside published ones.

    Args:
        clean: clean accuracy of the same clips.
        suites: `{"P": {"jpeg": [accuracy at each severity], ...}, "C": {...}}`, either may lack.

    Returns:
        `gamma_a`, `gamma_r`, `mPC`, `rPC` (None where undefined), and `over`:
        `{"gamma": {"suite", "corruptions", "published", "severities"}, "mPC": {...}}`.
        A suite is complete where `corruptions == published` and `severities == 5`.

    Raises:
        UserError: an accuracy outside [0, 1], a corruption with none, or an unknown name.
    """
    run = {suite: accuracies for suite, accuracies in suites.items() if accuracies}
    _check(clean, run)
    if not run:
        return dict.fromkeys(("gamma_a", "gamma_r", "mPC", "rPC")) | {"over": {}}
    gamma_suite = "P" if "P" in run else "C"
    mean_suite = "C" if "C" in run else "P"
    perturbed = mean_performance(run[gamma_suite])
    return {
        "gamma_a": gamma_absolute(clean, perturbed),
        "gamma_r": gamma_relative(clean, perturbed),
        "mPC": mean_performance(run[mean_suite]),
        "rPC": relative_performance(clean, run[mean_suite]),
        "over": {
            "gamma": _coverage(gamma_suite, run[gamma_suite]),
            "mPC": _coverage(mean_suite, run[mean_suite]),
        },
    }


def category_scores(
    clean: float, accuracies: Accuracies, *, suite: str
) -> dict[str, dict[str, float | None]]:
    """Mean accuracy and gammas of each category (noise, blur, ...) of one suite.

    Returns:
        `{category: {"accuracy", "gamma_a", "gamma_r"}}`.
    """
    _check(clean, {suite: accuracies})
    members: dict[str, dict[str, Sequence[float]]] = defaultdict(dict)
    for name, severities in accuracies.items():
        members[SUITES[suite][name].category][name] = severities
    means = {category: mean_performance(group) for category, group in members.items()}
    return {
        category: {
            "accuracy": mean,
            "gamma_a": gamma_absolute(clean, mean),
            "gamma_r": gamma_relative(clean, mean),
        }
        for category, mean in means.items()
    }


def wilson_interval(
    accuracy: float, count: int, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Where the true accuracy lies, given the share of `count` clips that was right.

    Unlike accuracy ± 1.96 standard errors it stays inside [0, 1] and has a width at 0 and 1
    (Wilson, JASA 1927). Nothing is known of 0 clips: (0, 1).
    """
    if count == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    shrink = 1 / (1 + z**2 / count)
    centre = shrink * (accuracy + z**2 / (2 * count))
    variance = accuracy * (1 - accuracy) / count + z**2 / (4 * count**2)
    reach = shrink * z * variance**0.5
    return max(0.0, centre - reach), min(1.0, centre + reach)


def _coverage(suite: str, accuracies: Accuracies) -> dict[str, str | int]:
    return {
        "suite": suite,
        "corruptions": len(accuracies),
        "published": SCORED[suite],
        "severities": min(len(severities) for severities in accuracies.values()),
    }


def _check(clean: float, suites: Mapping[str, Accuracies]) -> None:
    if not 0 <= clean <= 1:
        raise UserError(f"clean accuracy is {clean}; accuracies are shares in [0, 1]")
    for suite, accuracies in suites.items():
        unknown = [suite] if suite not in SUITES else sorted({*accuracies} - {*SUITES[suite]})
        if unknown:
            raise UserError(f"unknown suite or corruption {unknown[0]!r} among the accuracies")
        for name, severities in accuracies.items():
            if not severities or not all(0 <= accuracy <= 1 for accuracy in severities):
                raise UserError(
                    f"accuracies of {suite}/{name} are {list(severities)}; "
                    "expected one share in [0, 1] a severity"
                )
