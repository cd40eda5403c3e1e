"""Evaluations after the first: each keeps a record of its own, and joins the run's where it can.

The folder of a run holds what was trained, or what was evaluated there first: its config,
environment and results stay. Every later evaluation writes config, environment and results to
`evaluations/DIGEST`. Results of the same weights on the same lists then join the run's
`results.json`, and share its features, caches and pictures; others stay apart, as a folder with a
report of its own.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from vidcsl.config import dump_config
from vidcsl.data.lists import VideoList
from vidcsl.io import log_message
from vidcsl.pipelines.context import EvaluationContext, with_checkpoint
from vidcsl.run_folder import RunFolder, digest
from vidcsl.training.checkpoint import list_checkpoints

# Sections of the results by attack; of these, the ones with a value for each budget.
BY_ATTACK = (
    *("attacks", "survival", "attack_settings", "attack_classes", "attack_frames"),
    "attack_checks",
)
BY_BUDGET = ("attacks", "survival", "attack_classes", "attack_frames")

Results = Mapping[str, Any]


def evaluation_folder(
    context: EvaluationContext, test: VideoList | None, *, checkpoint: Path | None = None
) -> RunFolder:
    """Where this evaluation writes: the run's folder itself unless that has the record of another.

    That is one of a training, or of an earlier evaluation under another config or of other weights.

    Args:
        context: of the evaluation.
        test: the test videos.
        checkpoint: the file that was asked for, if any.
    """
    folder = context.folder
    trained, known = list_checkpoints(folder.checkpoints), folder.read_results()
    if not folder.config.exists() or not (trained or "weights" in known):
        return folder
    stored = dump_config(with_checkpoint(context.cfg, folder, checkpoint))
    repeated = known.get("weights") == context.weights and folder.config.read_text() == stored
    if repeated and not trained:  # the command that wrote here, which may have been stopped
        return folder
    name = digest({"config": dump_config(context.cfg), "weights": context.weights})
    if "weights" in known:
        same = known["weights"] == context.weights
    else:  # results of an earlier version, or none yet
        same = checkpoint is None or checkpoint.resolve() == trained[-1].resolve()
    if "clean" in known:  # through other BatchNorms it is another model
        same = same and known["clean"].get("norms") == context.norms.get("norms")
    lists = {"train": context.train.digest, **({"test": test.digest} if test is not None else {})}
    before = known.get("lists", {})
    if same and all(before.get(key, value) == value for key, value in lists.items()):
        return folder.beside(name)
    return RunFolder(folder.path / "evaluations" / name)


def join(folder: RunFolder) -> None:
    """Add the results of an evaluation to those of its run; say what stays apart."""
    if folder.main is None:
        return
    found, apart = joined(folder.main.read_results(), folder.read_results())
    folder.main.update_results(found)
    if apart:
        log_message(
            f"measured under other settings than before, so kept out of {folder.main.results}: "
            f"{', '.join(apart)}; they are in {folder.results}"
        )


def joined(before: Results, new: Results) -> tuple[dict[str, Any], list[str]]:
    """Results of one model on the same lists as one, and the names of what cannot be joined.

    What was there stays; under the same settings, new budgets, attacks and corruptions join it.
    """
    result, apart = {**new, **before}, []
    for name, settings in new.get("attack_settings", {}).items():
        known = before.get("attack_settings", {}).get(name)
        if known is not None and not _alike(known, settings):
            apart.append(name)
            continue
        for section in BY_ATTACK:
            if name in new.get(section, {}):
                value, old = new[section][name], before.get(section, {}).get(name)
                if section in BY_BUDGET and old:
                    value = _by_budget({**old, **value})
                result[section] = {**result.get(section, {}), name: value}
    for key in ("transfer", "robust", "data"):
        if key in new and key in before:
            result[key] = {**before[key], **new[key]}
    if "clean" in new and "clean" in before:
        same = [new["clean"].get(k) == before["clean"].get(k) for k in ("views", "train_views")]
        if all(same):
            result["clean"] = _joined_tree(before["clean"], new["clean"])
        else:
            apart.append("clean accuracy (other views)")
    if "corruptions" in new and "corruptions" in before:
        together = _joined_corruptions(before["corruptions"], new["corruptions"])
        if together is None:
            apart.append("corruptions")
        else:
            result["corruptions"] = together
    if "cost" in new and "cost" in before:
        result["cost"] = _joined_tree(new["cost"], before["cost"])
    return result, apart


def _alike(one: Results, other: Results) -> bool:
    """Whether two attacks of one name are the same attack; older results know less of it."""
    keys = ("attack", "solver", "clips", "norms", "settings")
    return all(one[key] == other[key] for key in keys if key in one and key in other)


def _by_budget(values: dict[str, Any]) -> dict[str, Any]:
    """In the order of the budgets, where they are numbers ("0.25/255")."""
    with suppress(ValueError):
        numbers = {key: float(key.partition("/")[0]) for key in values if key[0].isdigit()}
        ordered = sorted(numbers, key=lambda key: numbers[key])
        return {**{k: v for k, v in values.items() if k not in numbers}} | {
            key: values[key] for key in ordered
        }
    return values


def _joined_tree(one: Results, other: Results) -> dict[str, Any]:
    """Both trees; where both have a number, that of `other`."""
    both = {
        key: _joined_tree(one[key], other[key])
        for key in one.keys() & other.keys()
        if isinstance(one[key], dict) and isinstance(other[key], dict)
    }
    return {**one, **other, **both}


def _joined_corruptions(before: Results, new: Results) -> dict[str, Any] | None:
    """The corruptions of both, None if they are of other clips.

    Scores are of the side that ran more, for they say over what they are.
    """
    if any(before.get(key) != new.get(key) for key in ("clean", "clips", "order", "norms")):
        return None
    suites = ("P", "C", "V")

    def count(side: Results) -> int:
        return sum(len(side.get(suite, {})) for suite in suites)

    more = before if count(before) > count(new) else new
    together = {key: {**before.get(key, {}), **new.get(key, {})} for key in suites}
    frames = {**before.get("repeated_frames", {}), **new.get("repeated_frames", {})}
    shown = {key: value for key, value in together.items() if value}
    hit = {**before.get("damaged_clips", {}), **new.get("damaged_clips", {})}
    shown |= {"repeated_frames": frames, "damaged_clips": hit}
    return {**before, **new, **shown, "scores": more["scores"]}
