"""Weights put into a module: all of them, or an error that says what does not fit."""

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from vidcsl.errors import UserError


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
