"""How other projects name their weights: a table of names a format."""

import math
import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vidcsl.models.vit import PUBLISHED_CLIP

# ----------------------------------------------------------------------
# What a foreign checkpoint looks like, as data, and how its tensors get our names.

State = dict[str, Tensor]
Change = Callable[[State], State]
"""A change of the tensors behind their renaming: `state -> state`."""


@dataclass(frozen=True)
class Layout:
    """One format of checkpoints.

    Args:
        meaning: where such files come from, a line for the docs.
        encoders: those it fits.
        containers: keys under which the tensors may lie, the outermost first; tried in turn.
        renames: (pattern, replacement) of whole keys; the first pattern that matches counts. Keys
            that no pattern matches are unknown.
        left_out: (pattern, why) of keys that are no part of an encoder.
        changes: what is done to the tensors once they are renamed.
        fresh: patterns of our keys that such a checkpoint cannot hold; they stay as they are.
        normalisation: the pixel statistics of its training; empty: those of our encoder.
        mixed: whether weights of several pixel statistics come like this, and do not say which.
        clip: frames and pixels for which its fixed positions are numbered; None: it has none.
        bgr: whether it was trained on BGR pixels.
        note: what a user must know of it.
    """

    meaning: str
    encoders: tuple[str, ...]
    renames: tuple[tuple[str, str], ...]
    containers: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    changes: tuple[Change, ...] = ()
    fresh: tuple[str, ...] = ()
    normalisation: str = ""
    mixed: bool = False
    clip: tuple[int, int] | None = None
    bgr: bool = False
    note: str = ""


@dataclass(frozen=True)
class Renamed:
    """The tensors of a checkpoint under our names, and what became of the others.

    Args:
        state: for the encoder's backbone.
        left_out: foreign keys by the reason for which they are left out.
        unknown: foreign keys that the layout does not know.
    """

    state: State
    left_out: dict[str, list[str]]
    unknown: list[str]


def renamed(foreign: Mapping[str, Tensor], layout: Layout, *, own: Container[str]) -> Renamed:
    """Apply a layout to the tensors of a checkpoint for a network with the tensors `own`."""
    state: State = {}
    left_out: dict[str, list[str]] = {}
    unknown = []
    for key, tensor in foreign.items():
        matches = ((re.fullmatch(pattern, key), new) for pattern, new in layout.renames)
        ours = next((match.expand(new) for match, new in matches if match), None)
        why = next((why for pattern, why in layout.left_out if re.fullmatch(pattern, key)), None)
        # Some networks have a norm in what is called their head, and use it without a classifier.
        if why is not None and ours not in own:
            left_out.setdefault(why, []).append(key)
        elif ours is None:
            unknown.append(key)
        else:
            state[ours] = tensor
    for change in layout.changes:
        state = change(state)
    return Renamed(state, left_out, unknown)


def joined_qkv(state: State) -> State:
    """Separate query, key and value of each block as the one `qkv` of timm's attention.

    A bias that a checkpoint does not have (VideoMAE's keys have none) is zero. Where a part is
    missing or of another width, all are left as they are, and reported.
    """
    joined = dict(state)
    for start in {key.removesuffix("q.weight") for key in state if key.endswith(".q.weight")}:
        weights = [state[key] for part in "qkv" if (key := f"{start}{part}.weight") in state]
        if len(weights) < 3 or len({weight.shape for weight in weights}) > 1:
            continue
        parts = re.compile(re.escape(start) + r"[qkv]\.\w+")
        joined = {key: tensor for key, tensor in joined.items() if not parts.fullmatch(key)}
        joined[f"{start}qkv.weight"] = torch.cat(weights)
        joined = _with_bias(joined, start, state, rows=[len(weight) for weight in weights])
    return joined


