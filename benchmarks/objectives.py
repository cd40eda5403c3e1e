"""Contrastive losses: time beside peers, memory of the walk over blocks, cost of detection.

    python benchmarks/objectives.py [PART ...] [--peers FOLDER] [--json FILE]

Every contender gets the same projections [N, 128] of two views and gives the loss and its gradient.
The walk runs in a process of its own, whose peak memory is the system's count. On a GPU, `--device
cuda --rows 262144` times the same.
"""

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from common import Report, arguments, interleaved, peer
from torch import Tensor, nn

from vidcsl.methods import ClipBatch
from vidcsl.methods.contrastive import SimCLR
from vidcsl.methods.false_negatives import DETECTORS, FalseNegatives
from vidcsl.methods.losses import Pairs, blockwise_loss, nt_xent
from vidcsl.methods.metrics import Metric
from vidcsl.models.encoder import projector
from vidcsl.models.resnet3d import r2plus1d_18

TEMPERATURE, DIM, VIEWS = 0.1, 128, 2
SIZES = (256, 1024, 4096)
WALK_LIMIT = 2 * 1024  # MiB
DETECTORS_TIMED = {
    "known_groups": {},
    "labels": {},
    "adaptive": {"ceiling": 0.1, "start": 0.0, "ramp": 0.0},
    "fnc": {"nearest": 10, "threshold": 0.7},
}
STEP = {"frames": 16, "size": 112, "videos": 2}
Loss = Callable[[Tensor], Tensor]
"""Projections `[N, 128]`, the views of a video side by side -> loss."""


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS), help="%(default)s")
    parser.add_argument("--peers", type=Path, help="folder where peers are installed apart")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--rows", type=int, default=65_536, help="of the walk (%(default)s)")
    parser.add_argument("--child", help="internal: one measurement in a process of its own")
    args = parser.parse_args()
    if args.child:
        print(json.dumps(CHILDREN[args.child](args)))
        return
    if args.peers:
        sys.path.append(str(args.peers))
    peers = ("lightly", "solo-learn", "pytorch-metric-learning")
    report = Report("objectives", packages=peers)
    for part in args.parts:
        PARTS[part](report, args)
    report.finish(args.json)


# Losses beside peers


def time_losses(report: Report, args) -> None:
    for threads in {1: None, torch.get_num_threads(): None}:
        for rows in SIZES:
            with using(threads):
                compare(report, rows, threads, args.device)


def compare(report: Report, rows: int, threads: int, device: str) -> None:
    ids, leaf = ids_of(rows, device), projections(rows, device=device)
    contenders = {"vidcsl": vidcsl(ids), **peers_for(ids)}
    gradients = {name: gradient(loss, leaf) for name, loss in contenders.items()}
    wanted = gradients["plain cross-entropy"]
    times = interleaved(
        {name: partial(gradient, loss, leaf) for name, loss in contenders.items()},
        repeats=41 if rows < 4096 else 9,
        warmup=3,
    )
    for name, each in times.items():
        differs = float((gradients[name] - wanted).norm() / wanted.norm())
        cells = {"ms": each.median * 1e3, "spread": each.spread, "gradient_differs": differs}
        report.row(threads=threads, rows=rows, loss=name, **cells)
    fastest = min(each.median for name, each in times.items() if name != "vidcsl")
    speed, least = fastest / times["vidcsl"].median, 1.5 if rows == 4096 else 1.0
    report.target(
        f"speed_over_fastest_peer_{rows}_rows_{threads}_threads",
        measured=speed,
        wanted=f">= {least}",
        met=speed >= least,
    )


@contextmanager
def using(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    yield
    torch.set_num_threads(before)


def projections(rows: int, *, device: str = "cpu") -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, DIM, generator=generator).to(device).requires_grad_()


def gradient(loss: Loss, leaf: Tensor) -> Tensor:
    """Of the loss with respect to the projections; forward and backward."""
    return torch.autograd.grad(loss(leaf), leaf)[0]


class Heads(SimCLR):
    """SimCLR without its network: clips are projections already, and only the loss is wanted."""

    def embed(self, clips: Tensor) -> Tensor:
        return F.normalize(clips, dim=2)

    def describe(self, _embeddings: Tensor, _batch: ClipBatch) -> dict[str, Metric]:
        return {}


def heads(detector: str) -> Heads:
    return Heads(
        nn.Identity(),
        nn.Identity(),
        loss=partial(nt_xent, temperature=TEMPERATURE),
        false_negatives=FalseNegatives(DETECTORS[detector](**DETECTORS_TIMED.get(detector, {}))),
        classes=10,
    )


