"""A run's page."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vidcsl.errors import UserError
from vidcsl.io import replacing
from vidcsl.report import charts as curves
from vidcsl.report import pictures, summary
from vidcsl.report.maps import read_projection
from vidcsl.report.pictures import AttackPicture, read_corrupted, read_pairs
from vidcsl.report.summary import (
    SUITE_TITLES,
    Tree,
    number,
    percent,
    read_log,
    read_mapping,
    read_results,
    read_text,
    warnings,
)

# ----------------------------------------------------------------------
# The templates of all pages, and how they are filled in.

TEMPLATES = Path(__file__).parent / "templates"


def templates() -> Environment:
    """The templates; texts are escaped, and a name that is not given is an error."""
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


# ----------------------------------------------------------------------
# What the page says of each attack: curve, tables, checks, change over time, moving clips.

_BUDGETS = 5  # columns of the table of classes, lines of the perturbation's chart
_COLUMNS = ("clips", "clean", "mistaken_for")
_OPEN = 20  # a table of more classes is folded up


def attack_sections(results: Tree, pictures: Sequence[AttackPicture]) -> list[dict[str, Any]]:
    """For each attack everything that the run holds of it."""
    return [_attack(results, name, pictures) for name in results["attacks"]]


def _attack(results: Tree, name: str, pictures: Sequence[AttackPicture]) -> dict[str, Any]:
    accuracies, survival = results["attacks"][name], results["survival"].get(name, {})
    clean = summary.clean_under_attack(results, name)
    clips = summary.attacked_clips(results, name)
    rows = [(0.0, "0 (clean)", clean, 1.0 if survival else None)] + [
        (eps, key, value, survival.get(key)) for eps, key, value in summary.by_budget(accuracies)
    ]
    return {
        "title": summary.attack_title(name),
        "settings": results["attack_settings"].get(name, {}),
        "clips": clips,
        "chart": curves.attack_curve(
            name,
            accuracies,
            survival,
            clean=clean,
            clips=clips,
            chance=number(results["data"].get("chance")),
        ),
        "survival": bool(survival),
        "rows": [(*row, summary.interval_text(row[2], clips)) for row in rows],
        "checks": _checks(results["attack_checks"].get(name, {})),
        "classes": _classes(results["attack_classes"].get(name, {}), results["data"]),
        "frames": curves.frame_curve(
            _spread(results["attack_frames"].get(name, {}), most=_BUDGETS)
        ),
        "pictures": [picture for picture in pictures if picture.attack == name],
    }


def _checks(found: Tree) -> dict[str, Any]:
    checks = [check for check in found.get("checks", []) if isinstance(check, dict)]
    return {
        "eps": found.get("eps", ""),
        "clips": number(found.get("clips")),
        "all": checks,
        "failed": [check for check in checks if not check.get("passed")],
    }


def _classes(counts: Tree, data: Tree) -> dict[str, Any] | None:
    """The table of classes: shares right when clean and under each budget, and the mistakes."""
    names = data.get("classes", [])
    clips, clean, mistaken = columns = [counts.get(key, []) for key in _COLUMNS]
    if not names or not all(_fits(column, names) for column in columns):
        return None
    budgets = {key: row for key, row in counts.items() if key not in _COLUMNS and _fits(row, names)}
    shown = {"clean": clean, **_spread(budgets, most=_BUDGETS)}
    rows = [
        {
            "name": name,
            "clips": total,
            "shares": [row[label] / total for row in shown.values()],
            "mistake": names[mistake] if 0 <= mistake < len(names) else "",
        }
        for label, (name, total, mistake) in enumerate(zip(names, clips, mistaken, strict=True))
        if total
    ]
    return {"budgets": list(shown), "rows": rows, "open": len(rows) <= _OPEN} if rows else None


def _fits(column: object, names: Sequence[str]) -> bool:
    return (
        isinstance(column, list)
        and len(column) == len(names)
        and all(isinstance(count, int) for count in column)
    )


def _spread(values: Tree, *, most: int) -> dict[str, Any]:
    """At most so many of the budgets, evenly chosen, the first and the last among them."""
    keys = [key for _, key, _ in summary.by_budget(dict.fromkeys(values, 0.0))]
    if len(keys) > most:
        keys = [keys[round(i * (len(keys) - 1) / (most - 1))] for i in range(most)]
    return {key: values[key] for key in keys}


# ----------------------------------------------------------------------
# Corruption results of several models side by side, as a Markdown table.

Section = Mapping[str, Any]


def compare_corruptions(sections: Mapping[str, Section]) -> str:
    """One row a model: clean accuracy, then for each suite its mean, gammas and categories.

    Accuracies in per cent, the mean with its interval. The relative gamma of a suite is also its
    rPC, and its mean accuracy its mPC.

    Args:
        sections: `corruptions` of results.json, by the model's name.
    """
    suites = {
        suite: list(groups)
        for section in sections.values()
        for suite, groups in section["scores"]["suites"].items()
    }
    header = ["model", "videos", "clean"]
    for suite, groups in suites.items():
        header += [f"{suite}: mean (95 %)", f"{suite}: γᵃ", f"{suite}: γʳ"]
        header += [f"{suite}: {group}" for group in groups if group != "all"]
    rows = [_row(name, section, suites) for name, section in sections.items()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *rows])


def _row(name: str, section: Section, suites: Mapping[str, list[str]]) -> list[str]:
    cells = [name, str(section["clips"]), percent(section["clean"])]
    for suite, groups in suites.items():
        found = section["scores"]["suites"][suite]
        whole = found["all"]
        low, high = whole["interval"]["accuracy"]
        cells += [f"{percent(whole['accuracy'])} ({percent(low)} to {percent(high)})"]
        cells += [percent(whole["gamma_a"]), percent(whole["gamma_r"])]
        cells += [percent(found[group]["accuracy"]) for group in groups if group != "all"]
    return cells


# ----------------------------------------------------------------------
# One self-contained HTML page about a run, made only from the files of its folder.


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
