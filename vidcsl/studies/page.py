"""A study's figures as Markdown, JSON and a page: headline, charts and tables of each setting."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import stats

from vidcsl.io import write_atomically
from vidcsl.report.charts import COLOURS, Row, Spec, budget_title, line_chart, scatter_chart
from vidcsl.report.page import script, style_sheet, templates
from vidcsl.report.summary import UNDEFINED, Tree, attack_title, budget, by_budget, percent, plain

_FEW = 3  # seeds

_CLEAN = {
    "linear_top1": "linear",
    "own_head_top1": "own head",
    "knn_top1": "kNN",
    "retrieval_top1": "R@1",
    "corrupted": "corrupted",
    "corrupted_retained": "corrupted / clean",
    "flagged": "flagged",
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
_CAUSES = {
    "uniformity": "uniformity",
    "margin": "margin between classes",
    "same_class_similarity": "similarity within a class",
    "recall": "recall of the detector",
}
_EFFECTS = {"accuracy": "robust accuracy", "survival": "survival"}


def write_study(document: Mapping[str, Any], folder: Path) -> list[Path]:
    """`study.json`, `study.md` and `study.html` in a folder.

    Args:
        document: `{"name", "question", "notes": [texts], "settings": {name: as summarise}}`.
        folder: created if absent.
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
    blocks = [f"# {document['name']}\n"]
    if document["question"]:
        blocks.append(f"{document['question']}\n")
    if document["notes"]:
        blocks += [*(f"- {note}" for note in document["notes"]), ""]
    for setting, summary in document["settings"].items():
        if setting:
            blocks.append(f"## {setting}\n")
        blocks.append(" ".join(headline(summary)) + "\n")
        for table in tables(summary):
            blocks += [f"### {table.title}\n", f"{table.note}\n"]
            blocks.append(f"| {' | '.join(table.columns)} |")
            blocks.append(f"|{'---|' * len(table.columns)}")
            blocks += [f"| {' | '.join(cell.text for cell in row)} |" for row in table.rows]
            blocks.append("")
    return "\n".join(blocks)


def render(document: Tree) -> str:
    """The page as text; the same figures give the same text."""
    settings = []
    for name, summary in document["settings"].items():
        attacks = dict.fromkeys(a for arm in summary["arms"].values() for a in arm["attacks"])
        setting = {
            "name": name,
            "headline": headline(summary),
            "tables": list(tables(summary)),
            "curves": [chart for attack in attacks for chart in attack_charts(summary, attack)],
            "scatters": scatters(summary),
        }
        settings.append(setting)
    page = templates().get_template("study.html.j2")
    return page.render(
        name=document["name"],
        question=document["question"],
        notes=document["notes"],
        settings=settings,
        style=style_sheet(),
        script=script(),
    )


# ----------------------------------------------------------------------
# The headline: which arm keeps how much under attack, and how much of the gap is closed.


def headline(summary: Tree) -> list[str]:
    """The main result of a setting, a sentence each; none without an attack or a reference."""
    arms, baseline = summary["arms"], summary["baseline"]
    attack = next((name for name in arms[baseline]["attacks"]), None)
    if attack is None or not summary["references"]:
        return []
    reference = summary["references"][0]
    eps = halving_budget(summary, attack)
    if eps is None:
        return []
    sentences = _sentences_at(summary, attack, reference, eps)
    # How far the reference is ahead of the baseline at each budget that both have.
    gaps = {
        each: ahead - behind
        for each in arms[baseline]["attacks"][attack]["budgets"]
        if (ahead := _accuracy(arms[reference], attack, each)) is not None
        and (behind := _accuracy(arms[baseline], attack, each)) is not None
    }
    if gaps.get(eps, 1) > 0:
        return sentences
    widest = max(gaps, key=lambda each: gaps[each])
    if gaps[widest] <= 0:
        return [*sentences, "There is no gap to close."]
    return [
        *sentences,
        "There is no gap to close at that budget, but there is one at another.",
        *_sentences_at(summary, attack, reference, widest),
    ]


