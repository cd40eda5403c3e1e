"""A run's folder: where everything lies, its lock, its results, and the cache of long evaluations.

Importing this does not import torch.
"""

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidcsl import __version__
from vidcsl.errors import UserError
from vidcsl.io import acquire_lock, write_atomically

if TYPE_CHECKING:
    import torch

PATIENCE = 10  # seconds that a killed process may take to release its folder
_PACKAGES = ("torch", "torchvision", "decord", "av", "timm", "numpy", "scikit-learn")


class RunFolder:
    """The paths of one run, and small readers and writers for them."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.log = self.path / "log.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.artifacts = self.path / "artifacts"
        self.result_cache = self.path / "answers"  # older name, under which runs have it
        self.hangs = self.path / "hangs"  # stacks of a run that hung
        self.results = self.path / "results.json"
        self.environment = self.path / "environment.json"
        self.report = self.path / "report.html"
        self.main: RunFolder | None = None  # the run's, of the record of a later evaluation

    def round(self, number: int) -> "RunFolder":
        """The folder of an earlier round of iterative training, from 1 on."""
        return RunFolder(self.path / "rounds" / str(number))

    def beside(self, name: str) -> "RunFolder":
        """The same folder for a later evaluation, whose config, environment and results lie apart.

        Features, caches and pictures are shared with the run.
        """
        found, place = RunFolder(self.path), self.path / "evaluations" / name
        found.main = self
        found.config, found.environment = place / "config.yaml", place / "environment.json"
        found.results = place / "results.json"
        return found

    def create(self) -> None:
        """Make the folders.

        Raises:
            UserError: they cannot be made or written to.
        """
        try:
            for folder in (self.path, self.checkpoints, self.artifacts):
                folder.mkdir(parents=True, exist_ok=True)
            # By writing: mode bits say little on network file systems, in containers and to root.
            probe = self.path / ".writable"
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"cannot write to the output folder {self.path}: {error.strerror}"
            ) from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Create the folder, and keep every other process from training in it during the block.

        Raises:
            UserError: another process trains in it, or it cannot be written to.
        """
        self.create()
        with (self.path / ".held").open("a+") as file:
            end = time.monotonic() + PATIENCE
            try:
                locked = acquire_lock(file, keep_trying=lambda: time.monotonic() < end)
            except OSError:  # the file system has no locks: better to run than to refuse
                locked = True
            if not locked:
                file.seek(0)
                raise UserError(
                    f"another training run uses {self.path} ({file.read()}): wait for it, end it, "
                    "or choose another OUTPUT_DIR"
                )
            file.truncate(0)
            print(f"process {os.getpid()} on {platform.node()}", end="", file=file, flush=True)
            yield

    def write_config(self, text: str) -> None:
        """Store the effective config."""
        write_atomically(self.config, text)

    def write_environment(self, device: "torch.device") -> None:
        """Store versions, the device that computes, command and git state."""
        described = describe_environment(device)
        write_atomically(self.environment, json.dumps(described, indent=2) + "\n")

    def read_results(self) -> dict[str, Any]:
        """The contents of `results.json`; empty if there is no such file yet.

        Raises:
            UserError: the file is damaged.
        """
        if not self.results.exists():
            return {}
        try:
            results = json.loads(self.results.read_text())
        except ValueError as error:
            raise UserError(f"{self.results} is damaged ({error}); move or remove it") from error
        if not isinstance(results, dict):
            raise UserError(f"{self.results} is damaged (no keys and values); move or remove it")
        return results

    def update_results(self, sections: dict[str, Any]) -> None:
        """Replace top-level `sections` of `results.json`; all other sections stay."""
        merged = {**self.read_results(), **sections}
        write_atomically(self.results, json.dumps(merged, indent=2) + "\n")


# ----------------------------------------------------------------------
# The result cache.


