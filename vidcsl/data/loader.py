"""Batches of clips: the same ones whatever the number of workers, ranks or restarts."""

import faulthandler
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import TextIO

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vidcsl.data.dataset import NOTHING, ClipDataset, InFlight, Sample
from vidcsl.errors import PassingError, UserError, VideoError
from vidcsl.seeding import numpy_generator, torch_generator

Key = tuple[int, int]
"""(epoch, index) of an item of `ClipDataset`."""

MOST_DEATHS = 8  # of workers at one step, after which the run ends


@dataclass(frozen=True)
class Batch:
    """Views of N videos.

    Attributes:
        frames: uint8 [N, V, 3, T, H, W], zeros below and to the right of smaller videos.
        sizes: int64 [N, 2], each video's own (H, W).
        labels, groups, indices: int64 [N]; label and group are -1 where unknown.
        frame_indices: int64 [N, V, T], which frames of its video each view holds.
        epoch: the epoch that the batch belongs to.
        damaged: paths of the videos that could not be read and were replaced.
        readers: names of the readers that decoded the videos, each once.
        notes: (index, sentence) of each note on a video, see `Reader.notes`.
        windows: see `Sample.window`, one a video; none where the dataset reads none. They stay on
            the CPU.
        rates: frames per second of each video; 0: unknown.
    """

    frames: Tensor
    sizes: Tensor
    labels: Tensor
    groups: Tensor
    indices: Tensor
    frame_indices: Tensor
    epoch: int
    damaged: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()
    notes: tuple[tuple[int, str], ...] = ()
    windows: tuple[Tensor, ...] = ()
    rates: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.frames)

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on another device; from pinned memory the copy does not block."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory (`DataLoader` calls this)."""
        return self._mapped(lambda tensor: tensor.pin_memory())

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return replace(
            self,
            frames=change(self.frames),
            sizes=change(self.sizes),
            labels=change(self.labels),
            groups=change(self.groups),
            indices=change(self.indices),
            frame_indices=change(self.frame_indices),
        )


def collate(samples: Sequence[Sample]) -> Batch:
    """Join samples of one epoch, padded at the bottom and right to the largest of them."""
    sizes = torch.tensor([sample.size for sample in samples])  # [N, 2]
    height, width = sizes.amax(dim=0).tolist()
    shape = samples[0].frames.shape[:-2]  # V, 3, T
    frames = torch.zeros((len(samples), *shape, height, width), dtype=torch.uint8)
    for row, sample in zip(frames, samples, strict=True):
        row[..., : sample.size[0], : sample.size[1]] = sample.frames
    return Batch(
        frames=frames,
        sizes=sizes,
        labels=torch.tensor([sample.label for sample in samples]),
        groups=torch.tensor([sample.group for sample in samples]),
        indices=torch.tensor([sample.index for sample in samples]),
        frame_indices=torch.stack([sample.frame_indices for sample in samples]),
        epoch=samples[0].epoch,
        damaged=tuple(path for sample in samples for path in sample.damaged),
        readers=tuple(sorted({sample.reader for sample in samples})),
        notes=tuple((sample.index, note) for sample in samples for note in sample.notes),
        windows=tuple(sample.window for sample in samples if sample.window is not None),
        rates=tuple(sample.rate for sample in samples),
    )


class EpochSampler(Sampler[list[Key]]):
    """One rank's part of each global batch of an epoch, as lists of `(epoch, index)`.

    The order of an epoch depends on seed and epoch only. Global batch k is the same set of videos
    whatever the number of ranks; rank r takes the r-th contiguous block of it.

    Args:
        length: of the list.
        batch_size: of the global batch, all ranks together.
        seed: of the run.
        epoch: which epoch; it and `start_step` may be changed before each iteration.
        start_step: the first step, to resume in the middle of an epoch.
        rank, world_size: this process among all.
        shuffle: a new order every epoch; otherwise that of the list.
        drop_last: leave out the last, smaller batch. Otherwise it is split as evenly as possible,
            and a rank for which nothing remains has one step less.

    Raises:
        UserError: the ranks cannot share a batch evenly, or there is not one full batch.
    """

    def __init__(
        self,
        *,
        length: int,
        batch_size: int,
        seed: int,
        epoch: int = 0,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool,
        drop_last: bool,
    ) -> None:
        if batch_size % world_size:
            raise UserError(
                f"a batch of {batch_size} cannot be shared evenly by {world_size} processes: "
                "choose a multiple"
            )
        if drop_last and length < batch_size:
            raise UserError(f"the list's {length} videos do not fill one batch of {batch_size}")
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = epoch
        self.start_step = start_step
        self.rank = rank
        self.world_size = world_size
        self.shuffle = shuffle
        self.drop_last = drop_last

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = self.epoch
        if self.shuffle:
            order = numpy_generator(self.seed, epoch, "order").permutation(self.length)
        else:
            order = np.arange(self.length)
        stop = self._global_steps() * self.batch_size
        for start in range(self.start_step * self.batch_size, stop, self.batch_size):
            whole = order[start : start + self.batch_size]
            # Ranks cut the same global batch, so its videos do not depend on the number of ranks.
            if mine := np.array_split(whole, self.world_size)[self.rank].tolist():
                yield [(epoch, index) for index in mine]

    def __len__(self) -> int:
        last = self.length - (self._global_steps() - 1) * self.batch_size
        missing = self.rank >= last  # nothing of the last batch is left for this rank
        return max(0, self._global_steps() - missing - self.start_step)

    def _global_steps(self) -> int:
        full, rest = divmod(self.length, self.batch_size)
        return full + (rest > 0 and not self.drop_last)


