"""What a person and a plot see of a long job: a bar or plain lines, log.jsonl, TensorBoard."""

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def say(text: str) -> None:
    """One line on stderr, from the first process alone."""
    if os.environ.get("RANK", "0") == "0":
        print(f"vidcsl: {text}", file=sys.stderr, flush=True)


class Log:
    """Appends one JSON object a line, and scalars to TensorBoard.

    Args:
        path: log.jsonl; None: nothing is written (processes other than the main one).
        tensorboard: folder of event files.
    """

    def __init__(self, path: Path | None, tensorboard: Path | None = None) -> None:
        self._file: TextIO | None = path.open("a") if path else None
        self._writer: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self._writer = SummaryWriter(str(tensorboard))

    def write(self, kind: str, **values: Any) -> None:
        """One line, on disk when this returns."""
        if self._file:
            self._file.write(json.dumps({"kind": kind, **values}) + "\n")
            self._file.flush()
        if self._writer:
            step = values.get("step", 0)
            for name, value in values.items():
                if isinstance(value, float):
                    self._writer.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flush and close."""
        if self._file:
            self._file.close()
        if self._writer:
            self._writer.close()


class Meter:
    """Time spent waiting for data against time spent in all, and clips done."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._waited = 0.0
        self._clips = 0

    def watch(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, timing how long each is waited for."""
        iterator = iter(items)
        while True:
            before = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self._waited += time.perf_counter() - before
            yield item

    def add(self, clips: int) -> None:
        """Count clips that are done."""
        self._clips += clips

    def rates(self) -> dict[str, float]:
        """Clips a second and share of time waited, since the last call."""
        now = time.perf_counter()
        elapsed = max(now - self._started, 1e-9)
        rates = {"clips_per_second": self._clips / elapsed, "data_wait": self._waited / elapsed}
        self._started, self._waited, self._clips = now, 0.0, 0
        return rates


class Bar:
    """A progress bar on a terminal, a plain line every `interval` seconds elsewhere."""

    def __init__(
        self, title: str, *, total: int, done: int = 0, shown: bool = True, interval: float = 30.0
    ) -> None:
        self._title, self._total, self._done, self._first = title, total, done, done
        self._shown, self._interval = shown, interval
        self._notes: dict[str, float | str] = {}
        self._started = self._spoke = time.monotonic()
        terminal = shown and sys.stderr.isatty()
        self._bar = (
            tqdm(total=total, initial=done, desc=title, dynamic_ncols=True) if terminal else None
        )

    def advance(self, count: int = 1, **notes: float | str) -> None:
        """`count` more are done; the newest `notes` are shown beside the bar."""
        self._done += count
        self._notes.update(notes)
        if self._bar is not None:
            self._bar.set_postfix(self._notes, refresh=False)
            self._bar.update(count)
        elif self._shown and (
            time.monotonic() - self._spoke > self._interval or self._done >= self._total
        ):
            self._spoke = time.monotonic()
            self._say()

    def _say(self) -> None:
        elapsed = time.monotonic() - self._started
        left = elapsed / max(1, self._done - self._first) * (self._total - self._done)
        parts = [f"{name} {value}" for name, value in self._notes.items()]
        words = ", ".join([f"{self._done}/{self._total}", *parts, f"{left:.0f} s left"])
        print(f"{self._title}: {words}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
