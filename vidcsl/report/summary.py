"""A run read back, in words."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from vidcsl.errors import UserError

# ----------------------------------------------------------------------
# A run's main numbers in words: formatting, intervals, opening sentences, key figures.

UNDEFINED = "undefined"
SUITE_TITLES = {
    "P": "Suite P (UCF101-P)",
    "C": "Suite C (Mini Kinetics-C)",
    "V": "Suite V (vidcsl's own)",
}
Tree = Mapping[str, Any]


def number(value: object) -> float | None:
    """`value` where it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def percent(value: object, digits: int = 1) -> str:
    """A share as per cent: 0.401 gives "40.1 %"."""
    share = number(value)
    return UNDEFINED if share is None else f"{100 * share:.{digits}f}\u202f%"


def plain(value: object) -> str:
    """A number with at most four digits that matter, or the text itself."""
    if isinstance(value, str | bool):
        return str(value)
    amount = number(value)
    if amount is None:
        return UNDEFINED
    whole = abs(amount) >= 1000 or amount == int(amount)
    return (f"{amount:,.0f}" if whole else f"{amount:.4g}").replace("-", "\u2212")


def duration(value: object) -> str:
    """Seconds in the two units that matter."""
    seconds = number(value)
    if seconds is None:
        return UNDEFINED
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share seen on `count` clips.

    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
    """
    z2 = 1.959964**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    spread = share * (1 - share) / count + z2 / (4 * count**2)
    half = math.sqrt(z2 * spread) / (1 + z2 / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def interval(share: object, count: object) -> tuple[float, float] | None:
    """The Wilson interval where both are known and possible, else None."""
    seen, clips = number(share), number(count)
    if seen is None or clips is None or clips < 1 or not 0 <= seen <= 1:
        return None
    return wilson_interval(seen, int(clips))


def interval_text(share: object, count: object) -> str:
    """ "33.8 to 46.8 %", or "undefined"."""
    found = interval(share, count)
    return UNDEFINED if found is None else f"{100 * found[0]:.1f} to {percent(found[1])}"


def budget(text: str) -> float | None:
    """The number of a budget's key: 0.25 of "0.25/255"."""
    try:
        return number(float(text.removesuffix("/255")))
    except ValueError:
        return None


def by_budget(values: Tree) -> list[tuple[float, str, float | None]]:
    """(budget, its key, value) of an attack, weakest first."""
    points = [(budget(key), key, number(value)) for key, value in values.items()]
    return sorted((eps, key, value) for eps, key, value in points if eps is not None)


def attack_title(name: str) -> str:
    """ "PGD L∞, steps 20, own head" of "pgd_steps=20_linf_own_head"; else the name itself."""
    parts = re.fullmatch(r"([a-z]+)((?:_[a-z_]+=[^_=]+)*)_(linf|l2)(_.+)?", name)
    if parts is None:
        return name
    solver, options, norm, head = parts.groups(default="")
    chosen = re.findall(r"_([a-z_]+)=([^_=]+)", options)
    words = [f"{key.replace('_', ' ')} {value}" for key, value in chosen]
    words += [head[1:].replace("_", " ")] if head else []
    return ", ".join([f"{solver.upper()} {norm.replace('linf', 'L∞').replace('l2', 'L2')}", *words])


def clean_under_attack(results: Tree, name: str) -> float | None:
    """Accuracy of the attacked clips before the attack."""
    settings = results.get("attack_settings", {}).get(name, {})
    return number(settings.get("clean", results.get("clean", {}).get("linear_clip_top1")))


def attacked_clips(results: Tree, name: str) -> int | None:
    """How many clips were attacked."""
    settings = results.get("attack_settings", {}).get(name, {})
    clips = number(settings.get("clips", results.get("data", {}).get("test_videos")))
    return None if clips is None else int(clips)


def telling_budget(values: Tree, clean: float | None) -> tuple[str, float] | None:
    """The smallest budget that takes half of the clean accuracy, else the largest one."""
    points = [(key, value) for _, key, value in by_budget(values) if value is not None]
    halved = [point for point in points if clean is not None and point[1] <= clean / 2]
    return next(iter(halved or points[-1:]), None)


@dataclass(frozen=True)
class Card:
    """A key figure: what it is, its value, and what to compare it with."""

    label: str
    value: str
    note: str


