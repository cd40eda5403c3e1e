"""The training loop, read from top to bottom: one step, one epoch, the whole run.

`train_step` is one step of the optimiser. `Trainer.run` repeats epochs and rolls back when the
loss diverges; `Trainer._train_epoch` does everything that belongs to a batch, in order: augment,
step, agree with the other processes, accumulate metrics, log, save. Nothing here reads a config:
`vidcsl.pipelines.train` builds the parts from one.

Stopping and resuming is exact. All randomness comes from (seed, epoch, sample), so a checkpoint
needs no generator states: weights, optimiser, position and a few sums are the whole state.
"""

import math
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
from vidcsl.io import Bar, Log, Meter, log_message
from vidcsl.methods import ClipBatch, Method
from vidcsl.methods.metrics import Metric, Ratio
from vidcsl.run_folder import RunFolder
from vidcsl.seeding import sample_seed
from vidcsl.state import full_tensor, load_weights, local_shard, shard_like
from vidcsl.training.checkpoint import CheckpointWriter, Position, keep_step, load_newest
from vidcsl.training.monitor import Interrupted, Tracker, Watchdog, noted_signals, usage
from vidcsl.training.optimisation import Guard, Precision, Schedule, set_lr

ALIKE = -0.02  # uniformity of embeddings whose mean cosine is 0.995: training has collapsed

Augmentation = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""`(frames, sizes, seeds, progress) -> clips`, see `vidcsl.augment`."""


@dataclass
class Learner:
    """A method and what trains it.

    Args:
        method: encoder, heads and loss.
        optimiser: over the method's parameters.
        replica: what is called in place of the method (DDP, FSDP), see `vidcsl.training.parallel`;
            by default the method itself.
        precision: number format of the forward pass.
        clip_gradient: largest gradient norm; 0: not clipped.
    """

    method: Method
    optimiser: torch.optim.Optimizer
    replica: nn.Module | None = None
    precision: Precision = field(default_factory=Precision)
    clip_gradient: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimiser state and loss scale, for a checkpoint."""
        return {
            "method": self.method.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "precision": self.precision.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], *, source: str) -> None:
        """Continue from `state`, written by any number of processes.

        Raises:
            UserError: the state belongs to another architecture; the error names `source`.
        """
        own = self.method.state_dict()
        weights = {name: shard_like(w, own.get(name)) for name, w in state["method"].items()}
        load_weights(self.method, weights, source=source)
        # The optimiser numbers its parameters. Its averages are sharded as their parameter is.
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        averages = {
            number: {
                key: shard_like(value, parameters[number]) if isinstance(value, Tensor) else value
                for key, value in entry.items()
            }
            for number, entry in state["optimiser"]["state"].items()
        }
        self.optimiser.load_state_dict({**state["optimiser"], "state": averages})
        self.precision.load_state_dict(state.get("precision", {}))


@dataclass(frozen=True)
class TrainingData:
    """Where the clips come from.

    Args:
        batches: `(epoch, first step) -> batches` of this process.
        augment: turns decoded frames into clips.
        seed: of the run.
        damaged_limit: how many different videos may be unreadable.
    """

    batches: Callable[[int, int], Iterable[Batch]]
    augment: Augmentation
    seed: int = 0
    damaged_limit: int = 0


@dataclass(frozen=True)
class RunOutput:
    """Where a training run writes.

    Args:
        folder: of the run.
        writer: writes the checkpoints.
        trackers: opens the trackers; called on the main process only.
        document: plain values that go into each checkpoint (config, classes).
    """

    folder: RunFolder
    writer: CheckpointWriter
    trackers: Callable[[], Sequence[Tracker]] = tuple
    document: dict[str, Any] = field(default_factory=dict)


# ----------------------------------------------------------------------
# One step.


def augmented(batch: Batch, augment: Augmentation, *, seed: int, progress: float) -> ClipBatch:
    """The clips that a method learns from: a batch, augmented on its device.

    Each video is augmented by a seed of its own, so that the clips depend neither on the number of
    processes nor on which videos share a batch.

    Args:
        batch: of the loader.
        augment: turns its frames into clips.
        seed: of the run.
        progress: fraction of the training run that is done.
    """
    seeds = [sample_seed(seed, batch.epoch, video) for video in batch.indices.tolist()]
    return ClipBatch(
        clips=augment(batch.frames, batch.sizes, torch.tensor(seeds), progress),
        labels=batch.labels,
        groups=batch.groups,
        videos=batch.indices,
        progress=progress,
    )


