"""The protocols on more than one pair of lists: splits, averaged, and other data sets."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import mean
from typing import Any

from vidcsl import builders
from vidcsl.data.lists import VideoList
from vidcsl.stages.finetune import finetune
from vidcsl.stages.job import Job
from vidcsl.stages.protocols import run_protocols


def run_splits(first: dict[str, Any], job: Job) -> None:
    """The protocols on EVALUATE.SPLITS, and their average with what the first split gave."""
    found = [_on_split(train, test, job) for train, test in builders.build_splits(job.cfg)]
    if found:
        each = [first, *found]
        averages = {key: mean(values) for key, values in _shared_numbers(each).items()}
        job.store({"splits": {"count": len(each), "mean": averages, "each": each}})


def run_transfer(job: Job) -> None:
    """The protocols on EVALUATE.TRANSFER, each data set with its own gallery and queries."""
    pairs = builders.build_transfer(job.cfg)
    found = {name: run_protocols(*pair, job).results for name, pair in pairs.items()}
    if found:
        job.store({"transfer": found})


def _on_split(train: VideoList, test: VideoList, job: Job) -> dict[str, Any]:
    results = run_protocols(train, test, job).results
    if job.cfg.FINETUNE.ENABLED:
        finetune(results, test, replace(job, train=train))
    return results


def _shared_numbers(each: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Accuracies that all of them have, those in retrieval and low-shot among them."""
    flat = [_flat(results) for results in each]
    keys = [key for key in flat[0] if key.endswith("top1") or key.startswith("R@")]
    return {key: [one[key] for one in flat] for key in keys if all(key in one for one in flat)}


def _flat(results: dict[str, Any]) -> dict[str, Any]:
    few = {
        f"low_shot_{share}_{key}": found[key]
        for share, found in results.get("low_shot", {}).items()
        for key in ("top1", "clip_top1")
    }
    return {**results, **results.get("retrieval", {}), **few}
