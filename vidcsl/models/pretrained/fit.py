"""Tensors of a checkpoint brought into an encoder's shapes, where that can be done and said."""

import math
import re

import torch.nn.functional as F
from torch import Tensor, nn

from vidcsl.models.pretrained.layout import State

_RELATIVE = re.compile(r"(?P<start>.+\.)rel_pos_[thw]")


def fitted(state: State, backbone: nn.Module) -> tuple[State, list[str]]:
    """`state` with patches inflated, positions interpolated and BatchNorms copied to their sets.

    Returns:
        The tensors, and a sentence for each kind of change.
    """
    own = backbone.state_dict()
    notes: list[str] = []
    for change in (_inflate_patches, _repeat_positions, _stretch_relative, _copy_norms):
        state, note = change(state, own, backbone)
        notes += [note] if note else []
    return state, notes


def _inflate_patches(state: State, own: State, _backbone: nn.Module) -> tuple[State, str]:
    key = "patch_embed.proj.weight"
    if key not in state or key not in own or state[key].ndim == own[key].ndim:
        return state, ""
    frames = own[key].shape[2]
    spread = state[key][:, :, None].expand(-1, -1, frames, -1, -1) / frames
    return {**state, key: spread.contiguous()}, f"image patches spread over {frames} frames"


def _repeat_positions(state: State, own: State, backbone: nn.Module) -> tuple[State, str]:
    """Positions of a picture, or of a shorter or smaller clip, for the grid of the encoder."""
    key = "pos_embed"
    if key not in state or key not in own or state[key].shape == own[key].shape:
        return state, ""
    time, height, width = backbone.grid  # type: ignore[misc]
    prefix = int(backbone.prefix)  # type: ignore[arg-type]
    first, rest = state[key][:, :prefix], state[key][:, prefix:]
    side = math.isqrt(rest.shape[1])
    if side**2 != rest.shape[1]:
        return state, ""  # no picture: the shapes are reported as they are
    picture = rest.transpose(1, 2).unflatten(2, (side, side))
    resized = picture
    if (side, side) != (height, width):
        resized = F.interpolate(picture, (height, width), mode="bicubic", antialias=True)
    repeated = resized[:, :, None].expand(-1, -1, time, -1, -1).flatten(2).transpose(1, 2)
    joined = F.pad(repeated, (0, 0, prefix, 0))
    joined[:, :prefix] = first
    note = f"positions interpolated from {side} x {side} to {height} x {width}, over {time} times"
    return {**state, key: joined}, note


def _stretch_relative(state: State, own: State, _backbone: nn.Module) -> tuple[State, str]:
    """MViT's tables of relative positions, for clips of another length or size."""
    stretched = {
        key: _linear(tensor, len(own[key]))
        for key, tensor in state.items()
        if _RELATIVE.fullmatch(key) and key in own and len(own[key]) != len(tensor)
    }
    note = f"{len(stretched)} tables of relative positions interpolated" if stretched else ""
    return {**state, **stretched}, note


def _linear(table: Tensor, length: int) -> Tensor:
    """`[n, dim]` to `[length, dim]`, as torchvision's MViT does for longer inputs."""
    return F.interpolate(table.T[None], size=length, mode="linear")[0].T.contiguous()


def _copy_norms(state: State, own: State, _backbone: nn.Module) -> tuple[State, str]:
    """A BatchNorm that the encoder holds in sets becomes each of them."""
    copies: dict[str, list[str]] = {}
    for key in own:
        plain = re.sub(r"\.norms\.\w+\.", ".", key)
        if plain != key and key not in state and plain in state:
            copies.setdefault(plain, []).append(key)
    changed = {key: tensor for key, tensor in state.items() if key not in copies}
    for plain, keys in copies.items():
        changed.update({key: state[plain].clone() for key in keys})
    return changed, "BatchNorms copied to every set" if copies else ""