def cards(results: Tree) -> list[Card]:
    """The key figures that the run has."""
    clean, data = results.get("clean", {}), results.get("data", {})
    videos = clean.get("test_videos", data.get("test_videos"))
    found = []
    if "linear_top1" in clean:
        share = clean["linear_top1"]
        note = f"95 %: {interval_text(share, videos)}; chance {percent(data.get('chance'))}"
        found.append(Card("Linear probe", percent(share), note))
    if "knn_top1" in clean:
        note = f"95 %: {interval_text(clean['knn_top1'], videos)}"
        found.append(Card("Nearest neighbours", percent(clean["knn_top1"]), note))
    for name, values in results.get("attacks", {}).items():
        told = telling_budget(values, clean_under_attack(results, name))
        if told:
            note = f"{percent(clean_under_attack(results, name))} when clean"
            found.append(Card(f"{attack_title(name)}, ε = {told[0]}", percent(told[1]), note))
    return found + _corruption_cards(results) + _removal_cards(results)


def score_cards(corruptions: Tree) -> list[Card]:
    """The four scores of corruption robustness, and over which corruptions they were taken."""
    scores = corruptions.get("scores", {})
    meanings = {
        "mPC": ("mPC", "mPC", "mean accuracy under corruption"),
        "rPC": ("rPC", "mPC", "mPC / clean accuracy"),
        "gamma_a": ("γᵃ, absolute", "gamma", "1 − (clean − corrupted)"),
        "gamma_r": ("γʳ, relative", "gamma", "1 − (clean − corrupted) / clean"),
    }
    over = scores.get("over", {})
    return [
        Card(label, percent(scores[key]), meaning + _coverage(over.get(group, {})))
        for key, (label, group, meaning) in meanings.items()
        if key in scores
    ]


def _coverage(over: Tree) -> str:
    if not {"corruptions", "published", "suite"} <= set(over):
        return ""
    return f"; {over['corruptions']} of the {over['published']} of suite {over['suite']}"


def _corruption_cards(results: Tree) -> list[Card]:
    corruptions = results.get("corruptions", {})
    scores = corruptions.get("scores", {})
    if "mPC" not in scores:
        return []
    note = f"{percent(corruptions.get('clean'))} when clean; rPC {percent(scores.get('rPC'))}"
    return [Card("Corrupted, mPC", percent(scores["mPC"]), note)]


def _removal_cards(results: Tree) -> list[Card]:
    removal = results.get("false_negatives", {})
    if removal.get("detector", "none") == "none" or "precision" not in removal:
        return []
    note = f"of the pairs; {percent(removal['chance'])} at random" if "chance" in removal else ""
    return [Card("Flagged rightly", percent(removal["precision"]), note)]


def headline(results: Tree) -> list[Markup]:
    """The main numbers as sentences."""
    clean, corruptions = results.get("clean", {}), results.get("corruptions", {})
    parts = [_setting(results.get("data", {}), results.get("training", {}))]
    if "linear_top1" in clean:
        chance = percent(results.get("data", {}).get("chance"))
        start = _say(
            "A linear probe on the frozen features names {} of the test videos right",
            clean["linear_top1"],
        )
        parts.append(start + f" (chance: {chance}).")
    if "knn_top1" in clean:
        parts.append(_say("Their nearest training videos name {} right.", clean["knn_top1"]))
    for name, values in results.get("attacks", {}).items():
        told = telling_budget(values, clean_under_attack(results, name))
        if told:
            where = f"{attack_title(name)} at ε = {told[0]} leaves "
            before = percent(clean_under_attack(results, name))
            parts.append(_say(where + "{}", told[1]) + f" of its clips right, from {before}.")
    if "mPC" in corruptions.get("scores", {}):
        parts.append(
            _say("Under corruptions {} are right on average.", corruptions["scores"]["mPC"])
        )
    if _removal_cards(results):
        removal = results["false_negatives"]
        start = _say("Of the pairs flagged as false negatives, {} truly are", removal["precision"])
        chance = removal.get("chance")
        parts.append(start + (f" ({percent(chance)} of all pairs are)." if chance else "."))
    return [part for part in parts if part]


def _say(sentence: str, share: object) -> Markup:
    """`sentence` with the share in its braces, as bold per cent."""
    before, _, after = sentence.partition("{}")
    return Markup("{}<strong>{}</strong>{}").format(before, percent(share), after)


def _setting(data: Tree, training: Tree) -> Markup:
    classes: Sequence[str] = data.get("classes", ())
    facts = [
        _length(training),
        f"{plain(data['train_videos'])} training videos" if "train_videos" in data else "",
        f"{plain(data['test_videos'])} test videos" if "test_videos" in data else "",
        f"{len(classes)} classes" if classes else "",
    ]
    told = ", ".join(fact for fact in facts if fact)
    return Markup("{}.").format(told) if told else Markup("")


def _length(training: Tree) -> str:
    epochs, rounds = number(training.get("epochs")), number(training.get("rounds"))
    if epochs is None:
        return ""
    length, earlier = f"{plain(epochs)} epochs", training.get("rounds_method")
    if rounds is None or rounds < 2:
        return length
    by = f" (all but the last by {earlier})" if earlier else ""
    return f"{plain(rounds)} rounds of {length}{by}"


