"""One self-contained HTML page about a run, made only from the files of its folder."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from vidcsl.data.lists import replacing
from vidcsl.errors import UserError
from vidcsl.report import curves, pictures, summary
from vidcsl.report.attacks import attack_sections
from vidcsl.report.examples import read_corrupted, read_pairs
from vidcsl.report.files import read_log, read_mapping, read_results, read_text
from vidcsl.report.page import TEMPLATES, templates
from vidcsl.report.projection import read_projection
from vidcsl.report.summary import SUITE_TITLES, Tree, number, percent
from vidcsl.report.warnings import warnings


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
    results = read_results(run_dir / "results.json")
    lines, unreadable = read_log(run_dir / "log.jsonl")
    damaged = _damaged(results["training"], lines)
    environment = templates()
    environment.filters.update(
        percent=percent,
        plain=summary.plain,
        duration=summary.duration,
        number=number,
        words=lambda name: str(name).replace("_", " "),
    )
    return environment.get_template("report.html.j2").render(
        results=results,
        name=str(results.get("name", run_dir.resolve().name)),
        headline=summary.headline(results),
        cards=summary.cards(results),
        **_learning(results, lines),
        attacks=attack_sections(
            results,
            [
                pictures.read_attack_picture(path)
                for path in sorted((run_dir / "artifacts").glob("attack_*.npz"))
            ],
        ),
        histogram=curves.similarity_histogram(results["geometry"].get("histogram", {})),
        projection=read_projection(run_dir / "artifacts" / "projection.npz"),
        removal_by_class=_removal_by_class(results["false_negatives"]),
        suites=_suites(results["corruptions"]),
        corrupted=read_corrupted(run_dir / "artifacts"),
        pairs=read_pairs(run_dir / "artifacts" / "pairs.npz"),
        warnings=warnings(results, damaged=damaged),
        scores=summary.score_cards(results["corruptions"]),
        attack_title=summary.attack_title,
        damaged=damaged,
        notes=_notes(lines),
        unreadable=unreadable,
        config=read_text(run_dir / "config.yaml"),
        environment=_flat(read_mapping(run_dir / "environment.json")),
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup((TEMPLATES / "report.js").read_text(encoding="utf-8")),
    )


def _learning(results: Tree, lines: list[dict[str, Any]]) -> dict[str, Any]:
    training = [line for line in lines if line.get("kind") == "train"]
    waits = [wait for line in training if (wait := number(line.get("data_wait"))) is not None]
    return {
        "loss": curves.loss_curve(training),
        "removal": curves.false_negative_curves(training, results["false_negatives"]),
        "sides": curves.side_curves(training),
        "similarity": curves.class_similarity_curves(training),
        "data_wait": sum(waits) / len(waits) if waits else None,
    }


def _removal_by_class(removal: Tree) -> list[tuple[str, list[float | None]]]:
    """Flagged share, precision and recall of each class that had a pair flagged."""
    columns = ("removed", "precision", "recall")
    rows = [
        (name, [number(shares.get(column)) for column in columns])
        for name, shares in removal.get("by_class", {}).items()
    ]
    return [row for row in rows if row[1][0]]


def _suites(corruptions: Tree) -> list[dict[str, Any]]:
    """For each suite that was run: its rows of (name, accuracies, mean)."""
    suites = {key: corruptions.get(key) for key in SUITE_TITLES}
    return [
        {
            "key": key,
            "title": SUITE_TITLES[key],
            "rows": [(name, values, _mean(values)) for name, values in suite.items()],
            "severities": max(len(values) for values in suite.values()),
            "groups": _groups(corruptions.get("scores", {}).get("suites", {}).get(key, {})),
        }
        for key, suite in suites.items()
        if suite
    ]


def _groups(groups: Tree) -> list[tuple[Any, ...]]:
    """For a suite and each of its categories: accuracy, its interval in words, and the gammas."""
    rows = []
    for name, scores in groups.items():
        low, high = (percent(edge) for edge in scores["interval"].get("accuracy", (None, None)))
        gammas = scores.get("gamma_a"), scores.get("gamma_r")
        rows.append((name, scores.get("accuracy"), f"{low} to {high}", *gammas))
    return rows


def _mean(values: list[Any]) -> float | None:
    """Mean over the severities; None where one is undefined."""
    numbers = [number(value) for value in values]
    known = [value for value in numbers if value is not None]
    return sum(known) / len(known) if known and len(known) == len(numbers) else None


def _damaged(training: Tree, lines: list[dict[str, Any]]) -> list[str]:
    """Training videos that could not be read, by the results or, before these, by the log."""
    logged = [line.get("path") for line in lines if line.get("kind") == "damaged"]
    return sorted({str(path) for path in [*training.get("damaged_videos", ()), *logged]})


def _notes(lines: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """What the notes say, and how often each was said."""
    skipped = {"kind", "epoch", "step"}
    said = Counter(
        ", ".join(str(value) for key, value in line.items() if key not in skipped)
        for line in lines
        if line.get("kind") == "note"
    )
    return sorted(said.items())


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"git": {"commit": 1}} as {"git commit": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        inner = _flat(value, f"{prefix}{key} ") if isinstance(value, Mapping) else None
        flat.update({f"{prefix}{key}": value} if inner is None else inner)
    return flat
