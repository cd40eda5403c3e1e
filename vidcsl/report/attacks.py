"""What the page says of each attack: curve, tables, checks, change over time, moving clips."""

from collections.abc import Sequence
from typing import Any

from vidcsl.report import curves, summary
from vidcsl.report.pictures import AttackPicture
from vidcsl.report.summary import Tree, number

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
