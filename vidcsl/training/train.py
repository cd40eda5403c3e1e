"""The training loop: epochs, steps, metrics, checkpoints."""

import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vidcsl.data.loader import Batch
from vidcsl.distributed import DistributedContext
from vidcsl.errors import Diverged, UserError
from vidcsl.io import Bar, Log, Meter, say
from vidcsl.methods import ClipBatch, Method
from vidcsl.methods.method import Metric, Ratio
from vidcsl.run_folder import RunFolder
from vidcsl.seeding import sample_seed
from vidcsl.state import cut_like, joined, load_weights, own_part
from vidcsl.training.checkpoint import CheckpointWriter, Position, load_newest
from vidcsl.training.monitor import Interrupted, Tracker, Watchdog, noted_signals, usage
from vidcsl.training.optimisation import Guard, Precision, Schedule, set_lr

# ----------------------------------------------------------------------
# Running sums of what a method reports, exact over steps and processes.


class MetricAccumulator:
    """Sums what is reported over steps; divides when asked.

    A scalar is averaged over steps and processes. Of a `Share` part and whole are summed first, so
    that steps and processes count by what they held; a share of nothing is left out.

    Args:
        world: the processes that tally together; all must report the same names.
    """

    def __init__(self, distributed: DistributedContext) -> None:
        self._distributed = distributed
        self.reset()

    def reset(self) -> None:
        """Start afresh."""
        self._sums: dict[str, Tensor] = {}  # [2] or [2, classes + 1]: part and whole

    def add(self, values: dict[str, Metric]) -> None:
        """Add one step's metrics."""
        for name, value in values.items():
            one = value if isinstance(value, Ratio) else Ratio(value, torch.ones_like(value))
            both = torch.stack([one.part.detach().double(), one.whole.detach().double()])
            self._sums[name] = self._sums[name] + both if name in self._sums else both

    def state(self) -> dict[str, list[float] | list[list[float]]]:
        """Sums over all processes, as plain numbers, for a checkpoint."""
        return {name: sums.tolist() for name, sums in self._totals().items()}

    def load(self, state: dict[str, list[float] | list[list[float]]]) -> None:
        """Go on from `state`; on one process only, as it holds the sums of all."""
        device = self._distributed.device
        self._sums = {
            name: torch.tensor(sums, dtype=torch.float64, device=device)
            for name, sums in state.items()
        }

    def averages(self) -> dict[str, float]:
        """Means and shares over everything tallied."""
        pairs = {name: sums.view(2, -1).sum(dim=1) for name, sums in self._totals().items()}
        return {name: float(part / whole) for name, (part, whole) in pairs.items() if whole}

    def by_class(self) -> dict[str, list[float | None]]:
        """The shares that were reported by class, for each class; None: a share of nothing."""
        return {
            name: [
                part / whole if whole else None
                for part, whole in zip(*sums[:, :-1].tolist(), strict=True)
            ]
            for name, sums in self._totals().items()
            if sums.dim() == 2
        }

    def _totals(self) -> dict[str, Tensor]:
        """The sums over all processes, in one exchange."""
        if not self._sums:
            return {}
        names = sorted(self._sums)
        joined = torch.cat(
            [self._sums[name].flatten().to(self._distributed.device) for name in names]
        )
        parts = (
            self._distributed.total(joined)
            .cpu()
            .split([self._sums[name].numel() for name in names])
        )
        return {
            name: part.view_as(self._sums[name]) for name, part in zip(names, parts, strict=True)
        }


# ----------------------------------------------------------------------
# One step of the optimiser, whatever it is computed in and spread over.

