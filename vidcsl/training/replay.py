"""A step whose loss diverged, repeated to find where it went wrong.

`vidcsl replay` trains from the checkpoint before the step to the step, on one process, and watches
every module of that one; see `keep_step`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vidcsl.errors import Diverged, UserError
from vidcsl.io import Bar
from vidcsl.methods import ClipBatch
from vidcsl.methods.metrics import Ratio
from vidcsl.state import tensors_of
from vidcsl.training.checkpoint import Position
from vidcsl.training.train import Trainer, augmented, train_step


@dataclass
class Findings:
    """What was not finite in a step, in the order in which it was computed.

    Attributes:
        loss, gradient_norm: of the step; None where it did not come so far.
        error: why the method gave up; empty: it did not.
        broken_before: parameters that were not finite before the step.
        clips: videos, by their number in the list, whose clips are not finite.
        outputs, gradients: modules whose output, or the gradient of whose output, is not finite.
        weights: parameters that are not finite after the step.
        videos: of the batch, by their number in the list.
    """

    loss: float | None = None
    gradient_norm: float | None = None
    error: str = ""
    broken_before: list[str] = field(default_factory=list)
    clips: list[int] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    gradients: list[str] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)
    videos: list[int] = field(default_factory=list)


def replay(trainer: Trainer, *, step: int, shown: bool = True) -> Findings:
    """Train from where `trainer` stands to a step, and watch that one.

    Args:
        trainer: on one process, restored from a checkpoint before the step. Nothing is written.
        step: number in the run, from 0.
        shown: whether there is a progress bar.

    Raises:
        UserError: the step lies before the trainer's position or after the end of the run, or a
            step before it diverges.
    """
    learner, schedule = trainer.learner, trainer.schedule
    if not trainer.global_step <= step < schedule.total_steps:
        raise UserError(
            f"step {step} is not among the steps {trainer.global_step} to "
            f"{schedule.total_steps - 1} that can be repeated"
        )
    total = step + 1 - trainer.global_step
    bar = Bar("repeating steps", total=total, unit="steps", shown=shown)
    try:
        while True:
            epoch = trainer.position.epoch
            for batch in trainer.data.batches(epoch, trainer.position.step):
                here, findings = trainer.global_step, Findings(videos=batch.indices.tolist())
                if here == step or here not in trainer.guard.left_out:
                    clips = augmented(
                        batch.to(trainer.distributed.device),
                        trainer.data.augment,
                        seed=trainer.data.seed,
                        progress=here / schedule.total_steps,
                    )
                    for _ in range(learner.method.replays):
                        if here == step:
                            _watched_step(trainer, clips, lr=schedule.lr(here), found=findings)
                            continue
                        try:
                            train_step(learner, clips, lr=schedule.lr(here))
                        except Diverged:
                            raise UserError(
                                f"step {here} diverges before step {step} is reached: repeat it by "
                                f"--step {here}"
                            ) from None
                bar.advance()
                if here == step:
                    return findings
                trainer.position = Position(epoch, trainer.position.step + 1)
            trainer.position = Position(epoch + 1, 0)
    finally:
        bar.close()


def _watched_step(trainer: Trainer, batch: ClipBatch, *, lr: float, found: Findings) -> None:
    method = trainer.learner.method
    found.broken_before = _broken(method)
    broken = ~batch.clips.flatten(1).isfinite().all(dim=1)
    found.clips = batch.videos[broken].tolist()
    with _watching(method, found):
        try:
            outputs = train_step(trainer.learner, batch, lr=lr)
        except Diverged as error:
            found.error = str(error)
            return
    loss, norm = outputs["loss"], outputs["gradient_norm"]
    found.loss = float(torch.as_tensor(loss).detach())
    assert isinstance(norm, Ratio)
    found.gradient_norm = float(norm.part) if norm.whole else float("inf")
    found.weights = _broken(method)


@contextmanager
def _watching(module: nn.Module, found: Findings) -> Iterator[None]:
    """Within the block, modules without children report what is not finite of theirs."""

    def watch(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            for tensor in tensors_of(output):
                if not _finite(tensor):
                    fed = all(map(_finite, tensors_of(list(inputs))))
                    found.outputs.append(f"{name}, its inputs {'are' if fed else 'are not'} finite")
                if tensor.requires_grad:
                    tensor.register_hook(
                        lambda gradient: None if _finite(gradient) else found.gradients.append(name)
                    )

        return hook

    handles = [
        each.register_forward_hook(watch(f"{name} ({type(each).__name__})"))
        for name, each in module.named_modules()
        if not list(each.children())
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _broken(module: nn.Module) -> list[str]:
    return [name for name, weight in module.named_parameters() if not _finite(weight)]


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def in_words(found: Findings, *, names: list[str]) -> list[str]:
    """Findings as lines for the terminal, the first thing that went wrong at the top.

    Args:
        found: of a step.
        names: of the videos of its batch.
    """
    of_number = dict(zip(found.videos, names, strict=True))
    lines = []
    if found.broken_before:
        lines.append(
            f"{len(found.broken_before)} weights are not finite before this step: an earlier one "
            "broke them, look at that by --step"
        )
    if found.clips:
        lines.append(f"clips that are not finite: {', '.join(of_number[k] for k in found.clips)}")
    for what, modules in (("output", found.outputs), ("gradient", found.gradients)):
        if modules:
            rest = f", and {len(modules) - 1} more after it" if len(modules) > 1 else ""
            lines.append(f"first {what} that is not finite: of {modules[0]}{rest}")
    if found.error:
        lines.append(f"the method gave up: {found.error}")
    if found.loss is not None:
        lines.append(f"loss {found.loss:.6g}, gradient norm {found.gradient_norm:.6g}")
    if found.weights:
        lines.append(f"weights that are not finite after the step: {len(found.weights)}")
    if not (found.clips or found.outputs or found.gradients or found.error or found.weights):
        lines.append("everything was finite in this step")
    lines.append(f"its videos: {', '.join(names)}")
    return lines
