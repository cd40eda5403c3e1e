"""What all benchmarks share: fair timing, peers that may be absent, tables, targets, `--json`."""

import argparse
import importlib
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from vidcsl.run_folder import device_name


@dataclass(frozen=True)
class Times:
    """Seconds of repeated runs of one thing."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a share of the median."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / 2 / self.median


def interleaved(
    functions: Mapping[str, Callable[[], Any]],
    *,
    repeats: int = 7,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Times]:
    """Time functions in turns, so that whatever else the machine does hits all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warmup + repeats):
        for name, function in functions.items():
            started = clock()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= warmup:
                seconds[name].append(clock() - started)
    return {name: Times(tuple(each)) for name, each in seconds.items()}


def peer(module: str, *, package: str | None = None) -> ModuleType | None:
    """A peer's module; None, and a line that says so, where it cannot be imported."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # a peer may fail in any way: that is its users' news, not ours
        print(f"skipped {package or module}: {type(error).__name__}: {str(error)[:120]}")
        return None


@dataclass
class Report:
    """Rows of a table and targets, printed as they come and stored as JSON in the end.

    A benchmark makes one, adds rows and targets, and calls `finish`; it exits with 0 either way.
    """

    name: str
    packages: Sequence[str] = ()
    rows: list[dict[str, Any]] = field(default_factory=list)
    targets: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        print(f"# {self.name}: {describe_machine(self.packages)}")

    def row(self, **cells: Any) -> None:
        """One row of the table."""
        self.rows.append(cells)
        print("  ".join(f"{key} {_plain(value)}" for key, value in cells.items()), flush=True)

    def target(self, name: str, *, measured: float, wanted: str, met: bool) -> None:
        """One line that says what was asked for and whether it is there."""
        self.targets.append({"name": name, "measured": measured, "wanted": wanted, "met": met})

    def finish(self, json_path: Path | None) -> None:
        """Print the targets; store everything where `--json` says."""
        for each in self.targets:
            word = "met" if each["met"] else "missed"
            measured = _plain(each["measured"])
            print(f"target {each['name']}: measured {measured}, wanted {each['wanted']}, {word}")
        if json_path:
            document = {**asdict(self), "machine": describe_machine(self.packages)}
            json_path.write_text(json.dumps(document, indent=2, default=str) + "\n")


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser that knows `--json FILE`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, help="store rows and targets here as well")
    return parser


def describe_machine(packages: Iterable[str] = ()) -> str:
    """Processor or GPU, threads, and versions, on one line."""
    device = device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    threads, python = torch.get_num_threads(), platform.python_version()
    versions = [f"{name} {_version(name)}" for name in ("torch", *packages)]
    return ", ".join([device, f"{threads} threads", f"Python {python}", *versions])


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