# (frames, sizes, seeds, progress) -> clips, see `vidcsl.augment`
Augmentation = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def augmented(batch: Batch, augment: Augmentation, *, seed: int, progress: float) -> ClipBatch:
    """What a method learns from: a batch augmented on its device, by each video's own seed.

    Args:
        batch: of the loader.
        augment: makes its frames clips.
        seed: of the run.
        progress: share of the training that is done.
    """
    seeds = [sample_seed(seed, batch.epoch, video) for video in batch.indices.tolist()]
    return ClipBatch(
        clips=augment(batch.frames, batch.sizes, torch.tensor(seeds), progress),
        labels=batch.labels,
        groups=batch.groups,
        videos=batch.indices,
        progress=progress,
    )


@dataclass
class Stepper:
    """Forward, backward, clipping, optimiser, and what the method does after it.

    Args:
        method: encoder, heads and loss.
        optimiser: over its parameters.
        replica: what is called in the method's place, see `strategies`; by default the method.
        precision: what the forward pass computes in.
        clip_gradient: largest gradient norm; 0: not clipped.
    """

    method: Method
    optimiser: torch.optim.Optimizer
    replica: nn.Module | None = None
    precision: Precision = field(default_factory=Precision)
    clip_gradient: float = 0.0

    def __call__(self, batch: ClipBatch, *, lr: float) -> dict[str, Metric]:
        """What the method reports of this batch, before the step that it causes."""
        set_lr(self.optimiser, lr)
        scaler = self.precision.scaler
        self.method.train()
        with self.precision.autocast():
            outputs: dict[str, Metric] = (self.replica or self.method)(batch)
        self.optimiser.zero_grad(set_to_none=True)
        loss = outputs["loss"]
        assert isinstance(loss, Tensor)
        scaler.scale(loss).backward()
        scaler.unscale_(self.optimiser)
        outputs["gradient_norm"] = _finite(self._clip())
        scaler.step(self.optimiser)
        scaler.update()
        self.method.after_step(batch.progress)
        return outputs

    def _clip(self) -> Tensor:
        """Clip the gradients where that is wanted; their norm before."""
        if self.clip_gradient:
            return nn.utils.clip_grad_norm_(self.method.parameters(), self.clip_gradient)
        found = [p.grad for p in self.method.parameters() if p.grad is not None]
        return nn.utils.get_total_norm(found)

    def state(self) -> dict[str, Any]:
        """Weights, the optimiser's memory and the loss scale, for a checkpoint."""
        return {
            "method": self.method.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "precision": self.precision.state(),
        }

    def load(self, state: dict[str, Any], *, source: str) -> None:
        """Go on from `state`.

        Raises:
            UserError: it is of another architecture.
        """
        own = self.method.state_dict()
        weights = {name: cut_like(w, own.get(name)) for name, w in state["method"].items()}
        load_weights(self.method, weights, source=source)
        self.optimiser.load_state_dict(self._cut(state["optimiser"]))
        self.precision.load(state.get("precision", {}))

    def _cut(self, state: dict[str, Any]) -> dict[str, Any]:
        """The optimiser's memory of each parameter, cut up as that is."""
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        memory = {
            index: {
                key: cut_like(value, parameters[index]) if isinstance(value, Tensor) else value
                for key, value in of_one.items()
            }
            for index, of_one in state["state"].items()
        }
        return {**state, "state": memory}


def _finite(norm: Tensor) -> Ratio:
    """The norm, or nothing where float16 overflowed: such a step is left out, its scale lowered."""
    whole = joined(norm)
    finite = whole.isfinite()
    return Ratio(whole.where(finite, 0.0), finite.float())


