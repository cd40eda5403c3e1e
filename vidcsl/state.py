"""State dicts: as sharded files, loaded in part, and their digests."""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, distribute_tensor

from vidcsl.errors import UserError

# ----------------------------------------------------------------------
# A state whose tensors are cut up over processes, as a folder of files that any number can read.
#
# `torch.distributed.checkpoint` writes the tensors, each process its own part; beside them lie the
# plain values and a manifest of all files with their SHA-256.

PLAIN, MANIFEST = "plain.pt", "manifest.json"
_TENSOR = "\x00tensor"  # stands in the plain values where a tensor was


def write_pieces(folder: Path, state: Mapping[str, Any], *, group: dist.ProcessGroup) -> None:
    """Write `state` to a new folder; all processes of `group` take part.

    The folder is complete once its manifest is there, which is written last.

    Args:
        folder: must be empty or absent.
        state: nested dicts and lists of plain values and tensors, on the CPU.
        group: of a backend that can send objects, such as gloo.

    Raises:
        OSError, CheckpointException: on all processes, where one cannot write.
    """
    tensors: dict[str, Tensor] = {}
    plain = _taken_out(state, (), tensors)
    writer = FileSystemWriter(folder, single_file_per_rank=True, sync_files=True)
    save(dict(tensors), storage_writer=writer, process_group=group)
    rank = dist.get_rank(group)
    mine = list(folder.glob(f"__{rank}_*"))
    if rank == 0:
        torch.save(plain, folder / PLAIN)
        mine += [folder / PLAIN, folder / ".metadata"]
    sums: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(sums, {path.name: _digest(path) for path in mine}, group=group)
    if rank == 0:
        with (folder / MANIFEST).open("w") as file:
            json.dump({name: digest for each in sums for name, digest in each.items()}, file)
            file.flush()
            os.fsync(file.fileno())


def read_pieces(folder: Path) -> dict[str, Any]:
    """What `write_pieces` wrote, joined, on the CPU; needs no other process.

    Raises:
        ValueError: a file is missing or is not what was written.
        OSError: a file cannot be read.
    """
    manifest = json.loads((folder / MANIFEST).read_text())
    for name, digest in manifest.items():
        if _digest(folder / name) != digest:
            raise ValueError(f"{name} is damaged: its checksum is not that of the manifest")
    plain = torch.load(folder / PLAIN, map_location="cpu", weights_only=True)
    found = FileSystemReader(folder).read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(each.size, dtype=each.properties.dtype)
        for name, each in found.items()
        if isinstance(each, TensorStorageMetadata)
    }
    if tensors:
        with warnings.catch_warnings():  # torch warns of what it is asked for: one process alone
            warnings.simplefilter("ignore", UserWarning)
            load(tensors, storage_reader=FileSystemReader(folder), no_dist=True)
    document: dict[str, Any] = _put_back(plain, tensors)
    return document


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir():
        # The manifest first: a folder that is half deleted is not taken for a whole one.
        (path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def tensors_of(value: Any) -> Iterator[Tensor]:
    """All tensors of nested dicts and lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from tensors_of(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors_of(each)


def copied(value: Any) -> Any:
    """Nested dicts and lists with a copy of each tensor, on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: copied(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied(each) for each in value)
    return value


def cut_like(tensor: Tensor, like: Any) -> Tensor:
    """This process's part of `tensor`, where `like` is of the same shape and cut up."""
    if isinstance(tensor, DTensor) or not isinstance(like, DTensor) or like.shape != tensor.shape:
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor that may be cut up."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def joined(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be cut up; all processes take part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _taken_out(value: Any, path: tuple[Any, ...], tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = "/".join(map(str, path))
        tensors[name] = value
        return {_TENSOR: name}
    if isinstance(value, Mapping):
        return {key: _taken_out(each, (*path, key), tensors) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_taken_out(each, (*path, number), tensors) for number, each in enumerate(value)]
    return value


def _put_back(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if _TENSOR in value:
            return tensors[value[_TENSOR]]
        return {key: _put_back(each, tensors) for key, each in value.items()}
    if isinstance(value, list):
        return [_put_back(each, tensors) for each in value]
    return value


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            found.update(block)
    return found.hexdigest()


# ----------------------------------------------------------------------
# Weights put into a module: all of them, or an error that says what does not fit.


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
