"""Training and inference clips a second, and peak memory, of each encoder; torchvision's as base.

    python benchmarks/encoders.py [--names r3d_18 ...] [--clips 2] [--json FILE]

On a CPU, slim networks on small clips; on a GPU, published sizes in bfloat16, with and without
torch.compile, and the share of the card's measured matrix rate.
"""

import multiprocessing
import resource
import time
from collections.abc import Callable
from typing import Any

import torch
import torchvision.models.video as torchvision_video
from common import Report, arguments, interleaved
from torch import Tensor, nn

from vidcsl import builders
from vidcsl.commands.show.models import CLIPS
from vidcsl.config import default_config
from vidcsl.models import ENCODERS
from vidcsl.models.cost import cost_of

# About a quarter of the published width, for two cores.
WIDTHS = {
    **dict.fromkeys(("r2plus1d_18", "r2plus1d_34", "r2plus1d_34_mmaction2"), 16),
    **dict.fromkeys(("r3d_18", "r3d_18_tclr", "mc3_18", "s3d", "slow_r50"), 16),
    **dict.fromkeys(("mvit_v2_s", "swin3d_t", "swin3d_s"), 24),
    **{"swin3d_b": 32, "video_vit_s": 128, "video_vit_b": 192, "video_vit_l": 256},
}
FRAMES, SIZE = 8, 64
BASES = ("r2plus1d_18", "r3d_18", "mc3_18", "s3d", "mvit_v2_s", "swin3d_t")
SAME_SPEED = 1.1  # ours may take this much longer than the same network of torchvision


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--names", nargs="*", default=list(ENCODERS), help="encoders")
    parser.add_argument("--clips", type=int, default=2, help="in a batch")
    args = parser.parse_args()
    report = Report("encoders", packages=("torchvision", "timm"))
    rate = matrix_rate()
    report.row(what="matrix product", tflops=rate / 1e12)
    for name in args.names:
        with torch.random.fork_rng():
            report.row(**measured(name, args.clips, rate))
    for name in sorted(set(BASES) & set(args.names)):
        against_torchvision(name, args.clips, report)
    report.finish(args.json)


def measured(name: str, count: int, rate: float) -> dict[str, Any]:
    """One encoder in a process of its own, whose peak memory is then its own too."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (name, count, rate))


def _measured(name: str, count: int, rate: float) -> dict[str, Any]:
    before = _resident()
    encoder, clips = made(name, count)
    cost = cost_of(encoder)
    runs = {"inference": inference(encoder, clips), "training": training(encoder, clips)}
    if clips.is_cuda:
        compiled = torch.compile(encoder)
        runs |= {"compiled": training(compiled, clips)}
    times = interleaved(runs, repeats=3)
    done = {f"{key}_clips_per_s": count / each.median for key, each in times.items()}
    # A training step counts for three forward passes, each multiply-add for two operations.
    share = 6 * cost.flops * done["training_clips_per_s"] / rate
    peak = torch.cuda.max_memory_allocated() / 2**20 if clips.is_cuda else _resident() - before
    shape = f"{clips.shape[2]}x{clips.shape[3]}"
    return {
        **{"encoder": name, "clip": shape, "parameters_m": cost.parameters / 1e6},
        **{"gflops": cost.flops / 1e9, **done, "share_of_matrix_rate": share, "peak_mib": peak},
    }


def against_torchvision(name: str, count: int, report: Report) -> None:
    """Our network at its published size, and torchvision's own, in turns."""
    ours, clips = made(name, count, slim=False, frames=FRAMES, size=112 if name == "s3d" else SIZE)
    options = {"spatial_size": (SIZE, SIZE), "temporal_size": FRAMES}
    try:
        theirs = getattr(torchvision_video, name)(**(options if name == "mvit_v2_s" else {}))
    except TypeError:  # mvit_v2_s fixes its clip
        theirs, clips = torchvision_video.mvit_v2_s(), clips.new_zeros(1, 3, 16, 224, 224)
        ours = made(name, 1, slim=False, frames=16, size=224)[0]
    if name == "s3d":  # its classifier wants 2 x 7 x 7 maps
        theirs.avgpool = nn.AdaptiveAvgPool3d(1)
    theirs = theirs.to(clips.device)
    times = interleaved(
        {"ours": training(ours, clips), "torchvision": training(theirs, clips)}, repeats=3
    )
    ratio = times["ours"].median / times["torchvision"].median
    report.row(
        what=f"{name} beside torchvision's",
        ours_s=times["ours"].median,
        torchvision_s=times["torchvision"].median,
        ratio=ratio,
    )
    report.target(
        f"{name}, training step over torchvision's",
        measured=ratio,
        wanted=f"at most {SAME_SPEED}",
        met=ratio <= SAME_SPEED,
    )


def made(
    name: str, count: int, *, slim: bool = True, frames: int = 0, size: int = 0
) -> tuple[Any, Tensor]:
    """An encoder and clips for it, on the GPU where there is one."""
    gpu = torch.cuda.is_available()
    cfg = default_config()
    cfg.MODEL.NAME = name
    published = CLIPS.get(name, (16, 112))
    cfg.DATA.FRAMES = frames or (published[0] if gpu else FRAMES)
    cfg.MODEL.FRAME_SIZE = size or (published[1] if gpu else SIZE)
    if slim and not gpu:
        cfg.MODEL.WIDTH = WIDTHS.get(name, 0)
        cfg.MODEL.IMAGE = "resnet10t" if name == "frames" else cfg.MODEL.IMAGE
    encoder = builders.build_encoder(cfg).to("cuda" if gpu else "cpu")
    side = cfg.MODEL.FRAME_SIZE
    return encoder, torch.rand(count, 3, cfg.DATA.FRAMES, side, side, device=encoder.mean.device)


def inference(model: nn.Module, clips: Tensor) -> Callable[[], Any]:
    def run() -> None:
        model.eval()
        with torch.inference_mode(), _autocast(clips):
            model(clips)

    return run


def training(model: nn.Module, clips: Tensor) -> Callable[[], Any]:
    def run() -> None:
        model.train()
        model.zero_grad(set_to_none=True)
        with _autocast(clips):
            loss = model(clips).float().square().mean()
        loss.backward()

    return run


def matrix_rate() -> float:
    """Operations a second of a large matrix product, in the precision that is measured."""
    gpu = torch.cuda.is_available()
    size, kind = (8192, torch.bfloat16) if gpu else (1024, torch.float32)
    one = torch.rand(size, size, dtype=kind, device="cuda" if gpu else "cpu")
    times = interleaved({"product": lambda: one @ one}, repeats=5)
    return 2 * size**3 / times["product"].median


def _autocast(clips: Tensor) -> torch.autocast:
    return torch.autocast(clips.device.type, torch.bfloat16, enabled=clips.is_cuda)


def _resident() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"{time.perf_counter() - started:.0f} s")