# ----------------------------------------------------------------------
# Pretraining that can be left alone: logged, checkpointed, resumed exactly.


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
    distributed: DistributedContext
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
        self.interval, self.epoch_accumulator = (
            MetricAccumulator(self.distributed),
            MetricAccumulator(self.distributed),
        )
        self.epoch: dict[str, Any] = {}  # the averages of the last whole one
        self._meter = Meter()
        self._clips = 0  # of all processes
        self._seconds, self._started = 0.0, time.perf_counter()  # spent before it started
        self._writer = self.writer or CheckpointWriter(self.folder.checkpoints, self.distributed)

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Go on from where `checkpoint` was written."""
        self.stepper.load(checkpoint, source=f"the newest of {self.folder.checkpoints}")
        self.guard.load(checkpoint.get("guard", {}))
        self.position = Position(**checkpoint["position"])
        self.damaged = self._named_damaged = set(checkpoint["damaged"])
        self.epoch = checkpoint.get("epoch", {})
        self._seconds, self._clips = checkpoint.get("cost", (0.0, 0))
        self.epoch_accumulator.reset()
        if self.distributed.is_main:  # the tally is of all processes: one of them carries it on
            self.epoch_accumulator.load(checkpoint["epoch_tally"])

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
                if self.distributed.any(bool(received)):
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
        loss = (
            torch.stack(losses).mean()
            if losses
            else torch.zeros((), device=self.distributed.device)
        )
        flags = loss.new_tensor([bool(received), self._writer.failed])
        total, stops, failures = self.distributed.total(torch.cat([loss[None], flags])).tolist()
        if failures:
            self._writer.wait()  # says why
        if outputs:
            self.guard.check(total / self.distributed.size)
        for each in outputs:
            self.interval.add(each)
            self.epoch_accumulator.add(each)
        self.position = Position(self.position.epoch, self.position.step + 1)
        return bool(stops)

    def _learn(self, batch: Batch) -> list[dict[str, Metric]]:
        """The steps that are made with a batch; what the method reports of each."""
        progress = self._global_step / self.schedule.total_steps
        lr = self.schedule.lr(self._global_step)
        batch = batch.to(self.distributed.device)
        clips = augmented(batch, self.augment, seed=self.seed, progress=progress)
        count = clips.clips.shape[:2].numel() * self.distributed.size
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
        if self.distributed.is_main:
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
        use = usage(self.distributed.device)
        log.write("train", epoch=epoch, step=self._global_step, lr=lr, **averages, **rates, **use)
        return {
            "loss": f"{averages['loss']:.3f}",
            "clips/s": f"{rates['clips_per_second']:.1f}",
            "data wait": f"{rates['data_wait']:.0%}",
            "memory": f"{use['memory_mib'] / 1024:.1f} GiB",
            **({"GPU": f"{use['gpu_use']:.0%}"} if "gpu_use" in use else {}),
        }

    def _count_damaged(self, log: Log) -> None:
        everywhere = set().union(*self.distributed.collect(self.damaged))
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
        summary = self.epoch_accumulator.averages()
        self.epoch = {**summary, "by_class": self.epoch_accumulator.by_class()}
        self.position = Position(self.position.epoch + 1, 0)
        log.write("epoch", epoch=self.position.epoch, step=self._global_step, **summary)
        self.epoch_accumulator.reset()
        if self.schedule.saves(epoch=self.position.epoch, step=0):
            self._save()

    def _open_log(self) -> Log:
        if not self.distributed.is_main:
            return Log(None)
        return Log(self.folder.log, self.trackers())

    def _open_bar(self) -> Bar:
        total, done = self.schedule.total_steps, self._global_step
        return Bar("pretraining", total=total, done=done, shown=self.distributed.is_main)

    def _save(self) -> None:
        """A checkpoint.

        Raises:
            Diverged: on all processes, where it would be of no use: the last step broke a weight.
        """
        weights = (own_part(each) for each in self.stepper.method.parameters())
        if self.distributed.any(not all(bool(each.isfinite().all()) for each in weights)):
            raise Diverged("the weights are not finite")
        state = {
            **self.document,
            **self.stepper.state(),
            "guard": self.guard.state(),
            "damaged": sorted(self.damaged),
            "epoch": self.epoch,
            "cost": (self._spent(), self._clips),
            "epoch_tally": self.epoch_accumulator.state(),
        }
        self._writer.save(state, self.position)
        self.watchdog.beat()
