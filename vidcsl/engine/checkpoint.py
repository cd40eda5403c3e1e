"""Checkpoints: written whole or not at all, read as plain data.

A checkpoint holds tensors and plain values only, so it loads with `weights_only=True`. No
generator states are needed: every random number is derived from (seed, epoch, sample).
"""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vidcsl.errors import UserError

_KEYS = {"config", "method", "position"}
_NAME = re.compile(r"epoch(\d+)_step(\d+)\.pt")


@dataclass(frozen=True)
class Position:
    """Where training stands: `step` steps of epoch `epoch` (from 0) are done."""

    epoch: int = 0
    step: int = 0


def save_checkpoint(
    folder: Path, state: Mapping[str, Any], position: Position, *, keep: int
) -> Path:
    """Write `state` atomically and delete all but the newest `keep` checkpoints.

    Raises:
        UserError: the disk is full or not writable; older checkpoints are left as they were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"epoch{position.epoch:05d}_step{position.step:06d}.pt"
    partial = path.with_suffix(".partial")
    document = {**state, "position": {"epoch": position.epoch, "step": position.step}}
    try:
        with partial.open("wb") as file:
            torch.save(document, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as a RuntimeError
        partial.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or "the file was cut short, is the disk full?"
        raise UserError(
            f"cannot write checkpoint {path}: {reason}; older ones are intact: make room (or the "
            "folder writable) and continue with --resume"
        ) from error
    for old in list_checkpoints(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in `folder`, oldest first."""
    found = [path for path in folder.glob("*.pt") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: tuple(map(int, _NAME.fullmatch(path.name).groups())))  # type: ignore[union-attr]


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The document that `save_checkpoint` wrote, on the CPU.

    Raises:
        UserError: missing, damaged, or not a checkpoint of this project.
    """
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"no checkpoint at {path}") from None
    except Exception as error:  # torch raises many kinds for a file that is not a checkpoint
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"cannot load checkpoint {path}: {reason}") from error
    if not isinstance(document, dict) or not set(document) >= _KEYS:
        raise UserError(f"{path} is not a vidcsl checkpoint (it lacks {', '.join(sorted(_KEYS))})")
    return document


def load_newest(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, or None where there is none at all.

    Raises:
        UserError: there are checkpoints and none can be read.
    """
    failure: UserError | None = None
    for path in reversed(list_checkpoints(folder)):
        try:
            return load_checkpoint(path)
        except UserError as error:
            failure = failure or error
    if failure:
        raise failure
    return None


def weights_digest(module: nn.Module) -> str:
    """A short name for a module's weights and buffers, the same on every device."""
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        plain = tensor.detach().cpu().contiguous()
        found.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        found.update(plain.flatten().view(torch.uint8).numpy())
    return found.hexdigest()[:16]


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], *, source: str) -> None:
    """Load strictly; every key or shape that does not fit is an error that names examples.

    Raises:
        UserError: the weights are of another architecture.
    """
    own = module.state_dict()
    missing = [key for key in own if key not in weights]
    unknown = [key for key in weights if key not in own]
    shapes = [
        f"{key} {tuple(weights[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in weights and own[key].shape != weights[key].shape
    ]
    problems = {"missing": missing, "unknown": unknown, "of another shape": shapes}
    found = [f"{len(k)} {name} ({', '.join(k[:2])})" for name, k in problems.items() if k]
    if found:
        raise UserError(f"{source} holds another architecture: {'; '.join(found)}")
    module.load_state_dict(weights, strict=True)


def load_parts(
    module: nn.Module, weights: Mapping[str, Tensor], *, parts: Iterable[str], source: str
) -> None:
    """Load only the children `parts` of a module, each strictly; see `load_weights`."""
    for part in parts:
        start = f"{part}."
        own = {k.removeprefix(start): w for k, w in weights.items() if k.startswith(start)}
        load_weights(module.get_submodule(part), own, source=f"{source}, {part},")
