"""Training and inference clips a second, and peak memory, of each encoder; torchvision's as base.

    python benchmarks/encoders.py speed [--names r3d_18 ...] [--clips 2] [--compile] [--json FILE]
    python benchmarks/encoders.py torchvision [--names r3d_18 ...] [--clips 1] [--json FILE]

`speed` times each encoder as it is (channels last), on contiguous clips, and compiled. On a CPU:
slim networks on small clips, compiled only with --compile, which takes a minute each. On a GPU:
published sizes in bfloat16, compiled too, and the share of the card's measured matrix rate.
`torchvision` times our networks at their published size beside torchvision's own, in turns.
Seconds are those of the clock on a GPU and of one core on a CPU, so that other work does not count.
"""

import multiprocessing
import resource
import time
from argparse import BooleanOptionalAction
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torchvision.models.video as torchvision_video
from common import Report, Times, arguments, interleaved
from torch import Tensor, nn
from torchvision.models.video.mvit import MViT
from torchvision.ops import StochasticDepth

from vidcsl.commands.show import PUBLISHED_CLIPS
from vidcsl.config import default_config
from vidcsl.models import ENCODERS, Encoder
from vidcsl.models.encoder import cost_of
from vidcsl.models.mvit import BLOCKS, WIDTH, block_settings
from vidcsl.pipelines.model import build_encoder

# About a quarter of the published width, for two cores.
WIDTHS = {
    **dict.fromkeys(("r2plus1d_18", "r2plus1d_34", "r2plus1d_34_mmaction2"), 16),
    **dict.fromkeys(("r3d_18", "r3d_18_tclr", "mc3_18", "s3d", "slow_r50"), 16),
    **dict.fromkeys(("mvit_v2_s", "swin3d_t", "swin3d_s"), 24),
    **{"swin3d_b": 32, "video_vit_s": 128, "video_vit_b": 192, "video_vit_l": 256},
}
FRAMES, SIZE = 8, 64
SAME_SPEED = 1.1  # ours may take this much longer than the same network of torchvision
REPEATS = 3


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("part", choices=list(_PARTS))
    parser.add_argument("--names", nargs="*", default=list(ENCODERS), help="encoders")
    parser.add_argument("--clips", type=int, default=2, help="in a batch")
    parser.add_argument(
        "--compile", action=BooleanOptionalAction, default=torch.cuda.is_available()
    )
    args = parser.parse_args()
    report = Report("encoders", packages=("torchvision", "timm"))
    _PARTS[args.part](args, report)
    report.finish(args.json)


def speed(args: Any, report: Report) -> None:
    """Every encoder by itself."""
    rate = matrix_rate()
    report.row(what="matrix product", tflops=rate / 1e12)
    for name in args.names:
        report.row(**in_own_process(_speed, name, args.clips, rate, args.compile))


def torchvision(args: Any, report: Report) -> None:
    """Ours beside torchvision's plain models."""
    for name in (each for each in args.names if each in BASES):
        row = in_own_process(_beside_torchvision, name, args.clips)
        report.row(**row)
        report.target(
            f"{name}, training step over torchvision's",
            measured=row["training_ratio"],
            wanted=f"at most {SAME_SPEED}",
            met=row["training_ratio"] <= SAME_SPEED,
        )