def halving_budget(summary: Tree, attack: str) -> str | None:
    """The budget at which the main reference has lost half of its clean accuracy, or the last."""
    for name in (*summary["references"], summary["baseline"]):
        found = summary["arms"][name]["attacks"].get(attack)
        if not found or not found["budgets"]:
            continue
        clean = (found["clean"] or {}).get("mean")
        for eps, entry in found["budgets"].items():
            if clean and entry["accuracy"] and entry["accuracy"]["mean"] <= clean / 2:
                return str(eps)
        return str(list(found["budgets"])[-1])
    return None


def _sentences_at(summary: Tree, attack: str, reference: str, eps: str) -> list[str]:
    """Accuracies at this budget, and the arm that closes most of the gap, if there is one."""
    arms, baseline = summary["arms"], summary["baseline"]
    shown = {
        name: found
        for name in (baseline, reference)
        if (found := _accuracy(arms[name], attack, eps)) is not None
    }
    kept = " and ".join(f"{name} keeps {percent(value)}" for name, value in shown.items())
    sentences = [f"Under {attack_title(attack)} at ε = {eps}, {kept}."]
    gaps = {}
    for name, arm in arms.items():
        towards = arm["attacks"].get(attack, {}).get("gap_closed", {})
        gap = towards.get(reference, {}).get(eps)
        if gap and gap["value"] is not None:
            gaps[name] = gap
    # A reference is named only where no other arm can be.
    gaps = {name: gap for name, gap in gaps.items() if name not in summary["references"]} or gaps
    if not gaps:
        return sentences
    best = max(gaps, key=lambda name: gaps[name]["value"])
    change = ""
    own, plain_arm = (arms[arm]["figures"].get("linear_top1") for arm in (best, baseline))
    if own and plain_arm:
        points = f"{100 * (own['mean'] - plain_arm['mean']):+.1f}".replace("-", "\u2212")
        change = f", with {points} points of clean accuracy"
    of = f", the most of {len(gaps)} arms," if len(gaps) > 1 else ""
    seeds = len(arms[best]["seeds"])
    sentences.append(
        f"{best} closes {gap_text(gaps[best])} of that gap{of} over {seeds} "
        f"seed{'s' if seeds > 1 else ''}{change}."
    )
    if not gaps[best]["interval"]:
        sentences.append("These seeds and videos are too few to be sure that there is a gap.")
    if seeds < _FEW:
        sentences.append(
            f"With fewer than {_FEW} seeds, the variation between training runs is unknown."
        )
    return sentences


def _accuracy(arm: Tree, attack: str, eps: str) -> float | None:
    entry = arm["attacks"].get(attack, {}).get("budgets", {}).get(eps)
    found: float | None = entry["accuracy"]["mean"] if entry and entry["accuracy"] else None
    return found


# ----------------------------------------------------------------------
# Tables: the same for Markdown and for the page.


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


def tables(summary: Tree) -> Iterator[Table]:
    """All tables of one setting, see `analysis.summarise`."""
    arms: Mapping[str, Any] = summary["arms"]
    yield _figures(
        arms,
        _CLEAN,
        "Clean, corrupted, flagged",
        "Per cent, mean ± standard deviation over seeds. Corrupted: mean accuracy over all "
        "corruptions and severities. Precision and recall of the flagged pairs, last epoch.",
    )
    for attack in dict.fromkeys(name for arm in arms.values() for name in arm["attacks"]):
        yield from _attack_tables(summary, attack)
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
    """ "47.1 ± 2.0"; empty where the figure is unknown."""
    if spread is None:
        return Cell("")
    text = f"{factor * spread['mean']:.{digits}f}"
    if spread["deviation"] is not None:
        text += f" ± {factor * spread['deviation']:.{digits}f}"
    return Cell(text.replace("-", "\u2212"), spread["mean"])


