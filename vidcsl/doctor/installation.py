"""Versions, readers, codecs, extras and devices, and what to do about what is missing."""

import glob
import importlib.util
import os
from collections.abc import Iterator
from typing import Literal

import av
import torch
import torch.distributed as dist

from vidcsl.data.readers import READERS
from vidcsl.doctor.finding import Finding
from vidcsl.engine.run_folder import describe_environment
from vidcsl.robustness.corruptions.codec import DECODERS, USED_BY

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
