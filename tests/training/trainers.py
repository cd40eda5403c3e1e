"""Small training runs on batches made of a seed, without files, decoders or a config."""

import json

import torch

from tests.methods.made import make_method
from vidcsl.data.loader import Batch
from vidcsl.distributed import DistributedContext
from vidcsl.run_folder import RunFolder
from vidcsl.training.checkpoint import CheckpointWriter
from vidcsl.training.optimisation import Guard, Precision, Schedule
from vidcsl.training.parallel import Strategy, synchronise_batchnorm
from vidcsl.training.train import Learner, RunOutput, Trainer, TrainingData

STEPS, VIDEOS = 4, 8
ALONE = DistributedContext(rank=0, size=1, device=torch.device("cpu"))


def batches(distributed, *, hurt=(), views=2):
    """`(epoch, first step) -> batches`; the clips of the global steps `hurt` are not finite."""

    def of_epoch(epoch, first):
        for step in range(first, STEPS):
            number = epoch * STEPS + step
            generator = torch.Generator().manual_seed(number)
            frames = torch.rand(VIDEOS, views, 3, 2, 4, 4, generator=generator)
            if number in hurt:
                frames[0, 0, 0, 0, 0, 0] = torch.nan
            ids = torch.randperm(12, generator=generator)[:VIDEOS]
            size = VIDEOS // distributed.size
            mine = slice(distributed.rank * size, (distributed.rank + 1) * size)
            yield Batch(
                frames=frames[mine],
                sizes=torch.full((size, 2), 4),
                labels=(ids % 3)[mine],
                groups=(ids // 2)[mine],
                indices=ids[mine],
                frame_indices=torch.zeros(size, views, 2, dtype=torch.int64),
                epoch=epoch,
            )

    return of_epoch


def make_trainer(
    folder,
    *,
    distributed=ALONE,
    method="simclr",
    encoder=None,
    strategy=None,
    precision="float32",
    optimiser=torch.optim.AdamW,
    epochs=3,
    hurt=(),
    double=False,
    schedule=None,
    options=None,
    writer=None,
    guard=None,
):
    """A trainer whose log says each step's loss."""
    made = make_method(method, distributed=distributed, encoder=encoder, **(options or {}))
    made = synchronise_batchnorm(
        (made.double() if double else made).to(distributed.device), distributed
    )
    replica = (strategy or Strategy()).prepare(made, distributed)
    learning = [p for p in made.parameters() if p.requires_grad]
    folder = RunFolder(folder)
    if distributed.is_main:
        folder.create()
    distributed.barrier()
    learner = Learner(
        method=made,
        optimiser=optimiser(learning, lr=0.02),
        replica=replica,
        precision=Precision(precision),
        clip_gradient=1.0,
    )

    def augment(frames, _sizes, _seeds, _progress):
        return frames.double() if double else frames

    return Trainer(
        learner=learner,
        data=TrainingData(batches(distributed, hurt=hurt), augment),
        schedule=Schedule(
            epochs=epochs, steps_per_epoch=STEPS, peak_lr=0.02, log_every=1, **(schedule or {})
        ),
        output=RunOutput(
            folder,
            writer or CheckpointWriter(folder.checkpoints, distributed),
            document={"config": "", "classes": []},
        ),
        distributed=distributed,
        guard=guard or Guard(),
    )


def log_lines(folder, kind="train"):
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def losses(folder):
    """Loss by step; of repeated steps the last line counts."""
    return {line["step"]: line["loss"] for line in log_lines(folder)}
