"""Named arrays as a file: written whole or not at all, read as plain numbers."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from vidcsl.data.lists import replacing
from vidcsl.errors import UserError

_DAMAGED = (OSError, ValueError, KeyError, EOFError, BadZipFile)


def save_arrays(path: Path, arrays: Mapping[str, Any], *, compressed: bool = False) -> None:
    """Write tensors, numbers and words to an `.npz` file."""
    plain: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    save: Callable[..., None] = np.savez_compressed if compressed else np.savez
    with replacing(path) as partial, partial.open("wb") as file:
        save(file, **plain)


def load_arrays(path: Path, names: Sequence[str]) -> list[Tensor]:
    """What `save_arrays` wrote under these names.

    Raises:
        UserError: the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return [torch.from_numpy(stored[name]) for name in names]
    except _DAMAGED as error:
        raise UserError(f"{path} is damaged ({error}); remove it") from error


def key_of(path: Path) -> str:
    """The word stored as `key`, by which a file is known to be up to date; empty if unreadable."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return str(stored["key"])
    except _DAMAGED:
        return ""
