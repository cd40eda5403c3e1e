"""A run's folder: its files, lock, environment and result cache."""

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from vidcsl import __version__
from vidcsl.errors import UserError
from vidcsl.io import PATIENCE, locked, write_atomically

# ----------------------------------------------------------------------
# A record on disk of what a long evaluation has answered, so that it goes on where it stopped.


class ResultCache:
    """What was answered for each video under each condition, kept through a kill at any moment.

    Every process appends to a file of its own and reads those of all, so that a run can go on with
    another number of processes. Answers to other settings lie in other files: nothing is mixed up,
    and going back to earlier settings finds their answers again.

    Args:
        folder: where the files lie; made if need be. All processes must see the same one.
        settings: all that the answers depend on (the weights' digest, budgets, seed, ...), JSON.
        rank: of this process.

    Raises:
        UserError: the folder cannot be written, or a file is damaged.
    """

    def __init__(self, folder: Path, *, settings: Mapping[str, Any], rank: int = 0) -> None:
        self._folder, self._key, self._rank = folder, digest(settings), rank
        self._path = folder / f"{self._key}.rank{rank}.jsonl"
        self._answers: dict[str, dict[int, Any]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _drop_unfinished_line(self._path)
        except OSError as error:
            raise self._unwritable(error) from error
        self.reload()
        if not self._path.exists():
            self._append({"settings": dict(settings)})  # for a person who looks inside

    def reload(self) -> None:
        """Read the files of all processes anew."""
        for path in sorted(self._folder.glob(f"{self._key}.rank*.jsonl")):
            for line in _lines(path):
                if "condition" in line:
                    self._keep(line["condition"], line["videos"], line["answers"])

    def get(self, condition: str, video: int) -> Any | None:
        """The answer for a video (its index in the list); None where there is none yet."""
        return self._answers.get(condition, {}).get(video)

    def answers(self, condition: str) -> Mapping[int, Any]:
        """All answers under a condition, by video."""
        return dict(self._answers.get(condition, {}))

    def record(self, condition: str, videos: Sequence[int], answers: Sequence[Any]) -> None:
        """Write the answers (JSON) for some videos; they are on disk when this returns."""
        if len(videos) != len(answers):
            raise ValueError(f"{len(videos)} videos and {len(answers)} answers")
        if len(videos):
            self._append({"condition": condition, "videos": list(videos), "answers": list(answers)})
            self._keep(condition, videos, answers)

    def _keep(self, condition: str, videos: Sequence[int], answers: Sequence[Any]) -> None:
        self._answers.setdefault(condition, {}).update(zip(videos, answers, strict=True))

    def _append(self, line: Mapping[str, Any]) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"cannot write {self._path}: {error.strerror}; what was answered so far is kept, "
            "run the same command again"
        )


def digest(settings: Mapping[str, Any]) -> str:
    """A short name for settings, the same for equal ones in whatever order."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file; one that another process is just writing is left out."""
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    for number, text in enumerate(whole.split("\n") if whole else [], start=1):
        try:
            yield json.loads(text)
        except ValueError as error:
            raise UserError(
                f"{path}, line {number} is damaged ({error}); remove the file to start this over"
            ) from error


def _drop_unfinished_line(path: Path) -> None:
    """Take off what a kill in the middle of a write, or a full disk, left behind the last line."""
    if path.exists():
        whole = path.read_bytes().rpartition(b"\n")
        os.truncate(path, len(whole[0]) + len(whole[1]))


# ----------------------------------------------------------------------
# A run's folder: what is written where, whole or not at all.
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
