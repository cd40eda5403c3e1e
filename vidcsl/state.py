"""State dicts: loaded into modules, sharded over processes, written as sharded files, digested."""

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
# Weights and modules.


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], *, source: str) -> None:
    """Load strictly; every key or shape that does not fit is an error that names examples.

    Raises:
        UserError: the weights belong to another architecture.
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


def weights_digest(module: nn.Module) -> str:
    """A short name for a module's weights and buffers, the same on every device."""
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        plain = tensor.detach().cpu().contiguous()
        found.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        found.update(plain.flatten().view(torch.uint8).numpy())
    return found.hexdigest()[:16]


# ----------------------------------------------------------------------
# Tensors within a state, each whole or sharded over processes (a DTensor).


def tensors_of(state: Any) -> Iterator[Tensor]:
    """All tensors of nested dicts and lists."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, Mapping):
        for each in state.values():
            yield from tensors_of(each)
    elif isinstance(state, list | tuple):
        for each in state:
            yield from tensors_of(each)


def shard_like(tensor: Tensor, like: Any) -> Tensor:
    """This process's shard of `tensor`, if `like` is sharded and has the same shape."""
    if isinstance(tensor, DTensor) or not isinstance(like, DTensor) or like.shape != tensor.shape:
        return tensor
    # Every process has read the whole tensor: none needs to send its shards to the others.
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def local_shard(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds; all of it, if the tensor is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded; all processes take part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


# ----------------------------------------------------------------------
# A sharded state as a folder, which any number of processes can read.
#
# `torch.distributed.checkpoint` writes the tensors, each process its own shards. Beside them lie
# the plain values, each tensor replaced by its name, and a manifest of all files with their
# SHA-256: torch's format itself would not notice a flipped bit.

PLAIN, MANIFEST = "plain.pt", "manifest.json"
_TENSOR = "\x00tensor"  # key of what replaces a tensor among the plain values


def write_sharded(folder: Path, state: Mapping[str, Any], *, group: dist.ProcessGroup) -> None:
    """Write `state` to a new folder; all processes of `group` take part.

    The folder is complete once its manifest, which is written last, is there.

    Args:
        folder: must be empty or absent.
        state: nested dicts and lists of plain values and tensors, on the CPU.
        group: of a backend that can send objects, such as gloo.

    Raises:
        OSError, CheckpointException: on all processes, if one of them cannot write.
    """
    tensors: dict[str, Tensor] = {}
    plain = _take_out_tensors(state, (), tensors)
    writer = FileSystemWriter(folder, single_file_per_rank=True, sync_files=True)
    save(dict(tensors), storage_writer=writer, process_group=group)
    rank = dist.get_rank(group)
    own = list(folder.glob(f"__{rank}_*"))
    if rank == 0:
        torch.save(plain, folder / PLAIN)
        own += [folder / PLAIN, folder / ".metadata"]
    sums: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(sums, {path.name: _file_digest(path) for path in own}, group=group)
    if rank == 0:
        with (folder / MANIFEST).open("w") as file:
            json.dump({name: digest for each in sums for name, digest in each.items()}, file)
            file.flush()
            os.fsync(file.fileno())


def read_sharded(folder: Path) -> dict[str, Any]:
    """What `write_sharded` wrote, its tensors whole, on the CPU; needs no other process.

    Raises:
        ValueError: a file is not what was written.
        OSError: a file is missing or cannot be read.
    """
    manifest = json.loads((folder / MANIFEST).read_text())
    for name, digest in manifest.items():
        if _file_digest(folder / name) != digest:
            raise ValueError(f"{name} is damaged: its checksum is not that of the manifest")
    plain = torch.load(folder / PLAIN, map_location="cpu", weights_only=True)
    found = FileSystemReader(folder).read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(each.size, dtype=each.properties.dtype)
        for name, each in found.items()
        if isinstance(each, TensorStorageMetadata)
    }
    if tensors:
        with warnings.catch_warnings():  # torch warns that one process loads alone, as asked
            warnings.simplefilter("ignore", UserWarning)
            load(tensors, storage_reader=FileSystemReader(folder), no_dist=True)
    document: dict[str, Any] = _put_back_tensors(plain, tensors)
    return document


def delete(path: Path) -> None:
    """Delete a file or a folder of `write_sharded`, if it exists."""
    if path.is_dir():
        # The manifest first: a folder that is half deleted must not look complete.
        (path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _take_out_tensors(value: Any, path: tuple[Any, ...], tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = "/".join(map(str, path))
        tensors[name] = value
        return {_TENSOR: name}
    if isinstance(value, Mapping):
        return {key: _take_out_tensors(each, (*path, key), tensors) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_take_out_tensors(each, (*path, i), tensors) for i, each in enumerate(value)]
    return value


def _put_back_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if _TENSOR in value:
            return tensors[value[_TENSOR]]
        return {key: _put_back_tensors(each, tensors) for key, each in value.items()}
    if isinstance(value, list):
        return [_put_back_tensors(each, tensors) for each in value]
    return value


def _file_digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            found.update(block)
    return found.hexdigest()
