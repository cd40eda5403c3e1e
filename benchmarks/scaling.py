"""What a training asks of a cluster: the tables of docs/scaling.md, from stated figures alone.

    python benchmarks/scaling.py            # the tables
    python benchmarks/scaling.py --check    # the same formulas against a step of this machine

Every figure that goes in is a named field below: measured ones say where they come from, assumed
ones that they are assumed. Replace them with your own.
"""

import argparse
import time
from dataclasses import dataclass, replace

import torch

from vidcsl.models import encoder as cost
from vidcsl.models.resnet3d import r2plus1d_18


@dataclass(frozen=True)
class Data:
    """Videos of a list."""

    name: str
    videos: int
    mib: float = 1.2  # of one file; assumed: 10 s at 1 Mbit/s
    # CPU milliseconds of a core for a training sample of two views; measured on transcoded UCF101,
    # benchmarks/results.md (18.4 on the originals); assumed for these sets when transcoded.
    decode_ms: float = 13.0


@dataclass(frozen=True)
class Setting:
    """A model, its training and what it runs on."""

    gflops: float = 40.6  # multiply-adds of one clip: R(2+1)D-18, 16 x 112 x 112 (fvcore, counted)
    parameters: float = 31.3e6  # counted
    views: int = 2
    epochs: int = 200
    batch_of_gpu: int = 64  # videos
    embedding: int = 128  # numbers
    # Measured on one H100, benchmarks/results.md: the bfloat16 matrix product, what a whole step of
    # 128 clips reaches of it (402 clips a second), and its peak memory by the clip.
    tflops: float = 825.0  # multiply and add counted apart
    share: float = 0.119
    gib_of_clip: float = 0.245
    link_gb_s: float = 50.0  # assumed: of one GPU between nodes (400 Gbit/s), each way
    overlap: float = 0.9  # assumed: share of the gradients' exchange that hides behind backward


KINETICS = Data("Kinetics-400", videos=240_000)
LARGE = Data("10 million videos", videos=10_000_000)
GPUS = (8, 64, 512)


@dataclass(frozen=True)
class Demand:
    """What one training takes."""

    compute_s: float  # of a step
    exchange_s: float  # of a step, not hidden
    clips_s: float  # of all GPUs
    cores: float  # that decode
    gb_s: float  # from storage
    gather_mib: float  # of embeddings that each GPU receives in a step
    gradients_mib: float  # that each GPU sends in a step
    pairs_gib: float  # that are never held
    memory_gib: float  # of a GPU
    hours: float


def demand(data: Data, setting: Setting, gpus: int) -> Demand:
    """The formulas: forward and backward are three passes; a ring sends 2 (n - 1) / n gradients."""
    clips = setting.batch_of_gpu * setting.views
    compute = clips * 3 * 2 * setting.gflops * 1e9 / (setting.tflops * 1e12 * setting.share)
    gradients = 4 * setting.parameters * 2 * (gpus - 1) / gpus  # bytes, float32
    rows = clips * gpus
    gathered = 4 * setting.embedding * rows * (gpus - 1) / gpus  # bytes
    hidden = (1 - setting.overlap) * gradients + 2 * gathered  # embeddings, and their gradient back
    exchange = hidden / (setting.link_gb_s * 1e9) if gpus > 1 else 0.0
    step = compute + exchange
    samples = setting.batch_of_gpu * gpus / step  # a second
    weights = 4 * 4 * setting.parameters / 2**30  # weights, gradients, momentum, a bucket of DDP
    return Demand(
        compute_s=compute,
        exchange_s=exchange,
        clips_s=samples * setting.views,
        cores=samples * data.decode_ms / 1000,
        gb_s=samples * data.mib * 2**20 / 1e9,
        gather_mib=gathered / 2**20,
        gradients_mib=gradients / 2**20,
        pairs_gib=4 * rows**2 / 2**30,
        memory_gib=weights + clips * setting.gib_of_clip,
        hours=data.videos * setting.epochs / samples / 3600,
    )


def table(data: Data, setting: Setting) -> str:
    """A Markdown table over numbers of GPUs."""
    head = (
        "| GPUs | clips/s | step, ms (of it exchange) | cores that decode (a GPU) "
        "| from storage, GB/s | embeddings received a step, MiB | gradients sent a step, MiB "
        "| pairs never held, GiB | memory of a GPU, GiB | hours |"
    )
    rows = [head, "| ---: " * 10 + "|"]
    for gpus in GPUS:
        d = demand(data, setting, gpus)
        rows.append(
            f"| {gpus} | {d.clips_s:,.0f} | {1000 * (d.compute_s + d.exchange_s):.0f} "
            f"({1000 * d.exchange_s:.1f}) | {d.cores:,.0f} ({d.cores / gpus:.0f}) | {d.gb_s:.1f} "
            f"| {d.gather_mib:.1f} | {d.gradients_mib:.0f} | {d.pairs_gib:.2f} "
            f"| {d.memory_gib:.0f} | {d.hours:,.1f} |"
        )
    return "\n".join(rows)


def check() -> None:
    """Foretell a step of one device from its matrix rate, and measure it; CPU seconds, a thread."""
    torch.set_num_threads(1)
    encoder = r2plus1d_18(width=16, clip_frames=8, frame_size=56)
    counted = cost.cost_of(encoder)
    one = torch.rand(1024, 1024)
    rate = 2 * 1024**3 / min(_cpu_seconds(lambda: one @ one) for _ in range(9))
    clips = torch.rand(16, 3, 8, 56, 56)
    encoder.train()
    for _ in range(2):
        seconds = min(_cpu_seconds(lambda: encoder(clips).sum().backward()) for _ in range(5))
    share = 16 * 3 * 2 * counted.flops / seconds / rate
    print(f"matrix rate {rate / 1e9:.1f} GFLOP/s; {counted.flops / 1e9:.3f} GFLOPs a clip")
    small = Setting(gflops=counted.flops / 1e9, tflops=rate / 1e12, share=1.0, batch_of_gpu=8)
    for share_of_peak, what in ((1.0, "at the matrix rate"), (share, "at the measured share")):
        predicted = demand(KINETICS, replace(small, share=share_of_peak), 1).compute_s
        print(
            f"{what} ({share_of_peak:.2f}): predicted {predicted:.3f} s, measured {seconds:.3f} s"
        )
    doubled = torch.rand(32, 3, 8, 56, 56)
    longer = min(_cpu_seconds(lambda: encoder(doubled).sum().backward()) for _ in range(3))
    predicted_s = demand(KINETICS, replace(small, share=share, batch_of_gpu=16), 1).compute_s
    print(
        f"twice the batch, predicted from that share: {predicted_s:.3f} s, measured {longer:.3f} s"
    )


def _cpu_seconds(work: object) -> float:
    started = time.process_time()
    work()  # type: ignore[operator]
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="against a step of this machine")
    if parser.parse_args().check:
        check()
        return
    for data in (KINETICS, LARGE):
        print(f"\n### {data.name}\n\n{table(data, Setting())}")


if __name__ == "__main__":
    main()