def gap_text(gap: Tree | None) -> str:
    """ "45 % [11, 80]"; "undefined" without a gap, "?" for an interval that has no ends."""
    if gap is None:
        return ""
    if gap["value"] is None:
        return UNDEFINED
    ends = ", ".join(f"{100 * edge:.0f}" for edge in gap["interval"]) if gap["interval"] else "?"
    return f"{100 * gap['value']:.0f} % [{ends}]".replace("-", "\u2212")


def _figures(
    arms: Tree,
    titles: Mapping[str, str],
    title: str,
    note: str,
    *,
    digits: int = 1,
    factor: float = 100,
) -> Table:
    used = [key for key in titles if any(key in arm["figures"] for arm in arms.values())]
    rows = []
    for name, arm in arms.items():
        cells = [Cell(name), Cell(str(len(arm["seeds"])), len(arm["seeds"]))]
        cells += [
            spread_cell(arm["figures"].get(key), digits=digits, factor=factor) for key in used
        ]
        rows.append(cells)
    return Table(title, note, ["arm", "seeds", *(titles[key] for key in used)], rows)


def _attack_tables(summary: Tree, attack: str) -> Iterator[Table]:
    """Accuracy, survival, the gap closed to each reference, and the tests against the baseline."""
    baseline, title = summary["baseline"], attack_title(attack)
    found = {
        name: arm["attacks"][attack]
        for name, arm in summary["arms"].items()
        if attack in arm["attacks"]
    }
    known = {eps: 0.0 for each in found.values() for eps in each["budgets"]}
    budgets = [eps for _, eps, _ in by_budget(known)]
    specs = "; ".join(sorted({spec for each in found.values() for spec in each["words"]}))
    clips = sorted({clips for each in found.values() for clips in each["clips"]})
    settings = f"`{specs}` on {' or '.join(map(str, clips))} clips a run." if specs else ""

    def spreads(each: Tree, key: str) -> list[Cell]:
        return [spread_cell(each["budgets"].get(eps, {}).get(key)) for eps in budgets]

    yield Table(
        f"{title}: accuracy",
        f"Per cent, mean ± standard deviation over seeds. {settings}",
        ["arm", "clean", *budgets],
        [
            [Cell(name), spread_cell(each["clean"]), *spreads(each, "accuracy")]
            for name, each in found.items()
        ],
    )
    yield Table(
        f"{title}: survival",
        "Per cent of the clips predicted correctly when clean that stay correct.",
        ["arm", *budgets],
        [[Cell(name), *spreads(each, "survival")] for name, each in found.items()],
    )
    for reference in summary["references"]:
        rows = []
        for name, each in found.items():
            if gaps := each["gap_closed"].get(reference):
                cells = [(gap_text(gap), gap) for gap in (gaps.get(eps) for eps in budgets)]
                rows.append([Cell(name), *(Cell(t, g["value"] if g else None) for t, g in cells)])
        if rows:
            yield Table(
                f"{title}: gap to {reference} that is closed",
                f"(R − R of {baseline}) / (R of {reference} − R of {baseline}), of accuracies over "
                "the seeds that all three have; in brackets 95 % of draws of seeds and videos, "
                "? where these are too few to be sure that there is a gap; undefined where "
                f"{reference} is not better.",
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
            "generalises to other videos, not to other training runs.",
            ["arm", *conditions],
            rows,
        )


def _test_cell(entry: Tree | None) -> Cell:
    if not entry:
        return Cell("")
    low, high = (f"{100 * edge:.1f}" for edge in entry["interval"])
    shown = "p < 0.001" if entry["p_adjusted"] < 0.001 else f"p = {entry['p_adjusted']:.3f}"
    text = f"{100 * entry['difference']:+.1f} [{low}, {high}], {shown}"
    return Cell(text.replace("-", "\u2212"), entry["difference"])


