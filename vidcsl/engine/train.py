"""Pretraining that can be left alone: logged, checkpointed, resumed exactly."""

import math
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vidcsl.data.loader import Batch
from vidcsl.engine.checkpoint import Position, load_weights, save_checkpoint
from vidcsl.engine.distributed import World
from vidcsl.engine.progress import Bar, Log, Meter
from vidcsl.engine.run_folder import RunFolder
from vidcsl.engine.schedule import Schedule
from vidcsl.engine.signals import Interrupted, noted_signals
from vidcsl.engine.step import Stepper
from vidcsl.engine.tally import Tally
from vidcsl.errors import UserError
from vidcsl.objectives import ClipBatch
from vidcsl.seeding import sample_seed


@dataclass
class Trainer:
    """Trains a method; everything it needs is given, so it knows no config.

    Args:
        stepper: the method, its optimiser, and how a step is made of them.
        batches: `(epoch, first step) -> batches` of this process.
        augment: `(frames, sizes, seeds, progress) -> clips`, see `vidcsl.augment`.
        schedule: length, learning rate, and when it is logged and saved.
        world: the processes.
        folder: where the run is written.
        seed: of the run.
        damaged_limit: how many different videos may be unreadable.
        keep: newest checkpoints that stay.
        document: plain values that go into each checkpoint (config, classes).
    """

    stepper: Stepper
    batches: Callable[[int, int], Iterable[Batch]]
    augment: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    schedule: Schedule
    world: World
    folder: RunFolder
    seed: int = 0
    damaged_limit: int = 0
    keep: int = 2
    document: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.position = Position()
        self.damaged: set[str] = set()
        self.readers: set[str] = set()  # who decoded this process's videos
        self._named_damaged: set[str] = set()
        self.interval, self.epoch_tally = Tally(self.world), Tally(self.world)
        self._meter = Meter()

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Go on from where `checkpoint` was written."""
        source = f"the newest of {self.folder.checkpoints}"
        load_weights(self.stepper.method, checkpoint["method"], source=source)
        self.stepper.optimiser.load_state_dict(checkpoint["optimiser"])
        self.stepper.precision.load(checkpoint.get("precision", {}))
        self.position = Position(**checkpoint["position"])
        self.damaged = self._named_damaged = set(checkpoint["damaged"])
        if self.world.is_main:  # the tally is of all processes: one of them carries it on
            self.epoch_tally.load(checkpoint["epoch_tally"])

    def run(self) -> dict[str, Any]:
        """Train to the end; the averages of the last epoch, `seconds` and `clips_per_second`.

        `by_class` holds the shares that are known for each class, see `Tally.by_class`.

        Raises:
            Interrupted: on SIGTERM or SIGINT, after a checkpoint was written.
            UserError: the loss is not finite, or too many videos are damaged.
        """
        started, clips = time.perf_counter(), 0
        summary: dict[str, float] = {}
        by_class: dict[str, list[float | None]] = {}
        log, bar = self._open_log(), self._open_bar()
        try:
            with noted_signals() as received:
                while self.position.epoch < self.schedule.epochs:
                    batches = self.batches(self.position.epoch, self.position.step)
                    for batch in self._meter.watch(batches):
                        clips += self._step(batch) * self.world.size
                        due = self.schedule.logs(self.position.step)
                        bar.advance(1, **(self._log(log) if due else {}))
                        if self.schedule.saves(epoch=self.position.epoch, step=self.position.step):
                            self._save()
                        if self.world.any(bool(received)):
                            self._log(log)
                            self._save()
                            raise Interrupted(received[0] if received else signal.SIGTERM)
                    summary = self.epoch_tally.averages()
                    by_class = self.epoch_tally.by_class()
                    self._finish_epoch(log, summary)
        finally:
            bar.close()
            log.close()
        seconds = time.perf_counter() - started
        return {
            **summary,
            "by_class": by_class,
            "seconds": seconds,
            "clips_per_second": clips / seconds,
        }

    @property
    def _global_step(self) -> int:
        return self.position.epoch * self.schedule.steps_per_epoch + self.position.step

    def _step(self, batch: Batch) -> int:
        """One batch; the number of clips of this process."""
        self.damaged = self.damaged | set(batch.damaged)
        self.readers.update(batch.readers)
        clips, lr = self._augmented(batch), self.schedule.lr(self._global_step)
        for replay in range(self.stepper.method.replays):
            outputs = self.stepper(replace(clips, replay=replay), lr=lr)
            self.interval.add(outputs)
            self.epoch_tally.add(outputs)
        self.position = Position(self.position.epoch, self.position.step + 1)
        count = clips.clips.shape[0] * clips.clips.shape[1]
        self._meter.add(count * self.world.size)
        return count

    def _augmented(self, batch: Batch) -> ClipBatch:
        batch = batch.to(self.world.device)
        indices = batch.indices.tolist()
        seeds = torch.tensor([sample_seed(self.seed, batch.epoch, index) for index in indices])
        progress = self._global_step / self.schedule.total_steps
        return ClipBatch(
            clips=self.augment(batch.frames, batch.sizes, seeds, progress),
            labels=batch.labels,
            groups=batch.groups,
            videos=batch.indices,
            progress=progress,
        )

    def _log(self, log: Log) -> dict[str, str]:
        averages, rates = self.interval.averages(), self._meter.rates()
        self.interval.reset()
        self._count_damaged(log)
        if not averages:
            return {}
        epoch = self.position.epoch + self.position.step / self.schedule.steps_per_epoch
        if not math.isfinite(averages["loss"]):
            raise UserError(
                f"the loss is not finite at epoch {epoch:.2f}; the last checkpoint is intact: "
                "lower TRAIN.LR, raise METHOD.TEMPERATURE or set TRAIN.CLIP_GRADIENT"
            )
        lr = self.schedule.lr(self._global_step - 1)
        log.write("train", epoch=epoch, step=self._global_step, lr=lr, **averages, **rates)
        return {
            "loss": f"{averages['loss']:.3f}",
            "clips/s": f"{rates['clips_per_second']:.1f}",
            "data wait": f"{rates['data_wait']:.0%}",
        }

    def _count_damaged(self, log: Log) -> None:
        everywhere = set().union(*self.world.collect(self.damaged))
        for path in sorted(everywhere - self._named_damaged):
            log.write("damaged", path=path, epoch=self.position.epoch, step=self._global_step)
        self.damaged = self._named_damaged = everywhere
        if len(everywhere) > self.damaged_limit:
            self._save()
            raise UserError(
                f"{len(everywhere)} damaged videos, more than DATA.DAMAGED_LIMIT allows "
                f"({self.damaged_limit}); first: {min(everywhere)}; see {self.folder.log}"
            )

    def _finish_epoch(self, log: Log, summary: dict[str, float]) -> None:
        self.position = Position(self.position.epoch + 1, 0)
        log.write("epoch", epoch=self.position.epoch, step=self._global_step, **summary)
        self.epoch_tally.reset()
        if self.schedule.saves(epoch=self.position.epoch, step=0):
            self._save()

    def _open_log(self) -> Log:
        if not self.world.is_main:
            return Log(None)
        return Log(self.folder.log, self.folder.tensorboard)

    def _open_bar(self) -> Bar:
        total, done = self.schedule.total_steps, self._global_step
        return Bar("pretraining", total=total, done=done, shown=self.world.is_main)

    def _save(self) -> None:
        tally = self.epoch_tally.state()  # a sum over processes: all of them take part
        if self.world.is_main:
            state = {
                **self.document,
                "method": self.stepper.method.state_dict(),
                "optimiser": self.stepper.optimiser.state_dict(),
                "precision": self.stepper.precision.state(),
                "damaged": sorted(self.damaged),
                "epoch_tally": tally,
            }
            save_checkpoint(self.folder.checkpoints, state, self.position, keep=self.keep)
        self.world.barrier()
