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
from vidcsl.models import layouts as coclr
from vidcsl.models import layouts as image
from vidcsl.models import layouts as mmaction2
from vidcsl.models import layouts as pyslowfast
from vidcsl.models import layouts as tclr
from vidcsl.models import layouts as torchvision
from vidcsl.models import layouts as vidcsl
from vidcsl.models import layouts as videomae
from vidcsl.models import layouts as vjepa2
from vidcsl.models.encoder import Encoder
from vidcsl.models.layouts import Layout, State, renamed
from vidcsl.models.vit import interpolated
from vidcsl.seeding import torch_generator
from vidcsl.state import read_pieces

__all__ = ["LAYOUTS", "Layout", "Weights", "load_pretrained", "parse_weights"]


# ----------------------------------------------------------------------
# Tensors out of a checkpoint file, without running what it holds.

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


# ----------------------------------------------------------------------
# Tensors of a checkpoint brought into an encoder's shapes, where that can be done and said.

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


# ----------------------------------------------------------------------
# Checkpoints of others, by format; a new one is one file of names and one line here.

TOLERANCE = 1e-2  # of features that are the same but for rounding

LAYOUTS: dict[str, Layout] = {
    "vidcsl": vidcsl.VIDCSL,
    "torchvision": torchvision.TORCHVISION,
    "pyslowfast": pyslowfast.PYSLOWFAST,
    "mmaction2": mmaction2.MMACTION2,
    "videomae": videomae.VIDEOMAE,
    "videomae_hf": videomae.VIDEOMAE_TRANSFORMERS,
    "vjepa2": vjepa2.VJEPA2,
    "tclr": tclr.TCLR,
    "coclr": coclr.COCLR,
    "image_vit": image.IMAGE_INFLATED,
    "image": image.IMAGE_PER_FRAME,
}


@dataclass(frozen=True)
class Weights:
    """`FORMAT:PATH`, taken apart."""

    format: str
    path: Path

    @property
    def layout(self) -> Layout:
        """Of the format."""
        return LAYOUTS[self.format]

    @property
    def ours(self) -> bool:
        """Whether a training of ours wrote them."""
        return self.format == "vidcsl"


def parse_weights(text: str) -> Weights:
    """`FORMAT:PATH`.

    Raises:
        UserError: it is not of that form.
    """
    name, colon, path = text.partition(":")
    if not colon or name not in LAYOUTS or not path:
        raise UserError(f"weights {text!r}: give FORMAT:PATH; formats are {', '.join(LAYOUTS)}")
    return Weights(name, Path(path))


def load_pretrained(
    encoder: Encoder, weights: Weights, *, name: str, strict: bool = True, bgr: bool = False
) -> list[str]:
    """Load a foreign checkpoint into an encoder; sentences on all that was not one to one.

    Args:
        encoder: its backbone is changed in place.
        weights: format and file.
        name: of the encoder, in `ENCODERS`.
        strict: a tensor that has no place, or a place without tensor, is an error; otherwise it is
            a sentence.
        bgr: the weights were learned on BGR pixels: the first convolution is turned.

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
    found = renamed(foreign, layout)
    state, notes = fitted(found.state, encoder.backbone)
    problems = _problems(state, found.unknown, encoder.backbone, layout)
    if problems and strict:
        hint = f". {layout.note}" if layout.note else ""
        raise UserError(f"{weights.path} does not fit {name}: {'; '.join(problems)}{hint}")
    _copy(state, encoder.backbone)
    if bgr:
        _swap_channels(encoder)
        notes.append("convolutions of the pixels turned from BGR to RGB")
    if layout.clip and layout.clip != (encoder.clip_frames, encoder.frame_size):
        notes.append(f"positions of clips of {layout.clip[0]} x {layout.clip[1]} interpolated")
    if layout.mixed:
        notes.append(f"taken to have learned on pixels {encoder.normalisation} (MODEL.NORMALISE)")
    notes += [
        f"left out, {why}: {', '.join(keys)}" for why, keys in found.left_out.items()
    ] + problems
    return [f"{weights.path}: {note}" for note in notes]


def _problems(state: State, unknown: list[str], backbone: nn.Module, layout: Layout) -> list[str]:
    own = backbone.state_dict()
    fresh = [key for key in own if any(re.fullmatch(each, key) for each in layout.fresh)]
    missing = [key for key in own if key not in state and key not in fresh]
    # A count of batches is no weight, and older checkpoints lack it.
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    homeless = unknown + [key for key in state if key not in own]
    shapes = [
        f"{key} {list(state[key].shape)} instead of {list(own[key].shape)}"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    kinds = {"missing": missing, "unknown": homeless, "of another shape": shapes}
    return [f"{len(keys)} {kind}: {', '.join(keys)}" for kind, keys in kinds.items() if keys]


def _copy(state: State, backbone: nn.Module) -> None:
    own = backbone.state_dict()
    fitting = {key: each for key, each in state.items() if key in own}
    fitting = {key: each for key, each in fitting.items() if own[key].shape == each.shape}
    backbone.load_state_dict(fitting, strict=False)  # everything was compared before


@torch.no_grad()
def _swap_channels(encoder: Encoder) -> None:
    """Give the features of RGB clips that weights learned on BGR give of the same clips in BGR."""
    backbone, training = encoder.backbone.eval(), encoder.training
    shape = (1, 3, encoder.clip_frames, encoder.frame_size, encoder.frame_size)
    clips = torch.randn(shape, generator=torch_generator(0, "channels"))
    wanted = backbone(clips.flip(1))
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d) and module.in_channels == 3:
            module.weight.copy_(module.weight.flip(1))
    error = (backbone(clips) - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12)
    encoder.train(training)
    if not error <= TOLERANCE:
        raise UserError(
            "this network sees pixels by more than convolutions of three channels, so weights "
            "learned on BGR cannot be turned"
        )
