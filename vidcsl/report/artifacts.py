"""Arrays that a run kept for its report: read whole, or an error that says what to do."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from vidcsl.errors import UserError


def read_arrays(path: Path, *names: str) -> list[NDArray[Any]]:
    """The arrays of an `.npz` file by name.

    Raises:
        UserError: the file is damaged or lacks one of them.
    """
    with _opened(path) as stored:
        for name in names:
            if name not in stored.files:
                raise UserError(f"{path} has no array {name!r}; run the evaluation again")
        return [stored[name] for name in names]


def has_array(path: Path, name: str) -> bool:
    """Whether the file holds an array of this name. Raises as `read_arrays`."""
    with _opened(path) as stored:
        return name in stored.files


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            yield stored
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise UserError(f"cannot read {path}: {error}; run the evaluation again") from error
