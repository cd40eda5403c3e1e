"""A study's figures as Markdown, JSON and a page: headline, charts and tables of each setting."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any
from urllib.parse import quote

from scipy import stats

from vidcsl.io import write_atomically
from vidcsl.report.charts import COLOURS, Row, Spec, budget_title, line_chart, scatter_chart
from vidcsl.report.page import script, style_sheet, templates
from vidcsl.report.summary import UNDEFINED, Tree, attack_title, budget, by_budget, percent, plain

_FEW = 3  # seeds
_FEWEST_POINTS = 10  # of a scatter plot: fewer runs show no relation, and their table is shorter

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
    "participation_ratio": "participation ratio",
    "class_variance": "class variance",
    "lidar": "LiDAR",
}
_CAUSES = {
    "uniformity": "uniformity",
    "margin": "margin between classes",
    "class_variance": "variance in the directions of the classes",
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
        "study.html": render(document, folder=folder),
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
        settings = options_table(summary)
        for table in (*([settings] if settings else []), *tables(summary)):
            blocks += [f"### {table.title}\n", f"{table.note}\n"]
            blocks.append(f"| {' | '.join(table.columns)} |")
            blocks.append(f"|{'---|' * len(table.columns)}")
            blocks += [f"| {' | '.join(cell.line for cell in row)} |" for row in table.rows]
            blocks.append("")
    return "\n".join(blocks)


def render(document: Tree, *, folder: Path) -> str:
    """The page as text; the same figures give the same text.

    Args:
        document: as for `write_study`.
        folder: where the page will lie, from which it links the runs' reports.
    """
    settings = []
    for name, summary in document["settings"].items():
        attacks = dict.fromkeys(a for arm in summary["arms"].values() for a in arm["attacks"])
        setting = {
            "name": name,
            "headline": headline(summary),
            "options": options_table(summary),
            "shared": {
                key: shown_values(values) for key, values in summary["options"]["shared"].items()
            },
            "reports": {arm: report_links(found, folder) for arm, found in summary["arms"].items()},
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
    """What a setting's numbers say of the gap, a sentence each, or why they say nothing.

    Empty where no baseline is named: nobody asked for a gap.
    """
    arms, baseline = summary["arms"], summary["baseline"]
    if not baseline:
        return []
    if not summary["references"]:
        return ["No gap is known: no reference has results."]
    reference = summary["references"][0]
    attack = next(iter(arms[baseline]["attacks"]), None)
    if attack is None:
        return [f"No gap is known: {baseline} was not attacked."]
    # How far the reference is ahead of the baseline at each budget, over the seeds of both.
    gaps = {
        eps: fmean(high.values()) - fmean(low.values())
        for eps in arms[baseline]["attacks"][attack]["budgets"]
        for low, high in [_of_common_seeds(summary, (baseline, reference), attack, eps)]
        if low
    }
    eps = halving_budget(summary, attack)
    if eps is None or eps not in gaps:
        return [f"No gap is known: {baseline} and {reference} share no seed and budget."]
    sentences = _sentences_at(summary, attack, reference, eps)
    if gaps[eps] > 0:
        return sentences
    widest = max(gaps, key=lambda each: gaps[each])
    if gaps[widest] <= 0:
        return [*sentences, "There is no gap to close, at this budget or any other."]
    return [
        *sentences,
        "There is no gap to close at that budget; the widest one is at another.",
        *_sentences_at(summary, attack, reference, widest),
    ]


def halving_budget(summary: Tree, attack: str) -> str | None:
    """The budget at which the main reference has lost half of its clean accuracy, or the last.

    Without references, of the baseline; without that, of the first arm that was attacked.
    """
    for name in filter(None, (*summary["references"], summary["baseline"], *summary["arms"])):
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
    """Accuracies at this budget, and how much of the gap the arms close, if there is one."""
    arms, baseline = summary["arms"], summary["baseline"]
    low, high = _of_common_seeds(summary, (baseline, reference), attack, eps)
    kept = [
        f"{name} keeps {percent(fmean(of.values()))}"
        for name, of in ((baseline, low), (reference, high))
    ]
    ahead = sum(high[seed] > low[seed] for seed in low)
    of_seeds = f" ({reference} is ahead in {ahead} of {len(low)} seeds)" if len(low) > 1 else ""
    sentences = [f"Under {attack_title(attack)} at ε = {eps}, {' and '.join(kept)}{of_seeds}."]
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
    gap = gaps[best]
    seeds = {seed: value for seed, value in gap["by_seed"].items() if value is not None}
    change = ""
    own, plain_arm = (
        (arms[arm]["figures"].get("linear_top1") or {}).get("values", {})
        for arm in (best, baseline)
    )
    if both := [seed for seed in gap["by_seed"] if seed in own and seed in plain_arm]:
        points = 100 * fmean(own[seed] - plain_arm[seed] for seed in both)
        change = f", with {points:+.1f} points of clean accuracy".replace("-", "\u2212")
    count = len(gap["by_seed"])
    if gap["paired"] and not gap["interval"]:
        return [
            *sentences,
            "These seeds and videos are too few to be sure that there is a gap, so that nothing "
            "can be said of closing it.",
        ]
    some = gap_text(gap) if gap["value"] > 0 else f"none ({gap_text(gap)})"
    of = f", the most of {len(gaps)} arms," if len(gaps) > 1 else ""
    sentences.append(
        f"{best} closes {some} of that gap{of} over {count} seed{'s' if count > 1 else ''}{change}."
    )
    if count > 1:
        sentences.append(
            f"It closes some of it in {sum(value > 0 for value in seeds.values())} of the "
            f"{len(seeds)} seeds that have a gap."
        )
    if not gap["paired"]:
        sentences.append(
            "There is no interval, because the outcome of each video is not known for all of "
            "these runs."
        )
    elif gap["interval"][0] <= 0 < gap["value"]:
        sentences.append("The interval reaches 0: it is not certain that any of the gap closes.")
    if len(gaps) > 1:
        others = [
            f"{name} {gap_text(each)}"
            for name, each in sorted(gaps.items(), key=lambda pair: -pair[1]["value"])
            if name != best and each["interval"] and each["interval"][0] > 0
        ]
        sentences.append(
            f"With an interval above 0: {', '.join(others)}."
            if others
            else "No other arm has an interval above 0."
        )
        sentences.append("The figure of the best of several arms tends to be too high.")
    if count < _FEW:
        sentences.append(
            f"With fewer than {_FEW} seeds, the variation between training runs is unknown."
        )
    return sentences


def _of_common_seeds(
    summary: Tree, names: Sequence[str], attack: str, eps: str
) -> list[dict[int, float]]:
    """Accuracy by seed of each arm, over the seeds that all of them have."""
    found = []
    for name in names:
        entry = summary["arms"][name]["attacks"].get(attack, {}).get("budgets", {}).get(eps) or {}
        found.append((entry.get("accuracy") or {}).get("values", {}))
    seeds = sorted(set.intersection(*map(set, found)))
    return [{seed: each[seed] for seed in seeds} for each in found]


# ----------------------------------------------------------------------
# Tables: the same for Markdown and for the page.


@dataclass(frozen=True)
class Cell:
    """A text, the number by which a column is sorted (None: last), and a note below the text."""

    text: str
    value: float | None = None
    note: str = ""

    @property
    def line(self) -> str:
        """Text and note in one line."""
        return ", ".join(filter(None, (self.text, self.note)))


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
    known = {key for arm in arms.values() for key in arm["figures"]}
    meanings = {
        "corrupted": "Corrupted: mean accuracy over all corruptions and severities.",
        "recall": "Precision and recall of the flagged pairs, last epoch.",
    }
    notes = [meaning for key, meaning in meanings.items() if key in known]
    yield _figures(
        arms,
        _CLEAN,
        "Clean, corrupted, flagged",
        " ".join(["Per cent, mean ± standard deviation over seeds.", *notes]),
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
        "Of unit vectors. Margin: cosine to the centre of the own class less that to the nearest "
        "other one.",
        digits=3,
        factor=1,
    )


def options_table(summary: Tree) -> Table | None:
    """The options in which arms differ, one column each; None where no run's config is known."""
    differing = summary["options"]["differing"]
    keys = list(next(iter(differing.values())))
    if not keys:
        return None
    return Table(
        "What each arm sets",
        "The options in which arms differ, as each run's own config has them: inherited values, "
        "defaults and the command line included. Everything else is the same for all.",
        ["arm", *keys],
        [
            [Cell(arm), *(Cell(shown_values(values[key])) for key in keys)]
            for arm, values in differing.items()
        ],
    )


def shown_values(values: Sequence[Any]) -> str:
    """An option's value; where seeds have values of their own, all of them."""
    texts = (json.dumps(value, ensure_ascii=False) for value in values)
    return " or ".join(text.strip('"') for text in texts)


def report_links(arm: Tree, folder: Path) -> list[tuple[int, str | None]]:
    """(seed, address of its report, from a page in `folder`; None where there is none)."""
    links: list[tuple[int, str | None]] = []
    for seed, run in zip(arm["seeds"], arm["folders"], strict=True):
        report = Path(run) / "report.html"
        known = report.is_file()
        links.append(
            (seed, quote(Path(os.path.relpath(report, folder)).as_posix()) if known else None)
        )
    return links


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
    text = f"{100 * entry['difference']:+.1f} [{low}, {high}]".replace("-", "\u2212")
    return Cell(text, entry["difference"], shown)


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
    """(title, note, chart): one point per run, geometry against robustness; none of few runs."""
    shown = [summary["baseline"]] if summary["baseline"] else summary["arms"]
    attack = next((name for arm in shown for name in summary["arms"][arm]["attacks"]), None)
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
            if len(rows) < _FEWEST_POINTS or len({row["x"] for row in rows}) < 3:
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
