"""What this installation has and lacks, and whether lists of videos are sound."""

import glob
import importlib.util
import math
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import av
import numpy as np
import torch
import torch.distributed as dist
from fvcore.common.config import CfgNode
from PIL import Image
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from vidcsl import fit
from vidcsl.data.lists import VideoList, check_files, read_list, shared, shorten
from vidcsl.data.readers import READERS, open_reader
from vidcsl.data.sampling import ViewSampler
from vidcsl.errors import UserError
from vidcsl.pipelines.model import build_encoder
from vidcsl.pipelines.training import build_precision
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
        warns: runs go on, but hardly as they are meant.
    """

    topic: str
    name: str
    there: bool
    words: str = ""
    broken: bool = False
    warns: bool = False

    def __str__(self) -> str:
        state = "broken" if self.broken else "warning" if self.warns else "missing"
        state = "ok" if self.there else state
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
            _read_a_video(name)
        except (Exception, SystemExit) as error:  # a broken library may raise anything
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


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]


def _read_a_video(backend: str) -> None:
    """Read frames of a video made for that: a package may import, and its library not load."""
    frame = np.zeros((32, 32, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        if backend == "pictures":
            path = Path(folder)
            Image.fromarray(frame).save(path / "0.png")
        else:
            path = Path(folder, "made.mp4")
            with av.open(str(path), "w") as container:
                stream = container.add_stream("mpeg4", rate=25)
                stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
                for _ in range(4):
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
                container.mux(stream.encode(None))
        with open_reader(path, backend=backend) as reader:
            reader.read(np.array([0, reader.num_frames - 1]))
            if reader.name != backend:
                raise UserError(f"{reader.name} read in its place")


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
    sampler: ViewSampler | None = None,
    frames: int = 0,
) -> Iterator[Finding]:
    """Read both lists, decode some of their videos, and look for overlap.

    Args:
        root, train, test: as in a config; an empty test list is left out.
        reader: the backend that decodes.
        tolerated, tolerated_test: fractions of the lists that may be unreadable.
        sampler, frames: of training clips, to hold against the videos' lengths; None: not done.
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
        yield from _decode_some(name, found, reader, limit, sampler, frames)
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


def _decode_some(
    name: str,
    videos: VideoList,
    backend: str,
    tolerated: float,
    sampler: ViewSampler | None,
    frames: int,
) -> Iterator[Finding]:
    """Decode the last frame of some videos, evenly spread over the list; are they long enough?"""
    spans, lengths = [], []
    chosen = np.unique(np.linspace(0, len(videos) - 1, TRIED).round().astype(int))
    failures = []
    for k in chosen:
        try:
            with open_reader(videos.videos[k].source(), backend=backend, short_side=64) as reader:
                reader.read(np.array([reader.num_frames - 1]))
                if sampler is not None:
                    rate = reader.fps / sampler.fps if reader.fps and sampler.fps else 1.0
                    spans.append(math.ceil((frames - 1) * sampler.stride * rate) + 1)
                    lengths.append(reader.num_frames)
        except UserError as error:
            failures.append(error)
    words = f"{len(chosen) - len(failures)} of {len(chosen)} samples can be decoded"
    if failures:
        words += f"; first: {failures[0]}"
    broken = len(failures) > tolerated * len(chosen) or len(failures) == len(chosen)
    yield Finding("lists", f"videos of the {name} list", not failures, words, broken=broken)
    short = sum(length < span for length, span in zip(lengths, spans, strict=True))
    if lengths and sampler is not None:
        words = f"a clip spans {max(spans)} frames, the shortest sample has {min(lengths)}"
        if short:
            words = (
                f"{short} of {len(lengths)} samples are shorter than a clip ({words}): filled by "
                f"DATA.SHORT_VIDEO {sampler.short_video}; lower DATA.STRIDE or DATA.FRAMES"
            )
        yield Finding("lists", f"clips of the {name} list", not short, words, warns=True)


# ----------------------------------------------------------------------
# A config's training: does it fit the list and the machine, and how long will it take?


def examine_training(cfg: CfgNode, *, videos: int) -> Iterator[Finding]:
    """Batch against list, workers against cores, memory, and hours from a step that is timed.

    Args:
        cfg: of the run.
        videos: in its training list.
    """
    topic, train = "training", cfg.TRAIN
    processes = max(1, torch.cuda.device_count() if cfg.DEVICE != "cpu" else 1)
    steps = videos // train.BATCH
    words = f"{train.BATCH} of {videos} videos: {steps} steps an epoch"
    if not steps:
        words = f"{videos} videos do not fill one batch of {train.BATCH}: lower TRAIN.BATCH"
    yield Finding(topic, "batch", steps > 0, words, broken=True)
    cores = fit.this_machine("cpu").cores
    many = processes * cfg.DATA.WORKERS > cores
    words = f"{processes * cfg.DATA.WORKERS} on {cores} cores" + ": lower DATA.WORKERS" * many
    yield Finding(topic, "workers", not many, words, warns=True)
    if not steps:
        return
    try:
        yield _memory(cfg, processes=processes)
    except UserError as error:  # the encoder does not take its options
        yield Finding(topic, "encoder", False, str(error), broken=True)
        return
    yield _hours(cfg, videos=steps * train.BATCH, processes=processes)


