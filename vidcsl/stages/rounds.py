"""Trainings from the start, one after the other, each judged by what the one before remembers."""

from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode
from torch import Tensor

from vidcsl import builders
from vidcsl.config import differing_keys, parse_config
from vidcsl.data.lists import VideoList
from vidcsl.engine.checkpoint import load_checkpoint
from vidcsl.engine.distributed import World
from vidcsl.engine.progress import say
from vidcsl.engine.run_folder import RunFolder
from vidcsl.errors import UserError
from vidcsl.objectives import Method
from vidcsl.stages.pretrain import pretrain
from vidcsl.stages.starting import load_start, open_folder

_Memory = tuple[Tensor, Tensor]
"""Of each video: a mean embedding, `[N, P]`, and how often it was seen, `[N]`."""


def pretrain_in_rounds(
    cfg: CfgNode,
    train: VideoList,
    world: World,
    folder: RunFolder,
    checkpoint: dict[str, Any] | None,
) -> Method:
    """The method of the last round, which the run's folder holds; earlier ones lie in its `rounds`.

    Args:
        cfg: the config; each round is a whole training by it, earlier ones maybe by another method.
        train: the videos.
        world: the processes.
        folder: of the run.
        checkpoint: the last round's, where it has begun: earlier ones are over then.
    """
    count = cfg.FALSE_NEGATIVES.ROUNDS
    before, earlier = builders.earlier_rounds(cfg), [folder.round(n) for n in range(1, count)]
    memory = _of_tutor(cfg) if cfg.FALSE_NEGATIVES.TUTOR and checkpoint is None else None
    for number, each in enumerate(earlier if checkpoint is None else [], start=1):
        if world.is_main:
            say(f"round {number} of {count}, in {each.path}")
        begun = open_folder(before, each, world, resume=True)
        detector: Any = _round(before, train, world, each, begun, memory).detector
        memory = detector.memory, detector.visits
    method = _round(cfg, train, world, folder, checkpoint, memory)
    if earlier and world.is_main:
        _count(earlier, folder)
    return method


def _round(
    cfg: CfgNode,
    train: VideoList,
    world: World,
    folder: RunFolder,
    checkpoint: dict[str, Any] | None,
    memory: _Memory | None,
) -> Method:
    method = builders.build_method(cfg, train, world)
    if checkpoint is None:
        load_start(cfg, method, world, folder)
        if memory is not None:
            method.detector.learn_from(*memory)  # type: ignore[operator, union-attr]
    return pretrain(cfg, method, train, world, folder, checkpoint)


def _of_tutor(cfg: CfgNode) -> _Memory:
    """What another training remembers of the same videos.

    Raises:
        UserError: it remembers none, or others.
    """
    path = cfg.FALSE_NEGATIVES.TUTOR
    document = load_checkpoint(Path(path))
    before = parse_config(document["config"], where=f"the config in {path}")
    lists = {Path(each.DATA.TRAIN_LIST).name for each in (cfg, before)}  # folders may have moved
    if len(lists) > 1 or differing_keys(cfg, before, sections=("SYNTHETIC",)):
        raise UserError(f"FALSE_NEGATIVES.TUTOR {path} was trained on another list of videos")
    found = document["method"]
    if "detector.memory" not in found:
        raise UserError(
            f"FALSE_NEGATIVES.TUTOR {path} remembers nothing: train it with "
            "FALSE_NEGATIVES.DETECTOR memory"
        )
    return found["detector.memory"], found["detector.visits"]


def _count(earlier: list[RunFolder], folder: RunFolder) -> None:
    """Add what the earlier rounds took to the costs of the run."""
    seconds = {**_seconds(folder), "earlier rounds": sum(map(_pretraining, earlier))}
    folder.update_results({"cost": {**folder.read_results().get("cost", {}), "seconds": seconds}})


def _pretraining(folder: RunFolder) -> float:
    return float(_seconds(folder).get("pretraining", 0.0))


def _seconds(folder: RunFolder) -> dict[str, float]:
    seconds: dict[str, float] = folder.read_results().get("cost", {}).get("seconds", {})
    return seconds
