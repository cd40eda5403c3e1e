"""A study's page, tables, charts and sentences."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from scipy import stats

from vidcsl.io import write_atomically
from vidcsl.report.charts import Axis, Chart, Series, linear_axis
from vidcsl.report.page import TEMPLATES, templates
from vidcsl.report.summary import (
    UNDEFINED,
    Tree,
    attack_title,
    budget,
    by_budget,
    number,
    percent,
    plain,
)

# ----------------------------------------------------------------------
# The tables of a study: the same for Markdown and for the page.


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


# ----------------------------------------------------------------------
# What a study says first, in words.

_FEW = 3  # seeds


def headline(summary: Tree) -> list[str]:
    """What is to be said first, a sentence each."""
    arms, baseline = summary["arms"], summary["baseline"]
    attack = next((name for name in arms[baseline]["attacks"]), None)
    if attack is None or not summary["references"]:
        return []
    reference = summary["references"][0]
    eps = telling(summary, attack)
    if eps is None:
        return []
    sentences = _at(summary, attack, reference, eps)
    gaps = _sentences_gaps(summary, attack, reference)
    if gaps.get(eps, 1) > 0:
        return sentences
    widest = max(gaps, key=lambda each: gaps[each])
    if gaps[widest] <= 0:
        return [*sentences, "There is no gap to close."]
    return [
        *sentences,
        "There is no gap to close at that budget; elsewhere there is one.",
        *_at(summary, attack, reference, widest),
    ]


def _at(summary: Tree, attack: str, reference: str, eps: str) -> list[str]:
    """Who keeps how much at this budget, and which arm closes most of the gap, if there is one."""
    arms, baseline = summary["arms"], summary["baseline"]
    shown = {
        name: found
        for name in (baseline, reference)
        if (found := _accuracy(arms[name], attack, eps)) is not None
    }
    sentences = [
        f"Under {attack_title(attack)} at ε = {eps}, "
        + " and ".join(f"{name} keeps {percent(value)}" for name, value in shown.items())
        + "."
    ]
    best = _best(summary, attack, eps, reference)
    if best is None:
        return sentences
    name, gap, count = best
    seeds = len(arms[name]["seeds"])
    of = f", the most of {count} arms," if count > 1 else ""
    sentences.append(
        f"{name} closes {gap_text(gap)} of that gap{of} over {seeds} "
        f"seed{'s' if seeds > 1 else ''}{_clean_change(arms, name, baseline)}."
    )
    if not gap["interval"]:
        sentences.append("So few seeds and videos do not settle that there is a gap.")
    if seeds < _FEW:
        sentences.append(
            f"With fewer than {_FEW} seeds, how far other trainings differ is not known."
        )
    return sentences


def _sentences_gaps(summary: Tree, attack: str, reference: str) -> dict[str, float]:
    """How far the reference is ahead of the baseline at each budget that both were tried at."""
    ahead, behind = summary["arms"][reference], summary["arms"][summary["baseline"]]
    return {
        eps: found - other
        for eps in behind["attacks"][attack]["budgets"]
        if (found := _accuracy(ahead, attack, eps)) is not None
        and (other := _accuracy(behind, attack, eps)) is not None
    }


def _accuracy(arm: Tree, attack: str, eps: str) -> float | None:
    entry = arm["attacks"].get(attack, {}).get("budgets", {}).get(eps)
    found: float | None = entry["accuracy"]["mean"] if entry and entry["accuracy"] else None
    return found


def telling(summary: Tree, attack: str) -> str | None:
    """The budget at which the main reference has lost half of its clean accuracy, or the last."""
    arms = summary["arms"]
    for name in (*summary["references"], summary["baseline"]):
        found = arms[name]["attacks"].get(attack)
        if not found or not found["budgets"]:
            continue
        clean = (found["clean"] or {}).get("mean")
        for eps, entry in found["budgets"].items():
            if clean and entry["accuracy"] and entry["accuracy"]["mean"] <= clean / 2:
                return str(eps)
        return str(list(found["budgets"])[-1])
    return None


def _best(
    summary: Tree, attack: str, eps: str, reference: str
) -> tuple[str, Mapping[str, Any], int] | None:
    """The arm that closes most of the gap, and of how many; a reference where there is no other."""
    found = {
        name: gap
        for name, arm in summary["arms"].items()
        if (gap := _gap(arm, attack, reference, eps)) and gap["value"] is not None
    }
    arms = {name: gap for name, gap in found.items() if name not in summary["references"]} or found
    if not arms:
        return None
    best = max(arms, key=lambda name: arms[name]["value"])
    return best, arms[best], len(arms)


def _gap(arm: Tree, attack: str, reference: str, eps: str) -> Mapping[str, Any] | None:
    gaps: Mapping[str, Any] = arm["attacks"].get(attack, {}).get("gap_closed", {})
    return gaps.get(reference, {}).get(eps)


def _clean_change(arms: Tree, name: str, baseline: str) -> str:
    one, other = (arms[arm]["figures"].get("linear_top1") for arm in (name, baseline))
    if not one or not other:
        return ""
    change = 100 * (one["mean"] - other["mean"])
    return f", with {change:+.1f} points of clean accuracy".replace("-", "\u2212")


# ----------------------------------------------------------------------
# The pictures of a study: curves with bands over seeds, geometry against robustness.

TONES = "abcdefgh"


def tones(arms: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and look of each arm, the same in all pictures; dashed from the ninth on."""
    return {
        name: (TONES[i % len(TONES)], "dashed" if i >= len(TONES) else "")
        for i, name in enumerate(arms)
    }