def saved_bytes(cfg: CfgNode) -> tuple[int, int]:
    """Bytes that the backward pass needs of one clip in float32, and bytes of the weights.

    Counted without computing anything, on torch's device "meta".
    """
    with torch.device("meta"):
        encoder = build_encoder(cfg).train()
        clips = torch.zeros(2, 3, encoder.clip_frames, encoder.frame_size, encoder.frame_size)
    own = {each.untyped_storage()._cdata for each in (*encoder.parameters(), *encoder.buffers())}
    sizes: dict[int, int] = {}
    kept = []  # as long as these live, no two storages have one address

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            sizes[storage._cdata] = storage.nbytes()
            kept.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        encoder(clips)
    weights = sum(each.nbytes for each in encoder.parameters())
    return sum(sizes.values()) // len(clips), weights


def _memory(cfg: CfgNode, *, processes: int) -> Finding:
    """What the activations of a step take, about, against what there is."""
    each, weights = saved_bytes(cfg)
    device = _device(cfg)
    with build_precision(cfg, device).autocast():
        if torch.is_autocast_enabled(device.type):  # numbers of half the size
            each //= 2
    share = -(-cfg.TRAIN.BATCH // processes)
    at_once = min(share, cfg.TRAIN.CHUNK or share)
    # A half more than the backward pass keeps: what a layer takes while it computes. Weights come
    # with a gradient and, at most, two averages of the optimiser.
    needed = 1.5 * at_once * cfg.DATA.CLIPS * each + 4 * weights
    free = _free_memory(device)
    fits = needed <= free
    words = f"a step needs about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
    if not fits:
        chunk = int((0.8 * free - 4 * weights) / (1.5 * cfg.DATA.CLIPS * each))
        what = f"set TRAIN.CHUNK {chunk}, or lower" if chunk > 0 else "lower"
        words += f": {what} TRAIN.BATCH, MODEL.WIDTH, MODEL.FRAME_SIZE or DATA.FRAMES"
    return Finding("training", "memory", fits, words, broken=not cfg.TRAIN.RECOMPUTE, warns=True)


def _device(cfg: CfgNode) -> torch.device:
    gpu = cfg.DEVICE != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if gpu else "cpu")


def _free_memory(device: torch.device) -> float:
    """Bytes that a run may still take: of the GPU, or of the machine and its container."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info()[0])
    free = math.inf
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = int(next(x for x in lines if x.startswith("MemAvailable")).split()[1]) * 2.0**10
    with suppress(OSError, ValueError):  # "max" is no number
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        stat = Path("/sys/fs/cgroup/memory.stat").read_text().split()
        cached = int(stat[stat.index("inactive_file") + 1])  # given back when it is needed
        free = min(free, float(limit - used + cached))
    return free


def _hours(cfg: CfgNode, *, videos: int, processes: int) -> Finding:
    """Time of the encoder's forward and backward passes, from one of them on a few clips."""
    device = _device(cfg)
    encoder = build_encoder(cfg).train().to(device)
    precision = build_precision(cfg, device)
    size = encoder.frame_size

    def seconds(count: int) -> float:
        clips = torch.rand(count, 3, encoder.clip_frames, size, size, device=device)
        started = time.perf_counter()
        with precision.autocast():
            features = encoder(clips)
        features.float().square().sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / count

    seconds(2)  # the first is slow
    each = seconds(2)
    if each < 1:  # a few clips say little of a batch
        each = min(seconds(16) for _ in range(3))
    passes = 4 / 3 if cfg.TRAIN.CHUNK or cfg.TRAIN.RECOMPUTE else 1.0  # a second forward pass
    clips_in_all = videos * cfg.DATA.CLIPS * cfg.TRAIN.EPOCHS * cfg.FALSE_NEGATIVES.ROUNDS
    hours = clips_in_all * passes * each / processes / 3600
    words = (
        f"about {hours:.1f} h for {cfg.TRAIN.EPOCHS} epochs, if decoding keeps up; attacks inside "
        "a step and the evaluation come on top"
    )
    if hours < 1:
        words = words.replace(f"{hours:.1f} h", f"{max(1, round(60 * hours))} min")
    return Finding("training", "time", True, words)
