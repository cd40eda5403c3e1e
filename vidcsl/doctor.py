"""What this installation has and lacks, and whether lists of videos are sound."""

import glob
import importlib.util
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import av
import numpy as np
import torch
import torch.distributed as dist

from vidcsl.data.lists import VideoList, check_files, read_list, shared, shorten
from vidcsl.data.readers import READERS, open_reader
from vidcsl.errors import UserError
from vidcsl.robustness.corruptions.codec import DECODERS, USED_BY
from vidcsl.run_folder import describe_environment

SHARED_MEMORY = Path("/dev/shm")
LEAST_DISK, LEAST_SHARED = 2**30, 2**30  # bytes
TRIED = 16  # videos of each list that are opened
READER_PACKAGES = {"pyav": "av", "decord": "decord", "torchcodec": "torchcodec"}
EXTRAS = {  # extra of this package: the module that it installs
    "slurm": "submitit",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "gpu": "pynvml",
    "s3": "s3fs",
    "hub": "huggingface_hub",
    "torchcodec": "torchcodec",
}


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        topic, name: the heading of the check, and what was checked.
        there: whether it is present and in order.
        words: details, or what to do about it.
        broken: runs will fail without it; otherwise it is optional.
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
    """The findings grouped by topic, one a line."""
    topics: dict[str, list[str]] = {}
    for finding in findings:
        topics.setdefault(finding.topic, []).append(str(finding))
    return "\n".join(line for topic, lines in topics.items() for line in (topic, *lines))


def examine() -> Iterator[Finding]:
    """Check versions, readers, codecs, extras and devices."""
    environment = describe_environment(torch.device("cpu"))
    yield Finding("versions", "vidcsl", True, environment["vidcsl"])
    yield Finding("versions", "python", True, environment["python"])
    for name, version in environment["versions"].items():
        yield Finding("versions", name, version is not None, version or "")
    # A torchvision that was built for another torch imports, but its operators do not load.
    try:
        importlib.import_module("torchvision.ops").nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except Exception as error:  # library loaders raise errors of many kinds
        yield Finding("versions", "torchvision with torch", False, _first_line(error), broken=True)
    else:
        yield Finding("versions", "torchvision with torch", True)

    for name in [name for name in READERS if name != "auto"]:
        try:
            if name in READER_PACKAGES:
                importlib.import_module(READER_PACKAGES[name])
        except Exception as error:  # a broken library may raise anything
            words = f"{type(error).__name__}: {_first_line(error)}"
            yield Finding("readers", name, False, words, broken=name == "pyav")
        else:
            yield Finding("readers", name, True)

    topic = f"codecs of PyAV {av.__version__}"
    for encoder, corruptions in USED_BY.items():
        missing = f"needed by {', '.join(corruptions)}: reinstall PyAV from its wheel (av on PyPI)"
        decoder = DECODERS.get(encoder, encoder)
        for title, works in (
            (f"encoder {encoder}", _has(encoder, "w")),
            (f"decoder {decoder}", _has(decoder, "r")),
        ):
            yield Finding(topic, title, works, "" if works else missing)

    for name, module in EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        yield Finding("extras", name, there, "" if there else f"pip install 'vidcsl[{name}]'")

    words = f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"
    yield Finding("devices", "cpu", True, words)
    yield Finding("devices", "gloo", dist.is_gloo_available())
    nccl = ""
    if dist.is_nccl_available() and torch.cuda.is_available():
        nccl = ".".join(map(str, torch.cuda.nccl.version()))
    yield Finding("devices", "NCCL", dist.is_nccl_available(), nccl)
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        words = (
            f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, compute capability "
            f"{facts.major}.{facts.minor}"
        )
        yield Finding("devices", f"cuda:{index}", True, words)
    if not torch.cuda.device_count():
        # A driver without a usable GPU: the wrong CUDA version, or a container without access.
        driver = bool(glob.glob("/dev/nvidia[0-9]*"))
        words = "there is a driver, but torch cannot use it" if driver else "no GPU is visible"
        words += f" (torch for CUDA {torch.version.cuda or 'none'})"
        yield Finding("devices", "cuda", False, words, broken=driver)


