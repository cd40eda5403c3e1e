"""A run's folder: what is written where, whole or not at all."""

import fcntl
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import torch

from vidcsl import __version__
from vidcsl.data.lists import replacing
from vidcsl.errors import UserError

PATIENCE = 10  # seconds in which a process that was killed lets go of its folder
_PACKAGES = ("torch", "torchvision", "decord", "av", "timm", "numpy", "scikit-learn")


class RunFolder:
    """Paths and small writers of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.log = self.path / "log.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.artifacts = self.path / "artifacts"
        self.answers = self.path / "answers"  # ledgers of long evaluations
        self.hangs = self.path / "hangs"  # what a run that hung was doing
        self.results = self.path / "results.json"
        self.environment = self.path / "environment.json"
        self.report = self.path / "report.html"

    def round(self, number: int) -> "RunFolder":
        """Of an earlier round of the training, from 1 on."""
        return RunFolder(self.path / "rounds" / str(number))

    def create(self) -> None:
        """Make the folders.

        Raises:
            UserError: they cannot be made or written to.
        """
        try:
            for folder in (self.path, self.checkpoints, self.artifacts):
                folder.mkdir(parents=True, exist_ok=True)
            probe = self.path / ".writable"
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"cannot write to the output folder {self.path}: {error.strerror}"
            ) from error

    @contextmanager
    def held(self) -> Iterator[None]:
        """A block in which no other process trains in the folder; it is made if need be.

        Raises:
            UserError: another one does, or the folder cannot be written to.
        """
        self.create()
        with (self.path / ".held").open("a+") as file:
            end = time.monotonic() + PATIENCE
            try:
                had = locked(file, waits=lambda: time.monotonic() < end)
            except OSError:  # a file system that has no locks
                had = True
            if not had:
                file.seek(0)
                raise UserError(
                    f"{self.path} is in the hands of another training ({file.read()}): wait for "
                    "it, end it, or choose another OUTPUT_DIR"
                )
            file.truncate(0)
            print(f"process {os.getpid()} on {platform.node()}", end="", file=file, flush=True)
            yield

    def write_config(self, text: str) -> None:
        """Store the effective configuration."""
        write_atomically(self.config, text)

    def write_environment(self, device: torch.device) -> None:
        """Store versions, the device that computes, command and git state."""
        described = describe_environment(device)
        write_atomically(self.environment, json.dumps(described, indent=2) + "\n")

    def read_results(self) -> dict[str, Any]:
        """What `results.json` holds so far; empty where there is none."""
        if not self.results.exists():
            return {}
        try:
            results = json.loads(self.results.read_text())
        except ValueError as error:
            raise UserError(f"{self.results} is damaged ({error}); move it away") from error
        if not isinstance(results, dict):
            raise UserError(f"{self.results} is damaged (no keys and values); move it away")
        return results

    def update_results(self, sections: dict[str, Any]) -> None:
        """Merge top-level `sections` into `results.json`; sections of other stages stay."""
        merged = {**self.read_results(), **sections}
        write_atomically(self.results, json.dumps(merged, indent=2) + "\n")


def locked(file: TextIO, *, waits: Callable[[], bool]) -> bool:
    """Whether the lock of a file, which ends with its process, could be had; tried while `waits`.

    Raises:
        OSError: the file system has no locks.
    """
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not waits():
                return False
            time.sleep(0.2)
        else:
            return True


def write_atomically(path: Path, text: str) -> None:
    """Write beside, then rename: a reader or a crash never sees half a file."""
    with replacing(path) as partial:
        partial.write_text(text)


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions, the device that computes, command and git state of this process."""
    return {
        "command": " ".join(sys.argv),
        "vidcsl": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": device_name(device),
        "versions": {name: _version(name) for name in _PACKAGES},
        "git": _git_state(),
    }


def device_name(device: torch.device) -> str:
    """Of the GPU or the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not on Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_state() -> str | None:
    """Short commit id of the source tree, with "+changes" where it differs; None outside git."""
    where = Path(__file__).resolve().parent
    command = ["git", "-C", str(where), "describe", "--always", "--dirty=+changes", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
