"""What a study will cost: from what its finished runs took, or from a trial on a few videos."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from fvcore.common.config import CfgNode

from vidcsl import builders
from vidcsl.config import dump_config, overridden
from vidcsl.data.lists import Row, VideoList, write_list
from vidcsl.engine.distributed import World
from vidcsl.engine.run_folder import RunFolder
from vidcsl.errors import UserError
from vidcsl.report.summary import Tree, number
from vidcsl.study.plan import Run
from vidcsl.study.runner import environment, is_finished

_STEPS = 4  # of a trial, the first of which is slow


@dataclass(frozen=True)
class Estimate:
    """What one run is expected to take, and how that is known.

    Args:
        hours: of one process.
        source: "recorded" of finished runs of the same arm and setting, or "measured" in a trial.
    """

    hours: float
    source: str


def estimate(runs: Sequence[Run], *, jobs: int = 1) -> dict[tuple[str, str], Estimate]:
    """By setting and arm; trials get the threads that one of `jobs` runs at a time will have.

    Raises:
        UserError: a trial failed.
    """
    found: dict[tuple[str, str], Estimate] = {}
    for run in runs:
        kind = (run.setting, run.arm)
        if kind in found:
            continue
        done = [each for each in runs if (each.setting, each.arm) == kind and is_finished(each)]
        recorded = [total_hours(RunFolder(each.folder).read_results()) for each in done]
        if recorded:
            found[kind] = Estimate(fmean(recorded), "recorded")
        else:
            found[kind] = Estimate(_measured(run, jobs=jobs), "measured")
    return found


def total_hours(results: Tree) -> float:
    """What all stages of a run took, in hours."""
    seconds = results.get("cost", {}).get("seconds", {})
    return sum(value for each in seconds.values() if (value := number(each)) is not None) / 3600


def _measured(run: Run, *, jobs: int) -> float:
    """Hours, from a trial of a few steps and test videos whose every stage is scaled up.

    An attack stops at clips that have fallen, and an untrained model falls early: robust models
    take longer, up to as many times as there are budgets.
    """
    alone = World(rank=0, size=1, device=torch.device("cpu"))
    train, test = builders.build_lists(run.cfg, alone)
    with tempfile.TemporaryDirectory() as folder:
        cfg = trial_config(run.cfg, train, test, Path(folder))
        path = Path(folder) / "trial.yaml"
        path.write_text(dump_config(cfg))
        command = [sys.executable, "-m", "vidcsl.cli", "train", "--cfg", str(path)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment(jobs=jobs)
        )
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise UserError(f"the trial of {run.title} failed: {last[0]}")
        results = RunFolder(cfg.OUTPUT_DIR).read_results()
    seconds = scaled(
        results["cost"]["seconds"],
        steps=run.cfg.TRAIN.EPOCHS * (len(train) // run.cfg.TRAIN.BATCH) / _STEPS,
        rounds=run.cfg.FALSE_NEGATIVES.ROUNDS - 1,
        train=len(train) / results["data"]["train_videos"],
        test=len(test) / results["data"].get("test_videos", 1) if test else 0.0,
    )
    return sum(seconds.values()) / 3600


def trial_config(cfg: CfgNode, train: VideoList, test: VideoList | None, folder: Path) -> CfgNode:
    """The same run on so few videos that it takes steps, not epochs."""
    batch, root = cfg.TRAIN.BATCH, cfg.DATA.ROOT
    few = write_few(train, _STEPS * batch, folder / "train.csv", root)
    few_test = (
        write_few(test, cfg.EVALUATE.BATCH, folder / "test.csv", root) if test is not None else ""
    )
    values = {
        "SYNTHETIC.ENABLED": False,
        "DATA.TRAIN_LIST": few,
        "DATA.TEST_LIST": few_test,
        "TRAIN.EPOCHS": 1,
        "TRAIN.WARMUP_EPOCHS": 0.0,
        "TRAIN.BATCH": min(batch, len(train) // _STEPS or 1),
        "FALSE_NEGATIVES.CLUSTERS": [2],
        "FALSE_NEGATIVES.ROUNDS": min(2, cfg.FALSE_NEGATIVES.ROUNDS),
        "FALSE_NEGATIVES.TUTOR": "",  # it remembers other videos than these few
        "EVALUATE.KNN_K": 1,
        "EVALUATE.SPLITS": [],
        "EVALUATE.TRANSFER": [],
        "EVALUATE.LOW_SHOT": [0.0],
        "OUTPUT_DIR": str(folder / "run"),
        "REPORT.ENABLED": False,
    }
    return overridden(cfg, values)


def scaled(
    seconds: Mapping[str, float], *, steps: float, rounds: int, train: float, test: float
) -> dict[str, float]:
    """A trial's seconds by stage, as of the whole run: each stage grows with what it walks over."""
    factors = {"pretraining": steps, "earlier rounds": steps * rounds}
    factors |= {"features of train.csv": train, "linear probe": train}
    return {stage: spent * factors.get(stage, test) for stage, spent in seconds.items()}


def write_few(videos: VideoList, count: int, path: Path, root: str) -> str:
    """Write a list of `count` evenly chosen videos to `path`; returns that path."""
    count = min(count, len(videos))
    chosen = [videos.videos[i * len(videos) // count] for i in range(count)]
    rows = [
        Row(
            os.path.relpath(video.path, root),
            videos.classes[video.label] if video.label >= 0 else "",
            str(video.group) if video.group >= 0 else "",
            video.span,
        )
        for video in chosen
    ]
    write_list(path, rows)
    return str(path)
