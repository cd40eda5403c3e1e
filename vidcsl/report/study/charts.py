"""The pictures of a study: curves with bands over seeds, geometry against robustness."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

from vidcsl.report.study.sentences import telling
from vidcsl.report.summary import Tree, attack_title, budget, percent, plain
from vidcsl.report.svg import Axis, Chart, Series, linear_axis

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
