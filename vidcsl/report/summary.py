"""A run read back from its folder, as numbers and sentences.

First the files, read and checked: results, log, arrays. A report is made from these alone, so each
may be absent, and whatever is damaged is one clear error rather than a traceback from the middle of
a page. Then the main numbers in words: key figures, opening sentences, warnings.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from vidcsl.errors import UserError
from vidcsl.evaluation.statistics import wilson_interval

Tree = Mapping[str, Any]

# The types of results.json, as far as a page relies on them; "*" stands for any other key.
_TYPES: dict[str, Any] = {
    "data": {"classes": list, "left_out": list},
    "lists": {"first_in_both": list},
    "training": {"damaged_videos": list, "notes": {"*": {"first": list}}},
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
        "scores": {
            "mean": dict,
            "over": {"*": dict},
            "suites": {"*": {"*": {"interval": {"*": list}}}},
        },
        "repeated_frames": {"*": list},
        "damaged_clips": {"*": list},
    },
    "cost": {"seconds": dict},
}


def number(value: object) -> float | None:
    """`value` where it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def read_results(path: Path) -> dict[str, Any]:
    """`results.json` with an empty dict for every section that is absent.

    Raises:
        UserError: it is missing, damaged, or a section has other types than docs/design.md says.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; give the folder of a finished run")
    results = read_mapping(path)
    for name, types in _TYPES.items():
        results[name] = {} if results.get(name) is None else results[name]
        if not _fits(results[name], types):
            raise UserError(f"{path}: section {name} is damaged; run the evaluation again")
    found = results["false_negatives"]
    for flagged in (found, *found.get("by_class", {}).values()):
        _rename_removed(flagged)
    return results


def _fits(value: object, types: Any) -> bool:
    if not isinstance(types, dict):
        return isinstance(value, types)
    return isinstance(value, dict) and all(
        _fits(inner, types.get(key, types.get("*", object))) for key, inner in value.items()
    )


def _rename_removed(entry: dict[str, Any]) -> None:
    """Earlier versions called the ratio of flagged pairs "removed"."""
    if "removed" in entry:
        entry.setdefault("flagged", entry["removed"])


def read_log(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of `log.jsonl`, and how many cannot be read (a crash may cut one off).

    A resumed run repeats steps: of a training step the last line counts.
    """
    trained: dict[Any, dict[str, Any]] = {}
    others: list[dict[str, Any]] = []
    unreadable = 0
    # By step rather than by line: a training line without a step cannot be placed, and is left out.
    for text in filter(str.strip, read_text(path).splitlines()):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not isinstance(line, dict):
            unreadable += 1
        elif line.get("kind") != "train":
            others.append(line)
        elif number(line.get("epoch")) is not None and number(line.get("step")) is not None:
            _rename_removed(line)
            trained[line["step"]] = line
    return [trained[step] for step in sorted(trained)] + others, unreadable


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


def read_arrays(path: Path, *names: str) -> list[NDArray[Any]]:
    """The arrays of an `.npz` file by name.

    Raises:
        UserError: the file is damaged or lacks one of them.
    """
    with _opened(path) as stored:
        for name in names:
            if name not in stored.files:
                raise UserError(f"{path} has no array {name!r}; run the evaluation again")
        return [stored[name] for name in names]


def has_array(path: Path, name: str) -> bool:
    """Whether the file holds an array of this name. Raises as `read_arrays`."""
    with _opened(path) as stored:
        return name in stored.files


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            yield stored
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise UserError(f"cannot read {path}: {error}; run the evaluation again") from error


