"""Checkpoints of others, by format; a new one is one file of names and one line here."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from vidcsl.errors import UserError
from vidcsl.models.encoder import Encoder
from vidcsl.models.pretrained import (
    coclr,
    image,
    mmaction2,
    pyslowfast,
    tclr,
    torchvision,
    vidcsl,
    videomae,
    vjepa2,
)
from vidcsl.models.pretrained.files import read_tensors
from vidcsl.models.pretrained.fit import fitted
from vidcsl.models.pretrained.layout import Layout, State, renamed
from vidcsl.seeding import torch_generator

TOLERANCE = 1e-2  # of features that are the same but for rounding

LAYOUTS: dict[str, Layout] = {
    "vidcsl": vidcsl.LAYOUT,
    "torchvision": torchvision.LAYOUT,
    "pyslowfast": pyslowfast.LAYOUT,
    "mmaction2": mmaction2.LAYOUT,
    "videomae": videomae.ORIGINAL,
    "videomae_hf": videomae.TRANSFORMERS,
    "vjepa2": vjepa2.LAYOUT,
    "tclr": tclr.LAYOUT,
    "coclr": coclr.LAYOUT,
    "image_vit": image.INFLATED,
    "image": image.PER_FRAME,
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


__all__ = ["LAYOUTS", "Layout", "Weights", "load_pretrained", "parse_weights"]
