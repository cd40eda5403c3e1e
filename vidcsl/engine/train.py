"""Pretraining that can be left alone: logged, checkpointed, resumed exactly."""

import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from vidcsl.data.loader import Batch
from vidcsl.engine.checkpoint import Position, load_newest
from vidcsl.engine.distributed import World
from vidcsl.engine.guard import Guard
from vidcsl.engine.progress import Bar, Log, Meter, say
from vidcsl.engine.run_folder import RunFolder
from vidcsl.engine.schedule import Schedule
from vidcsl.engine.signals import Interrupted, noted_signals
from vidcsl.engine.step import Augmentation, Stepper, augmented
from vidcsl.engine.tally import Tally
from vidcsl.engine.trackers import Tracker
from vidcsl.engine.usage import usage
from vidcsl.engine.watchdog import Watchdog
from vidcsl.engine.writer import CheckpointWriter
from vidcsl.errors import Diverged, UserError
from vidcsl.objectives.metrics import Metric
from vidcsl.pieces import own_part


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
        writer: of checkpoints; by default the newest two stay.
        guard: says when the loss has gone astray; by default when it is not finite.
        trackers: what makes those that are told of the numbers, on the main process.
        watchdog: hears of every step.
        document: plain values that go into each checkpoint (config, classes).
    """

    stepper: Stepper
    batches: Callable[[int, int], Iterable[Batch]]
    augment: Augmentation
    schedule: Schedule
    world: World
    folder: RunFolder
    seed: int = 0
    damaged_limit: int = 0
    writer: CheckpointWriter | None = None
    guard: Guard = field(default_factory=Guard)
    trackers: Callable[[], Sequence[Tracker]] = tuple
    watchdog: Watchdog = field(default_factory=Watchdog)
    document: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.position = Position()
        self.damaged: set[str] = set()
        self.readers: set[str] = set()  # who decoded this process's videos
        self._named_damaged: set[str] = set()
        self.interval, self.epoch_tally = Tally(self.world), Tally(self.world)
        self.epoch: dict[str, Any] = {}  # the averages of the last whole one
        self._meter = Meter()
        self._clips = 0  # of all processes
        self._seconds, self._started = 0.0, time.perf_counter()  # spent before it started
        self._writer = self.writer or CheckpointWriter(self.folder.checkpoints, self.world)

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Go on from where `checkpoint` was written."""
        self.stepper.load(checkpoint, source=f"the newest of {self.folder.checkpoints}")
        self.guard.load(checkpoint.get("guard", {}))
        self.position = Position(**checkpoint["position"])
        self.damaged = self._named_damaged = set(checkpoint["damaged"])
        self.epoch = checkpoint.get("epoch", {})
        self._seconds, self._clips = checkpoint.get("cost", (0.0, 0))
        self.epoch_tally.reset()
        if self.world.is_main:  # the tally is of all processes: one of them carries it on
            self.epoch_tally.load(checkpoint["epoch_tally"])

    def run(self) -> dict[str, Any]:
        """Train to the end; the averages of the last epoch, `seconds` and `clips_per_second`.

        `by_class` holds the shares that are known for each class, see `Tally.by_class`. A training
        that was stopped and went on tells what all of it took.

        Raises:
            Interrupted: on SIGTERM or SIGINT, after a checkpoint was written.
            UserError: the loss went astray once too often, a checkpoint cannot be written, or too
                many videos are damaged.
        """
        self._started = time.perf_counter()
        log, bar = self._open_log(), self._open_bar()
        try:
            with noted_signals() as received, self.watchdog:
                while self.position.epoch < self.schedule.epochs:
                    try:
                        self._epoch(log, bar, received)
                    except Diverged as trouble:
                        bar.advance(self._roll_back(trouble, log))
                self._writer.wait()
                if self.world.any(bool(received)):
                    raise Interrupted(received[0] if received else signal.SIGTERM)
        finally:
            self._writer.close()
            bar.close()
            log.close()
        seconds = self._spent()
        return {**self.epoch, "seconds": seconds, "clips_per_second": self._clips / seconds}

    def _spent(self) -> float:
        """Seconds, those before a stop too."""
        return self._seconds + time.perf_counter() - self._started

    @property
    def _global_step(self) -> int:
        return self.position.epoch * self.schedule.steps_per_epoch + self.position.step

    def _epoch(self, log: Log, bar: Bar, received: Sequence[int]) -> None:
        """The rest of the epoch that is under way."""
        batches = self.batches(self.position.epoch, self.position.step)
        for batch in self._meter.watch(batches):
            stop = self._step(batch, received)
            self.watchdog.beat()
            due = self.schedule.logs(self.position.step)
            bar.advance(1, **(self._log(log) if due else {}))
            if stop:
                self._log(log)
            if stop or self.schedule.saves(epoch=self.position.epoch, step=self.position.step):
                self._save()
            if stop:
                self._writer.wait()
                raise Interrupted(received[0] if received else signal.SIGTERM)
        self._finish_epoch(log)

    def _step(self, batch: Batch, received: Sequence[int]) -> bool:
        """One batch, or none where it is left out; whether any process is to stop.

        Raises:
            Diverged: on all processes.
        """
        self.damaged = self.damaged | set(batch.damaged)
        self.readers.update(batch.readers)
        left_out = self._global_step in self.guard.left_out
        outputs = [] if left_out else self._learn(batch)
        losses = [torch.as_tensor(each["loss"]).detach() for each in outputs]
        loss = torch.stack(losses).mean() if losses else torch.zeros((), device=self.world.device)
        flags = loss.new_tensor([bool(received), self._writer.failed])
        total, stops, failures = self.world.total(torch.cat([loss[None], flags])).tolist()
        if failures:
            self._writer.wait()  # says why
        if outputs:
            self.guard.check(total / self.world.size)
        for each in outputs:
            self.interval.add(each)
            self.epoch_tally.add(each)
        self.position = Position(self.position.epoch, self.position.step + 1)
        return bool(stops)

    def _learn(self, batch: Batch) -> list[dict[str, Metric]]:
        """The steps that are made with a batch; what the method reports of each."""
        progress = self._global_step / self.schedule.total_steps
        lr = self.schedule.lr(self._global_step)
        batch = batch.to(self.world.device)
        clips = augmented(batch, self.augment, seed=self.seed, progress=progress)
        count = clips.clips.shape[:2].numel() * self.world.size
        self._clips += count
        self._meter.add(count)
        return [self.stepper(clips, lr=lr) for _ in range(self.stepper.method.replays)]

    def _roll_back(self, trouble: Diverged, log: Log) -> int:
        """Return to the newest checkpoint; how far that is, in steps, as a negative number.

        Raises:
            Diverged: there is none, or the training was set back often enough.
        """
        self._writer.wait()
        bad, where = self._global_step, f"{trouble} at step {self._global_step + 1}"
        checkpoint = load_newest(self.folder.checkpoints) if self.guard.may_roll_back else None
        if not checkpoint:
            tried = f"after {self.guard.done} of at most {self.guard.rollbacks} roll-backs"
            raise Diverged(
                f"{where}, {'before the first checkpoint' if self.guard.may_roll_back else tried}: "
                "lower TRAIN.LR, raise METHOD.TEMPERATURE, set TRAIN.CLIP_GRADIENT, or PRECISION "
                "to float32"
            ) from trouble
        left_out = self.guard.roll_back(bad_step=bad)
        spent, clips = self._spent(), self._clips
        self.restore(checkpoint)
        # What led astray was paid for, too.
        self._seconds, self._clips, self._started = spent, clips, time.perf_counter()
        self.interval.reset()
        back = self._global_step
        log.write("rollback", step=bad + 1, to=back, reason=str(trouble), left_out=left_out)
        if self.world.is_main:
            say(
                f"{where}: back to step {back}, without the batches of {len(left_out)} steps "
                f"(roll-back {self.guard.done} of at most {self.guard.rollbacks})"
            )
        return back - bad

    def _log(self, log: Log) -> dict[str, str]:
        averages, rates = self.interval.averages(), self._meter.rates()
        self.interval.reset()
        self._count_damaged(log)
        if not averages:
            return {}
        epoch = self.position.epoch + self.position.step / self.schedule.steps_per_epoch
        lr = self.schedule.lr(self._global_step - 1)
        use = usage(self.world.device)
        log.write("train", epoch=epoch, step=self._global_step, lr=lr, **averages, **rates, **use)
        return {
            "loss": f"{averages['loss']:.3f}",
            "clips/s": f"{rates['clips_per_second']:.1f}",
            "data wait": f"{rates['data_wait']:.0%}",
            "memory": f"{use['memory_mib'] / 1024:.1f} GiB",
            **({"GPU": f"{use['gpu_use']:.0%}"} if "gpu_use" in use else {}),
        }

    def _count_damaged(self, log: Log) -> None:
        everywhere = set().union(*self.world.collect(self.damaged))
        for path in sorted(everywhere - self._named_damaged):
            log.write("damaged", path=path, epoch=self.position.epoch, step=self._global_step)
        self.damaged = self._named_damaged = everywhere
        if len(everywhere) > self.damaged_limit:
            self._save()
            self._writer.wait()
            raise UserError(
                f"{len(everywhere)} damaged videos, more than DATA.DAMAGED_LIMIT allows "
                f"({self.damaged_limit}); first: {min(everywhere)}; see {self.folder.log}"
            )

    def _finish_epoch(self, log: Log) -> None:
        summary = self.epoch_tally.averages()
        self.epoch = {**summary, "by_class": self.epoch_tally.by_class()}
        self.position = Position(self.position.epoch + 1, 0)
        log.write("epoch", epoch=self.position.epoch, step=self._global_step, **summary)
        self.epoch_tally.reset()
        if self.schedule.saves(epoch=self.position.epoch, step=0):
            self._save()

    def _open_log(self) -> Log:
        if not self.world.is_main:
            return Log(None)
        return Log(self.folder.log, self.trackers())

    def _open_bar(self) -> Bar:
        total, done = self.schedule.total_steps, self._global_step
        return Bar("pretraining", total=total, done=done, shown=self.world.is_main)

    def _save(self) -> None:
        """A checkpoint.

        Raises:
            Diverged: on all processes, where it would be of no use: the last step broke a weight.
        """
        weights = (own_part(each) for each in self.stepper.method.parameters())
        if self.world.any(not all(bool(each.isfinite().all()) for each in weights)):
            raise Diverged("the weights are not finite")
        state = {
            **self.document,
            **self.stepper.state(),
            "guard": self.guard.state(),
            "damaged": sorted(self.damaged),
            "epoch": self.epoch,
            "cost": (self._spent(), self._clips),
            "epoch_tally": self.epoch_tally.state(),
        }
        self._writer.save(state, self.position)
        self.watchdog.beat()
