"""What this installation has and lacks, and whether lists of videos are sound."""

import glob
import importlib.util
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import av
import numpy as np
import torch
import torch.distributed as dist

from vidcsl.data.lists import Row, Video, VideoList, check_files, read_list, read_rows, shorten
from vidcsl.data.readers import READERS, open_reader
from vidcsl.errors import UserError
from vidcsl.robustness.corruptions.codec import DECODERS, USED_BY
from vidcsl.run_folder import describe_environment

# ----------------------------------------------------------------------
# What is found, and how it is told.


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        topic, name: the heading that it stands under, and what it is.
        there: whether it is there and in order.
        words: what was seen, or what to do.
        broken: it is needed, and runs will fail; otherwise what is not there is only missed.
    """

    topic: str
    name: str
    there: bool
    words: str = ""
    broken: bool = False

    def __str__(self) -> str:
        state = "ok" if self.there else "broken" if self.broken else "missing"
        return f"  {state:7} {self.name}  {self.words}".rstrip()


def report(findings: Iterable[Finding]) -> str:
    """The findings by topic, one a line."""
    found = list(findings)
    topics = dict.fromkeys(finding.topic for finding in found)
    return "\n".join(
        line
        for topic in topics
        for line in (topic, *(str(each) for each in found if each.topic == topic))
    )


# ----------------------------------------------------------------------
# Room on the disk and in the memory that processes share.

SHARED_MEMORY = Path("/dev/shm")
LEAST_DISK, LEAST_SHARED = 2**30, 2**30  # bytes


def examine_storage(output: Path, *, batches: int = 0) -> Iterator[Finding]:
    """Room for checkpoints and for batches on their way.

    Args:
        output: where runs are written; it need not exist yet.
        batches: bytes of shared memory that the loaders of this machine hold; 0: unknown.
    """
    there = next(folder for folder in (output, *output.resolve().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    words = f"{_gib(free)} free at {there}"
    yield Finding("storage", "disk", free >= LEAST_DISK, words, broken=free < LEAST_DISK)
    if not SHARED_MEMORY.is_dir():
        return
    free = shutil.disk_usage(SHARED_MEMORY).free
    needed = batches or LEAST_SHARED
    words = f"{_gib(free)} free at {SHARED_MEMORY}"
    if batches:
        words += f", this config's loaders hold up to {_gib(batches)}"
    if free < needed:
        words += ": enlarge it (docker run --shm-size=16g) or lower DATA.WORKERS"
    yield Finding("storage", "shared memory", free >= needed, words, broken=0 < free < batches)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


# ----------------------------------------------------------------------
# Versions, readers, codecs, extras and devices, and what to do about what is missing.

_READER_PACKAGES = {"pyav": "av", "decord": "decord", "torchcodec": "torchcodec"}


def examine() -> list[Finding]:
    """Versions, readers, codecs, extras and devices."""
    return [*_versions(), *_readers(), *_codecs(), *_extras(), *_devices()]


def _versions() -> Iterator[Finding]:
    environment = describe_environment(torch.device("cpu"))
    yield Finding("versions", "vidcsl", True, environment["vidcsl"])
    yield Finding("versions", "python", True, environment["python"])
    for name, version in environment["versions"].items():
        yield Finding("versions", name, version is not None, version or "")
    yield _operators()


def _operators() -> Finding:
    """Of a torchvision that was built for another torch they cannot be loaded."""
    name = "torchvision with torch"
    try:
        importlib.import_module("torchvision.ops").nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except Exception as error:  # of whatever kind the loader of libraries raises
        return Finding("versions", name, False, _first_line(error), broken=True)
    return Finding("versions", name, True)


def _readers() -> Iterator[Finding]:
    for name in READERS:
        package = _READER_PACKAGES.get(name)
        try:
            if package:
                __import__(package)
        except Exception as error:  # a broken library fails in ways of its own
            words = f"{type(error).__name__}: {_first_line(error)}"
            yield Finding("readers", name, False, words, broken=name == "pyav")
        else:
            yield Finding("readers", name, True)


def _codecs() -> Iterator[Finding]:
    for encoder, corruptions in USED_BY.items():
        yield _codec(encoder, "w", corruptions)
        yield _codec(DECODERS.get(encoder, encoder), "r", corruptions)


def _codec(name: str, mode: Literal["r", "w"], corruptions: tuple[str, ...]) -> Finding:
    kind = "encoder" if mode == "w" else "decoder"
    try:
        av.Codec(name, mode)
    except ValueError:  # PyAV's UnknownCodecError
        words = f"needed by {', '.join(corruptions)}: install PyAV from its wheels (pip install av)"
        return Finding(f"codecs of PyAV {av.__version__}", f"{kind} {name}", False, words)
    return Finding(f"codecs of PyAV {av.__version__}", f"{kind} {name}", True)


def _extras() -> Iterator[Finding]:
    for name, module in _EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        yield Finding("extras", name, there, "" if there else f"pip install 'vidcsl[{name}]'")


_EXTRAS = {
    "slurm": "submitit",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "gpu": "pynvml",
    "s3": "s3fs",
    "hub": "huggingface_hub",
    "torchcodec": "torchcodec",
}


def _devices() -> Iterator[Finding]:
    words = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads of torch"
    yield Finding("devices", "cpu", True, words)
    for name, there in (("gloo", dist.is_gloo_available()), ("NCCL", dist.is_nccl_available())):
        yield Finding("devices", name, there, _nccl_version() if there and name == "NCCL" else "")
    gpus = range(torch.cuda.device_count())
    for index in gpus:
        yield Finding("devices", f"cuda:{index}", True, _describe_gpu(index))
    if not gpus:
        # A driver's device files without a usable GPU: another CUDA, or a container without rights.
        driver = bool(glob.glob("/dev/nvidia[0-9]*"))
        words = "there is a driver, but torch cannot use it" if driver else "no GPU is visible"
        yield Finding(
            "devices", "cuda", False, f"{words} (torch for CUDA {_cuda()})", broken=driver
        )


def _describe_gpu(index: int) -> str:
    facts = torch.cuda.get_device_properties(index)
    memory = f"{facts.total_memory / 2**30:.0f} GiB"
    return f"{facts.name}, {memory}, compute capability {facts.major}.{facts.minor}"


def _nccl_version() -> str:
    try:
        return ".".join(map(str, torch.cuda.nccl.version()))
    except (AttributeError, RuntimeError):
        return ""


def _cuda() -> str:
    return torch.version.cuda or "none"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


# ----------------------------------------------------------------------
# Whether the lists of a run are sound: all there, readable, training and test apart.

TRIED = 16  # videos of each list


def examine_lists(
    *,
    root: str,
    train: str,
    test: str,
    reader: str = "auto",
    tolerated: float = 0.0,
    tolerated_test: float = 0.0,
) -> Iterator[Finding]:
    """Read both lists and try some of their videos.

    Args:
        root, train, test: as in a config; an empty test list is left out.
        reader: who decodes.
        tolerated, tolerated_test: shares of the lists that may be unreadable.
    """
    lists: dict[str, VideoList] = {}
    shares = {"training": tolerated, "test": tolerated_test}
    for name, path in (("training", train), ("test", test)):
        if not path:
            yield Finding("lists", name, False, "not set", broken=name == "training")
            continue
        try:
            known = lists["training"].classes if "training" in lists else None
            found = read_list(path, root=root, classes=known)
            check_files(found.videos)
        except UserError as error:
            yield Finding("lists", name, False, str(error), broken=True)
            continue
        lists[name] = found
        yield Finding("lists", name, True, _describe(found))
        yield _try(name, found.videos, reader, shares[name])
    if "test" in lists:
        yield from _unlabelled(lists["test"])
    if len(lists) == 2:
        yield from _apart(train, test)


def _unlabelled(test: VideoList) -> Iterator[Finding]:
    count = sum(video.label < 0 for video in test.videos)
    if count:
        words = f"{count} videos have none: fill their class, or leave DATA.TEST_LIST empty"
        yield Finding("lists", "labels of the test list", False, words, broken=True)


def _describe(videos: VideoList) -> str:
    counts = Counter(video.label for video in videos.videos)
    unlabelled = counts.pop(-1, 0)
    words = f"{len(videos)} videos"
    if counts:
        words += f", {len(counts)} classes of {min(counts.values())} to {max(counts.values())}"
    return words + (f", {unlabelled} without a label" if unlabelled else "")


def _try(name: str, videos: Sequence[Video], reader: str, tolerated: float) -> Finding:
    """Read the last frame of some videos, spread over the list."""
    chosen = np.unique(np.linspace(0, len(videos) - 1, TRIED).round().astype(int))
    failures = [error for error in (_failure(videos[k], reader) for k in chosen) if error]
    words = f"{len(chosen) - len(failures)} of {len(chosen)} tried can be read"
    if failures:
        words += f"; first: {failures[0]}"
    broken = len(failures) > tolerated * len(chosen) or len(failures) == len(chosen)
    return Finding("lists", f"videos of the {name} list", not failures, words, broken=broken)


def _failure(video: Video, backend: str) -> UserError | None:
    try:
        with open_reader(video.source(), backend=backend, short_side=64) as reader:
            reader.read(np.array([reader.num_frames - 1]))
    except UserError as error:
        return error
    return None


def _apart(train: str, test: str) -> Iterator[Finding]:
    """No video, and no source of videos of a class, on both sides.

    A source may lend videos to another class there, as films do in the published HMDB51 splits.
    """
    sides = [read_rows(path) for path in (train, test)]
    for name, values in (
        ("videos", [{os.path.normpath(row.video) for row in rows} for rows in sides]),
        ("groups", [{_group_of(row) for row in rows if row.group} for rows in sides]),
    ):
        both = sorted(values[0] & values[1])
        words = f"{len(both)} are in both lists: {shorten(both)}" if both else "none in both lists"
        yield Finding("lists", f"{name} apart", not both, words, broken=bool(both))


def _group_of(row: Row) -> str:
    return f"{row.group} of {row.class_name}" if row.class_name else row.group


# ----------------------------------------------------------------------
# What a machine, an installation and a run's lists have and lack.
