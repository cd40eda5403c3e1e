"""What this machine and this installation have and lack, and what to do about it."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import av
import torch

from vidcsl.data.readers import READERS
from vidcsl.engine.run_folder import describe_environment
from vidcsl.robustness.corruptions.codec import DECODERS, USED_BY

_READER_PACKAGES = {"pyav": "av", "decord": "decord", "torchcodec": "torchcodec"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: under what heading, and whether it is there."""

    topic: str
    name: str
    there: bool
    words: str = ""

    def __str__(self) -> str:
        return f"  {'ok     ' if self.there else 'missing'} {self.name}  {self.words}".rstrip()


def examine() -> list[Finding]:
    """Versions, readers, codecs and devices."""
    return [*_versions(), *_readers(), *_codecs(), *_devices()]


def report(findings: list[Finding]) -> str:
    """The findings by topic, one a line."""
    topics = dict.fromkeys(finding.topic for finding in findings)
    return "\n".join(
        line
        for topic in topics
        for line in (topic, *(str(each) for each in findings if each.topic == topic))
    )


def _versions() -> Iterator[Finding]:
    environment = describe_environment()
    yield Finding("versions", "vidcsl", True, environment["vidcsl"])
    yield Finding("versions", "python", True, environment["python"])
    for name, version in environment["versions"].items():
        yield Finding("versions", name, version is not None, version or "")


def _readers() -> Iterator[Finding]:
    for name in READERS:
        package = _READER_PACKAGES.get(name)
        try:
            if package:
                __import__(package)
        except Exception as error:  # a broken library fails in ways of its own
            yield Finding("readers", name, False, f"{type(error).__name__}: {_first_line(error)}")
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


def _devices() -> Iterator[Finding]:
    words = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads of torch"
    yield Finding("devices", "cpu", True, words)
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield Finding("devices", "cuda", bool(names), ", ".join(names) or "no GPU is visible to torch")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
