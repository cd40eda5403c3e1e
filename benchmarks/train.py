"""Training: the engine beside a plain loop, where a step's time goes, variants, processes.

    python benchmarks/train.py --parts engine split variants processes
    python benchmarks/train.py --gpu --parts engine split variants

`engine`: our Trainer and a plain PyTorch loop, same model, data and order, in turns.
`split`: one step in its parts; on a GPU it waits for the device after each.
`variants`: layout, precision, on a GPU compiled or not; with the share of the matrix rate that the
same device reaches. With `--gpu` these are R(2+1)D-18 and ViT-B on 16 frames of 112 x 112.
`processes`: 1, 2 and 4 gloo processes of one thread, the batch of each held constant.
"""

import argparse
import os
import socket
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from common import Report, arguments, interleaved
from torch.nn.parallel import DistributedDataParallel

from vidcsl.config import load_config
from vidcsl.data.loader import Batch
from vidcsl.distributed import DistributedContext, distributed_context
from vidcsl.methods import ClipBatch
from vidcsl.models.encoder import cost_of
from vidcsl.pipelines.data import build_augmentation, build_lists, build_train_loader
from vidcsl.pipelines.method import build_method
from vidcsl.pipelines.model import build_encoder
from vidcsl.pipelines.training import (
    build_learner,
    build_pretraining_optimiser,
    build_schedule,
    build_strategy,
)
from vidcsl.run_folder import RunFolder
from vidcsl.training.checkpoint import CheckpointWriter, Position
from vidcsl.training.monitor import peak_memory_mib
from vidcsl.training.train import RunOutput, Trainer, TrainingData, augmented

SMALL = {  # what two cores can do in minutes
    "MODEL.WIDTH": 16,
    "MODEL.FRAME_SIZE": 56,
    "DATA.SHORT_SIDE": 64,
    "DATA.FRAMES": 8,
    "TRAIN.BATCH": 8,
}
FULL = {"MODEL.FRAME_SIZE": 112, "DATA.SHORT_SIDE": 128, "DATA.FRAMES": 16, "TRAIN.BATCH": 64}
VIT = {"MODEL.NAME": "video_vit_b", "TRAIN.OPTIMISER": "adamw", "TRAIN.LR": 1e-3}
SMALL_VIT = {**VIT, "MODEL.NAME": "video_vit_s", "MODEL.DEPTH": 4, "MODEL.FRAME_SIZE": 64}


def config(folder: Path, **options: Any) -> Any:
    """Of a run on rendered videos; options by their dotted names."""
    path = folder / "benchmark.yaml"
    videos = "{ENABLED: true, SIZE: 128, SOURCES: 6, CLIPS: 2}"
    path.write_text(f"SYNTHETIC: {videos}\nDATA: {{ROOT: {folder}/videos}}\n")
    words = [word for key, value in options.items() for word in (key, str(value))]
    return load_config(path, words)


class Kept(CheckpointWriter):
    """Writes nothing: checkpoints are not what is compared."""

    def save(self, state: Any, position: Position) -> None:
        del state, position


class Bench:
    """Everything that a training run needs, and its first batches held in memory."""

    def __init__(
        self, cfg: Any, distributed: DistributedContext, folder: Path, *, steps: int
    ) -> None:
        self.cfg, self.distributed, self.folder = cfg, distributed, RunFolder(folder)
        self.folder.create()
        self.train, _ = build_lists(cfg, distributed)
        self.augment = build_augmentation(cfg)
        self.loader = build_train_loader(cfg, self.train, distributed)
        self.batches = [batch for batch, _ in zip(self._endless(), range(steps), strict=False)]

    def _endless(self) -> Iterator[Batch]:
        for epoch in range(10**6):
            yield from self.loader.epoch(epoch)

    def learner(self) -> Any:
        """A method with its optimiser, as a training run makes it."""
        method = build_method(self.cfg, self.train, self.distributed)
        return build_learner(
            self.cfg,
            method,
            self.distributed,
            optimiser=lambda made: build_pretraining_optimiser(self.cfg, made),
            strategy=build_strategy(self.cfg),
        )

    def trainer(self, learner: Any) -> Trainer:
        """Over the batches in memory."""
        schedule = build_schedule(self.cfg, steps_per_epoch=len(self.batches))
        return Trainer(
            learner=learner,
            data=TrainingData(
                batches=lambda _epoch, start: iter(self.batches[start:]),
                augment=self.augment,
                damaged_limit=10**9,
            ),
            schedule=replace(schedule, epochs=1),
            output=RunOutput(self.folder, Kept(self.folder.checkpoints, self.distributed)),
            distributed=self.distributed,
        )

    def clips(self, batch: Batch) -> ClipBatch:
        """A batch, augmented on the device, as the trainer makes it."""
        return augmented(batch, self.augment, seed=0, progress=0.0)

    def plain(self, learner: Any) -> Callable[[], None]:
        """The loop that one would write: no log, no metrics, no signals, no guard."""

        def loop() -> None:
            method, optimiser = learner.method, learner.optimiser
            method.train()
            for group in optimiser.param_groups:
                group["lr"] = 1e-3
            for batch in self.batches:
                clips = self.clips(batch.to(self.distributed.device))
                with learner.precision.autocast():
                    loss = (learner.replica or method)(clips)["loss"]
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                if learner.clip_gradient:
                    torch.nn.utils.clip_grad_norm_(method.parameters(), learner.clip_gradient)
                optimiser.step()

        return loop

    @property
    def clips_per_step(self) -> int:
        """Of all processes."""
        return self.cfg.TRAIN.BATCH * self.cfg.DATA.CLIPS


