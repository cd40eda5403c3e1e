"""Several runs side by side: means over seeds, and how far the robustness gap is closed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from vidcsl.errors import UserError
from vidcsl.report.files import read_results
from vidcsl.report.summary import UNDEFINED

Results = Mapping[str, Any]


def compare(
    folders: Sequence[Path], *, baseline: str, reference: str, attack: str = "pgd_linf"
) -> str:
    """A Markdown table, one row for each run name, mean ± standard deviation over its seeds.

    gap closed = (R - R_baseline) / (R_reference - R_baseline), R the mean robust accuracy at one
    budget; undefined where the reference is not more robust than the baseline.

    Args:
        folders: run folders; runs of one name are its seeds.
        baseline: name of the contrastive run without removal.
        reference: name of the run to catch up with, as a rule the supervised one.
        attack: whose curves are compared.

    Raises:
        UserError: a folder has no results, or no run has one of the two names.
    """
    arms: dict[str, list[Results]] = {}
    for folder in folders:
        results = read_results(folder / "results.json")
        arms.setdefault(str(results.get("name")), []).append(results)
    for name in (baseline, reference):
        if name not in arms:
            raise UserError(f"no run is named {name}; there are {', '.join(sorted(arms))}")
    budgets = list(dict.fromkeys(eps for runs in arms.values() for eps in _curve(runs[0], attack)))
    header = ["run", "seeds", "linear", "kNN", "removed, precision"]
    header += [f"{attack} {eps}" for eps in budgets] + ["mean corrupted"]
    header += [f"gap closed {eps}" for eps in budgets]
    rows = [
        [
            name,
            str(len(runs)),
            _spread([run.get("clean", {}).get("linear_top1") for run in runs]),
            _spread([run.get("clean", {}).get("knn_top1") for run in runs]),
            _removal(runs),
            *(_spread([_curve(run, attack).get(eps) for run in runs]) for eps in budgets),
            _spread([_mean_corrupted(run) for run in runs]),
            *(_gap(arms, name, baseline, reference, attack, eps) for eps in budgets),
        ]
        for name, runs in arms.items()
    ]
    return "\n".join(_line(row) for row in [header, ["---"] * len(header), *rows])


def gap_closed(robust: float, *, baseline: float, reference: float) -> float | None:
    """Share of the gap between two robust accuracies that is closed; None where there is none."""
    return (robust - baseline) / (reference - baseline) if reference > baseline else None


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _curve(run: Results, attack: str) -> Mapping[str, float]:
    curve: Mapping[str, float] = run.get("attacks", {}).get(attack, {})
    return curve


def _spread(values: Sequence[float | None]) -> str:
    known = [100 * value for value in values if value is not None]
    if not known:
        return UNDEFINED
    return f"{fmean(known):.1f}" + (f" ± {stdev(known):.1f}" if len(known) > 1 else "")


def _removal(runs: Sequence[Results]) -> str:
    found = [run.get("false_negatives", {}) for run in runs]
    if not any("precision" in each for each in found):
        return "none"
    shares = (_spread([each.get(key) for each in found]) for key in ("removed", "precision"))
    return ", ".join(shares)


def _mean_corrupted(run: Results) -> float | None:
    """Mean accuracy over all corruptions that were run, of whichever suite."""
    corruptions = run.get("corruptions", {})
    rows = [row for suite in ("P", "C", "V") for row in corruptions.get(suite, {}).values()]
    return fmean(fmean(row) for row in rows) if rows else None


def _gap(
    arms: Mapping[str, list[Results]],
    name: str,
    baseline: str,
    reference: str,
    attack: str,
    eps: str,
) -> str:
    def robust(arm: str) -> float | None:
        known = [curve[eps] for run in arms[arm] if eps in (curve := _curve(run, attack))]
        return fmean(known) if known else None

    own, low, high = robust(name), robust(baseline), robust(reference)
    if name in (baseline, reference) or own is None or low is None or high is None:
        return ""
    closed = gap_closed(own, baseline=low, reference=high)
    return UNDEFINED if closed is None else f"{100 * closed:.0f}"