def attack_charts(summary: Tree, attack: str) -> list[tuple[str, Chart]]:
    """Accuracy and survival of the arms against the budget; the band is one deviation."""
    arms = {name: arm for name, arm in summary["arms"].items() if attack in arm["attacks"]}
    found = {name: arm["attacks"][attack] for name, arm in arms.items()}
    keys = list(dict.fromkeys(eps for each in found.values() for eps in each["budgets"]))
    sizes = [size for key in keys if (size := budget(key)) is not None and size > 0]
    if not sizes or len(found) < 2:  # a curve alone, as of a supervised model's own head: a table
        return []
    looks = tones(list(summary["arms"]))
    charts = []
    for key, title in (("accuracy", "Accuracy"), ("survival", "Survival")):
        lines = [_line(name, each, key, looks[name]) for name, each in found.items()]
        values = [end for line in lines for pair in line.band if pair for end in pair]
        charts.append(
            (
                f"{attack_title(attack)}: {title.lower()}",
                Chart(
                    f"{title} of each arm under {attack_title(attack)} against the budget; the "
                    "tables have the numbers.",
                    _budget_axis(keys, sizes),
                    linear_axis("share of clips", [*values, 0.0], text=_per_cent),
                    lines,
                ),
            )
        )
    return charts


def _line(name: str, found: Tree, key: str, look: tuple[str, str]) -> Series:
    points: list[tuple[float, str, Tree | None]] = [(0.0, "0", found["clean"])]
    if key == "survival":
        points = [(0.0, "0", {"mean": 1.0, "deviation": None})]
    points += [
        (size, eps, entry[key])
        for eps, entry in found["budgets"].items()
        if (size := budget(eps)) is not None
    ]
    return Series(
        name,
        [size for size, _, _ in points],
        [spread["mean"] if spread else None for _, _, spread in points],
        tone=look[0],
        look=look[1],
        band=[_band(spread) for _, _, spread in points],
        notes=[
            f"{name}, ε = {eps}: {percent(spread['mean']) if spread else 'unknown'}"
            for _, eps, spread in points
        ],
    )


def _band(spread: Tree | None) -> tuple[float, float] | None:
    if not spread:
        return None
    half = spread["deviation"] or 0.0
    return max(0.0, spread["mean"] - half), min(1.0, spread["mean"] + half)


def _budget_axis(keys: Sequence[str], sizes: Sequence[float]) -> Axis:
    least = min(sizes)
    in_255 = all(key.endswith("/255") for key in keys)
    return Axis(
        "ε, in 1/255 of the pixel range" if in_255 else "ε",
        [0.0, *sizes],
        0.0,
        max(sizes),
        scale=lambda eps: math.log1p(eps / least),
    )


_CAUSES = {
    "uniformity": "uniformity",
    "margin": "margin between classes",
    "same_class_similarity": "similarity within a class",
    "recall": "share of the false negatives found",
}
_EFFECTS = {"accuracy": "robust accuracy", "survival": "survival"}


