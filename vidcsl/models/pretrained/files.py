"""Tensors out of a checkpoint file, without running what it holds."""

import argparse
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vidcsl.errors import UserError
from vidcsl.pieces import read_pieces

# Where NumPy makes a number out of its bytes, in NumPy 2 and before.
_SCALAR = (np._core if hasattr(np, "_core") else np.core).multiarray.scalar

# Plain values that research code leaves beside its tensors, and that can do nothing.
_PLAIN: list[Any] = [
    argparse.Namespace,
    np.dtype,
    (_SCALAR, "numpy._core.multiarray.scalar"),
    (_SCALAR, "numpy.core.multiarray.scalar"),
    np.dtypes.Float64DType,
    np.dtypes.Float32DType,
    np.dtypes.Int64DType,
]


def read_tensors(path: Path, *, containers: Sequence[str] = ()) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file or of a torch checkpoint, on the CPU.

    Args:
        path: the file, or the folder of a checkpoint in pieces.
        containers: keys under which the tensors may lie in a checkpoint; the first that is there.

    Raises:
        UserError: missing, damaged, without tensors, or a pickle that wants to run code.
    """
    if not path.exists():
        raise UserError(f"no weights at {path}")
    if path.suffix == ".safetensors":
        try:
            return _single(load_file(path))
        except (SafetensorError, OSError) as error:
            raise UserError(f"cannot read {path}: {error}") from error
    document = _unpickled(path)
    for container in containers:
        if isinstance(document, Mapping) and isinstance(document.get(container), Mapping):
            document = document[container]
            break
    tensors = {
        str(key): value
        for key, value in (document.items() if isinstance(document, Mapping) else ())
        if isinstance(value, Tensor)
    }
    if not tensors:
        raise UserError(f"{path} holds no tensors where this format has them; is it another one?")
    return _single(tensors)


def _single(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """In single precision what was stored in half: not all that is done to weights knows half."""
    halves = (torch.float16, torch.bfloat16)
    return {key: each.float() if each.dtype in halves else each for key, each in tensors.items()}


def _unpickled(path: Path) -> Any:
    try:
        if path.is_dir():
            return read_pieces(path)
        with torch.serialization.safe_globals(_PLAIN):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is not loaded: it is a damaged file, or a pickle that wants to run code "
            f"({_what(str(error))}); save its state dict alone, or as .safetensors"
        ) from error
    except Exception as error:  # torch raises many kinds for a file that is not a checkpoint
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"cannot read {path}: it is damaged, or no checkpoint of torch ({reason})"
        ) from error


def _what(message: str) -> str:
    """The part of torch's long message that names the culprit."""
    culprits = [line.strip() for line in message.splitlines() if "GLOBAL" in line]
    return (culprits or message.splitlines() or ["no reason given"])[0].split(" was not ")[0][-120:]
