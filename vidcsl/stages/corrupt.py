"""Corruptions of the test clips, from a config to a table and scores, for one model or several."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fvcore.common.config import CfgNode
from torch import nn

from vidcsl import builders
from vidcsl.config import dump_config
from vidcsl.data.lists import VideoList
from vidcsl.engine.distributed import World
from vidcsl.engine.ledger import Ledger
from vidcsl.engine.run_folder import write_atomically
from vidcsl.engine.weights import weights_digest
from vidcsl.errors import UserError
from vidcsl.models.heads import Classifier
from vidcsl.report.html import write_report
from vidcsl.robustness.corruption_table import CorruptionTable, answered, corruption_table
from vidcsl.robustness.scores import (
    bootstrap_intervals,
    by_category,
    category_scores,
    mean_performance,
    mean_scores,
    robustness_scores,
    scored,
)
from vidcsl.stages.corrupted_films import keep_corrupted_films
from vidcsl.stages.job import Job, subset
from vidcsl.stages.opening import open_job, required

INTERVALS = "95 %, bootstrap over videos, 1000 resamples"


def corrupt_clips(models: Mapping[str, nn.Module], test: VideoList, job: Job) -> None:
    """Accuracy of the first model under every corruption and severity, and the scores."""
    if builders.build_corruptions(job.cfg) and models:
        model = next(iter(models.values()))  # the linear probe, where there is one
        table = judged(model, test, job)
        job.store({"corruptions": _section(table, job)})
        keep_corrupted_films(table, test, job)


def corruption_results(model: nn.Module, test: VideoList, job: Job) -> dict[str, Any]:
    """The section "corruptions" of the results."""
    return _section(judged(model, test, job), job)


def _section(table: CorruptionTable, job: Job) -> dict[str, Any]:
    return {**summarise(table), **job.norms}


def judged(model: nn.Module, test: VideoList, job: Job) -> CorruptionTable:
    """The model's answers. What was answered before is not asked again."""
    cfg, names = job.cfg, builders.build_corruptions(job.cfg)
    chosen = subset(test, cfg.CORRUPT.MAX_CLIPS)
    ledger = Ledger(
        job.folder.answers,
        settings=job.settings(
            test,
            weights_digest(model),
            evaluation="corruptions",
            batch=cfg.EVALUATE.BATCH,  # sums over other batches are rounded in another way
            seed=cfg.SEED,
        ),
        rank=job.world.rank,
    )
    # What the main process knows, so that all share the rest in the same way.
    known = job.world.share(answered(ledger, names) | set(ledger.answers("unreadable")))
    left = sum(video not in known for video in chosen)
    with job.timed("corruptions"), job.bar("corruptions", left) as advance:
        clips = job.clips(test, chosen, answered=known)
        table = corruption_table(
            model, clips, names, world=job.world, ledger=ledger, advance=advance
        ).over(chosen)
    if job.world.is_main:
        missing = sorted({*chosen} - {*table.videos})
        ledger.record("unreadable", missing, [True] * len(missing))
    return table


def summarise(table: CorruptionTable) -> dict[str, Any]:
    """Accuracies, scores by suite and category with intervals, and the frames not recovered."""
    clean = float(table.right_when_clean().mean())
    suites = table.accuracies()
    return {
        "clean": clean,
        "clips": len(table.videos),
        **suites,
        "scores": {
            **robustness_scores(clean, suites),
            "intervals": INTERVALS,
            "suites": {
                suite: _suite_scores(table, clean, counted, suite)
                for suite, accuracies in suites.items()
                if (counted := scored(accuracies, suite=suite))
            },
        },
        "repeated_frames": table.repeated(),
    }


def _suite_scores(
    table: CorruptionTable, clean: float, accuracies: Mapping[str, Sequence[float]], suite: str
) -> dict[str, Any]:
    groups = {"all": list(accuracies), **by_category(accuracies, suite=suite)}
    shares = {
        group: np.mean([table.right(f"{suite}/{name}").mean(axis=1) for name in names], axis=0)
        for group, names in groups.items()
    }
    intervals = bootstrap_intervals(table.right_when_clean(), shares)
    means = {
        "all": mean_scores(clean, mean_performance(accuracies)),
        **category_scores(clean, accuracies, suite=suite),
    }
    return {group: {**means[group], "interval": intervals[group]} for group in groups}


def corrupt_checkpoints(
    cfg: CfgNode, world: World, *, checkpoints: Sequence[Path], foreign: bool = False
) -> dict[str, dict[str, Any]]:
    """Corrupt the test clips for each checkpoint; where none is named, for `open_job`'s choice.

    With one checkpoint the results and the report of the run's folder are brought up to date; with
    several all sections are stored together in `corruptions.json`.

    Returns:
        The section of each, by the checkpoint's path.
    """
    if not builders.build_corruptions(cfg):
        raise UserError("CORRUPT.NAMES is empty: name corruptions, suites (P, C, V) or all")
    found: dict[str, dict[str, Any]] = {}
    for checkpoint in (*checkpoints,) or (None,):
        job, listed = open_job(cfg, world, checkpoint=checkpoint, foreign=foreign)
        test = required(listed)
        if world.is_main and not job.folder.config.exists():
            job.folder.write_config(dump_config(cfg))
        table = judged(_classifier(job), test, job)
        section = found[_source(job, checkpoint, foreign)] = _section(table, job)
        if len(checkpoints) < 2:
            keep_corrupted_films(table, test, job)
            _bring_up_to_date(section, job)
        elif world.is_main:
            text = json.dumps(found, indent=2) + "\n"
            write_atomically(job.folder.path / "corruptions.json", text)
    return found


def _source(job: Job, checkpoint: Path | None, foreign: bool) -> str:
    newest = job.cfg.MODEL.WEIGHTS if foreign else f"the newest of {job.folder.checkpoints}"
    return str(checkpoint or newest)


def _classifier(job: Job) -> nn.Module:
    """The encoder with its linear probe, or with its own head where probes are switched off."""
    heads = job.heads()
    if not heads:
        raise UserError("EVALUATE.LINEAR is false and the method has no head of its own: set it")
    return Classifier(job.method.encoder, next(iter(heads.values()))).eval()  # type: ignore[arg-type]


def _bring_up_to_date(section: Mapping[str, Any], job: Job) -> None:
    job.store({"name": job.cfg.NAME, "corruptions": section})
    if job.world.is_main and job.cfg.REPORT.ENABLED:
        write_report(job.folder.path)