class ClipLoader:
    """Yields the batches of any epoch, from any step on, with workers that outlive epochs.

    A worker that dies, by a decoder's crash or by a signal, costs no batch: all workers restart at
    the step that is due. A video that was in flight at two deaths is not read again; the dataset
    then treats it like any other that cannot be read.

    Args:
        dataset: gives the samples.
        sampler: gives their keys.
        workers: processes; 0: this one reads.
        pin_memory: put batches into page-locked memory.
        stacks: file to which workers write their stacks at `STACKS_SIGNAL`; None: they do not.

    Attributes:
        steps: batches of a whole epoch, on this rank.
    """

    def __init__(
        self,
        dataset: ClipDataset,
        sampler: EpochSampler,
        *,
        workers: int,
        pin_memory: bool,
        stacks: Path | None = None,
    ) -> None:
        self.dataset = dataset
        self.steps = len(sampler)
        self._sampler = sampler
        self._workers, self._pin_memory = workers, pin_memory
        self._stacks = stacks
        self._deaths: Counter[int] = Counter()  # by video
        dataset.in_flight = InFlight(workers)
        self._loader = self._make()

    def _make(self) -> DataLoader:
        return DataLoader(
            _ErrorsAsItems(self.dataset),
            batch_sampler=self._sampler,
            collate_fn=partial(_collate_readable, leave_out=self.dataset.on_damage == "leave_out"),
            num_workers=self._workers,
            persistent_workers=self._workers > 0,
            pin_memory=self._pin_memory,
            worker_init_fn=(
                partial(write_stacks_at_signal, path=self._stacks) if self._stacks else None
            ),
            # Without a generator of its own, a DataLoader draws from the global one.
            generator=torch_generator(self._sampler.seed, "loader"),
        )

    def worker_pids(self) -> list[int]:
        """The live worker processes."""
        workers = getattr(self._loader._iterator, "_workers", [])
        return [worker.pid for worker in workers if worker.is_alive()]

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from `start_step` on. One epoch at a time.

        Raises:
            UserError: as `ClipDataset` does, from whichever process; or workers keep dying.
        """
        step, deaths = start_step, 0
        self._sampler.epoch = epoch
        while True:
            self._sampler.start_step = step
            try:
                # DataLoader installs a handler that raises a worker's death wherever this process
                # happens to be, even in a backward pass. `next` finds out by itself.
                before = signal.getsignal(signal.SIGCHLD)
                batches = iter(self._loader)
                if threading.current_thread() is threading.main_thread():
                    signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
                for batch in batches:
                    step, deaths = step + 1, 0
                    if isinstance(batch, UserError):
                        raise batch
                    if batch is not None:
                        yield batch
                return
            except (RuntimeError, OSError, EOFError, UnpicklingError):
                if not self._record_deaths():
                    raise
                deaths += 1
                if deaths > MOST_DEATHS:
                    raise PassingError(
                        f"the loader's workers died {deaths} times at one step; is there too "
                        "little memory for DATA.WORKERS?"
                    ) from None
                self._loader = self._make()

    def _record_deaths(self) -> bool:
        """Count a death for each video that a dead worker was reading; False if none is dead."""
        workers = getattr(self._loader._iterator, "_workers", [])
        dead = [k for k, worker in enumerate(workers) if not worker.is_alive()]
        for k in dead:
            video, code = self.dataset.in_flight.video_of(k), workers[k].exitcode
            self._deaths[video] += 1
            if video != NOTHING and self._deaths[video] > 1:
                if code is not None and code < 0:
                    cause = signal.Signals(-code).name
                else:  # `time_limit` exits with 1
                    cause = "it took too long" if code == 1 else f"exit code {code}"
                self.dataset.given_up[video] = f"the process that reads it dies ({cause})"
        self.dataset.in_flight.clear()
        return bool(dead)


def build_loader(
    dataset: ClipDataset,
    *,
    batch_size: int,
    shuffle: bool,
    drop_last: bool,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
    stacks: Path | None = None,
) -> ClipLoader:
    """A loader over a dataset; `batch_size` counts all ranks. See `EpochSampler`, `ClipLoader`."""
    sampler = EpochSampler(
        length=len(dataset),
        batch_size=batch_size,
        seed=dataset.seed,
        rank=rank,
        world_size=world_size,
        shuffle=shuffle,
        drop_last=drop_last,
    )
    return ClipLoader(dataset, sampler, workers=workers, pin_memory=pin_memory, stacks=stacks)


# What runs in the workers -------------------------------------------------------------------------


class _ErrorsAsItems(Dataset["Sample | UserError"]):
    """Returns a user's error as an item: `DataLoader` would bury its one line in a traceback."""

    def __init__(self, dataset: ClipDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, key: Key) -> Sample | UserError:
        try:
            return self.dataset[key]
        except UserError as error:
            return error


def _collate_readable(
    samples: list[Sample | UserError], *, leave_out: bool
) -> Batch | UserError | None:
    """A batch, the first error, or None if all videos were left out."""
    readable = []
    for sample in samples:
        if isinstance(sample, Sample):
            readable.append(sample)
        elif not (leave_out and isinstance(sample, VideoError)):
            return sample
    return collate(readable) if readable else None


STACKS_SIGNAL = signal.SIGUSR1
_STACKS: list[TextIO] = []  # open for as long as the process lives


def write_stacks_at_signal(_worker: int, *, path: Path) -> None:
    """Make this process append its stacks to `path` at `STACKS_SIGNAL`; a `worker_init_fn`.

    That works while it hangs in a library's native code, and while it holds the interpreter's lock.
    """
    _STACKS.append(path.open("a"))
    faulthandler.register(STACKS_SIGNAL, file=_STACKS[-1])