def _has(codec: str, mode: Literal["r", "w"]) -> bool:
    try:
        av.Codec(codec, mode)
    except ValueError:  # PyAV's UnknownCodecError
        return False
    return True


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


def examine_storage(output: Path, *, batches: int = 0) -> Iterator[Finding]:
    """Check the space for checkpoints, and the shared memory for batches.

    Args:
        output: where runs are written; it need not exist yet.
        batches: bytes of shared memory that the loaders of this machine hold; 0: unknown.
    """
    there = next(folder for folder in (output, *output.resolve().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    words = f"{free / 2**30:.2f} GiB free at {there}"
    yield Finding("storage", "disk", free >= LEAST_DISK, words, broken=free < LEAST_DISK)
    if not SHARED_MEMORY.is_dir():
        return
    free = shutil.disk_usage(SHARED_MEMORY).free
    needed = batches or LEAST_SHARED
    words = f"{free / 2**30:.2f} GiB free at {SHARED_MEMORY}"
    if batches:
        words += f", the loaders of this config hold up to {batches / 2**30:.2f} GiB"
    if free < needed:
        words += ": enlarge it (docker run --shm-size=16g) or lower DATA.WORKERS"
    yield Finding("storage", "shared memory", free >= needed, words, broken=0 < free < batches)


def examine_lists(
    *,
    root: str,
    train: str,
    test: str,
    reader: str = "auto",
    tolerated: float = 0.0,
    tolerated_test: float = 0.0,
) -> Iterator[Finding]:
    """Read both lists, decode some of their videos, and look for overlap.

    Args:
        root, train, test: as in a config; an empty test list is left out.
        reader: the backend that decodes.
        tolerated, tolerated_test: fractions of the lists that may be unreadable.
    """
    lists: dict[str, VideoList] = {}
    for name, path, limit in (("training", train, tolerated), ("test", test, tolerated_test)):
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
        counts = Counter(video.label for video in found.videos)
        unlabelled = counts.pop(-1, 0)
        words = f"{len(found)} videos"
        if counts:
            least, most = min(counts.values()), max(counts.values())
            words += f", {len(counts)} classes with {least} to {most} videos"
        yield Finding("lists", name, True, words + f", {unlabelled} unlabelled" * (unlabelled > 0))
        yield _decode_some(name, found, reader, limit)
    if "test" in lists:
        count = sum(video.label < 0 for video in lists["test"].videos)
        if count:
            words = f"{count} videos have no label: add their class, or leave DATA.TEST_LIST empty"
            yield Finding("lists", "labels of the test list", False, words, broken=True)
    if len(lists) == 2:
        videos, groups = shared(lists["training"], lists["test"])
        videos = tuple(os.path.relpath(path, root) for path in videos)
        for name, both in (("videos", videos), ("groups", groups)):
            words = "none in both lists"
            if both:
                words = f"{len(both)} are in both lists: {shorten(both)}"
            yield Finding("lists", f"{name} apart", not both, words, broken=bool(both))


def _decode_some(name: str, videos: VideoList, backend: str, tolerated: float) -> Finding:
    """Decode the last frame of some videos, evenly spread over the list."""
    chosen = np.unique(np.linspace(0, len(videos) - 1, TRIED).round().astype(int))
    failures = []
    for k in chosen:
        try:
            with open_reader(videos.videos[k].source(), backend=backend, short_side=64) as reader:
                reader.read(np.array([reader.num_frames - 1]))
        except UserError as error:
            failures.append(error)
    words = f"{len(chosen) - len(failures)} of {len(chosen)} samples can be decoded"
    if failures:
        words += f"; first: {failures[0]}"
    broken = len(failures) > tolerated * len(chosen) or len(failures) == len(chosen)
    return Finding("lists", f"videos of the {name} list", not failures, words, broken=broken)