def train_step(learner: Learner, batch: ClipBatch, *, lr: float) -> dict[str, Metric]:
    """One step of the optimiser: forward, backward, clip, step.

    Returns:
        The method's metrics for this batch, measured before the step, and `gradient_norm`.
    """
    method, optimiser, scaler = learner.method, learner.optimiser, learner.precision.scaler
    set_lr(optimiser, lr)
    method.train()
    # The replica wraps the method: calling it is what makes DDP and FSDP exchange gradients.
    with learner.precision.autocast():
        outputs: dict[str, Metric] = (learner.replica or method)(batch)
    loss = outputs["loss"]
    assert isinstance(loss, Tensor)

    optimiser.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    scaler.unscale_(optimiser)  # the norm that is clipped must not contain the loss scale
    if learner.clip_gradient:
        norm = nn.utils.clip_grad_norm_(method.parameters(), learner.clip_gradient)
    else:
        norm = nn.utils.get_total_norm([p.grad for p in method.parameters() if p.grad is not None])
    # Where float16 overflowed, the scaler skips the step and lowers its scale. That is normal, and
    # the infinite norm of such a step must not spoil the average: its ratio is 0 / 0.
    norm = full_tensor(norm)
    finite = norm.isfinite()
    outputs["gradient_norm"] = Ratio(norm.where(finite, 0.0), finite.float())

    scaler.step(optimiser)
    scaler.update()
    method.after_step(batch.progress)
    return outputs


# ----------------------------------------------------------------------
# Epochs and the whole run.