def vidcsl(ids: Tensor) -> Loss:
    """SimCLR's loss alone, of views whose videos are known."""
    method, samples = heads("none"), batch_of(ids, ids).samples(1)
    samples = replace(samples, views=torch.arange(len(ids), device=ids.device) % VIEWS)

    def pairs(_similarities: Tensor, rows: slice) -> Pairs:
        return method.pairs(samples[rows], samples)

    def loss(leaf: Tensor) -> Tensor:
        z = F.normalize(leaf, dim=1)
        total, defined = blockwise_loss(z, z, loss=method.loss, pairs=pairs, views=VIEWS)
        return total / defined.sum()

    return loss


def detecting(ids: Tensor, detector: str) -> Loss:
    """The same with a detector, its treatment, and the counts of its precision and recall."""
    method = heads(detector)
    return lambda leaf: method(batch_of(leaf.unflatten(0, (-1, VIEWS)), ids[::VIEWS]))["loss"]


def batch_of(clips: Tensor, videos: Tensor) -> ClipBatch:
    return ClipBatch(clips, labels=videos % 10, groups=videos // 4, videos=videos, progress=1.0)


def ids_of(rows: int, device: str) -> Tensor:
    return torch.arange(rows // VIEWS, device=device).repeat_interleave(VIEWS)


def plain(leaf: Tensor) -> Tensor:
    """Cross-entropy on the masked matrix of all pairs: what one would write."""
    z = F.normalize(leaf, dim=1)
    places = torch.arange(len(z), device=z.device)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    logits = (z @ z.T / TEMPERATURE).masked_fill(itself, -torch.inf)
    return F.cross_entropy(logits, places ^ 1)


def peers_for(ids: Tensor) -> dict[str, Loss]:
    """Plain cross-entropy, and the peers that are installed."""
    found: dict[str, Loss] = {"plain cross-entropy": plain}
    if lightly := peer("lightly.loss", package="lightly"):
        loss = lightly.NTXentLoss(temperature=TEMPERATURE)
        found["lightly"] = lambda leaf: loss(leaf[::VIEWS], leaf[1::VIEWS])
    if solo := solo_learn():
        found["solo-learn"] = lambda leaf: solo.simclr_loss_func(
            leaf[::VIEWS], leaf[1::VIEWS], TEMPERATURE
        )
    if metric := peer("pytorch_metric_learning.losses", package="pytorch-metric-learning"):
        supcon = metric.SupConLoss(temperature=TEMPERATURE)
        found["pytorch-metric-learning"] = lambda leaf: supcon(leaf, ids)
    return found


def solo_learn() -> ModuleType | None:
    """The file of its loss alone: the package asks for trainers that the loss does not need."""
    package = importlib.util.find_spec("solo")
    if package is None or not package.submodule_search_locations:
        print("skipped solo-learn: not installed")
        return None
    path = Path(package.submodule_search_locations[0]) / "losses" / "simclr.py"
    spec = importlib.util.spec_from_file_location("solo_simclr", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# What detection adds


def time_detection(report: Report, args) -> None:
    rows, added = 4096, {}
    leaf = projections(rows, device=args.device)
    ids = ids_of(rows, args.device)
    losses = {"none": vidcsl(ids), **{name: detecting(ids, name) for name in DETECTORS_TIMED}}
    contenders = {name: partial(gradient, loss, leaf) for name, loss in losses.items()}
    times = interleaved(contenders, repeats=7)
    for name, each in times.items():
        added[name] = each.median / times["none"].median - 1
        report.row(rows=rows, detector=name, ms=each.median * 1e3, added=f"{added[name]:.1%}")
    worst = max(added, key=lambda name: added[name])
    report.target(
        f"detection_added_to_the_loss ({worst})",
        measured=added[worst],
        wanted="<= 0.3",
        met=added[worst] <= 0.3,
    )
    per_clip = step_seconds(args.device) / (STEP["videos"] * VIEWS)
    seconds = (times[worst].median - times["none"].median) / (per_clip * rows)
    report.row(clips=rows, training_step_seconds=per_clip * rows, detector=worst, share=seconds)
    report.target(
        "detection_share_of_a_training_step",
        measured=seconds,
        wanted="< 0.02",
        met=seconds < 0.02,
    )


def step_seconds(device: str) -> float:
    """Forward and backward of SimCLR with R(2+1)D-18 on a few clips; time grows as their number."""
    frames, size, videos = STEP["frames"], STEP["size"], STEP["videos"]
    encoder = r2plus1d_18(clip_frames=frames, frame_size=size, width=64)
    method = SimCLR(
        encoder,
        projector(in_dim=encoder.feature_dim, hidden_dim=512, out_dim=DIM, layers=2),
        loss=partial(nt_xent, temperature=TEMPERATURE),
        classes=videos,
    ).to(device)
    ids = torch.arange(videos, device=device)
    clips = torch.rand(videos, VIEWS, 3, frames, size, size, device=device)

    def step() -> None:
        method(ClipBatch(clips, ids, ids, ids))["loss"].backward()

    return interleaved({"step": step}, repeats=2)["step"].median


# The walk over blocks


def measure_walk(report: Report, args) -> None:
    found = in_a_process("walk", "--rows", str(args.rows), "--device", args.device)
    report.row(
        rows=args.rows, **found, dense_matrix_mib=args.rows**2 * 4 / 2**20, loss_and_gradient="all"
    )
    report.target(
        f"walk_{args.rows}_rows_peak_mib",
        measured=found["peak_mib"],
        wanted=f"<= {WALK_LIMIT}",
        met=found["peak_mib"] <= WALK_LIMIT,
    )
    errors = walk_errors()
    for name, error in errors.items():
        report.row(rows=4096, against="dense float64", of=name, relative_error=error)
    worst = max(errors.values())
    report.target("walk_relative_error_float32", measured=worst, wanted="< 1e-5", met=worst < 1e-5)


def walk(args) -> dict[str, float]:
    leaf = projections(args.rows, device=args.device)
    before, started = peak_mib(args.device), time.perf_counter()
    found = gradient(vidcsl(ids_of(args.rows, args.device)), leaf)
    norm = float(found.norm())
    return {
        "seconds": time.perf_counter() - started,
        "peak_mib": peak_mib(args.device),
        "of_it_before_the_walk": before,
        "gradient_norm": norm,
    }


def walk_errors(rows: int = 4096) -> dict[str, float]:
    """Of loss and gradient in float32, against the dense matrix in float64."""
    leaf, double = projections(rows), projections(rows).detach().double().requires_grad_()
    ours, wanted = vidcsl(ids_of(rows, "cpu"))(leaf), plain(double)
    pairs = {
        "loss": (ours.detach(), wanted.detach()),
        "gradient": (torch.autograd.grad(ours, leaf)[0], torch.autograd.grad(wanted, double)[0]),
    }
    return {k: float((one.double() - two).norm() / two.norm()) for k, (one, two) in pairs.items()}


# Batches larger than memory


def measure_chunks(report: Report, args) -> None:
    found = {}
    for chunk in (0, 8, 2):
        found[chunk] = in_a_process("step", "--rows", str(chunk), "--device", args.device)
        report.row(clips=CHUNKED["clips"], clips_in_a_chunk=chunk or "all", **found[chunk])
    smaller = found[0]["step_mib"] / found[2]["step_mib"]
    report.target(
        "memory_of_a_step_whole_over_chunks_of_two",
        measured=smaller,
        wanted="> 2",
        met=smaller > 2,
    )


CHUNKED = {"clips": 32, "frames": 8, "size": 64, "width": 32}


def chunked_step(args) -> dict[str, float]:
    frames, size = CHUNKED["frames"], CHUNKED["size"]
    encoder = r2plus1d_18(clip_frames=frames, frame_size=size, width=CHUNKED["width"])
    encoder = encoder.train().to(args.device)
    encoder.chunk = args.rows
    clips = torch.rand(CHUNKED["clips"], 3, frames, size, size, device=args.device)
    loss = vidcsl(ids_of(len(clips), args.device))
    before, started = peak_mib(args.device), time.perf_counter()
    loss(encoder(clips)).backward()
    return {
        "seconds": time.perf_counter() - started,
        "step_mib": peak_mib(args.device) - before,
        "peak_mib": peak_mib(args.device),
    }


def in_a_process(child: str, *words: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", child, *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def peak_mib(device: str) -> float:
    """Most memory that this process has held: on the GPU, or resident on the host."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    # Not ru_maxrss: a process starts with that of the one that started it.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


CHILDREN = {"walk": walk, "step": chunked_step}
PARTS: dict[str, Callable] = {
    "losses": time_losses,
    "detection": time_detection,
    "blockwise": measure_walk,
    "chunks": measure_chunks,
}

if __name__ == "__main__":
    main()