def in_own_process(measure: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
    """What `measure` finds in a fresh process, whose peak memory is then its own too."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, given)


def _speed(name: str, count: int, rate: float, compiled: bool) -> dict[str, Any]:
    before = _resident()
    encoder, clips = made(name, count)
    training(encoder, clips)()  # alone first: the peak is of a training step as it is
    peak = torch.cuda.max_memory_allocated() / 2**20 if clips.is_cuda else _resident() - before
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "": encoder,
        "_contiguous": partial(contiguous, encoder),
    }
    if compiled:
        ways["_compiled"] = torch.compile(encoder)
    runs = {f"inference{way}": inference(encoder, clips, call) for way, call in ways.items()}
    runs |= {f"training{way}": training(encoder, clips, call) for way, call in ways.items()}
    done = {key: count / each.median for key, each in timed(runs).items()}
    cost = cost_of(encoder)
    # A training step counts for three forward passes, each multiply-add for two operations.
    shares = {
        f"share_of_matrix_rate{way}": 6 * cost.flops * done[f"training{way}"] / rate for way in ways
    }
    shape = f"{clips.shape[2]}x{clips.shape[3]}"
    return {
        **{"encoder": name, "clip": shape, "parameters_m": cost.parameters / 1e6},
        **{"gflops": cost.flops / 1e9, "peak_mib": peak},
        **{f"{key}_clips_per_s": value for key, value in done.items()},
        **shares,
    }


def contiguous(encoder: Encoder, clips: Tensor) -> Tensor:
    """Features without the change of layout that the encoder makes."""
    features: Tensor = encoder.backbone((clips - encoder.mean) / encoder.std)
    return features


def _beside_torchvision(name: str, count: int) -> dict[str, Any]:
    size = 112 if name == "s3d" else SIZE
    ours, clips = made(name, count, slim=False, frames=FRAMES, size=size)
    theirs = BASES[name](clips).to(clips.device)
    times = timed(
        {
            "inference": inference(ours, clips),
            "inference_theirs": inference(theirs, clips),
            "training": training(ours, clips),
            "training_theirs": training(theirs, clips),
        }
    )
    found = {key: each.median for key, each in times.items()}
    return {
        **{"encoder": name, "clip": f"{FRAMES}x{size}"},
        **{f"{key}_s": seconds for key, seconds in found.items()},
        "inference_ratio": found["inference"] / found["inference_theirs"],
        "training_ratio": found["training"] / found["training_theirs"],
    }


def _torchvisions(name: str, clips: Tensor) -> nn.Module:  # noqa: ARG001
    model: nn.Module = getattr(torchvision_video, name)()
    for module in model.modules():
        if isinstance(module, StochasticDepth):
            module.p = 0.0  # our encoders drop no blocks in training
    if name == "s3d":  # its classifier wants 2 x 7 x 7 maps
        model.avgpool = nn.AdaptiveAvgPool3d(1)
    return model


def _torchvisions_mvit(clips: Tensor) -> nn.Module:
    """`mvit_v2_s` fixes its clip; this is the same network for ours."""
    return MViT(
        spatial_size=(clips.shape[3], clips.shape[4]),
        temporal_size=clips.shape[2],
        block_setting=block_settings(WIDTH, BLOCKS),
        residual_pool=True,
        residual_with_cls_embed=False,
        rel_pos_embed=True,
        proj_after_attn=True,
    )


BASES: dict[str, Callable[[Tensor], nn.Module]] = {
    **{
        name: partial(_torchvisions, name)
        for name in ("r2plus1d_18", "r3d_18", "mc3_18", "s3d", "swin3d_t", "swin3d_s", "swin3d_b")
    },
    "mvit_v2_s": _torchvisions_mvit,
}


def made(
    name: str, count: int, *, slim: bool = True, frames: int = 0, size: int = 0
) -> tuple[Encoder, Tensor]:
    """An encoder and clips for it, on the GPU where there is one."""
    gpu = torch.cuda.is_available()
    cfg = default_config()
    cfg.MODEL.NAME = name
    published = PUBLISHED_CLIPS.get(name, (16, 112))
    cfg.DATA.FRAMES = frames or (published[0] if gpu else FRAMES)
    cfg.MODEL.FRAME_SIZE = size or (published[1] if gpu else SIZE)
    if slim and not gpu:
        cfg.MODEL.WIDTH = WIDTHS.get(name, 0)
        cfg.MODEL.IMAGE = "resnet10t" if name == "frames" else cfg.MODEL.IMAGE
    encoder = build_encoder(cfg).to("cuda" if gpu else "cpu")
    side = cfg.MODEL.FRAME_SIZE
    return encoder, torch.rand(count, 3, cfg.DATA.FRAMES, side, side, device=encoder.mean.device)


def timed(runs: Mapping[str, Callable[[], Any]]) -> dict[str, Times]:
    """Seconds of each, in turns."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    return interleaved(runs, repeats=REPEATS, clock=clock)


def inference(
    model: nn.Module, clips: Tensor, call: Callable[[Tensor], Tensor] | None = None
) -> Callable[[], Any]:
    """A forward pass of `model`, as `call` makes it."""

    def run() -> None:
        model.eval()
        with torch.no_grad(), _autocast(clips):
            (model if call is None else call)(clips)

    return run


def training(
    model: nn.Module, clips: Tensor, call: Callable[[Tensor], Tensor] | None = None
) -> Callable[[], Any]:
    """A forward and a backward pass of `model`, as `call` makes it."""

    def run() -> None:
        model.train()
        model.zero_grad(set_to_none=True)
        with _autocast(clips):
            loss = (model if call is None else call)(clips).float().square().mean()
        loss.backward()

    return run


def matrix_rate() -> float:
    """Operations a second of a large matrix product, in the precision that is measured."""
    gpu = torch.cuda.is_available()
    size, kind = (8192, torch.bfloat16) if gpu else (1024, torch.float32)
    one = torch.rand(size, size, dtype=kind, device="cuda" if gpu else "cpu")
    return 2 * size**3 / timed({"product": lambda: one @ one})["product"].median


def _autocast(clips: Tensor) -> torch.autocast:
    return torch.autocast(clips.device.type, torch.bfloat16, enabled=clips.is_cuda)


def _resident() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


_PARTS = {"speed": speed, "torchvision": torchvision}

if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"{time.perf_counter() - started:.0f} s")
