"""Named arrays as a file: written whole or not at all, read as plain numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from vidcsl.data.lists import replacing
from vidcsl.errors import UserError


def save_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write tensors and numbers to an `.npz` file."""
    plain: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, **plain)


def load_arrays(path: Path, names: Sequence[str]) -> list[Tensor]:
    """What `save_arrays` wrote under these names.

    Raises:
        UserError: the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return [torch.from_numpy(stored[name]) for name in names]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise UserError(f"{path} is damaged ({error}); remove it") from error
