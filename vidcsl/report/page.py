"""A run's page: one self-contained HTML file, made only from the files of the run's folder.

The files are read and checked (files.py), put into words (summary.py), charts (charts.py, maps.py)
and pictures (pictures.py), and filled into the templates.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from vidcsl.errors import UserError
from vidcsl.io import replacing
from vidcsl.report import charts, summary
from vidcsl.report.maps import read_maps
from vidcsl.report.pictures import (
    AttackPicture,
    read_attack_picture,
    read_corrupted,
    read_pairs,
)
from vidcsl.report.summary import (
    Tree,
    number,
    read_log,
    read_mapping,
    read_results,
    read_text,
)

TEMPLATES = Path(__file__).parent / "templates"

_MOST_BUDGETS = 5  # columns of the table of classes, curves of the perturbation's chart
_MOST_CLASSES = 20  # a longer table is folded up
_CLASS_COUNTS = ("clips", "clean", "mistaken_for")  # columns that are no budgets


def templates() -> Environment:
    """The templates of all pages; texts are escaped, and a name that is not given is an error."""
    # Class names, file names and configs are anyone's text: without autoescape they were markup.
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=summary.percent,
        plain=summary.plain,
        duration=summary.duration,
        number=number,
        words=lambda name: str(name).replace("_", " "),
        embedded=charts.embedded,
        code=_code,
        columns=columns,
        ends_text=summary.ends_text,
    )
    environment.globals.update(chart_library=charts.library)
    return environment


def columns(count: int, most: int) -> int:
    """In how many columns `count` cards stand, at most `most`, so that the last row is fullest."""
    few = range(max(1, most // 2 + 1), max(1, min(count, most)) + 1) or [max(1, count)]
    return max(few, key=lambda each: ((count % each or each) / each, each))


def _code(text: str) -> Markup:
    """A text with what stands between backticks as code, all escaped."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def style_sheet() -> Markup:
    """The style of all pages."""
    return Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))


