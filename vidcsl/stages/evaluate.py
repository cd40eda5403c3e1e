"""Evaluation of a trained encoder, from a config to results, pictures and the report."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidcsl import builders
from vidcsl.data.lists import VideoList
from vidcsl.engine.progress import Log
from vidcsl.evaluation.arrays import save_arrays
from vidcsl.evaluation.features import Features
from vidcsl.evaluation.geometry import describe_geometry, project
from vidcsl.evaluation.linear import video_answers
from vidcsl.evaluation.neighbours import nearest
from vidcsl.models.heads import Classifier
from vidcsl.objectives import Method
from vidcsl.objectives.supervised import Supervised
from vidcsl.report.html import write_report
from vidcsl.stages.attack import attack_targets
from vidcsl.stages.corrupt import corrupt_clips
from vidcsl.stages.finetune import finetune
from vidcsl.stages.job import Job
from vidcsl.stages.protocols import add_accuracy, run_protocols
from vidcsl.stages.robust import corrupt_robust, robust_classifiers, robust_targets
from vidcsl.stages.splits import run_splits, run_transfer

# Sections of the results that trackers are told of.
TOLD = ("training", "clean", "geometry", "false_negatives", "attacks", "corruptions", "cost")
NEIGHBOURS = 5  # of each test video among the others, for the report


def evaluate(job: Job, test: VideoList | None) -> None:
    """Run every evaluation that the config enables; each is on disk as soon as it is done."""
    cfg, method, train = job.cfg, job.method, job.train
    trained = type(method) is not Method  # and not foreign weights as they came
    name = cfg.METHOD.NAME if trained else cfg.MODEL.WEIGHTS.partition(":")[0]
    job.store({"name": cfg.NAME, "seed": cfg.SEED, "method": name})
    if test is None:
        job.store({"data": {"train_videos": len(train), "classes": list(train.classes)}})
        run_transfer(job)  # other data sets have lists of their own
    else:
        _evaluate_on(test, job)
    if job.world.is_main:
        tell_trackers(job)
        if cfg.REPORT.ENABLED:
            write_report(job.folder.path)
    job.world.barrier()


def tell_trackers(job: Job) -> None:
    """Hand what the results hold in numbers to the trackers of LOG.TRACKERS."""
    if job.cfg.LOG.TRACKERS:
        results = job.folder.read_results()
        found = {name: results[name] for name in TOLD if name in results}
        log = Log(None, builders.build_trackers(job.cfg, job.folder))
        log.write("results", **numbers_in(found))
        log.close()


def numbers_in(tree: Mapping[str, Any], *, prefix: str = "") -> dict[str, float]:
    """`{"clean": {"knn_top1": 1.0, "note": "x"}}` as `{"clean/knn_top1": 1.0}`: numbers alone."""
    found: dict[str, float] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= numbers_in(value, prefix=f"{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = float(value)
    return found


def _evaluate_on(test: VideoList, job: Job) -> None:
    cfg, train = job.cfg, job.train
    data = _describe_data(train, test)
    job.store({"data": data})
    outcome = run_protocols(train, test, job)
    clean, queries = outcome.results, outcome.queries
    job.store({"data": {**data, "left_out": _left_out(test, queries)}})
    job.store({"geometry": describe_geometry(queries)})
    _keep_projection(queries, test, job)
    if isinstance(job.method, Supervised):
        with torch.no_grad():
            logits = job.method.head(queries.values.to(job.world.device)).cpu()
        add_accuracy(clean, "own_head", *video_answers(logits, queries.labels), seed=cfg.SEED)
    job.store({"clean": clean})
    if cfg.FINETUNE.ENABLED:
        finetune(clean, test, job)
        job.store({"clean": clean})
    robust = robust_classifiers(clean, test, job)
    job.store({"clean": clean})
    run_splits(clean, job)
    run_transfer(job)
    heads = job.heads()
    targets = builders.build_targets(
        cfg, job.method.encoder, heads, outcome.gallery, classes=len(train.classes)
    )
    attack_targets({**targets, **robust_targets(robust)}, test, job)
    models = {suffix: Classifier(job.method.encoder, head).eval() for suffix, head in heads.items()}  # type: ignore[arg-type]
    corrupt_clips(models, test, job)
    corrupt_robust(robust, test, job)


def _keep_projection(queries: Features, test: VideoList, job: Job) -> None:
    """`artifacts/projection.npz`: what the report draws of the features."""
    if job.world.is_main:
        projection, classes = project(queries), job.train.classes
        vectors = queries.pooled()
        _, near = nearest(vectors, vectors, k=min(NEIGHBOURS + 1, len(vectors)))
        arrays = {
            "angles": projection.angles,
            "labels": [classes[label] for label in queries.labels.tolist()],
            "shown": np.float32(projection.shown),
            "videos": [test.videos[i].path.name for i in queries.indices.tolist()],
            "neighbours": _others(near),
        }
        save_arrays(job.folder.artifacts / "projection.npz", arrays)


def _others(near: Tensor) -> Tensor:
    """The neighbours `[n, k]` of `[n, k + 1]`, the video itself left out, wherever it stands."""
    itself = near == torch.arange(len(near))[:, None]
    itself[:, -1] |= ~itself.any(dim=1)  # equal videos may have crowded it out
    return near[~itself].view(len(near), -1)


def _describe_data(train: VideoList, test: VideoList) -> dict[str, Any]:
    counts = np.bincount([video.label for video in test.videos], minlength=len(train.classes))
    return {
        "classes": list(train.classes),
        "train_videos": len(train),
        "test_videos": len(test),
        # The best that can be had without looking: always the most frequent class.
        "chance": float(counts.max() / counts.sum()),
    }


def _left_out(test: VideoList, queries: Features) -> list[str]:
    """The test videos that could not be read."""
    seen = set(queries.indices.tolist())
    return [str(video.path) for k, video in enumerate(test.videos) if k not in seen]
