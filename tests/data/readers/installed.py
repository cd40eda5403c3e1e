"""Which of the readers can be tested here."""

import importlib.util

import pytest

from vidcsl.data.readers.torchcodec import _import_torchcodec
from vidcsl.errors import UserError


def _torchcodec_loads() -> bool:
    try:
        return bool(_import_torchcodec())
    except UserError:
        return False


HAS_DECORD = importlib.util.find_spec("decord") is not None
HAS_TORCHCODEC = _torchcodec_loads()

needs_decord = pytest.mark.skipif(not HAS_DECORD, reason="decord is not installed here")
needs_torchcodec = pytest.mark.skipif(not HAS_TORCHCODEC, reason="torchcodec does not load here")


def decoders():
    """Every reader of video files, each skipped where it is not installed."""
    return [
        "pyav",
        pytest.param("decord", marks=needs_decord),
        pytest.param("torchcodec", marks=needs_torchcodec),
    ]
