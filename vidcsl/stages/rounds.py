"""Trainings from the start, one after the other, each judged by what the one before remembers."""

from typing import Any

from fvcore.common.config import CfgNode

from vidcsl import builders
from vidcsl.data.lists import VideoList
from vidcsl.engine.distributed import World
from vidcsl.engine.progress import say
from vidcsl.engine.run_folder import RunFolder
from vidcsl.objectives import Method
from vidcsl.stages.pretrain import pretrain
from vidcsl.stages.starting import load_start, open_folder


def pretrain_in_rounds(
    cfg: CfgNode,
    train: VideoList,
    world: World,
    folder: RunFolder,
    checkpoint: dict[str, Any] | None,
) -> Method:
    """The method of the last round, which the run's folder holds; earlier ones lie in its `rounds`.

    Args:
        cfg: the config; each round is a whole training by it.
        train: the videos.
        world: the processes.
        folder: of the run.
        checkpoint: the last round's, where it has begun: earlier ones are over then.
    """
    count = cfg.FALSE_NEGATIVES.ROUNDS
    earlier = [folder.round(number) for number in range(1, count)]
    tutor: Method | None = None
    for number, each in enumerate(earlier if checkpoint is None else [], start=1):
        if world.is_main:
            say(f"round {number} of {count}, in {each.path}")
        begun = open_folder(cfg, each, world, resume=True)
        tutor = _round(cfg, train, world, each, begun, tutor)
    method = _round(cfg, train, world, folder, checkpoint, tutor)
    if earlier and world.is_main:
        _count(earlier, folder)
    return method


def _round(
    cfg: CfgNode,
    train: VideoList,
    world: World,
    folder: RunFolder,
    checkpoint: dict[str, Any] | None,
    tutor: Method | None,
) -> Method:
    method = builders.build_method(cfg, train, world)
    if checkpoint is None:
        load_start(cfg, method, world, folder)
        if tutor is not None:
            method.detector.learn_from(tutor.detector)  # type: ignore[operator, union-attr]
    return pretrain(cfg, method, train, world, folder, checkpoint)


def _count(earlier: list[RunFolder], folder: RunFolder) -> None:
    """Add what the earlier rounds took to the costs of the run."""
    seconds = {**_seconds(folder), "earlier rounds": sum(map(_pretraining, earlier))}
    folder.update_results({"cost": {**folder.read_results().get("cost", {}), "seconds": seconds}})


def _pretraining(folder: RunFolder) -> float:
    return float(_seconds(folder).get("pretraining", 0.0))


def _seconds(folder: RunFolder) -> dict[str, float]:
    seconds: dict[str, float] = folder.read_results().get("cost", {}).get("seconds", {})
    return seconds
