"""Encoders by name; a new one is one file and one line here."""

from collections.abc import Callable
from functools import partial

from vidcsl.models.encoder import Encoder
from vidcsl.models.frames import frames
from vidcsl.models.mvit import mvit_v2_s
from vidcsl.models.resnet3d import (
    mc3_18,
    r2plus1d_18,
    r2plus1d_34,
    r2plus1d_34_mmaction2,
    r3d_18,
    r3d_18_tclr,
)
from vidcsl.models.s3d import s3d
from vidcsl.models.slow import slow_r50
from vidcsl.models.swin3d import swin3d_b, swin3d_s, swin3d_t
from vidcsl.models.vit import video_vit

__all__ = ["ENCODERS", "Encoder"]

ENCODERS: dict[str, Callable[..., Encoder]] = {
    "r2plus1d_18": r2plus1d_18,
    "r2plus1d_34": r2plus1d_34,
    "r2plus1d_34_mmaction2": r2plus1d_34_mmaction2,
    "r3d_18": r3d_18,
    "r3d_18_tclr": r3d_18_tclr,
    "mc3_18": mc3_18,
    "s3d": s3d,
    "slow_r50": slow_r50,
    "mvit_v2_s": mvit_v2_s,
    "swin3d_t": swin3d_t,
    "swin3d_s": swin3d_s,
    "swin3d_b": swin3d_b,
    "video_vit_s": partial(video_vit, published=(384, 12)),
    "video_vit_b": partial(video_vit, published=(768, 12)),
    "video_vit_l": partial(video_vit, published=(1024, 24)),
    "frames": frames,
}