def script() -> Markup:
    """The script of the pages with tables."""
    return Markup((TEMPLATES / "report.js").read_text(encoding="utf-8"))


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run's folder; sections appear where their data exist.

    Args:
        run_dir: a folder as docs/design.md, "A run's folder", describes it.

    Returns:
        Path of the page.

    Raises:
        UserError: `results.json` is missing, or a file is damaged or cannot be written.
    """
    page = render(Path(run_dir))
    path = Path(run_dir) / "report.html"
    try:
        with replacing(path) as partial:
            partial.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    return path


def render(run_dir: Path) -> str:
    """The page as text; the same files give the same text."""
    artifacts = run_dir / "artifacts"
    results = read_results(run_dir / "results.json")
    lines, unreadable = read_log(run_dir / "log.jsonl")
    training = [line for line in lines if line.get("kind") == "train"]
    # A run that was stopped has no list of damaged videos in its results, but lines in its log.
    logged = [line.get("path") for line in lines if line.get("kind") == "damaged"]
    listed = results["training"].get("damaged_videos", ())
    damaged = sorted({str(path) for path in [*listed, *logged]})
    waits = [wait for line in training if (wait := number(line.get("data_wait"))) is not None]
    # A note that each of thousands of steps logs is shown once, with its count.
    notes = Counter(
        ", ".join(str(value) for key, value in line.items() if key not in ("kind", "epoch", "step"))
        for line in lines
        if line.get("kind") == "note"
    )
    found = results["false_negatives"]
    attacked = [read_attack_picture(path) for path in sorted(artifacts.glob("attack_*.npz"))]
    return (
        templates()
        .get_template("report.html.j2")
        .render(
            results=results,
            name=str(results.get("name", run_dir.resolve().name)),
            headline=summary.headline(results),
            cards=summary.cards(results),
            warnings=summary.warnings(results, damaged=damaged),
            loss=charts.loss_curve(training, results["training"]),
            similarity=charts.class_similarity_curves(training),
            flagged=charts.false_negative_curves(training, found),
            sides=charts.side_curves(training),
            progress=charts.score_curves(
                [line for line in lines if line.get("kind") == "scores"],
                chance=number(results["data"].get("chance")),
            ),
            data_wait=_mean(waits),
            flagged_by_class=[
                (name, [number(entry.get(key)) for key in ("flagged", "precision", "recall")])
                for name, entry in found.get("by_class", {}).items()
                if number(entry.get("flagged"))
            ],
            pairs=read_pairs(artifacts / "pairs.npz"),
            histogram=charts.similarity_histogram(results["geometry"].get("histogram", {})),
            maps=read_maps(artifacts / "projection.npz"),
            attacks=attack_sections(results, attacked),
            suites=_suites(results["corruptions"]),
            hurts_most=_hurts_most(artifacts, results["corruptions"]),
            scores=summary.score_cards(results["corruptions"]),
            attack_title=summary.attack_title,
            damaged=damaged,
            notes=sorted(notes.items()),
            unreadable=unreadable,
            config=read_text(run_dir / "config.yaml"),
            environment=summary.flat(read_mapping(run_dir / "environment.json")),
            style=style_sheet(),
            script=script(),
        )
    )


def attack_sections(results: Tree, pictures: Sequence[AttackPicture]) -> list[dict[str, Any]]:
    """For each attack its curve, tables, checks, change over time and clips."""
    sections = []
    for name, accuracies in results["attacks"].items():
        survival, checks = results["survival"].get(name, {}), results["attack_checks"].get(name, {})
        clean = summary.clean_under_attack(results, name)
        clips = summary.attacked_clips(results, name)
        rows = [(0.0, "0 (clean)", clean, 1.0 if survival else None)]
        rows += [(*point, survival.get(point[1])) for point in summary.by_budget(accuracies)]
        known_checks = [each for each in checks.get("checks", []) if isinstance(each, dict)]
        section = {
            "title": summary.attack_title(name),
            "settings": results["attack_settings"].get(name, {}),
            "clips": clips,
            "chart": charts.attack_curve(
                name,
                accuracies,
                survival,
                clean=clean,
                clips=clips,
                chance=number(results["data"].get("chance")),
            ),
            "survival": bool(survival),
            "rows": [(*row, summary.interval_text(row[2], clips)) for row in rows],
            "checks": {
                "eps": checks.get("eps", ""),
                "clips": number(checks.get("clips")),
                "all": known_checks,
                "failed": [check for check in known_checks if not check.get("passed")],
            },
            "classes": _class_table(results["attack_classes"].get(name, {}), results["data"]),
            "frames": charts.frame_curve(_few_budgets(results["attack_frames"].get(name, {}))),
            "pictures": [picture for picture in pictures if picture.attack == name],
        }
        sections.append(section)
    return sections


def _class_table(counts: Tree, data: Tree) -> dict[str, Any] | None:
    """Accuracy of each class when clean and under each budget, and its most frequent mistake.

    None where the counts are of another list of classes than the results.
    """
    names = data.get("classes", [])

    def fits(column: object) -> bool:
        return (
            isinstance(column, list)
            and len(column) == len(names)
            and all(isinstance(count, int) for count in column)
        )

    clips, clean, mistaken = columns = [counts.get(key, []) for key in _CLASS_COUNTS]
    if not names or not all(map(fits, columns)):
        return None
    budgets = {key: row for key, row in counts.items() if key not in _CLASS_COUNTS and fits(row)}
    shown = {"clean": clean, **_few_budgets(budgets)}
    # A class without test clips has no accuracy.
    rows = [
        {
            "name": name,
            "clips": total,
            "accuracies": [row[label] / total for row in shown.values()],
            "mistake": names[mistake] if 0 <= mistake < len(names) else "",
        }
        for label, (name, total, mistake) in enumerate(zip(names, clips, mistaken, strict=True))
        if total
    ]
    if not rows:
        return None
    return {
        "budgets": list(shown),
        "rows": rows,
        "fewest": min(row["clips"] for row in rows),
        "open": len(rows) <= _MOST_CLASSES,
    }


def _few_budgets(values: Tree) -> dict[str, Any]:
    """A few of the budgets, evenly chosen, the first and the last among them."""
    keys = [key for _, key, _ in summary.by_budget(dict.fromkeys(values, 0.0))]
    if len(keys) > _MOST_BUDGETS:
        last = len(keys) - 1
        keys = [keys[round(i * last / (_MOST_BUDGETS - 1))] for i in range(_MOST_BUDGETS)]
    return {key: values[key] for key in keys}


def _suites(corruptions: Tree) -> list[dict[str, Any]]:
    """For each suite that was run: rows of (name, accuracies, mean, hit), and its categories.

    `hit` is, by severity, the ratio of clips whose stream was damaged at all; empty where a
    corruption damages no stream, and so every clip.
    """
    sections, hits = [], corruptions.get("damaged_clips", {})
    for key, title in summary.SUITE_TITLES.items():
        suite = corruptions.get(key)
        if not suite:
            continue
        most = max(len(values) for values in suite.values())
        categories = []
        groups = corruptions.get("scores", {}).get("suites", {}).get(key, {})
        for name, scores in groups.items():
            ends = summary.ends_text(scores["interval"].get("accuracy", ()))
            gammas = scores.get("gamma_a"), scores.get("gamma_r")
            categories.append((name, scores.get("accuracy"), ends, *gammas))
        section = {
            "key": key,
            "title": title,
            "rows": [
                (name, values, _mean(values), hits.get(f"{key}/{name}", ()))
                for name, values in suite.items()
            ],
            "severities": most,
            "undefined": any(
                len(values) < most or None in map(number, values) for values in suite.values()
            ),
            "hits": any(f"{key}/{name}" in hits for name in suite),
            "groups": categories,
        }
        sections.append(section)
    return sections


def _hurts_most(artifacts: Path, corruptions: Tree) -> list[dict[str, Any]]:
    """Clips of the corruptions that cost most, with suite and mean accuracy, the lowest first."""
    found = [
        {"clip": clip, "suite": suite, "accuracy": _mean(rows.get(clip.name, ()))}
        for suite, clips in read_corrupted(artifacts).items()
        for rows in [corruptions.get(suite, {})]
        for clip in clips
    ]
    return sorted(found, key=lambda each: (each["accuracy"] is None, each["accuracy"]))


def _mean(values: Sequence[Any]) -> float | None:
    """None where there are no values or one is undefined."""
    known = [value for value in map(number, values) if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
