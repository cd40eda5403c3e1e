"""Tensors of a checkpoint brought into an encoder's shapes, where that can be done and said."""

import math
import re
from collections.abc import Sequence

import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed  # type: ignore[attr-defined]
from timm.models import VisionTransformer
from torch import Tensor, nn

from vidcsl.models.positions import interpolated
from vidcsl.models.pretrained.layout import State

_RELATIVE = re.compile(r"(?P<start>.+\.)rel_pos_[thw]")


def fitted(state: State, backbone: nn.Module) -> tuple[State, list[str]]:
    """`state` with patches inflated, positions interpolated and BatchNorms copied to their sets.

    Returns:
        The tensors, and a sentence for each kind of change.
    """
    own = backbone.state_dict()
    notes: list[str] = []
    for change in _CHANGES:
        state, note = change(state, own, backbone)
        notes += [note] if note else []
    return state, notes


def _inflate_patches(state: State, own: State, _backbone: nn.Module) -> tuple[State, str]:
    key = "patch_embed.proj.weight"
    if key not in state or key not in own or (state[key].ndim, own[key].ndim) != (4, 5):
        return state, ""
    frames = own[key].shape[2]
    spread = state[key][:, :, None].expand(-1, -1, frames, -1, -1) / frames
    return {**state, key: spread.contiguous()}, f"image patches spread over {frames} frames"


def _fit_positions(state: State, own: State, _backbone: nn.Module) -> tuple[State, str]:
    """Positions `[1, T, H, W, dim]` of a picture or of other clips, for the encoder's grid."""
    key = "pos_embed"
    theirs, ours = state.get(key), own.get(key)
    if theirs is None or ours is None or theirs.ndim != ours.ndim or theirs.shape == ours.shape:
        return state, ""
    _, time, height, width, _ = ours.shape
    after = (time, height, width)
    words = f"from {_by(theirs.shape[1:4])} to {_by(after)} (time x height x width)"
    return {**state, key: interpolated(theirs, after)}, f"positions interpolated {words}"


def _fit_times(state: State, own: State, _backbone: nn.Module) -> tuple[State, str]:
    """Positions in time `[1, T, dim]` of another number of frames."""
    key = "time_embed"
    if key not in state or key not in own or state[key].shape == own[key].shape:
        return state, ""
    before, after = state[key].shape[1], own[key].shape[1]
    stretched = _linear(state[key][0], after)[None]
    return {**state, key: stretched}, f"positions interpolated from {before} to {after} frames"


def _fit_pictures(state: State, own: State, backbone: nn.Module) -> tuple[State, str]:
    """Positions of timm's transformers, of pictures of another size, for `frames`."""
    key = "image.pos_embed"
    image = getattr(backbone, "image", None)
    if key not in state or not isinstance(image, VisionTransformer):
        return state, ""
    prefix = 0 if image.no_embed_class else image.num_prefix_tokens
    before, after = math.isqrt(state[key].shape[1] - prefix), image.patch_embed.grid_size
    if state[key].shape == own[key].shape or before**2 != state[key].shape[1] - prefix:
        return state, ""
    resized = resample_abs_pos_embed(state[key], list(after), num_prefix_tokens=prefix)
    note = f"positions interpolated from {_by((before, before))} to {_by(after)}"
    return {**state, key: resized}, note


def _by(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


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


_CHANGES = (
    *(_inflate_patches, _fit_positions, _fit_times, _fit_pictures),
    *(_stretch_relative, _copy_norms),
)