def engine(bench: Bench, report: Report, *, repeats: int) -> None:
    """The Trainer beside the plain loop."""
    ours, plain = bench.learner(), bench.learner()
    clock = time.perf_counter if bench.distributed.device.type == "cuda" else time.process_time

    def trained() -> None:
        bench.trainer(ours).run()

    times = interleaved(
        {"plain": bench.plain(plain), "engine": trained}, repeats=repeats, clock=clock
    )
    steps = len(bench.batches)
    for name, each in times.items():
        per_step = each.median / steps
        report.row(
            loop=name,
            step_ms=1000 * per_step,
            clips_s=bench.clips_per_step / per_step,
            spread=each.spread,
        )
    overhead = times["engine"].median / times["plain"].median - 1
    report.target("engine overhead", measured=overhead, wanted="< 0.03", met=overhead < 0.03)


def split(bench: Bench, report: Report) -> None:
    """Where the time of a step goes."""
    learner, seconds = bench.learner(), defaultdict(float)
    replica = learner.replica or learner.method
    unsynced = replica.no_sync if isinstance(replica, DistributedDataParallel) else nullcontext
    device, count = bench.distributed.device, len(bench.batches)

    @contextmanager
    def part(name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds[name] += time.perf_counter() - started

    def backward(batch: ClipBatch, name: str) -> None:
        with learner.precision.autocast(), part(f"forward{name}"):
            loss = replica(batch)["loss"]
        with part(f"backward{name}"):
            loss.backward()

    learner.method.train()
    backward(bench.clips(bench.batches[0].to(device)), " (warm-up)")
    fresh = iter(bench.loader.epoch(0))
    for _ in range(min(count, bench.loader.steps)):
        with part("wait"):
            batch = next(fresh)
        with part("copy"):
            batch = batch.to(device)
        with part("augment"):
            clips = bench.clips(batch)
        with unsynced():
            backward(clips, "")
        learner.optimiser.zero_grad()
        if bench.distributed.size > 1:  # once more, to see what the exchange of gradients adds
            backward(clips, " with exchange")
        with part("optimiser"):
            torch.nn.utils.clip_grad_norm_(learner.method.parameters(), 1.0)
            learner.optimiser.step()
            learner.optimiser.zero_grad()
    steps = min(count, bench.loader.steps)
    ms = {name: 1000 * value / steps for name, value in seconds.items() if "warm" not in name}
    if bench.distributed.size > 1:
        ms.pop("forward with exchange")
        ms["communication"] = ms.pop("backward with exchange") - ms["backward"]
    if bench.distributed.is_main:
        report.row(
            processes=bench.distributed.size,
            **{f"{k}_ms": v for k, v in ms.items()},
            peak_mib=peak_memory_mib(device),
        )


def variants(
    models: dict[str, dict[str, Any]],
    report: Report,
    folder: Path,
    distributed: DistributedContext,
    *,
    steps: int,
    repeats: int,
    compiled: bool,
) -> None:
    """Layouts, precisions and compilation, forward and backward, without a loader."""
    rate = matrix_rate(distributed.device)
    report.row(matrix_tflops=rate / 1e12, device=str(distributed.device))
    choices = [
        {"TRAIN.CHANNELS_LAST": layout, "PRECISION": precision, "TRAIN.COMPILE": "none"}
        for precision in ("float32", "bfloat16")
        for layout in ("false", "true")
    ]
    if compiled:
        choices.append({**choices[-1], "TRAIN.COMPILE": "default"})
    for name, options in models.items():
        loops, costs = {}, {}
        for choice in choices:
            cfg = config(folder, **options, **choice)
            bench = Bench(cfg, distributed, folder / "run", steps=steps)
            label = " ".join(str(value) for value in choice.values())
            loops[label] = bench.plain(bench.learner())
            costs[label] = bench.clips_per_step
        flops = 2 * 3 * cost_of(build_encoder(cfg)).flops  # multiply and add; three passes
        clock = time.perf_counter if distributed.device.type == "cuda" else time.process_time
        for label, times in interleaved(loops, repeats=repeats, clock=clock).items():
            clips_s = costs[label] * steps / times.median
            report.row(
                model=name,
                channels_last_precision_compile=label,
                clips_s=clips_s,
                share_of_matrix_rate=clips_s * flops / rate,
                spread=times.spread,
            )


def matrix_rate(device: torch.device, *, size: int = 0) -> float:
    """FLOP/s of the product of two square matrices, in bfloat16 on a GPU, else in float32."""
    gpu = device.type == "cuda"
    size = size or (8192 if gpu else 1024)
    one = torch.rand(size, size, device=device, dtype=torch.bfloat16 if gpu else torch.float32)
    clock = time.perf_counter if gpu else time.process_time
    times = interleaved({"product": lambda: one @ one}, repeats=9, warmup=3, clock=clock)
    return 2 * size**3 / times["product"].median


def processes(report: Report, folder: Path, *, counts: tuple[int, ...], steps: int) -> None:
    """Clips a second of several processes of one thread, the batch of each held constant."""
    rates: dict[int, float] = {}
    for count in counts:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        queue = mp.get_context("spawn").SimpleQueue()
        mp.spawn(_process, args=(count, port, folder, steps, queue), nprocs=count)
        seconds, cpu, row = queue.get()
        clips = SMALL["TRAIN.BATCH"] * 2 * count
        rates[count] = clips / seconds
        cores = min(count, os.cpu_count() or 1)
        report.row(
            processes=count,
            step_ms=1000 * seconds,
            clips_s=rates[count],
            cpu_ms_a_clip=1000 * cpu / clips,
            efficiency=rates[count] / count / rates[counts[0]],
            of_what_the_cores_allow=rates[count] / cores / rates[counts[0]],
            split=row,
        )


def _process(rank: int, count: int, port: int, folder: Path, steps: int, queue: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(count),
        LOCAL_WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    with distributed_context("cpu") as distributed:
        options = {**SMALL, "TRAIN.BATCH": SMALL["TRAIN.BATCH"] * count, "DATA.WORKERS": 0}
        bench = Bench(config(folder, **options), distributed, folder / f"run{rank}", steps=steps)
        loop = bench.plain(bench.learner())
        loop()
        distributed.barrier()
        started, cpu = time.perf_counter(), time.process_time()
        loop()
        distributed.barrier()
        seconds = (time.perf_counter() - started) / steps
        cpu = float(distributed.total(torch.tensor(time.process_time() - cpu))) / steps
        quiet = Report("split") if distributed.is_main else Report("other")
        split(bench, quiet)
        if distributed.is_main:
            queue.put((seconds, cpu, {k: round(v, 1) for k, v in quiet.rows[0].items()}))


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--parts", nargs="+", default=["engine", "split", "variants", "processes"])
    parser.add_argument("--gpu", action="store_true", help="full models on the GPU")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    args: argparse.Namespace = parser.parse_args()
    device = torch.device("cuda" if args.gpu else "cpu")
    distributed = DistributedContext(rank=0, size=1, device=device)
    report = Report("train", packages=("torchvision",))
    options = {**(FULL if args.gpu else SMALL), "DATA.WORKERS": 8 if args.gpu else 0}
    vit = {**options, **(VIT if args.gpu else SMALL_VIT)}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        parts: dict[str, Callable[[], None]] = {
            "engine": lambda: engine(
                Bench(config(folder, **options), distributed, folder / "run", steps=args.steps),
                report,
                repeats=args.repeats,
            ),
            "split": lambda: split(
                Bench(config(folder, **options), distributed, folder / "run", steps=args.steps),
                report,
            ),
            "variants": lambda: variants(
                {"r2plus1d_18": options, vit["MODEL.NAME"]: vit},
                report,
                folder,
                distributed,
                steps=max(2, args.steps // 3),
                repeats=args.repeats,
                compiled=args.gpu,
            ),
            "processes": lambda: processes(report, folder, counts=(1, 2, 4), steps=args.steps),
        }
        for part in args.parts:
            parts[part]()
    report.finish(args.json)


if __name__ == "__main__":
    main()
