"""Load weights of other projects into an encoder."""

import argparse
import math
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed  # type: ignore[attr-defined]
from timm.models import VisionTransformer
from torch import Tensor, nn

from vidcsl.errors import UserError
from vidcsl.models.encoder import Encoder
from vidcsl.models.layouts import LAYOUTS, Layout, State, renamed
from vidcsl.models.vit import interpolated
from vidcsl.seeding import torch_generator
from vidcsl.state import read_sharded

__all__ = ["LAYOUTS", "Layout", "Weights", "load_pretrained", "parse_weights"]

TOLERANCE = 1e-2  # of features that are the same but for rounding


@dataclass(frozen=True)
class Weights:
    """Weights in a file: `FORMAT:PATH`."""

    format: str
    path: Path

    @property
    def layout(self) -> Layout:
        """How this format names its tensors."""
        return LAYOUTS[self.format]

    @property
    def ours(self) -> bool:
        """Whether vidcsl wrote them."""
        return self.format == "vidcsl"


def parse_weights(text: str) -> Weights:
    """`FORMAT:PATH`.

    Raises:
        UserError: the text has another form.
    """
    name, colon, path = text.partition(":")
    if not colon or name not in LAYOUTS or not path:
        raise UserError(f"weights {text!r}: give FORMAT:PATH; formats are {', '.join(LAYOUTS)}")
    return Weights(name, Path(path))


def load_pretrained(
    encoder: Encoder, weights: Weights, *, name: str, strict: bool = True, bgr: bool = False
) -> list[str]:
    """Load a foreign checkpoint into an encoder; returns a note on everything that was adapted.

    Args:
        encoder: its backbone is changed in place.
        weights: format and file.
        name: of the encoder, in `ENCODERS`.
        strict: a missing, unknown or misshapen tensor is an error; otherwise it is a note.
        bgr: the weights were learned on BGR pixels: convolutions of the pixels are flipped to RGB.

    Raises:
        UserError: the file cannot be read, or is of another network.
    """
    layout = weights.layout
    if layout.encoders and name not in layout.encoders:
        raise UserError(
            f"weights of format {weights.format} fit {' or '.join(layout.encoders)}, "
            f"not MODEL.NAME {name}"
        )
    foreign = read_tensors(weights.path, containers=layout.containers)
    found = renamed(foreign, layout, own=encoder.backbone.state_dict())
    state, notes = fitted(found.state, encoder.backbone)
    problems = _problems(state, found.unknown, encoder.backbone, layout)
    if problems and strict:
        hint = f". {layout.note}" if layout.note else ""
        raise UserError(f"{weights.path} does not fit {name}: {'; '.join(problems)}{hint}")
    own = encoder.backbone.state_dict()
    fitting = {k: each for k, each in state.items() if k in own and own[k].shape == each.shape}
    encoder.backbone.load_state_dict(fitting, strict=False)  # _problems has compared everything
    if bgr:
        _swap_channels(encoder)
        notes.append("convolutions of the pixels flipped from BGR to RGB")
    if layout.clip and layout.clip != (encoder.clip_frames, encoder.frame_size):
        notes.append(f"positions of clips of {layout.clip[0]} x {layout.clip[1]} interpolated")
    if layout.mixed:
        notes.append(f"assumed to be trained on pixels {encoder.normalisation} (MODEL.NORMALISE)")
    notes += [
        f"left out, {why}: {', '.join(keys)}" for why, keys in found.left_out.items()
    ] + problems
    return [f"{weights.path}: {note}" for note in notes]


def _problems(state: State, unknown: list[str], backbone: nn.Module, layout: Layout) -> list[str]:
    own = backbone.state_dict()
    # Older checkpoints lack `num_batches_tracked`, which is no weight.
    optional = (*layout.fresh, r".*num_batches_tracked")
    missing = [
        key
        for key in own
        if key not in state and not any(re.fullmatch(each, key) for each in optional)
    ]
    unknown = unknown + [key for key in state if key not in own]
    shapes = [
        f"{key} {list(state[key].shape)} instead of {list(own[key].shape)}"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    kinds = {"missing": missing, "unknown": unknown, "of another shape": shapes}
    return [f"{len(keys)} {kind}: {', '.join(keys)}" for kind, keys in kinds.items() if keys]


@torch.no_grad()
def _swap_channels(encoder: Encoder) -> None:
    """Make the features of RGB clips those that the weights gave of the same clips in BGR."""
    backbone, training = encoder.backbone.eval(), encoder.training
    shape = (1, 3, encoder.clip_frames, encoder.frame_size, encoder.frame_size)
    clips = torch.randn(shape, generator=torch_generator(0, "channels"))
    wanted = backbone(clips.flip(1))
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d) and module.in_channels == 3:
            module.weight.copy_(module.weight.flip(1))
    # Tried rather than trusted: a network may see its pixels by other layers as well.
    error = (backbone(clips) - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12)
    encoder.train(training)
    if not error <= TOLERANCE:
        raise UserError(
            "weights learned on BGR pixels cannot be flipped to RGB: this network sees pixels by "
            "more than convolutions of three channels"
        )


# ----------------------------------------------------------------------
# Tensors out of a checkpoint file, without running what it holds.

# What torch's wrappers put before a name: DistributedDataParallel, torch.compile.
WRAPPERS = re.compile(r"^(?:module\.)+|(?:(?<=\.)|^)_orig_mod\.(?:module\.)?")

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
        path: the file, or the folder of a sharded checkpoint.
        containers: keys under which the tensors may lie in a checkpoint; the first that is there.

    Raises:
        UserError: missing, damaged, without tensors, or a pickle that would run code.
    """
    if not path.exists():
        raise UserError(f"no weights at {path}")
    if path.suffix == ".safetensors":
        try:
            return _cleaned(load_file(path), path)
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
        raise UserError(f"{path} has no tensors where its format stores them: is the format right?")
    return _cleaned(tensors, path)


def _cleaned(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Names without the prefixes of wrappers, tensors in single precision, all of them finite."""
    cleaned = {}
    for key, tensor in tensors.items():
        if tensor.dtype in (torch.float16, torch.bfloat16):
            tensor = tensor.float()  # interpolation, for one, is not defined for half precision
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(f"{path}: {key} holds NaN or infinite values: this model has diverged")
        cleaned[WRAPPERS.sub("", key)] = tensor
    return cleaned


def _unpickled(path: Path) -> Any:
    try:
        if path.is_dir():
            return read_sharded(path)
        with torch.serialization.safe_globals(_PLAIN):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # The line of torch's long message that names what the pickle would call.
        lines = str(error).splitlines() or ["no reason given"]
        culprit = next((line.strip() for line in lines if "GLOBAL" in line), lines[0])
        culprit = culprit.split(" was not ")[0][-120:]
        raise UserError(
            f"{path} is not loaded: it is a damaged file, or a pickle that would run code "
            f"({culprit}); save its state dict alone, or as .safetensors"
        ) from error
    except Exception as error:  # torch raises many kinds for a file that is not a checkpoint
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"cannot read {path}: it is damaged, or not a torch checkpoint ({reason})"
        ) from error


# ----------------------------------------------------------------------
# Tensors whose shape depends on the clips, adapted to this encoder's clips.

_RELATIVE = re.compile(r"(?P<start>.+\.)rel_pos_[thw]")


def fitted(state: State, backbone: nn.Module) -> tuple[State, list[str]]:
    """`state` with patches inflated, positions interpolated and BatchNorms copied to every set.

    Returns:
        The tensors, and a note for each kind of change.
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
    # Divided, so that a clip of one still picture gives what the picture gave.
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
