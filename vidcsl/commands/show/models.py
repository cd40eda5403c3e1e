"""`vidcsl show models`: parameters and FLOPs of encoders, by fvcore."""

import argparse

from vidcsl.config import default_config, load_config
from vidcsl.errors import UserError
from vidcsl.models import ENCODERS, Encoder
from vidcsl.models.encoder import cost_of
from vidcsl.pipelines.model import build_encoder

HELP = "encoders, their parameters and the FLOPs of one clip"

# The clips that the weights of these encoders are published for, where they are not 16 x 112.
CLIPS = {
    "r2plus1d_34_mmaction2": (8, 224),
    "s3d": (16, 224),
    "slow_r50": (8, 224),
    "swin3d_t": (32, 224),
    "swin3d_s": (32, 224),
    "swin3d_b": (32, 224),
    "frames": (8, 224),
    **dict.fromkeys(("mvit_v2_s", "video_vit_s", "video_vit_b", "video_vit_l"), (16, 224)),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which encoders: some by name, that of a config, or else all, at their published size."""
    parser.add_argument("names", nargs="*", help="encoders; none: all")
    parser.add_argument("--cfg", help="the encoder of this config")


def run(args: argparse.Namespace) -> None:
    """Print a line for each encoder, as soon as it is counted."""
    if unknown := [name for name in args.names if name not in ENCODERS]:
        raise UserError(f"no encoder is named {unknown[0]!r}; there are {', '.join(ENCODERS)}")
    print(f"{'encoder':24} {'clip':>12} {'features':>8} {'parameters':>11} {'FLOPs':>9}")
    if args.cfg:
        cfg = load_config(args.cfg)
        print(_line(cfg.MODEL.NAME, build_encoder(cfg)), flush=True)
    for name in args.names or ([] if args.cfg else ENCODERS):
        print(_line(name, published(name)), flush=True)


def published(name: str) -> Encoder:
    """An encoder for the clips that its weights are published for."""
    cfg = default_config()
    cfg.MODEL.NAME = name
    cfg.DATA.FRAMES, cfg.MODEL.FRAME_SIZE = CLIPS.get(name, (16, 112))
    return build_encoder(cfg)


def _line(name: str, encoder: Encoder) -> str:
    cost, size = cost_of(encoder), encoder.frame_size
    clip = f"{encoder.clip_frames}x{size}x{size}"
    return (
        f"{name:24} {clip:>12} {encoder.feature_dim:8} {cost.parameters / 1e6:9.2f} M "
        f"{cost.flops / 1e9:7.2f} G"
    )
