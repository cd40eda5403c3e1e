"""The command line as a shell sees it."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_reader_that_leaves_early_ends_a_command_without_a_traceback() -> None:
    """As `vidcsl show options | head -1` does."""

    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        [sys.executable, "-m", "vidcsl.cli", "show", "models"],
        stdout=writing,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    os.close(writing)
    assert ended.returncode == 141
    assert ended.stderr == b""