# ----------------------------------------------------------------------
# Charts: curves with bands over seeds, geometry against robustness.


def looks(arms: Sequence[str]) -> dict[str, tuple[str, bool]]:
    """Colour of each arm, the same in all charts, and whether dashed: from the ninth arm on."""
    return {name: (COLOURS[i % len(COLOURS)], i >= len(COLOURS)) for i, name in enumerate(arms)}


def attack_charts(summary: Tree, attack: str) -> list[tuple[str, Spec]]:
    """Accuracy and survival of the arms against the budget; the band is one deviation."""
    found = {
        name: arm["attacks"][attack]
        for name, arm in summary["arms"].items()
        if attack in arm["attacks"]
    }
    keys = list(dict.fromkeys(eps for each in found.values() for eps in each["budgets"]))
    sizes = [size for key in keys if (size := budget(key)) is not None and size > 0]
    if not sizes or len(found) < 2:  # a single curve adds nothing to the table
        return []
    title, charts = attack_title(attack), []
    for key in ("accuracy", "survival"):
        rows: list[Row] = []
        for name, each in found.items():
            clean: Tree | None = {"mean": 1.0, "deviation": None}
            if key == "accuracy":
                clean = each["clean"]
            points: list[tuple[float, Tree | None]] = [(0.0, clean)] + [
                (size, entry[key])
                for eps, entry in each["budgets"].items()
                if (size := budget(eps)) is not None
            ]
            for size, spread in points:
                row: Row = {"x": size, "y": None, "series": name, "low": None, "high": None}
                if spread:
                    mean, half = spread["mean"], spread["deviation"] or 0.0
                    row |= {"y": mean, "low": max(0.0, mean - half), "high": min(1.0, mean + half)}
                rows.append(row)
        chart = line_chart(
            rows,
            f"{key.capitalize()} of each arm under {title} against the budget; the tables have "
            "the numbers.",
            x=budget_title(keys),
            y="fraction of clips",
            of="arm",
            per_cent=True,
            budgets=[0.0, *sorted(sizes)],
            looks=looks(list(summary["arms"])),
        )
        charts.append((f"{title}: {key}", chart))
    return charts


def scatters(summary: Tree) -> list[tuple[str, str, Spec]]:
    """(title, note, chart): one point per run, geometry against robustness."""
    attack = next(iter(summary["arms"][summary["baseline"]]["attacks"]), None)
    eps = halving_budget(summary, attack) if attack else None
    if attack is None or eps is None:
        return []
    charts = []
    for cause, cause_title in _CAUSES.items():
        for effect, effect_title in _EFFECTS.items():
            rows: list[Row] = []
            for name, arm in summary["arms"].items():
                xs = (arm["figures"].get(cause) or {}).get("values", {})
                entry = arm["attacks"].get(attack, {}).get("budgets", {}).get(eps, {})
                ys = (entry.get(effect) or {}).get("values", {})
                rows += [
                    {"x": xs[seed], "y": ys[seed], "series": name, "seed": str(seed)}
                    for seed in xs
                    if seed in ys
                ]
            if len({row["x"] for row in rows}) < 3:
                continue
            # Ranks: the relation need not be linear, and a collapsed run lies far from the rest.
            rank = stats.spearmanr([row["x"] for row in rows], [row["y"] for row in rows])
            title = f"{effect_title.capitalize()} against {cause_title}"
            note = (
                f"One point per run, {attack_title(attack)} at ε = {eps}. Rank correlation over "
                f"{len(rows)} runs: {plain(round(float(rank.statistic), 2))}. The arms differ in "
                "more than this; a correlation is no proof of a cause."
            )
            chart = scatter_chart(
                rows,
                f"{title}, one point per run.",
                x=cause_title,
                y="fraction of clips",
                looks=looks(list(summary["arms"])),
            )
            charts.append((title, note, chart))
    return charts
