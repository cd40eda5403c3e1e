"""What a person and a plot see of a long job: a live view or plain lines, log.jsonl, trackers."""

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:  # preparing videos shows its progress without torch, whose import is slow
    from vidcsl.engine.trackers import Tracker

Item = TypeVar("Item")


def say(text: str) -> None:
    """One line on stderr, from the first process alone."""
    if os.environ.get("RANK", "0") == "0":
        print(f"vidcsl: {text}", file=sys.stderr, flush=True)


class Log:
    """Appends one JSON object a line, and hands numbers to trackers.

    Args:
        path: log.jsonl; None: nothing is written (processes other than the main one).
        trackers: who else is told; one that fails is named and left, and the run goes on.
    """

    def __init__(self, path: Path | None, trackers: Sequence["Tracker"] = ()) -> None:
        self._file: TextIO | None = path.open("a") if path else None
        self._trackers = list(trackers)

    def write(self, kind: str, **values: Any) -> None:
        """One line, on disk when this returns."""
        if self._file:
            self._file.write(json.dumps({"kind": kind, **values}) + "\n")
            self._file.flush()
        numbers = {f"{kind}/{k}": v for k, v in values.items() if isinstance(v, float)}
        if numbers:
            self._tell("log", numbers, step=values.get("step", 0))

    def close(self) -> None:
        """Flush and close."""
        if self._file:
            self._file.close()
        self._tell("close")

    def _tell(self, what: str, *arguments: Any, **options: Any) -> None:
        for tracker in list(self._trackers):
            try:
                getattr(tracker, what)(*arguments, **options)
            except Exception as error:  # of whatever kind: a server is no reason to stop training
                self._trackers.remove(tracker)
                name, reason = type(tracker).__name__, (str(error).splitlines() or [""])[0]
                say(f"{name} fails and is left: {reason}")


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
    """A live view on a terminal, a plain line every `interval` seconds elsewhere.

    The view is a bar with the time that is left, and the newest notes in a row below it.
    """

    def __init__(
        self,
        title: str,
        *,
        total: int,
        done: int = 0,
        shown: bool = True,
        interval: float = 30.0,
        console: Console | None = None,
    ) -> None:
        self._title, self._total, self._done, self._first = title, total, done, done
        self._shown, self._interval = shown, interval
        self._notes: dict[str, float | str] = {}
        self._started = self._spoke = time.monotonic()
        console = console or Console(stderr=True)
        self._view = _View(title, total, done, console) if shown and console.is_terminal else None

    def advance(self, count: int = 1, **notes: float | str) -> None:
        """`count` more are done; the newest `notes` are shown beside the bar."""
        self._done += count
        self._total = max(self._total, self._done)  # a process's share is not even
        self._notes.update(notes)
        since = time.monotonic() - self._spoke
        ended = self._done >= self._total
        if self._view and (ended or since > _FRAME_SECONDS):
            self._spoke = time.monotonic()
            self._view.show(self._done, self._notes)
        elif not self._view and self._shown and (ended or since > self._interval):
            self._spoke = time.monotonic()
            self._say()

    def _say(self) -> None:
        elapsed = time.monotonic() - self._started
        left = elapsed / max(1, self._done - self._first) * (self._total - self._done)
        parts = [f"{name} {value}" for name, value in self._notes.items()]
        words = ", ".join([f"{self._done}/{self._total}", *parts, f"{left:.0f} s left"])
        print(f"{self._title}: {words}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the view as it stands."""
        if self._view:
            self._view.close(self._done, self._notes)


_FRAME_SECONDS = 0.25


class _View:
    """What a terminal shows. It has no thread of its own: workers are forked beside it."""

    def __init__(self, title: str, total: int, done: int, console: Console) -> None:
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            auto_refresh=False,
            speed_estimate_period=300,
            expand=True,
        )
        self._task = self._progress.add_task(title, total=total, completed=done)
        self._live = Live(
            self._progress,
            console=console,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def show(self, done: int, notes: dict[str, float | str]) -> None:
        self._progress.update(self._task, completed=done)
        self._live.update(Group(self._progress, *_row(notes)), refresh=True)

    def close(self, done: int, notes: dict[str, float | str]) -> None:
        self.show(done, notes)
        self._live.stop()


def _row(notes: dict[str, float | str]) -> list[Table]:
    """The notes side by side, names in grey above values; nothing where there are none."""
    if not notes:
        return []
    table = Table(box=None, expand=True, header_style="dim", padding=(0, 1))
    for name in notes:
        table.add_column(name)
    table.add_row(*map(str, notes.values()))
    return [table]
