"""Fine-tuning of a copy of the encoder, from a config to accuracies; goes on after a kill."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch

from vidcsl import builders
from vidcsl.config import dump_config
from vidcsl.data.lists import VideoList
from vidcsl.engine.checkpoint import load_newest
from vidcsl.engine.ledger import digest
from vidcsl.engine.run_folder import RunFolder
from vidcsl.engine.train import Trainer
from vidcsl.engine.writer import CheckpointWriter
from vidcsl.evaluation.finetune import FineTuned
from vidcsl.evaluation.linear import video_answers
from vidcsl.stages.job import Job
from vidcsl.stages.protocols import add_accuracy


def finetune(results: dict[str, Any], test: VideoList, job: Job) -> None:
    """Train a copy of the encoder with a fresh head, and add how well it names the test videos.

    What it learns lies in the run's folder, under `finetune`, by the weights it started from: a
    stopped fine-tuning goes on where it was, a finished one is not repeated.
    """
    method = _trained(job)
    method.eval()
    tuned = replace(job, method=method)
    queries = tuned.features(test, clips=job.cfg.EVALUATE.TEST_VIEWS, crops=job.cfg.EVALUATE.CROPS)
    with torch.no_grad():
        logits = method.head(queries.values.to(job.world.device)).cpu()
    answers = video_answers(logits, queries.labels)
    add_accuracy(results, "finetune", *answers, seed=job.cfg.SEED)


def _trained(job: Job) -> FineTuned:
    cfg, world = job.cfg, job.world
    settings = {"weights": job.weights, "finetune": dict(cfg.FINETUNE), "seed": cfg.SEED}
    settings |= job.norms
    folder = RunFolder(job.folder.path / "finetune" / digest(settings))
    if world.is_main:
        folder.create()
        folder.write_config(dump_config(cfg))
    world.barrier()
    encoder = deepcopy(job.method.encoder)
    method = builders.build_finetuned(cfg, encoder, job.train, world)  # type: ignore[arg-type]
    loader = builders.build_train_loader(cfg, job.train, world, batch=cfg.FINETUNE.BATCH)
    trainer = Trainer(
        stepper=builders.build_stepper(
            cfg,
            method,
            world,
            optimiser=lambda made: builders.build_finetune_optimiser(cfg, made),  # type: ignore[arg-type]
        ),
        batches=loader.epoch,
        augment=builders.build_augmentation(cfg),
        schedule=builders.build_finetune_schedule(cfg, steps_per_epoch=loader.steps),
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
    if trainer.position.epoch < cfg.FINETUNE.EPOCHS:
        with job.timed("fine-tuning"):
            trainer.run()
    return method
