"""Image backbones: transformers of DINO, MAE or timm inflated to tubelets, or any one per frame.

Inflation: a patch's weights are spread over the frames of a tubelet and positions are repeated over
time (Carreira & Zisserman, "Quo Vadis, Action Recognition?", CVPR 2017). With divided attention a
clip of one still picture then has the features of that picture; with joint attention it has them
where there is no class token, which would see every patch once for each time.
"""

import math

from vidcsl.models.pretrained.layout import Layout, State

_START = r"(?:module\.)?(?:backbone\.)?"
_CONTAINERS = ("teacher", "model", "state_dict")
_LEFT_OUT = (
    (_START + r"(head|fc|projection)\..+", "the head"),
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


INFLATED = Layout(
    meaning="image ViTs of DINO, MAE or timm, inflated to tubelets",
    encoders=("video_vit_s", "video_vit_b", "video_vit_l"),
    containers=_CONTAINERS,
    left_out=_LEFT_OUT,
    renames=(
        (_START + r"((?:patch_embed\.proj|norm|fc_norm|blocks\.\d+\.[\w.]+)\.\w+)", r"\1"),
        (_START + r"(cls_token|pos_embed)", r"\1"),
    ),
    changes=(_as_a_clip,),
    fresh=(r"blocks\.\d+\.temporal_.+",),
    normalisation="imagenet",
    note=(
        "It needs MODEL.POSITIONS learned, and MODEL.POOLING class (mean or tokens, of one without "
        "a class token)"
    ),
)

PER_FRAME = Layout(
    meaning="image backbones of DINO, MAE or timm, on every frame",
    encoders=("frames",),
    containers=_CONTAINERS,
    left_out=_LEFT_OUT,
    renames=((_START + r"(.+)", r"image.\1"),),
    fresh=(r"time_embed", r"blocks\..+"),
    mixed=True,
    note="MODEL.IMAGE must name the backbone",
)