# ----------------------------------------------------------------------
# The files of a run's folder, read and checked.

# What holds what in results.json, as far as the page relies on it; "*" stands for any other key.
_FORM: dict[str, Any] = {
    "data": {"classes": list, "left_out": list},
    "training": {"damaged_videos": list},
    "clean": {"retrieval": dict, "intervals": {"*": list}, "low_shot": {"*": {"draws": list}}},
    "splits": {"mean": dict},
    "transfer": {"*": dict},
    "geometry": {"histogram": {"edges": list, "same_class": list, "other_class": list}},
    "false_negatives": {"by_class": {"*": dict}},
    "attacks": {"*": dict},
    "survival": {"*": dict},
    "attack_settings": {"*": dict},
    "attack_classes": {"*": {"*": list}},
    "attack_frames": {"*": {"*": list}},
    "attack_checks": {"*": {"checks": list}},
    "corruptions": {
        **{suite: {"*": list} for suite in ("P", "C", "V")},
        "scores": {"over": {"*": dict}, "suites": {"*": {"*": {"interval": {"*": list}}}}},
        "repeated_frames": {"*": list},
    },
    "cost": {"seconds": dict},
}


def read_results(path: Path) -> dict[str, Any]:
    """`results.json` with an empty dict for every section that is absent.

    Raises:
        UserError: it is missing, damaged, or a section is not of the form of docs/design.md.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; give the folder of a run whose training has ended")
    results = read_mapping(path)
    for name, form in _FORM.items():
        section = results.get(name)
        results[name] = {} if section is None else section
        if not _fits(results[name], form):
            raise UserError(f"{path}: section {name} is damaged; run the evaluation again")
    return results


def _fits(value: object, form: Any) -> bool:
    if not isinstance(form, dict):
        return isinstance(value, form)
    return isinstance(value, dict) and all(
        _fits(inner, form.get(key, form.get("*", object))) for key, inner in value.items()
    )


def read_log(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of `log.jsonl`, and how many cannot be read (a crash may cut one off).

    A resumed run repeats steps: of a training step the last line counts.
    """
    lines: list[dict[str, Any]] = []
    unreadable = 0
    for text in filter(str.strip, read_text(path).splitlines()):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if isinstance(line, dict):
            lines.append(line)
        else:
            unreadable += 1
    trained = {line["step"]: line for line in lines if _is_training(line)}
    others = [line for line in lines if line.get("kind") != "train"]
    return [trained[step] for step in sorted(trained)] + others, unreadable


def _is_training(line: Tree) -> bool:
    return line.get("kind") == "train" and None not in (
        number(line.get("epoch")),
        number(line.get("step")),
    )


def read_mapping(path: Path) -> dict[str, Any]:
    """A JSON object; empty where the file is absent."""
    try:
        content = json.loads(read_text(path) or "{}")
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); run the evaluation again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object; run the evaluation again")
    return content


def read_text(path: Path) -> str:
    """A file's text; empty where the file is absent."""
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


# ----------------------------------------------------------------------
# What a reader must know before believing the numbers, in a sentence each.

FEW = 100  # videos: an accuracy is then known to about ten points


def warnings(results: Tree, *, damaged: Sequence[str]) -> list[str]:
    """Of failed checks, of too few videos, of training and test videos that were left out."""
    found = [
        f"{attack_title(name)}: not so, “{check['name']}”; robustness may be overstated."
        for name, checks in results["attack_checks"].items()
        for check in checks.get("checks", [])
        if isinstance(check, dict) and not check.get("passed")
    ]
    return [*found, *_few(results), *_missing(results, damaged), *_chance(results)]


def _few(results: Tree) -> list[str]:
    videos = number(results["data"].get("test_videos"))
    if videos is None or videos >= FEW:
        return []
    return [f"Only {videos:.0f} test videos: differences of a few points mean nothing."]


def _missing(results: Tree, damaged: Sequence[str]) -> list[str]:
    left_out = results["data"].get("left_out") or []
    told = []
    if damaged:
        told.append(f"{len(damaged)} training videos could not be read and were replaced.")
    if left_out:
        told.append(f"{len(left_out)} test videos could not be read and were left out.")
    return told


def _chance(results: Tree) -> list[str]:
    """An accuracy whose interval holds chance says nothing about the features."""
    top1, chance = (
        number(results[section].get(key))
        for section, key in (("clean", "linear_top1"), ("data", "chance"))
    )
    seen = interval(top1, results["data"].get("test_videos"))
    if seen is None or chance is None or seen[0] > chance:
        return []
    return [
        f"The linear probe’s {percent(top1)} cannot be told from chance ({percent(chance)}): what "
        "follows is about features that know nothing."
    ]
