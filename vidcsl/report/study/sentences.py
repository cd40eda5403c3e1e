"""What a study says first, in words."""

from collections.abc import Mapping
from typing import Any

from vidcsl.report.study.tables import gap_text
from vidcsl.report.summary import Tree, attack_title, percent

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
    gaps = _gaps(summary, attack, reference)
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


def _gaps(summary: Tree, attack: str, reference: str) -> dict[str, float]:
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
