"""The tables of a study: the same for Markdown and for the page."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vidcsl.report.summary import UNDEFINED, Tree, attack_title, by_budget


@dataclass(frozen=True)
class Cell:
    """A text, and the number by which a column is sorted (None: last)."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first of each row is its name."""

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


_CLEAN = {
    "linear_top1": "linear",
    "own_head_top1": "own head",
    "knn_top1": "kNN",
    "retrieval_top1": "R@1",
    "corrupted": "corrupted",
    "corrupted_retained": "corrupted / clean",
    "removed": "flagged",
    "precision": "precision",
    "recall": "recall",
}
_GEOMETRY = {
    "alignment": "alignment",
    "uniformity": "uniformity",
    "same_class_similarity": "same class",
    "other_class_similarity": "other class",
    "margin": "margin",
    "effective_rank": "effective rank",
}


def tables(summary: Tree) -> Iterator[Table]:
    """All tables of one setting, see `summary.summarise`."""
    arms: Mapping[str, Any] = summary["arms"]
    yield _figures(
        arms,
        _CLEAN,
        "Clean, corrupted, flagged",
        "Per cent, mean ± standard deviation over seeds. Corrupted: mean accuracy over all "
        "corruptions and severities. Precision and recall of the flagged pairs, last epoch.",
    )
    for attack in dict.fromkeys(name for arm in arms.values() for name in arm["attacks"]):
        yield from _attack(summary, attack)
    categories = list(dict.fromkeys(name for arm in arms.values() for name in arm["corruptions"]))
    if categories:
        yield Table(
            "Under corruptions, by suite and category",
            "Accuracy in per cent, mean ± standard deviation over seeds.",
            ["arm", *(name.replace("_", " ") for name in categories)],
            [
                [Cell(name), *(spread_cell(arm["corruptions"].get(each)) for each in categories)]
                for name, arm in arms.items()
            ],
        )
    yield _figures(
        arms,
        _GEOMETRY,
        "Geometry of the test features",
        "Unit vectors. Margin: see docs/design.md.",
        digits=3,
        factor=1,
    )


def spread_cell(spread: Tree | None, *, digits: int = 1, factor: float = 100) -> Cell:
    """ "47.1 ± 2.0"; empty where nothing is known."""
    if spread is None:
        return Cell("")
    text = f"{factor * spread['mean']:.{digits}f}"
    if spread["deviation"] is not None:
        text += f" ± {factor * spread['deviation']:.{digits}f}"
    return Cell(text.replace("-", "\u2212"), spread["mean"])


def gap_text(gap: Tree | None) -> str:
    """ "45 % [11, 80]"; "undefined" where there is no gap, "?" for an interval that has no ends."""
    if gap is None:
        return ""
    if gap["value"] is None:
        return UNDEFINED
    low_high = "?"
    if gap["interval"]:
        low_high = ", ".join(f"{100 * edge:.0f}" for edge in gap["interval"])
    return f"{100 * gap['value']:.0f} % [{low_high}]".replace("-", "\u2212")


def _figures(arms: Tree, titles: Mapping[str, str], title: str, note: str, **form: Any) -> Table:
    used = [key for key in titles if any(key in arm["figures"] for arm in arms.values())]
    rows = [
        [
            Cell(name),
            Cell(str(len(arm["seeds"])), len(arm["seeds"])),
            *(spread_cell(arm["figures"].get(key), **form) for key in used),
        ]
        for name, arm in arms.items()
    ]
    return Table(title, note, ["arm", "seeds", *(titles[key] for key in used)], rows)


def _attack(summary: Tree, attack: str) -> Iterator[Table]:
    arms = {name: arm for name, arm in summary["arms"].items() if attack in arm["attacks"]}
    found = {name: arm["attacks"][attack] for name, arm in arms.items()}
    joined = {eps: 0.0 for each in found.values() for eps in each["budgets"]}
    budgets = [eps for _, eps, _ in by_budget(joined)]
    words = "; ".join(sorted({word for each in found.values() for word in each["words"]}))
    clips = sorted({clips for each in found.values() for clips in each["clips"]})
    title = attack_title(attack)
    told = f"`{words}` on {' or '.join(map(str, clips))} clips a run." if words else ""

    def rows(key: str, first: bool) -> list[list[Cell]]:
        return [
            [
                Cell(name),
                *([spread_cell(each["clean"])] if first else []),
                *(spread_cell(each["budgets"].get(eps, {}).get(key)) for eps in budgets),
            ]
            for name, each in found.items()
        ]

    yield Table(
        f"{title}: accuracy",
        f"Per cent, mean ± standard deviation over seeds. {told}",
        ["arm", "clean", *budgets],
        rows("accuracy", True),
    )
    yield Table(
        f"{title}: survival",
        "Of the clips that are right when clean, per cent that stay right.",
        ["arm", *budgets],
        rows("survival", False),
    )
    yield from _gaps(summary, found, budgets, title)


def _gaps(summary: Tree, found: Tree, budgets: Sequence[str], title: str) -> Iterator[Table]:
    baseline = summary["baseline"]
    for reference in summary["references"]:
        gaps = {name: each["gap_closed"].get(reference, {}) for name, each in found.items()}
        rows = [
            [Cell(name), *(_gap_cell(row.get(eps)) for eps in budgets)]
            for name, row in gaps.items()
            if row
        ]
        if rows:
            yield Table(
                f"{title}: gap to {reference} that is closed",
                f"(R − R of {baseline}) / (R of {reference} − R of {baseline}), of accuracies over "
                "the seeds that all three have; in brackets 95 % of draws of seeds and videos, "
                "? where these do not settle that there is a gap at all; undefined where "
                f"{reference} is not ahead.",
                ["arm", *budgets],
                rows,
            )
    conditions = ["clean", *budgets]
    rows = [
        [Cell(name), *(_test_cell(each["against_baseline"].get(at)) for at in conditions)]
        for name, each in found.items()
        if each["against_baseline"]
    ]
    if rows:
        yield Table(
            f"{title}: against {baseline}, video by video",
            "Difference of accuracy in points, in brackets 95 % of draws of seeds and videos, and "
            "p of a paired test over videos (McNemar's exact test; randomisation where several "
            "seeds share videos), adjusted over all arms and budgets (Benjamini and Hochberg). It "
            "asks about other videos, not about other trainings.",
            ["arm", *conditions],
            rows,
        )


def _gap_cell(gap: Tree | None) -> Cell:
    return Cell(gap_text(gap), gap["value"] if gap else None)


def _test_cell(entry: Tree | None) -> Cell:
    if not entry:
        return Cell("")
    low, high = (f"{100 * edge:.1f}" for edge in entry["interval"])
    shown = "p < 0.001" if entry["p_adjusted"] < 0.001 else f"p = {entry['p_adjusted']:.3f}"
    text = f"{100 * entry['difference']:+.1f} [{low}, {high}], {shown}"
    return Cell(text.replace("-", "\u2212"), entry["difference"])