def flat(tree: Tree, *, joined_by: str = " ", prefix: str = "") -> dict[str, Any]:
    """`{"git": {"commit": 1}}` as `{"git commit": 1}`."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        inside = isinstance(value, Mapping)
        found |= (
            flat(value, joined_by=joined_by, prefix=name + joined_by) if inside else {name: value}
        )
    return found


UNDEFINED = "undefined"
_PER_CENT = "\u202f%"  # after a narrow space that does not break
SUITE_TITLES = {
    "P": "Suite P (UCF101-P)",
    "C": "Suite C (Mini Kinetics-C)",
    "V": "Suite V (vidcsl's own)",
}
_FEW = 100  # videos: an accuracy is then known to about ten points
_UNLEARNED = 0.99  # times the loss of an encoder that knows nothing
_GUESS = 1.2  # times the precision of flagging at random: no better for a detector

# ----------------------------------------------------------------------
# How numbers are written.


def percent(value: object, digits: int = 1) -> str:
    """A ratio in per cent: 0.401 gives "40.1 %"."""
    ratio = number(value)
    return UNDEFINED if ratio is None else f"{100 * ratio:.{digits}f}{_PER_CENT}"


def plain(value: object) -> str:
    """A number with at most four significant digits, or the text itself."""
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


def interval(accuracy: object, count: object) -> tuple[float, float] | None:
    """The 95 % Wilson interval of an accuracy on `count` clips, None where either is undefined."""
    seen, clips = number(accuracy), number(count)
    if seen is None or clips is None or clips < 1 or not 0 <= seen <= 1:
        return None
    return wilson_interval(round(seen * int(clips)), int(clips))


def stored_interval(section: Tree, key: str) -> tuple[float, float] | None:
    """The 95 % interval that the evaluation stored of a figure; None in older results."""
    ends = [number(end) for end in section.get("intervals", {}).get(key, ())]
    return (ends[0], ends[1]) if len(ends) == 2 and None not in ends else None  # type: ignore[return-value]


def interval_text(
    accuracy: object, count: object, *, stored: Tree | None = None, key: str = ""
) -> str:
    """ "33.8 to 46.8 %", or "undefined"; what `stored["intervals"][key]` has of it comes first."""
    found = stored_interval(stored or {}, key) or interval(accuracy, count)
    return UNDEFINED if found is None else ends_text(found)


def ends_text(ends: Sequence[Any]) -> str:
    """ "33.8 to 46.8 %" of the ends of an interval, "undefined" where one is."""
    known = [number(end) for end in ends]
    if len(known) != 2 or None in known:
        return UNDEFINED
    low, high = map(percent, known)
    return f"{low.removesuffix(_PER_CENT)} to {high}"


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


# ----------------------------------------------------------------------
# Attacks.


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


def clean_under_attack(results: Tree, name: str) -> float | None:
    """Accuracy of the attacked clips before the attack."""
    settings = results.get("attack_settings", {}).get(name, {})
    return number(settings.get("clean", results.get("clean", {}).get("linear_clip_top1")))


def attacked_clips(results: Tree, name: str) -> int | None:
    """How many clips were attacked."""
    settings = results.get("attack_settings", {}).get(name, {})
    clips = number(settings.get("clips", results.get("data", {}).get("test_videos")))
    return None if clips is None else int(clips)


def halving_budget(values: Tree, clean: float | None) -> tuple[str, float] | None:
    """The smallest budget that halves the clean accuracy, else the largest one, with its value."""
    points = [(key, value) for _, key, value in by_budget(values) if value is not None]
    halved = [point for point in points if clean is not None and point[1] <= clean / 2]
    return next(iter(halved or points[-1:]), None)


# ----------------------------------------------------------------------
# Key figures.


@dataclass(frozen=True)
class Card:
    """A key figure: its name, its value, and what to compare it with."""

    label: str
    value: str
    note: str


def cards(results: Tree) -> list[Card]:
    """The key figures that the run has."""
    clean, data = results.get("clean", {}), results.get("data", {})
    corruptions = results.get("corruptions", {})
    videos = clean.get("test_videos", data.get("test_videos"))
    found = []
    if "linear_top1" in clean:
        accuracy = clean["linear_top1"]
        ends = interval_text(accuracy, videos, stored=clean, key="linear_top1")
        note = f"95 %: {ends}; chance {percent(data.get('chance'))}"
        found.append(Card("Linear probe", percent(accuracy), note))
    if "knn_top1" in clean:
        note = f"95 %: {interval_text(clean['knn_top1'], videos, stored=clean, key='knn_top1')}"
        found.append(Card("Nearest neighbours", percent(clean["knn_top1"]), note))
    for name, values in results.get("attacks", {}).items():
        before = clean_under_attack(results, name)
        if point := halving_budget(values, before):
            title = f"{attack_title(name)}, ε = {point[0]}"
            ends = interval_text(point[1], attacked_clips(results, name))
            note = f"95 %: {ends}; {percent(before)} when clean"
            found.append(Card(title, percent(point[1]), note))
    scores = corruptions.get("scores", {})
    if "mean" in scores:
        note = f"{percent(corruptions.get('clean'))} when clean; mean of {corruptions_run(scores)}"
        found.append(Card("Corrupted", percent(scores["mean"].get("accuracy")), note))
    if flagged := flagged_pairs(results):
        chance = flagged.get("chance")
        note = "" if chance is None else f"of the pairs; {percent(chance)} at random"
        found.append(Card("Flagged correctly", percent(flagged["precision"]), note))
    return found


def flagged_pairs(results: Tree) -> Tree:
    """The section `false_negatives` where a detector ran and its precision is known, else {}."""
    found: Tree = results.get("false_negatives", {})
    known = found.get("detector", "none") != "none" and "precision" in found
    return found if known else {}


def corruptions_run(scores: Tree) -> str:
    """ "6 corruptions (5 of the 18 of suite P, 1 of the 12 of suite C)"."""
    over = scores.get("over", {})
    parts = [
        _of_suite(plain(each.get("corruptions")), plain(each.get("published"))) + f" of suite {s}"
        for s, each in over.items()
    ]
    count = sum(int(number(each.get("corruptions")) or 0) for each in over.values())
    return f"{count} corruption{'s' if count != 1 else ''} ({', '.join(parts)})"


def _of_suite(ran: str, published: str) -> str:
    return f"all {published}" if ran == published else f"{ran} of the {published}"


def score_cards(corruptions: Tree) -> list[Card]:
    """The mean over what ran, and the published scores of suites that ran as a whole."""
    scores = corruptions.get("scores", {})
    found = []
    if mean := scores.get("mean"):
        retained = percent(mean.get("retained"))
        note = f"mean of {corruptions_run(scores)}; {retained} of clean accuracy"
        found.append(Card("Accuracy", percent(mean.get("accuracy")), note))
    meanings = {
        "mPC": ("mPC", "mean accuracy over the whole of suite C"),
        "rPC": ("rPC", "mPC / clean accuracy"),
        "gamma_a": ("γᵃ, absolute", "1 − (clean − corrupted), the whole of suite P"),
        "gamma_r": ("γʳ, relative", "1 − (clean − corrupted) / clean"),
    }
    # Results of earlier versions have these of parts of suites, too, but no mean.
    return found + [
        Card(label, percent(scores[key]), meaning)
        for key, (label, meaning) in meanings.items()
        if "mean" in scores and number(scores.get(key)) is not None
    ]


# ----------------------------------------------------------------------
# Sentences.


def headline(results: Tree) -> list[Markup]:
    """The main numbers as sentences."""
    data, clean = results.get("data", {}), results.get("clean", {})
    classes = data.get("classes", ())
    setting = [
        _training_length(results.get("training", {})),
        f"{plain(data['train_videos'])} training videos" if "train_videos" in data else "",
        f"{plain(data['test_videos'])} test videos" if "test_videos" in data else "",
        f"{len(classes)} classes" if classes else "",
    ]
    sentences = [Markup("{}.").format(", ".join(filter(None, setting)))] if any(setting) else []

    def add(sentence: str, ratio: object) -> None:
        """A sentence with a bold percentage in its braces."""
        before, _, after = sentence.partition("{}")
        bold = Markup("{}<strong>{}</strong>{}").format(before, percent(ratio), after)
        sentences.append(bold)

    if "linear_top1" in clean:
        chance = percent(data.get("chance"))
        add(
            "A linear probe on the frozen features predicts {} of the test videos correctly "
            f"(chance: {chance}).",
            clean["linear_top1"],
        )
    if "knn_top1" in clean:
        add("Their nearest training videos predict {} correctly.", clean["knn_top1"])
    for name, values in results.get("attacks", {}).items():
        before = clean_under_attack(results, name)
        if point := halving_budget(values, before):
            clips = attacked_clips(results, name)
            of = "of single clips" if clips is None else f"of {plain(clips)} single clips"
            # The name is data and may hold braces, so that it comes after the percentage.
            add(f"Accuracy {of} goes from {percent(before)} to {{}}", point[1])
            sentences[-1] += f" under {attack_title(name)} at ε = {point[0]}."
    corruptions = results.get("corruptions", {})
    if "mean" in (scores := corruptions.get("scores", {})):
        # Other clips than the attacked ones, so that clean accuracy may be another, too.
        of = f"of {plain(corruptions['clips'])} single clips " if "clips" in corruptions else ""
        clean_of_these = percent(corruptions.get("clean"))
        add(
            f"Accuracy {of}goes from {clean_of_these} to {{}} on average under ",
            scores["mean"].get("accuracy"),
        )
        sentences[-1] += f"{corruptions_run(scores)}."
    if flagged := flagged_pairs(results):
        ratio = flagged.get("chance")
        rest = f" ({percent(ratio)} of all pairs are)" if ratio else ""
        # A name is data and may hold braces, so that it comes after the percentage.
        add(f"Of the pairs flagged as false negatives, {{}} truly are{rest}", flagged["precision"])
        teacher = flagged.get("teacher")
        sentences[-1] += f"; the teacher is {teacher}." if teacher else "."
    return sentences


def _training_length(training: Tree) -> str:
    epochs, rounds = number(training.get("epochs")), number(training.get("rounds"))
    if epochs is None:
        return ""
    length, earlier = f"{plain(epochs)} epochs", training.get("rounds_method")
    if rounds is None or rounds < 2:
        return length
    by = f" (all but the last by {earlier})" if earlier else ""
    return f"{plain(rounds)} rounds of {length}{by}"


def warnings(results: Tree, *, damaged: Sequence[str]) -> list[str]:
    """What a reader must know before believing the numbers, a sentence each.

    Args:
        results: as `read_results` gives them.
        damaged: training videos that could not be read.
    """
    data = results["data"]
    found = [
        f"{attack_title(name)}: the check “{check['name']}” failed; robustness may be overstated."
        for name, checks in results["attack_checks"].items()
        for check in checks.get("checks", [])
        if isinstance(check, dict) and not check.get("passed")
    ]
    videos = number(data.get("test_videos"))
    if videos is not None and videos < _FEW:
        found.append(f"Only {videos:.0f} test videos: differences of a few points may be chance.")
    if damaged:
        found.append(f"{len(damaged)} training videos could not be read and were replaced.")
    for note, videos in results["training"].get("notes", {}).items():
        first = next(iter(videos.get("first", ())), "")
        found.append(f"{plain(videos.get('videos'))} training videos: {note} (first: {first}).")
    found += list_warnings(results["lists"])
    if left_out := data.get("left_out"):
        found.append(f"{len(left_out)} test videos could not be read and were left out.")
    found += nothing_learned(results)
    return found


def nothing_learned(results: Tree) -> list[str]:
    """Where loss, detector or probe are no better than chance, a sentence each."""
    found, data, training = [], results.get("data", {}), results.get("training", {})
    loss, ignorant = number(training.get("loss")), number(training.get("loss_of_chance"))
    if loss is not None and ignorant is not None and loss >= _UNLEARNED * ignorant:
        found.append(
            f"The last epoch’s loss, {loss:.2f}, is not below {ignorant:.2f}, that of an encoder "
            "to which all clips are alike: by this measure nothing was learned."
        )
    flagged = flagged_pairs(results)
    precision, ratio = number(flagged.get("precision")), number(flagged.get("chance"))
    if precision is not None and ratio and precision <= _GUESS * ratio:
        found.append(
            f"The detector {flagged['detector']} is hardly better than chance: "
            f"{percent(precision)} of the flagged pairs are false negatives, {percent(ratio)} of "
            "all pairs are."
        )
    top1, chance = number(results.get("clean", {}).get("linear_top1")), number(data.get("chance"))
    seen = stored_interval(results.get("clean", {}), "linear_top1") or interval(
        top1, data.get("test_videos")
    )
    # An accuracy whose interval holds chance says nothing about the features.
    if seen is not None and chance is not None and seen[0] <= chance:
        found.append(
            f"The linear probe’s {percent(top1)} cannot be distinguished from chance "
            f"({percent(chance)}): what follows may describe features without information about "
            "the classes."
        )
    return found


def list_warnings(lists: Tree) -> list[str]:
    """What training and test share, and short videos, a sentence each; `lists` as in results."""
    found, first = [], iter(lists.get("first_in_both", ()))
    if videos := number(lists.get("videos_in_both")):
        found.append(
            f"{videos:.0f} of {lists.get('test_videos')} test videos are training videos, too "
            f"(first: {next(first, '')}): accuracy on them is not test accuracy."
        )
    if groups := number(lists.get("groups_in_both")):
        found.append(
            f"{groups:.0f} groups have videos in training and in test (first: {next(first, '')}): "
            "a test video may be recognised by its source."
        )
    if short := number(lists.get("short")):
        filled = {"loop": "looped", "repeat_last": "their last frame repeated"}
        by = filled.get(str(lists.get("filled_by")), "filled up")
        found.append(
            f"{short:.0f} of {lists.get('looked_at')} training videos are shorter than a clip: "
            f"{by} (DATA.SHORT_VIDEO). Lower DATA.STRIDE or DATA.FRAMES."
        )
    return found


# ----------------------------------------------------------------------
# Several models side by side.


def compare_corruptions(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """Corruption results of several models as a Markdown table, one row a model.

    Clean accuracy, then for each suite its mean, gammas and categories; accuracies in per cent,
    the mean with its interval. Of the whole of suite C the mean is mPC and the relative gamma rPC.

    Args:
        sections: `corruptions` of results.json, by the model's name.
    """
    suites = {
        suite: list(groups)
        for section in sections.values()
        for suite, groups in section["scores"]["suites"].items()
    }
    # All models see the same corruptions, so the first one says what of each suite ran.
    over = next(iter(sections.values()))["scores"]["over"]
    header = ["model", "videos", "clean"]
    for suite, groups in suites.items():
        ran = _of_suite(plain(over[suite]["corruptions"]), plain(over[suite]["published"]))
        header += [f"{suite}, {ran}: mean (95 %)", f"{suite}: γᵃ", f"{suite}: γʳ"]
        header += [f"{suite}: {group}" for group in groups if group != "all"]
    rows = [header, ["---"] * len(header)]
    for name, section in sections.items():
        cells = [name, str(section["clips"]), percent(section["clean"])]
        for suite, groups in suites.items():
            found = section["scores"]["suites"][suite]
            low, high = found["all"]["interval"]["accuracy"]
            mean = percent(found["all"]["accuracy"])
            cells += [f"{mean} ({percent(low)} to {percent(high)})"]
            cells += [percent(found["all"]["gamma_a"]), percent(found["all"]["gamma_r"])]
            cells += [percent(found[group]["accuracy"]) for group in groups if group != "all"]
        rows.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
