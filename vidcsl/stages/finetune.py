"""Fine-tuning of a copy of the encoder, from a config to accuracies; goes on after a kill."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vidcsl import builders
from vidcsl.config import dump_config
from vidcsl.data.lists import VideoList
from vidcsl.engine.checkpoint import load_newest
from vidcsl.engine.ledger import digest
from vidcsl.engine.run_folder import RunFolder
from vidcsl.engine.schedule import Schedule
from vidcsl.engine.train import Trainer
from vidcsl.engine.writer import CheckpointWriter
from vidcsl.evaluation.linear import video_answers
from vidcsl.objectives.supervised import Supervised
from vidcsl.stages.job import Job
from vidcsl.stages.protocols import add_accuracy


@dataclass(frozen=True)
class Recipe:
    """How a copy of the encoder is trained with labels.

    Args:
        name: of the protocol, and of its folder.
        settings: what the outcome depends on, beside weights, norms and seed.
        epochs, batch: passes over the training list, and videos of a step over all processes.
        build: `(encoder, videos, world) -> method`.
        optimiser: of that method.
        schedule: of so many steps an epoch.
    """

    name: str
    settings: Mapping[str, Any]
    epochs: int
    batch: int
    build: Callable[..., Supervised]
    optimiser: Callable[[Any], torch.optim.Optimizer]
    schedule: Callable[[int], Schedule]


def finetune(results: dict[str, Any], test: VideoList, job: Job) -> None:
    """Train a copy of the encoder with a fresh head, and add how well it names the test videos."""
    cfg = job.cfg
    recipe = Recipe(
        "finetune",
        settings={"finetune": dict(cfg.FINETUNE)},
        epochs=cfg.FINETUNE.EPOCHS,
        batch=cfg.FINETUNE.BATCH,
        build=lambda *given: builders.build_finetuned(cfg, *given),
        optimiser=lambda made: builders.build_finetune_optimiser(cfg, made),
        schedule=lambda steps: builders.build_finetune_schedule(cfg, steps_per_epoch=steps),
    )
    name_videos(results, "finetune", trained(job, recipe), test, job)


def name_videos(
    results: dict[str, Any], name: str, method: Supervised, test: VideoList, job: Job
) -> None:
    """Add how well a trained method names the test videos, `NAME_top1`."""
    method.eval()
    tuned = replace(job, method=method)
    queries = tuned.features(test, clips=job.cfg.EVALUATE.TEST_VIEWS, crops=job.cfg.EVALUATE.CROPS)
    with torch.no_grad():
        logits = method.head(queries.values.to(job.world.device)).cpu()
    add_accuracy(results, name, *video_answers(logits, queries.labels), seed=job.cfg.SEED)


def trained(job: Job, recipe: Recipe) -> Supervised:
    """A copy of the encoder under a head, trained by the recipe.

    What it learns lies in the run's folder, under the recipe's name, by the weights it started
    from and the videos: a stopped training goes on where it was, a finished one is not repeated.
    """
    cfg, world = job.cfg, job.world
    how = {
        "augment": dict(cfg.AUGMENT),
        "clips": {key: cfg.DATA[key] for key in ("CLIPS", "SAMPLING", "MIN_GAP", "MAX_GAP")},
        "step": [cfg.PRECISION, cfg.TRAIN.CLIP_GRADIENT],
        "seed": cfg.SEED,
        **recipe.settings,
    }
    settings = job.settings(job.train, job.weights, **how)
    folder = RunFolder(job.folder.path / recipe.name / digest(settings))
    if world.is_main:
        folder.create()
        folder.write_config(dump_config(cfg))
    world.barrier()
    method = recipe.build(deepcopy(job.method.encoder), job.train, world)
    loader = builders.build_train_loader(cfg, job.train, world, batch=recipe.batch)
    trainer = Trainer(
        stepper=builders.build_stepper(cfg, method, world, optimiser=recipe.optimiser),
        batches=loader.epoch,
        augment=builders.build_augmentation(cfg),
        schedule=recipe.schedule(loader.steps),
        world=world,
        folder=folder,
        seed=cfg.SEED,
        damaged_limit=int(cfg.DATA.DAMAGED_LIMIT * len(job.train)),
        writer=CheckpointWriter(folder.checkpoints, world, keep=1),
        document={"config": dump_config(cfg), "classes": list(job.train.classes)},
    )
    checkpoint = load_newest(folder.checkpoints)
    if checkpoint:
        trainer.restore(checkpoint)
    if trainer.position.epoch < recipe.epochs:
        title = _TITLES.get(recipe.name, recipe.name)
        with job.timed(f"{title} on {Path(job.train.source).name}"):
            trainer.run()
    return method


_TITLES = {"finetune": "fine-tuning"}