def joined_bias(state: State) -> State:
    """`q_bias` and `v_bias` beside a joint weight as the bias of timm's attention."""
    joined = {key: tensor for key, tensor in state.items() if not re.search(r"\.[qkv]\.bias", key)}
    for key, weight in state.items():
        if key.endswith(".qkv.weight"):
            start = key.removesuffix("qkv.weight")
            joined = _with_bias(joined, start, state, rows=[len(weight) // 3] * 3)
    return joined


def _with_bias(joined: State, start: str, state: State, *, rows: list[int]) -> State:
    biases = [state.get(f"{start}{part}.bias") for part in "qkv"]
    if all(bias is None for bias in biases):
        return joined
    filled = [
        torch.zeros(count) if bias is None else bias
        for bias, count in zip(biases, rows, strict=True)
    ]
    return {**joined, f"{start}qkv.bias": torch.cat(filled)}


def norm_eps(pattern: str, *, theirs: float, ours: float) -> Change:
    """BatchNorms that add another eps to their variance: the same results by other weights.

    In eval mode `w / sqrt(v + theirs) = w' / sqrt(v + ours)` gives w'. In training mode, where the
    variance is the batch's, the small difference stays.

    Args:
        pattern: of the BatchNorms' names, without the dot before `weight`.
        theirs, ours: the two eps.
    """

    def change(state: State) -> State:
        changed = dict(state)
        for key, variance in state.items():
            name = key.removesuffix(".running_var")
            if name != key and re.fullmatch(pattern, name) and f"{name}.weight" in state:
                scale = ((variance + ours) / (variance + theirs)).sqrt()
                changed[f"{name}.weight"] = state[f"{name}.weight"] * scale
        return changed

    return change


# ----------------------------------------------------------------------
# CoCLR's S3D on RGB frames: its InfoNCE, UberNCE and CoCLR models, and their classifiers.

_START = r"(?:encoder_q\.0|backbone)\."

# Modules of its blocks, in order, as places in torchvision's `features`.
_PLACES = {
    "block1.0": 0,
    "block2.1": 2,
    "block2.2": 3,
    "block3.1": 5,
    "block3.2": 6,
    **{f"block4.{n}": 7 + n for n in range(1, 6)},
    "block5.1": 14,
    "block5.2": 15,
}
_INNER = {"conv": "0", "bn": "1"}
_SPLIT = {"conv1": "0.0", "bn1": "0.1", "conv2": "1.0", "bn2": "1.1"}
_MODULES = _INNER | _SPLIT


def _renames() -> tuple[tuple[str, str], ...]:
    """A module by itself, or within the branches of an Inception block."""
    found = []
    for theirs, place in _PLACES.items():
        start, ours = _START + re.escape(theirs) + r"\.", f"features.{place}"
        for name, number in _MODULES.items():
            found.append((rf"{start}{name}\.(.+)", rf"{ours}.{number}.\1"))
            found.append((rf"{start}branch0\.0\.{name}\.(.+)", rf"{ours}.branch0.{number}.\1"))
            inner = rf"{start}branch([123])\.(\d)\.{name}\.(.+)"
            found.append((inner, rf"{ours}.branch\1.\2.{number}.\3"))
    return tuple(found)


COCLR = Layout(
    meaning="CoCLR's S3D on RGB frames, pretraining (`encoder_q`) or its classifier",
    encoders=("s3d",),
    containers=("state_dict",),
    left_out=(
        (_START + r"(Conv|Mixed)_\d.+", "second names of the same tensors"),
        (r"encoder_k\..+", "the momentum encoder"),
        (r"sampler\..+", "the encoder of the other view"),
        (r"encoder_q\.[1-9]\..+", "the projector"),
        (r"queue.*", "the queue"),
        (r"(final_fc|final_bn)\..+", "the classifier"),
    ),
    renames=_renames(),
    changes=(norm_eps(r".+", theirs=1e-5, ours=1e-3),),
    normalisation="imagenet",
    note="If your frames were stored by OpenCV without a swap, they were BGR: MODEL.CHANNELS bgr",
)


# ----------------------------------------------------------------------
# Image backbones: transformers of DINO, MAE or timm inflated to tubelets, or any one per frame.
#
# Inflation: a patch's weights are spread over the frames of a tubelet and positions are repeated
# over time (Carreira & Zisserman, "Quo Vadis, Action Recognition?", CVPR 2017). With divided
# attention a clip of one still picture then has the features of that picture; with joint
# attention it has them where there is no class token, which would see every patch once for each
# time.

_IMAGE_START = r"(?:backbone\.)?"
_CONTAINERS = ("teacher", "model", "state_dict")
_LEFT_OUT = (
    # What timm calls a classifier, by family.
    (_IMAGE_START + r"(head|heads|head_dist|fc|classifier|last_linear|projection)\..+", "the head"),
    (r"decoder.+|mask_token", "the decoder"),
)


def _as_a_clip(state: State) -> State:
    """Positions of the patches as those of a clip of one frame; the class token's is added to it.

    What is neither is left, and reported as it is.
    """
    tokens, own = state.get("pos_embed"), state.get("cls_token")
    if tokens is None or tokens.ndim != 3:
        return state
    prefix = int(own is not None)
    side = math.isqrt(tokens.shape[1] - prefix)
    if side**2 != tokens.shape[1] - prefix:
        return state
    placed = {**state, "pos_embed": tokens[:, None, prefix:].unflatten(2, (side, side))}
    return placed if own is None else {**placed, "cls_token": own + tokens[:, :1]}


IMAGE_INFLATED = Layout(
    meaning="image ViTs of DINO, MAE or timm, inflated to tubelets",
    encoders=("video_vit_s", "video_vit_b", "video_vit_l"),
    containers=_CONTAINERS,
    left_out=_LEFT_OUT,
    renames=(
        (_IMAGE_START + r"((?:patch_embed\.proj|norm|fc_norm|blocks\.\d+\.[\w.]+)\.\w+)", r"\1"),
        (_IMAGE_START + r"(cls_token|pos_embed)", r"\1"),
    ),
    changes=(_as_a_clip,),
    fresh=(r"blocks\.\d+\.temporal_.+",),
    normalisation="imagenet",
    note=(
        "It needs MODEL.POSITIONS learned, and MODEL.POOLING class (mean or tokens, of one without "
        "a class token)"
    ),
)

IMAGE_PER_FRAME = Layout(
    meaning="image backbones of DINO, MAE or timm, on every frame",
    encoders=("frames",),
    containers=_CONTAINERS,
    left_out=_LEFT_OUT,
    renames=((_IMAGE_START + r"(.+)", r"image.\1"),),
    fresh=(r"time_embed", r"blocks\..+"),
    mixed=True,
    note="MODEL.IMAGE must name the backbone",
)


# ----------------------------------------------------------------------
# mmaction2's R(2+1)D-34, a network of its own: see `r2plus1d_34_mmaction2`.

_MMACTION2_START = r"backbone\."
_BLOCK = _MMACTION2_START + r"(layer\d\.\d+)\."


def _split(theirs: str, ours: str) -> tuple[tuple[str, str], ...]:
    """A convolution in space, its BatchNorm and ReLU, and a convolution in time."""
    return tuple(
        (rf"{theirs}\.{name}\.(.+)", rf"{ours}.{number}.\{groups}")
        for name, number in (("conv_s", 0), ("bn_s", 1), ("conv_t", 3))
        for groups in (theirs.replace("(?:", "").count("(") + 1,)
    )


MMACTION2 = Layout(
    meaning="mmaction2's R(2+1)D-34",
    encoders=("r2plus1d_34_mmaction2",),
    containers=("state_dict",),
    left_out=((r"cls_head\..+", "the classifier"),),
    renames=(
        *_split(_MMACTION2_START + r"conv1\.conv", "stem"),
        (_MMACTION2_START + r"conv1\.bn\.(.+)", r"stem.4.\1"),
        *_split(_BLOCK + r"conv1\.conv", r"\1.conv1.0"),
        *_split(_BLOCK + r"conv2\.conv", r"\1.conv2.0"),
        *_split(_BLOCK + r"downsample\.conv", r"\1.downsample.0"),
        (_BLOCK + r"(conv[12])\.bn\.(.+)", r"\1.\2.1.\3"),
        (_BLOCK + r"downsample\.bn\.(.+)", r"\1.downsample.1.\2"),
    ),
    # Its configs give the outer BatchNorms another eps, and leave the inner ones alone.
    changes=(norm_eps(r"stem\.4|layer.+\.(conv[12]|downsample)\.1", theirs=1e-3, ours=1e-5),),
    normalisation="imagenet",
)


# ----------------------------------------------------------------------
# PySlowFast: Slow-R50, also as the backbone of its MoCo, BYOL, SimCLR and SwAV models.

_PYSLOWFAST_START = r"(?:backbone\.)?"  # contrastive models hold the network as `backbone`


def _block(theirs: str, ours: str) -> tuple[tuple[str, str], ...]:
    """The rename of one module of the blocks of each stage: s2 is our layer1."""
    return tuple(
        (
            rf"{_PYSLOWFAST_START}s{stage}\.pathway0_res(\d+)\.{theirs}\.(.+)",
            rf"layer{stage - 1}.\1.{ours}.\2",
        )
        for stage in range(2, 6)
    )


PYSLOWFAST = Layout(
    meaning="PySlowFast's Slow-R50, supervised or contrastive (`model_state`)",
    encoders=("slow_r50",),
    containers=("model_state", "state_dict"),
    left_out=(
        (r"(backbone\.)?(head|head_pred|pred_head)\..+", "the head"),
        (r"backbone_hist\..+", "the momentum encoder"),
        (r"(queue_x|queue_swav|ptr|iter)", "the queue"),
        (r"swav_prototypes(\..+)?", "the prototypes"),
        (r"(memory|knn_mem)\..+", "the memory bank"),
    ),
    renames=(
        (_PYSLOWFAST_START + r"s1\.pathway0_stem\.conv\.(.+)", r"stem.0.\1"),
        (_PYSLOWFAST_START + r"s1\.pathway0_stem\.bn\.(.+)", r"stem.1.\1"),
        *_block("branch1", "downsample.0"),
        *_block("branch1_bn", "downsample.1"),
        *(pair for n, x in enumerate("abc", 1) for pair in _block(rf"branch2\.{x}", f"conv{n}")),
        *(pair for n, x in enumerate("abc", 1) for pair in _block(rf"branch2\.{x}_bn", f"bn{n}")),
    ),
    normalisation="pyslowfast",
)


# ----------------------------------------------------------------------
# TCLR's R3D-18, trained on BGR pixels that are not normalised.

TCLR = Layout(
    meaning="TCLR's R3D-18, pretraining or linear evaluation",
    encoders=("r3d_18_tclr",),
    containers=("state_dict", "bb_state_dict"),
    left_out=(
        (r"1\..+", "the projector"),
        (r"(0\.)?fc\..+", "the classifier"),
    ),
    renames=((r"(?:0\.)?((?:stem|layer\d)\..+)", r"\1"),),
    normalisation="none",
    bgr=True,  # its frames come straight from OpenCV
)


# ----------------------------------------------------------------------
# torchvision's video models: our names are theirs.

TORCHVISION = Layout(
    meaning="state dicts of torchvision.models.video",
    encoders=(
        *("r2plus1d_18", "r3d_18", "mc3_18", "s3d"),
        *("mvit_v2_s", "swin3d_t", "swin3d_s", "swin3d_b"),
    ),
    containers=("state_dict", "model"),
    left_out=((r"(fc|head|classifier)\..+", "the classifier"),),
    renames=(
        (
            r"((?:stem|layer\d|features|blocks|norm|patch_embed|conv_proj"
            r"|pos_encoding)\..+)",
            r"\1",
        ),
    ),
)


# ----------------------------------------------------------------------
# Our own checkpoints and exports: the encoder alone, whatever it was trained with.

VIDCSL = Layout(
    meaning="checkpoints of this project (the encoder alone), and `vidcsl export`'s files",
    encoders=(),
    containers=("method",),
    left_out=((r"(?!(encoder\.)?backbone\.).+", "heads and other modules"),),
    renames=((r"(?:encoder\.)?backbone\.(.+)", r"\1"),),
)


# ----------------------------------------------------------------------
# VideoMAE, as released and as transformers holds it.

_WHY = (
    "Fine-tuned weights need MODEL.POOLING mean, pretrained ones MODEL.POOLING tokens; both "
    "MODEL.POSITIONS sine"
)
_ENCODERS = ("video_vit_s", "video_vit_b", "video_vit_l")

_HF = r"(?:videomae\.)?"
_HF_BLOCK = _HF + r"encoder\.layer\.(\d+)\."

VIDEOMAE = Layout(
    meaning="VideoMAE as released: pretraining (its encoder) or fine-tuned",
    encoders=_ENCODERS,
    containers=("model", "module", "state_dict"),
    left_out=(
        (r"(decoder|encoder_to_decoder)(\..+)?|mask_token", "the decoder"),
        (r"head\..+", "the classifier"),
    ),
    renames=(
        (r"(?:encoder\.)?(patch_embed\.proj\..+)", r"\1"),
        (r"(?:encoder\.)?(blocks\.\d+\.attn\.)([qv])_bias", r"\1\2.bias"),
        (r"(?:encoder\.)?(blocks\.\d+\.(?:norm1|norm2|attn|mlp)\..+)", r"\1"),
        (r"(?:encoder\.)?((?:norm|fc_norm)\..+)", r"\1"),
    ),
    changes=(joined_bias,),
    normalisation="imagenet",
    clip=PUBLISHED_CLIP,
    note=_WHY,
)

VIDEOMAE_TRANSFORMERS = Layout(
    meaning="VideoMAE of transformers: its model, pretraining or classification class",
    encoders=_ENCODERS,
    containers=("state_dict",),
    left_out=(
        (r"decoder\..+|encoder_to_decoder\..+|mask_token|position_embeddings", "the decoder"),
        (r"classifier\..+", "the classifier"),
    ),
    renames=(
        (_HF + r"embeddings\.patch_embeddings\.projection\.(.+)", r"patch_embed.proj.\1"),
        (_HF_BLOCK + r"attention\.attention\.([qv])_bias", r"blocks.\1.attn.\2.bias"),
        *(
            (_HF_BLOCK + rf"attention\.attention\.{name}\.(.+)", rf"blocks.\1.attn.{name[0]}.\2")
            for name in ("query", "key", "value")
        ),
        (_HF_BLOCK + r"attention\.output\.dense\.(.+)", r"blocks.\1.attn.proj.\2"),
        (_HF_BLOCK + r"layernorm_before\.(.+)", r"blocks.\1.norm1.\2"),
        (_HF_BLOCK + r"layernorm_after\.(.+)", r"blocks.\1.norm2.\2"),
        (_HF_BLOCK + r"intermediate\.dense\.(.+)", r"blocks.\1.mlp.fc1.\2"),
        (_HF_BLOCK + r"output\.dense\.(.+)", r"blocks.\1.mlp.fc2.\2"),
        (_HF + r"(?:encoder\.)?layernorm\.(.+)", r"norm.\1"),
        (r"fc_norm\.(.+)", r"fc_norm.\1"),
    ),
    changes=(joined_qkv,),
    normalisation="imagenet",
    clip=PUBLISHED_CLIP,
    note=_WHY,
)


# ----------------------------------------------------------------------
# The encoder of V-JEPA 2, as released and as transformers holds it.

_VJEPA2_HF = r"(?:vjepa2\.)?encoder\."
_ORIGINAL = r"(?:backbone\.)?"

VJEPA2 = Layout(
    meaning="V-JEPA 2's encoder, as released (`target_encoder`) or of transformers",
    encoders=("video_vit_s", "video_vit_b", "video_vit_l"),
    containers=("target_encoder", "encoder", "state_dict"),
    left_out=(
        (r"(vjepa2\.)?predictor\..+", "the predictor"),
        (r"(pooler|classifier)\..+", "the probe"),
        (_ORIGINAL + r"pos_embed", "positions that rotary ones replace"),
    ),
    renames=(
        (_VJEPA2_HF + r"embeddings\.patch_embeddings\.proj\.(.+)", r"patch_embed.proj.\1"),
        *(
            (
                _VJEPA2_HF + rf"layer\.(\d+)\.attention\.{name}\.(.+)",
                rf"blocks.\1.attn.{name[0]}.\2",
            )
            for name in ("query", "key", "value")
        ),
        (_VJEPA2_HF + r"layer\.(\d+)\.attention\.proj\.(.+)", r"blocks.\1.attn.proj.\2"),
        (_VJEPA2_HF + r"layer\.(\d+)\.((?:norm1|norm2|mlp)\..+)", r"blocks.\1.\2"),
        (_VJEPA2_HF + r"layernorm\.(.+)", r"norm.\1"),
        (_ORIGINAL + r"(patch_embed\.proj\..+)", r"\1"),
        (_ORIGINAL + r"(blocks\.\d+\.(?:norm1|norm2|attn|mlp)\..+)", r"\1"),
        (_ORIGINAL + r"(norm\..+)", r"\1"),
    ),
    changes=(joined_qkv,),
    normalisation="imagenet",
    note="Needs MODEL.POSITIONS rotary and MODEL.POOLING tokens",
)


LAYOUTS: dict[str, Layout] = {
    "vidcsl": VIDCSL,
    "torchvision": TORCHVISION,
    "pyslowfast": PYSLOWFAST,
    "mmaction2": MMACTION2,
    "videomae": VIDEOMAE,
    "videomae_hf": VIDEOMAE_TRANSFORMERS,
    "vjepa2": VJEPA2,
    "tclr": TCLR,
    "coclr": COCLR,
    "image_vit": IMAGE_INFLATED,
    "image": IMAGE_PER_FRAME,
}