class ResultCache:
    """The result of each video under each condition, kept through a kill at any moment.

    Every process appends to a file of its own and reads the files of all, so that an evaluation can
    continue with another number of processes. Results under other settings lie in other files:
    nothing is mixed up, and returning to earlier settings finds their results again.

    Args:
        folder: of the files; created if needed. All processes must see the same one.
        settings: everything that the results depend on (digest of the weights, budgets, seed, ...),
            as JSON.
        rank: of this process.

    Raises:
        UserError: the folder cannot be written to, or a file is damaged.
    """

    def __init__(self, folder: Path, *, settings: Mapping[str, Any], rank: int = 0) -> None:
        self._folder, self._key = folder, digest(settings)
        self._path = folder / f"{self._key}.rank{rank}.jsonl"
        self._results: dict[str, dict[int, Any]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if self._path.exists():
                # A kill in the middle of a write, or a full disk, may leave half a line.
                whole, newline, _ = self._path.read_bytes().rpartition(b"\n")
                os.truncate(self._path, len(whole) + len(newline))
        except OSError as error:
            raise self._unwritable(error) from error
        # Cut first, read then: what half a line held is evaluated again.
        self.reload()
        if not self._path.exists():
            self._append({"settings": dict(settings)})  # for people who look inside

    def reload(self) -> None:
        """Read the files of all processes again.

        Raises:
            UserError: a file is damaged.
        """
        for path in sorted(self._folder.glob(f"{self._key}.rank*.jsonl")):
            # A line that another process is just writing has no end yet.
            whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
            for number, text in enumerate(whole.split("\n") if whole else [], start=1):
                try:
                    line = json.loads(text)
                except ValueError as error:
                    raise UserError(
                        f"{path}, line {number} is damaged ({error}); remove the file to evaluate "
                        "its videos again"
                    ) from error
                if "condition" in line:
                    known = self._results.setdefault(line["condition"], {})
                    known.update(zip(line["videos"], line["answers"], strict=True))

    def get(self, condition: str, video: int) -> Any | None:
        """The result of a video (its index in the list); None if there is none yet."""
        return self._results.get(condition, {}).get(video)

    def results(self, condition: str) -> Mapping[int, Any]:
        """All results under a condition, by video."""
        return dict(self._results.get(condition, {}))

    def record(self, condition: str, videos: Sequence[int], results: Sequence[Any]) -> None:
        """Write the results (JSON) of some videos; they are on disk when this returns."""
        if len(videos) != len(results):
            raise ValueError(f"{len(videos)} videos and {len(results)} results")
        if len(videos):
            self._append({"condition": condition, "videos": list(videos), "answers": list(results)})
            self._results.setdefault(condition, {}).update(zip(videos, results, strict=True))

    def _append(self, line: Mapping[str, Any]) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                # A machine that loses power keeps what was recorded, not what a buffer held.
                os.fsync(file.fileno())
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"cannot write {self._path}: {error.strerror}; the results so far are kept, "
            "run the same command again"
        )


def digest(settings: Mapping[str, Any]) -> str:
    """A short name for settings, the same for equal ones in whatever order."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ----------------------------------------------------------------------
# The environment.


def describe_environment(device: "torch.device") -> dict[str, Any]:
    """Versions, the device that computes, command and git state of this process."""
    import torch

    versions: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    # The commit of the source tree, with "+changes" where it differs; None outside of git.
    source = str(Path(__file__).resolve().parent)
    describe = ["git", "-C", source, "describe", "--always", "--dirty=+changes", "--exclude=*"]
    try:
        done = subprocess.run(describe, capture_output=True, text=True, timeout=10, check=True)
        commit = done.stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        commit = None
    return {
        "command": shlex.join(sys.argv),  # as a shell takes it: '', spaces and brackets are quoted
        "vidcsl": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": device_name(device),
        "versions": versions,
        "git": commit,
    }


def device_name(device: "torch.device") -> str:
    """The model name of the GPU or the processor."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not on Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