@dataclass
class Trainer:
    """Trains a method to the end of a schedule: logged, checkpointed, resumed exactly.

    Args:
        learner: the method and its optimiser.
        data: batches and their augmentation.
        schedule: length, learning rate, and when to log and save.
        output: where the run writes.
        distributed: the processes.
        guard: decides when the loss has diverged; by default when it is not finite.
        watchdog: is notified of every step.
        score: scores the encoder, at the epochs that the schedule names; `(numbers, words)`. All
            processes call it.

    Attributes:
        position: the epoch and step that are done.
        damaged: paths of unreadable videos.
        readers: names of the readers that decoded this process's videos.
        epoch_averages: metrics of the last whole epoch; see `run`.
    """

    learner: Learner
    data: TrainingData
    schedule: Schedule
    output: RunOutput
    distributed: DistributedContext
    guard: Guard = field(default_factory=Guard)
    watchdog: Watchdog = field(default_factory=Watchdog)
    score: Callable[[], tuple[dict[str, float], str]] | None = None

    def __post_init__(self) -> None:
        self.position = Position()
        self.damaged: set[str] = set()
        self.readers: set[str] = set()
        self.notes: dict[str, set[int]] = {}  # videos, by their index in the list, of each note
        self.epoch_averages: dict[str, Any] = {}
        self._logged_damaged: set[str] = set()
        self._epochs_alike = 0
        # Sums on the device, which are read only where a line of the log is due: reading a number
        # makes the CPU wait for the GPU.
        self._since_log = MetricAccumulator(self.distributed)
        self._since_epoch = MetricAccumulator(self.distributed)
        self._meter = Meter()
        self._clips = 0  # of all processes, those before a stop included
        self._seconds = 0.0  # spent before `_started`
        self._started = time.perf_counter()

    @property
    def global_step(self) -> int:
        """Steps that are done, over all epochs."""
        return self.position.epoch * self.schedule.steps_per_epoch + self.position.step

    def run(self) -> dict[str, Any]:
        """Train to the end.

        Returns:
            The averages of the last epoch; `by_class`, see `MetricAccumulator.by_class`; `seconds`
            and `clips_per_second` of the whole run, the time before a stop included.

        Raises:
            Interrupted: on SIGTERM or SIGINT, after a checkpoint was written.
            Diverged: the loss diverged, and no roll-back is left.
            UserError: a checkpoint cannot be written, or too many videos are damaged.
        """
        self._started = time.perf_counter()
        main, total = self.distributed.is_main, self.schedule.total_steps
        log = Log(self.output.folder.log, self.output.trackers()) if main else Log(None)
        bar = Bar("pretraining", total=total, done=self.global_step, unit="steps", shown=main)
        try:
            with noted_signals() as received, self.watchdog:
                while self.position.epoch < self.schedule.epochs:
                    try:
                        self._train_epoch(log, bar, received)
                    except Diverged as error:  # raised on all processes or on none
                        bar.advance(self._roll_back(error, log))
                self.output.writer.wait()
                # A signal that came after the last step must still end the command.
                if self.distributed.any(bool(received)):
                    raise Interrupted(received[0] if received else signal.SIGTERM)
        finally:
            self.output.writer.close()
            bar.close()
            log.close()
        # Every process has seen videos of its own.
        together: dict[str, set[int]] = {}
        for notes in self.distributed.collect(self.notes):
            for note, videos in notes.items():
                together.setdefault(note, set()).update(videos)
        self.notes = together
        seconds = self._spent()
        return {
            **self.epoch_averages,
            "seconds": seconds,
            "clips_per_second": self._clips / seconds,
        }

    def _train_epoch(self, log: Log, bar: Bar, received: Sequence[int]) -> None:
        """Train what is left of the current epoch; `received` fills with signals meanwhile."""
        learner, schedule, distributed = self.learner, self.schedule, self.distributed
        writer = self.output.writer
        epoch = self.position.epoch
        for batch in self._meter.watch(self.data.batches(epoch, self.position.step)):
            step, progress = self.global_step, self.global_step / schedule.total_steps
            # A new set, as `restore` and `_log` make `damaged` and `_logged_damaged` the same one.
            self.damaged = self.damaged | set(batch.damaged)
            self.readers.update(batch.readers)
            for index, note in batch.notes:
                self.notes.setdefault(note, set()).add(index)

            # 1. Learn from the batch, unless a roll-back left out this step. Some methods take
            #    several steps with each batch (`replays`).
            outputs: list[dict[str, Metric]] = []
            if step not in self.guard.left_out:
                clips = augmented(
                    batch.to(distributed.device),
                    self.data.augment,
                    seed=self.data.seed,
                    progress=progress,
                )
                count = clips.clips.shape[:2].numel() * distributed.size
                self._clips += count
                self._meter.add(count)
                for _ in range(learner.method.replays):
                    outputs.append(train_step(learner, clips, lr=schedule.lr(step)))

            # 2. Agree with the other processes, in one exchange: the mean loss, whether one
            #    received a signal, whether one failed to write. Each of these changes what happens
            #    next, and a process that decided alone would leave the others waiting for it.
            losses = [torch.as_tensor(each["loss"]).detach() for each in outputs]
            none = torch.zeros((), device=distributed.device)
            loss = torch.stack(losses).mean() if losses else none
            flags = loss.new_tensor([bool(received), writer.failed])
            total, stop, failed = distributed.total(torch.cat([loss[None], flags])).tolist()
            if failed:
                writer.wait()  # raises the error of the write, on all processes
            if outputs:
                self.guard.check(total / distributed.size)  # raises Diverged, on all processes

            # 3. Count the step.
            for each in outputs:
                self._since_log.add(each)
                self._since_epoch.add(each)
            self.position = Position(epoch, self.position.step + 1)
            self.watchdog.beat()

            # 4. Log and save.
            due = schedule.logs(self.position.step) or stop
            bar.advance(1, **(self._log(log) if due else {}))
            if stop or schedule.saves(epoch=epoch, step=self.position.step):
                self._save()
            if stop:
                writer.wait()
                raise Interrupted(received[0] if received else signal.SIGTERM)

        # The end of an epoch is the start of the next: a resumed run begins with a new order.
        averages = self._since_epoch.averages()
        self.epoch_averages = {**averages, "by_class": self._since_epoch.by_class()}
        self.position = Position(epoch + 1, 0)
        log.write("epoch", epoch=self.position.epoch, step=self.global_step, **averages)
        self._since_epoch.reset()
        if averages.get("gradient_norm") == 0:  # of every step, on all processes
            why = "every gradient is 0"
            if averages.get("anchors_without_negatives"):
                why = (
                    "no anchor has a negative, because all pairs of a batch are flagged or of one "
                    "video: see FALSE_NEGATIVES and TRAIN.BATCH"
                )
            self.output.writer.wait()
            raise UserError(f"nothing was learned in epoch {self.position.epoch}: {why}")
        # Right after the start embeddings may lie close together; two epochs later they must not.
        alike = averages.get("uniformity", -math.inf) > ALIKE
        self._epochs_alike = self._epochs_alike + 1 if alike else 0
        if self._epochs_alike == 2 and distributed.is_main:
            told = (
                f"the embeddings of all videos are nearly the same since epoch {epoch} "
                f"(uniformity {averages['uniformity']:.3f}): training has collapsed. Try a lower "
                "TRAIN.LR, more TRAIN.WARMUP_EPOCHS or a larger TRAIN.BATCH"
            )
            log_message(f"warning: {told}")
            log.write("note", message=told, epoch=self.position.epoch, step=self.global_step)
        if schedule.saves(epoch=self.position.epoch, step=0):
            self._save()
        if self.score and schedule.scores(epoch=self.position.epoch):
            begun = time.perf_counter()
            found, words = self.score()
            log.write("scores", epoch=self.position.epoch, step=self.global_step, **found)
            if distributed.is_main:
                log_message(f"epoch {self.position.epoch} of {schedule.epochs}: {words}")
            self.watchdog.beat()
            self._started += time.perf_counter() - begun  # no time of training

    def _log(self, log: Log) -> dict[str, str]:
        """Write a line of the log; what the progress bar shows beside itself.

        Raises:
            UserError: too many videos are damaged.
        """
        # Damaged videos are counted over all processes, each video once.
        damaged = set().union(*self.distributed.collect(self.damaged))
        for path in sorted(damaged - self._logged_damaged):
            log.write("damaged", path=path, epoch=self.position.epoch, step=self.global_step)
        self.damaged = self._logged_damaged = damaged
        if len(damaged) > self.data.damaged_limit:
            self._save()
            self.output.writer.wait()
            raise UserError(
                f"{len(damaged)} damaged videos, more than DATA.DAMAGED_LIMIT allows "
                f"({self.data.damaged_limit}); first: {min(damaged)}; see {self.output.folder.log}"
            )
        averages, rates = self._since_log.averages(), self._meter.rates()
        self._since_log.reset()
        if not averages:  # every step since the last line was left out
            return {}
        epoch = self.position.epoch + self.position.step / self.schedule.steps_per_epoch
        lr = self.schedule.lr(self.global_step - 1)
        use = usage(self.distributed.device)
        log.write("train", epoch=epoch, step=self.global_step, lr=lr, **averages, **rates, **use)
        return {
            "loss": f"{averages['loss']:.3f}",
            "clips/s": f"{rates['clips_per_second']:.1f}",
            "data wait": f"{rates['data_wait']:.0%}",
            "memory": f"{use['memory_mib'] / 1024:.1f} GiB",
            **({"GPU": f"{use['gpu_use']:.0%}"} if "gpu_use" in use else {}),
        }

    def _save(self) -> None:
        """Write a checkpoint.

        Raises:
            Diverged: on all processes, if a weight is not finite. The loss of a step is measured
                before its update, so an update that breaks the weights shows here first; a
                checkpoint of such weights would be what a roll-back returns to.
        """
        shards = (local_shard(each) for each in self.learner.method.parameters())
        if self.distributed.any(not all(bool(each.isfinite().all()) for each in shards)):
            raise Diverged("the weights are not finite")
        state = {
            **self.output.document,
            **self.learner.state_dict(),
            "guard": self.guard.state_dict(),
            "damaged": sorted(self.damaged),
            "epoch": self.epoch_averages,
            "cost": (self._spent(), self._clips),
            "epoch_tally": self._since_epoch.state_dict(),
        }
        self.output.writer.save(state, self.position)
        self.watchdog.beat()  # a large model takes long to copy

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Continue from where `checkpoint` was written."""
        source = f"the newest of {self.output.folder.checkpoints}"
        self.learner.load_state_dict(checkpoint, source=source)
        self.guard.load_state_dict(checkpoint.get("guard", {}))
        self.position = Position(**checkpoint["position"])
        self.damaged = self._logged_damaged = set(checkpoint["damaged"])
        self.epoch_averages = checkpoint.get("epoch", {})
        self._seconds, self._clips = checkpoint.get("cost", (0.0, 0))
        self._since_epoch.reset()
        if self.distributed.is_main:  # the sums are of all processes: one of them carries them on
            self._since_epoch.load_state_dict(checkpoint["epoch_tally"])

    def _roll_back(self, error: Diverged, log: Log) -> int:
        """Return to the newest checkpoint; the number of steps lost, negative.

        Raises:
            Diverged: there is no checkpoint, or no roll-back is left.
        """
        # The checkpoint that is being written is the one to return to.
        self.output.writer.wait()
        bad, where = self.global_step, f"{error} at step {self.global_step + 1}"
        if self.distributed.is_main:
            config = self.output.document.get("config", "")
            path = keep_step(self.output.folder, step=bad, reason=where, config=config)
            log_message(f"{where}; to see where it began: vidcsl replay {path}")
        allowed = self.guard.may_roll_back
        checkpoint = load_newest(self.output.folder.checkpoints) if allowed else None
        if checkpoint is None:
            tried = f"after {self.guard.done} of at most {self.guard.rollbacks} roll-backs"
            raise Diverged(
                f"{where}, {'before the first checkpoint' if allowed else tried}: "
                "lower TRAIN.LR, raise METHOD.TEMPERATURE, set TRAIN.CLIP_GRADIENT, or PRECISION "
                "to float32"
            ) from error
        left_out = self.guard.roll_back(bad_step=bad)
        seconds, clips = self._spent(), self._clips
        self.restore(checkpoint)
        # The steps that are lost were paid for, too.
        self._seconds, self._clips, self._started = seconds, clips, time.perf_counter()
        self._since_log.reset()
        back = self.global_step
        log.write("rollback", step=bad + 1, to=back, reason=str(error), left_out=left_out)
        if self.distributed.is_main:
            log_message(
                f"{where}: back to step {back}, without the batches of {len(left_out)} steps "
                f"(roll-back {self.guard.done} of at most {self.guard.rollbacks})"
            )
        return back - bad

    def _spent(self) -> float:
        """Seconds of training, those before a stop included."""
        return self._seconds + time.perf_counter() - self._started


class MetricAccumulator:
    """Sums the metrics of many steps on the device and divides only when asked.

    A scalar is averaged over steps and processes. A `Ratio` is summed in both parts first, so that
    steps and processes count by their number of items. A ratio whose whole is zero is left out.

    Args:
        distributed: the processes that accumulate together; all must report the same names.
    """

    def __init__(self, distributed: DistributedContext) -> None:
        self._distributed = distributed
        self.reset()

    def reset(self) -> None:
        """Forget all sums."""
        self._sums: dict[str, Tensor] = {}  # [2] or [2, classes + 1]: part and whole

    def add(self, values: dict[str, Metric]) -> None:
        """Add one step's metrics."""
        for name, value in values.items():
            ratio = value if isinstance(value, Ratio) else Ratio(value, torch.ones_like(value))
            # float64: counts of pairs over an epoch exceed what float32 can count exactly.
            both = torch.stack([ratio.part.detach().double(), ratio.whole.detach().double()])
            self._sums[name] = self._sums[name] + both if name in self._sums else both

    def averages(self) -> dict[str, float]:
        """The mean of each scalar and the value of each ratio."""
        pairs = {name: sums.view(2, -1).sum(dim=1) for name, sums in self._totals().items()}
        return {name: float(part / whole) for name, (part, whole) in pairs.items() if whole}

    def by_class(self) -> dict[str, list[float | None]]:
        """The ratios that were reported by class, for each class; None where the whole is zero."""
        return {
            name: [
                part / whole if whole else None
                for part, whole in zip(*sums[:, :-1].tolist(), strict=True)
            ]
            for name, sums in self._totals().items()
            if sums.dim() == 2
        }

    def state_dict(self) -> dict[str, list[float] | list[list[float]]]:
        """Sums over all processes as plain numbers, for a checkpoint."""
        return {name: sums.tolist() for name, sums in self._totals().items()}

    def load_state_dict(self, state: dict[str, list[float] | list[list[float]]]) -> None:
        """Continue from `state`; on one process only, because it holds the sums of all."""
        device = self._distributed.device
        self._sums = {
            name: torch.tensor(sums, dtype=torch.float64, device=device)
            for name, sums in state.items()
        }

    def _totals(self) -> dict[str, Tensor]:
        """The sums over all processes, in one exchange whatever the number of metrics."""
        if not self._sums:
            return {}
        names = sorted(self._sums)  # the order in which a method reports may differ by process
        device = self._distributed.device
        flat = torch.cat([self._sums[name].flatten().to(device) for name in names])
        parts = self._distributed.total(flat).cpu().split([self._sums[n].numel() for n in names])
        return {
            name: part.view_as(self._sums[name]) for name, part in zip(names, parts, strict=True)
        }
