"""Errors that a user can cause: one clear line (what, where, what to do), exit code 2."""

from pathlib import Path


class UserError(Exception):
    """Something that the user can put right. Its message is one line and needs no traceback."""


class PassingError(UserError):
    """A problem that may pass by itself: a network, memory that another process uses.

    torchrun may restart the process.
    """


class VideoError(UserError):
    """A video file that cannot be read as asked."""

    def __init__(self, path: str | Path, reason: str) -> None:
        self.path, self.reason = str(path), reason
        super().__init__(f"cannot read video {path}: {reason}")

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        # An exception raised in a loader's worker travels to the parent by pickling.
        return type(self), (self.path, self.reason)


class Diverged(UserError):
    """A training run whose loss or weights are of no use; it may return to its last checkpoint."""
