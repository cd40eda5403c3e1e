"""Evaluate one model: accuracy, robustness, report."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidcsl.data.lists import VideoList
from vidcsl.evaluation.features import Features
from vidcsl.evaluation.geometry import describe_geometry, project
from vidcsl.evaluation.neighbours import nearest
from vidcsl.evaluation.probes import video_answers
from vidcsl.io import Log, save_arrays
from vidcsl.methods import Method
from vidcsl.methods.supervised import Supervised
from vidcsl.models.encoder import Classifier
from vidcsl.pipelines.attack import attack_targets
from vidcsl.pipelines.context import EvaluationContext
from vidcsl.pipelines.corrupt import corrupt_clips, corruption_results
from vidcsl.pipelines.data import build_corruptions
from vidcsl.pipelines.protocols import (
    add_accuracy,
    finetune,
    name_videos,
    run_protocols,
    run_splits,
    run_transfer,
    trained,
)
from vidcsl.pipelines.targets import build_targets
from vidcsl.pipelines.training import build_trackers, robust_recipe
from vidcsl.report.page import write_report
from vidcsl.robustness.targets import Target, classifier

# ----------------------------------------------------------------------
# The adversarial protocols ALF and AFF, from a config to classifiers and accuracies.


def robust_classifiers(
    results: dict[str, Any], test: VideoList, context: EvaluationContext
) -> dict[str, Classifier]:
    """Train what ROBUST.PROTOCOLS names, by what is appended to the names of attacks on it.

    `NAME_top1` of test videos goes into the results. Training lies in the run's folder, as
    fine-tuning does, and is not repeated.
    """
    found = {}
    for name in context.cfg.ROBUST.PROTOCOLS:
        method = trained(context, robust_recipe(context.cfg, name))
        name_videos(results, name, method, test, context)
        found[f"_{name}"] = Classifier(method.encoder, method.head).eval()  # type: ignore[arg-type]
    return found


def robust_targets(classifiers: dict[str, Classifier]) -> dict[str, Target]:
    """The same as targets of attacks."""
    return {suffix: classifier(model) for suffix, model in classifiers.items()}


def corrupt_robust(
    classifiers: dict[str, Classifier], test: VideoList, context: EvaluationContext
) -> None:
    """The section "robust" of the results: each of them under every corruption."""
    if classifiers and build_corruptions(context.cfg):
        context.store(
            {
                "robust": {
                    suffix.removeprefix("_"): {
                        "corruptions": corruption_results(model, test, context)
                    }
                    for suffix, model in classifiers.items()
                }
            }
        )


# ----------------------------------------------------------------------
# Evaluation of a trained encoder, from a config to results, pictures and the report.

# Sections of the results that trackers are told of.
TOLD = ("training", "clean", "geometry", "false_negatives", "attacks", "corruptions", "cost")
NEIGHBOURS = 5  # of each test video among the others, for the report


def evaluate(context: EvaluationContext, test: VideoList | None) -> None:
    """Run every evaluation that the config enables; each is on disk as soon as it is done."""
    cfg, method, train = context.cfg, context.method, context.train
    trained = type(method) is not Method  # and not foreign weights as they came
    name = cfg.METHOD.NAME if trained else cfg.MODEL.WEIGHTS.partition(":")[0]
    context.store({"name": cfg.NAME, "seed": cfg.SEED, "method": name})
    if test is None:
        context.store({"data": {"train_videos": len(train), "classes": list(train.classes)}})
        run_transfer(context)  # other data sets have lists of their own
    else:
        _evaluate_on(test, context)
    if context.distributed.is_main:
        tell_trackers(context)
        if cfg.REPORT.ENABLED:
            write_report(context.folder.path)
    context.distributed.barrier()


def tell_trackers(context: EvaluationContext) -> None:
    """Hand what the results hold in numbers to the trackers of LOG.TRACKERS."""
    if context.cfg.LOG.TRACKERS:
        results = context.folder.read_results()
        found = {name: results[name] for name in TOLD if name in results}
        log = Log(None, build_trackers(context.cfg, context.folder))
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


def _evaluate_on(test: VideoList, context: EvaluationContext) -> None:
    cfg, train = context.cfg, context.train
    data = _describe_data(train, test)
    context.store({"data": data})
    outcome = run_protocols(train, test, context)
    clean, queries = outcome.results, outcome.queries
    context.store({"data": {**data, "left_out": _left_out(test, queries)}})
    context.store({"geometry": describe_geometry(queries)})
    _keep_projection(queries, test, context)
    if isinstance(context.method, Supervised):
        with torch.no_grad():
            logits = context.method.head(queries.values.to(context.distributed.device)).cpu()
        add_accuracy(clean, "own_head", *video_answers(logits, queries.labels), seed=cfg.SEED)
    context.store({"clean": clean})
    if cfg.FINETUNE.ENABLED:
        finetune(clean, test, context)
        context.store({"clean": clean})
    robust = robust_classifiers(clean, test, context)
    context.store({"clean": clean})
    run_splits(clean, context)
    run_transfer(context)
    heads = context.heads()
    targets = build_targets(
        cfg, context.method.encoder, heads, outcome.gallery, classes=len(train.classes)
    )
    attack_targets({**targets, **robust_targets(robust)}, test, context)
    models = {
        suffix: Classifier(context.method.encoder, head).eval()  # type: ignore[arg-type]
        for suffix, head in heads.items()
    }
    corrupt_clips(models, test, context)
    corrupt_robust(robust, test, context)


def _keep_projection(queries: Features, test: VideoList, context: EvaluationContext) -> None:
    """`artifacts/projection.npz`: what the report draws of the features."""
    if context.distributed.is_main:
        projection, classes = project(queries), context.train.classes
        vectors = queries.pooled()
        _, near = nearest(vectors, vectors, k=min(NEIGHBOURS + 1, len(vectors)))
        arrays = {
            "angles": projection.angles,
            "labels": [classes[label] for label in queries.labels.tolist()],
            "shown": np.float32(projection.shown),
            "videos": [test.videos[i].path.name for i in queries.indices.tolist()],
            "neighbours": _others(near),
        }
        save_arrays(context.folder.artifacts / "projection.npz", arrays)


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
