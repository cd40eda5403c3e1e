"""Pretraining, from a config to checkpoints, a log and the first part of the results."""

from typing import Any

import numpy as np
from fvcore.common.config import CfgNode

from vidcsl import builders
from vidcsl.config import dump_config
from vidcsl.data.lists import VideoList
from vidcsl.engine.distributed import World
from vidcsl.engine.run_folder import RunFolder
from vidcsl.engine.train import Trainer
from vidcsl.engine.usage import peak_memory_mib
from vidcsl.engine.weights import load_weights
from vidcsl.objectives import Method
from vidcsl.pieces import joined

_SHARES = ("removed", "precision", "recall")


def pretrain(
    cfg: CfgNode,
    method: Method,
    train: VideoList,
    world: World,
    folder: RunFolder,
    checkpoint: dict[str, Any] | None,
) -> Method:
    """Train `method`, from `checkpoint` on where there is one; the trained one, as it was built.

    Afterwards the folder holds the checkpoints, the log and the training part of the results. What
    was given is of no more use: it may be compiled, or cut up over the processes.
    """
    stacks = folder.hangs / f"rank{world.rank}.txt" if cfg.LOG.HANG_SECONDS else None
    loader = builders.build_train_loader(cfg, train, world, stacks=stacks)
    trainer = Trainer(
        stepper=builders.build_stepper(
            cfg,
            method,
            world,
            optimiser=lambda made: builders.build_optimiser_of(cfg, made),
            strategy=builders.build_strategy(cfg),
        ),
        batches=loader.epoch,
        augment=builders.build_augmentation(cfg),
        schedule=builders.build_schedule(cfg, steps_per_epoch=loader.steps),
        world=world,
        folder=folder,
        seed=cfg.SEED,
        damaged_limit=int(cfg.DATA.DAMAGED_LIMIT * len(train)),
        writer=builders.build_writer(cfg, folder.checkpoints, world),
        guard=builders.build_guard(cfg),
        trackers=lambda: builders.build_trackers(cfg, folder),
        watchdog=builders.build_watchdog(cfg, stacks, workers=loader.worker_pids),
        document={"config": dump_config(cfg), "classes": list(train.classes)},
    )
    if checkpoint:
        trainer.restore(checkpoint)
    # Also where it is over, but was killed before it could say so.
    if trainer.position.epoch < cfg.TRAIN.EPOCHS or _says_nothing(folder, world):
        summary = trainer.run()
        if world.is_main:
            folder.update_results(_results(cfg, train, trainer, summary))
    return _as_built(cfg, method, train, world)


def _says_nothing(folder: RunFolder, world: World) -> bool:
    said: bool = world.share("training" in folder.read_results())
    return not said


def _as_built(cfg: CfgNode, trained: Method, train: VideoList, world: World) -> Method:
    weights = {name: joined(weight) for name, weight in trained.state_dict().items()}
    method = builders.build_method(cfg, train, world)
    load_weights(method, weights, source="the training")
    return method


def _results(
    cfg: CfgNode, train: VideoList, trainer: Trainer, summary: dict[str, Any]
) -> dict[str, Any]:
    shares: dict[str, Any] = {k: summary[k] for k in _SHARES if k in summary}
    if {v.label for v in train.videos} != {-1} and "recall" in shares:
        labels = np.array([video.label for video in train.videos])
        counts = np.bincount(labels[labels >= 0])
        # What a blind guess would score, to hold the precision against.
        shares["chance"] = float((counts * (counts - 1)).sum() / (len(train) * (len(train) - 1)))
        shares["by_class"] = {
            name: {k: values[label] for k, values in summary["by_class"].items()}
            for label, name in enumerate(train.classes)
        }
    detector = cfg.FALSE_NEGATIVES.DETECTOR
    return {
        "name": cfg.NAME,
        "seed": cfg.SEED,
        "method": cfg.METHOD.NAME,
        "training": {
            "epochs": cfg.TRAIN.EPOCHS,
            "rounds": cfg.FALSE_NEGATIVES.ROUNDS,
            "rounds_method": cfg.FALSE_NEGATIVES.ROUNDS_METHOD,
            "loss": summary.get("loss"),  # none where the guard left out all of the last epoch
            "damaged_videos": sorted(trainer.damaged),
            "readers": sorted(trainer.readers),
        },
        "false_negatives": {
            "detector": detector,
            "treatment": cfg.FALSE_NEGATIVES.TREATMENT,
            **shares,
        },
        "cost": {
            "seconds": {"pretraining": summary["seconds"]},
            "clips_per_second": summary["clips_per_second"],
            "peak_memory_mib": peak_memory_mib(trainer.world.device),
        },
    }