def scatters(summary: Tree) -> list[tuple[str, str, Chart]]:
    """(title, what is to be seen, chart): a point a run, geometry against robustness."""
    baseline = summary["arms"][summary["baseline"]]
    attack = next(iter(baseline["attacks"]), None)
    eps = telling(summary, attack) if attack else None
    if attack is None or eps is None:
        return []
    looks = tones(list(summary["arms"]))
    found = []
    for cause, cause_title in _CAUSES.items():
        for effect, effect_title in _EFFECTS.items():
            points = {
                name: pairs
                for name, arm in summary["arms"].items()
                if (pairs := _pairs(arm, cause, attack, eps, effect))
            }
            everyone = [pair for pairs in points.values() for pair in pairs]
            if len({x for x, _, _ in everyone}) < 3:
                continue
            rank = stats.spearmanr([x for x, _, _ in everyone], [y for _, y, _ in everyone])
            lines = [
                Series(
                    name,
                    [x for x, _, _ in pairs],
                    [y for _, y, _ in pairs],
                    tone=looks[name][0],
                    look="scatter",
                    notes=[
                        f"{name}, seed {seed}: {plain(x)}, {percent(y)}" for x, y, seed in pairs
                    ],
                )
                for name, pairs in points.items()
            ]
            found.append(
                (
                    f"{effect_title.capitalize()} against {cause_title}",
                    f"A point a run, {attack_title(attack)} at ε = {eps}. Rank correlation over "
                    f"{len(everyone)} runs: {plain(round(float(rank.statistic), 2))}. The arms "
                    "differ in more than this; a correlation is no proof of a cause.",
                    Chart(
                        f"{effect_title} against {cause_title}, a point a run.",
                        linear_axis(cause_title, [x for x, _, _ in everyone], zero=False),
                        linear_axis("share of clips", [y for _, y, _ in everyone], text=_per_cent),
                        lines,
                    ),
                )
            )
    return found


def _pairs(
    arm: Mapping[str, Any], cause: str, attack: str, eps: str, effect: str
) -> list[tuple[float, float, str]]:
    causes = (arm["figures"].get(cause) or {}).get("values", {})
    entry = arm["attacks"].get(attack, {}).get("budgets", {}).get(eps, {})
    effects = (entry.get(effect) or {}).get("values", {})
    return [(causes[seed], effects[seed], str(seed)) for seed in causes if seed in effects]


def _per_cent(share: float) -> str:
    return f"{100 * share:g}\u202f%"


# ----------------------------------------------------------------------
# A study's figures as Markdown, JSON and a page.


def write_study(document: Mapping[str, Any], folder: Path) -> list[Path]:
    """`study.json`, `study.md` and `study.html` in a folder.

    Args:
        document: `{"name", "question", "notes": [texts], "settings": {name: as summarise}}`.
        folder: made if need be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "study.json": json.dumps(document, indent=1) + "\n",
        "study.md": markdown(document),
        "study.html": render(document),
    }
    for name, text in texts.items():
        write_atomically(folder / name, text)
    return [folder / name for name in texts]


def markdown(document: Tree) -> str:
    """All tables, under a heading for each setting."""
    return "\n".join(_blocks(document))


def _blocks(document: Tree) -> Iterator[str]:
    yield f"# {document['name']}\n"
    if document["question"]:
        yield f"{document['question']}\n"
    for note in document["notes"]:
        yield f"- {note}"
    if document["notes"]:
        yield ""
    for setting, summary in document["settings"].items():
        if setting:
            yield f"## {setting}\n"
        yield " ".join(headline(summary)) + "\n"
        for table in tables(summary):
            yield f"### {table.title}\n"
            yield f"{table.note}\n"
            yield from _lines(table)
            yield ""


def _lines(table: Table) -> Iterator[str]:
    yield f"| {' | '.join(table.columns)} |"
    yield f"|{'---|' * len(table.columns)}"
    for row in table.rows:
        yield f"| {' | '.join(cell.text for cell in row)} |"


def render(document: Tree) -> str:
    """The page as text; the same figures give the same text."""
    environment = templates()
    environment.filters.update(number=number)
    return environment.get_template("study.html.j2").render(
        name=document["name"],
        question=document["question"],
        notes=document["notes"],
        settings=[_setting(name, each) for name, each in document["settings"].items()],
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup((TEMPLATES / "report.js").read_text(encoding="utf-8")),
    )


def _setting(name: str, summary: Tree) -> dict[str, Any]:
    attacks = dict.fromkeys(a for arm in summary["arms"].values() for a in arm["attacks"])
    return {
        "name": name,
        "headline": headline(summary),
        "tables": list(tables(summary)),
        "curves": [chart for attack in attacks for chart in attack_charts(summary, attack)],
        "scatters": scatters(summary),
    }


# ----------------------------------------------------------------------
# Many runs side by side: tables, tests and a page, made from the runs' folders alone.
