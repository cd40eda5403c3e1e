"""What the engine's options cost: how long a checkpoint stops a training, the memory of a step.

`python benchmarks/engine.py [checkpoints] [memory]`
"""

import os
import re
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from common import Report, arguments
from torch import nn

from vidcsl.distributed import DistributedContext
from vidcsl.models.resnet3d import r2plus1d_18
from vidcsl.training.checkpoint import CheckpointWriter, Position
from vidcsl.training.parallel import Strategy

ALONE = DistributedContext(rank=0, size=1, device=torch.device("cpu"))
CLIPS, FRAMES, SIZE, WIDTH = 16, 8, 64, 32


def measure_checkpoints(report: Report) -> None:
    """R(2+1)D-18 under AdamW: seconds until training goes on, and until the file is there."""
    encoder = r2plus1d_18(clip_frames=16, frame_size=112)
    optimiser = torch.optim.AdamW(encoder.parameters(), fused=True)
    sum(p.sum() for p in encoder.parameters()).backward()
    optimiser.step()
    state = {"config": "", "method": encoder.state_dict(), "optimiser": optimiser.state_dict()}
    stopped: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(5):
        for background in stopped:
            with tempfile.TemporaryDirectory(dir=".") as folder:
                writer = CheckpointWriter(Path(folder), ALONE, background=background)
                started = time.perf_counter()
                writer.save(state, Position(1, 0))
                stopped[background].append(time.perf_counter() - started)
                writer.wait()
                written = time.perf_counter() - started
                size = sum(path.stat().st_size for path in Path(folder).iterdir())
                writer.close()
            report.row(
                turn=turn,
                background=background,
                stopped_s=stopped[background][-1],
                written_s=written,
                mib=size / 2**20,
            )
    ahead, waiting = (sorted(stopped[each])[2] for each in (True, False))
    report.target(
        "median stop in the background over waiting",
        measured=ahead / waiting,
        wanted="<= 0.25",
        met=ahead / waiting <= 0.25,
    )


def measure_memory(report: Report) -> None:
    """Forward and backward of a slim R(2+1)D-18, plain, by blocks computed again, by chunks."""
    cases = {"plain": (False, 0), "TRAIN.RECOMPUTE": (True, 0), "TRAIN.CHUNK 4 clips": (False, 4)}
    cases["both"] = (True, 4)
    for name, (recompute, chunk) in cases.items():
        mib, seconds = in_process(partial(step, recompute=recompute, chunk=chunk))
        report.row(step=name, peak_mib=mib, seconds=seconds)


def step(*, recompute: bool, chunk: int) -> tuple[float, float]:
    """Memory of a step above what was held before it, MiB, and its processor time, s."""
    encoder = r2plus1d_18(clip_frames=FRAMES, frame_size=SIZE, width=WIDTH)
    encoder.chunk = chunk
    Strategy(recompute=recompute).prepare(nn.ModuleDict({"encoder": encoder}), ALONE)
    clips = torch.rand(CLIPS, 3, FRAMES, SIZE, SIZE)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, started = peak(), time.process_time()
    encoder.train()(clips).square().mean().backward()
    return peak() - before, time.process_time() - started


def peak() -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 2**10


def in_process(function) -> list[float]:
    """The numbers that a function returns, from a process of its own."""
    read, write = os.pipe()
    if not (child := os.fork()):
        os.write(write, " ".join(map(str, function())).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        numbers = [float(word) for word in pipe.read().split()]
    os.waitpid(child, 0)
    return numbers


SUBJECTS = {"memory": measure_memory, "checkpoints": measure_checkpoints}


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("subjects", nargs="*", default=list(SUBJECTS), help=", ".join(SUBJECTS))
    options = parser.parse_args()
    report = Report("engine")
    for subject in sorted(options.subjects, key=list(SUBJECTS).index):  # forks before it computes
        SUBJECTS[subject](report)
    report.finish(options.json)


if __name__ == "__main__":
    main()
