"""Which of the readers can be tested here."""

import pytest

from vidcsl.data.readers import READERS
from vidcsl.errors import UserError


def _loads(name: str) -> bool:
    try:
        READERS[name].check_installed()
    except UserError:
        return False
    return True


HAS_DECORD, HAS_TORCHCODEC = _loads("decord"), _loads("torchcodec")

needs_decord = pytest.mark.skipif(not HAS_DECORD, reason="decord is not installed here")
needs_torchcodec = pytest.mark.skipif(not HAS_TORCHCODEC, reason="torchcodec does not load here")


def decoders():
    """Every reader of video files, each skipped where it is not installed."""
    return [
        "pyav",
        pytest.param("decord", marks=needs_decord),
        pytest.param("torchcodec", marks=needs_torchcodec),
    ]
