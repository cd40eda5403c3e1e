"""Signals that ask a training to stop, noted instead of obeyed at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(Exception):
    """SIGTERM or SIGINT came; the state was saved before this was raised."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(f"stopped by {signal.Signals(number).name}; continue with --resume")


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT instead of dying, so that the step under way can end."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
