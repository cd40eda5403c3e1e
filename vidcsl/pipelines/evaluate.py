"""Evaluate one model: features, probes, attacks, corruptions, report.

`evaluate` is the whole order of events. Every part writes its section of results.json as soon as it
is done, and stores what it computed, so that a stopped evaluation continues where it was.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from vidcsl.data.lists import VideoList
from vidcsl.evaluation.features import Features
from vidcsl.evaluation.geometry import describe_geometry, project
from vidcsl.evaluation.neighbours import nearest
from vidcsl.io import Log, save_arrays
from vidcsl.methods import Method
from vidcsl.methods.supervised import Supervised
from vidcsl.models.encoder import Classifier
from vidcsl.pipelines.attack import attack_targets
from vidcsl.pipelines.context import EvaluationContext
from vidcsl.pipelines.corrupt import corruption_section, evaluate_corruptions, store_corrupted_clips
from vidcsl.pipelines.data import build_corruptions
from vidcsl.pipelines.protocols import (
    add_head_accuracy,
    evaluate_finetuned,
    evaluate_frozen,
    evaluate_splits,
    evaluate_transfer,
)
from vidcsl.pipelines.targets import build_targets
from vidcsl.pipelines.training import build_trackers, finetune_recipe, robust_recipe
from vidcsl.report.page import write_report
from vidcsl.robustness.targets import classifier

# The sections of the results whose numbers trackers receive.
TRACKED = ("training", "clean", "geometry", "false_negatives", "attacks", "corruptions", "cost")
NEIGHBOURS = 5  # of each test video, shown in the report


def evaluate(context: EvaluationContext, test: VideoList | None) -> None:
    """Run every evaluation that the config enables, then write the report.

    Args:
        context: the model and its run.
        test: the test videos; without them only the data sets of EVALUATE.TRANSFER are evaluated.
    """
    cfg, method, train = context.cfg, context.method, context.train
    foreign = type(method) is Method  # weights of others come without a method of training
    name = cfg.MODEL.WEIGHTS.partition(":")[0] if foreign else cfg.METHOD.NAME
    context.store({"name": cfg.NAME, "seed": cfg.SEED, "method": name})
    if test is None:
        context.store({"data": {"train_videos": len(train), "classes": list(train.classes)}})
        evaluate_transfer(context)
    else:
        _evaluate_on(test, context)
    if context.distributed.is_main:
        if cfg.LOG.TRACKERS:
            results = context.folder.read_results()
            log = Log(None, build_trackers(cfg, context.folder))
            log.write("results", **flat_numbers({k: results[k] for k in TRACKED if k in results}))
            log.close()
        if cfg.REPORT.ENABLED:
            write_report(context.folder.path)
    context.distributed.barrier()


def _evaluate_on(test: VideoList, context: EvaluationContext) -> None:
    cfg, encoder, train = context.cfg, context.method.encoder, context.train
    counts = np.bincount([video.label for video in test.videos], minlength=len(train.classes))
    data = {
        "classes": list(train.classes),
        "train_videos": len(train),
        "test_videos": len(test),
        # The best accuracy without looking at a video: always name the most frequent class.
        "chance": float(counts.max() / counts.sum()),
    }
    context.store({"data": data})

    # Frozen features: kNN, retrieval and probes; geometry; the head of supervised training.
    frozen = evaluate_frozen(train, test, context)
    clean, queries = frozen.results, frozen.queries
    read = set(queries.indices.tolist())
    left_out = [str(video.path) for k, video in enumerate(test.videos) if k not in read]
    context.store({"data": {**data, "left_out": left_out}})
    context.store({"geometry": describe_geometry(queries)})
    if context.distributed.is_main:
        store_projection(queries, test, context)
    if isinstance(context.method, Supervised):
        add_head_accuracy(clean, "own_head", context.method.head, queries, context)
    context.store({"clean": clean})

    # Copies of the encoder that are trained with labels: fine-tuning, and ALF and AFF, which are
    # attacked and corrupted below like the encoder itself.
    if cfg.FINETUNE.ENABLED:
        evaluate_finetuned(clean, finetune_recipe(cfg), test, context)
        context.store({"clean": clean})
    robust: dict[str, Classifier] = {}
    for protocol in cfg.ROBUST.PROTOCOLS:
        tuned = evaluate_finetuned(clean, robust_recipe(cfg, protocol), test, context)
        robust[protocol] = Classifier(tuned.encoder, tuned.head).eval()  # type: ignore[arg-type]
    context.store({"clean": clean})

    # More lists: further splits and other data sets.
    evaluate_splits(clean, context)
    evaluate_transfer(context)

    # Attacks.
    heads = context.heads()
    targets = build_targets(cfg, encoder, heads, frozen.gallery, classes=len(train.classes))
    targets |= {f"_{protocol}": classifier(model) for protocol, model in robust.items()}
    attack_targets(targets, test, context)

    # Corruptions, of the linear probe if there is one.
    if build_corruptions(cfg) and heads:
        model = Classifier(encoder, next(iter(heads.values()))).eval()  # type: ignore[arg-type]
        table = evaluate_corruptions(model, test, context)
        context.store({"corruptions": corruption_section(table, context)})
        store_corrupted_clips(table, test, context)
    if build_corruptions(cfg) and robust:
        sections = {
            protocol: corruption_section(evaluate_corruptions(model, test, context), context)
            for protocol, model in robust.items()
        }
        context.store({"robust": {key: {"corruptions": each} for key, each in sections.items()}})


def flat_numbers(tree: Mapping[str, Any], *, prefix: str = "") -> dict[str, float]:
    """`{"clean": {"knn_top1": 1.0, "note": "x"}}` as `{"clean/knn_top1": 1.0}`: numbers alone."""
    found: dict[str, float] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flat_numbers(value, prefix=f"{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = float(value)
    return found


def store_projection(queries: Features, test: VideoList, context: EvaluationContext) -> None:
    """Write `artifacts/projection.npz`: the map of the features, and nearest test videos."""
    projection, classes = project(queries), context.train.classes
    vectors = queries.pooled()
    count = len(vectors)
    _, rows = nearest(vectors, vectors, k=min(NEIGHBOURS + 1, count))
    # Leave out the video itself. Equal videos may have crowded it out of its own neighbours.
    itself = rows == torch.arange(count)[:, None]
    itself[:, -1] |= ~itself.any(dim=1)
    arrays = {
        "angles": projection.angles,
        "labels": [classes[label] for label in queries.labels.tolist()],
        "shown": np.float32(projection.shown),
        "videos": [test.videos[i].path.name for i in queries.indices.tolist()],
        "neighbours": rows[~itself].view(count, -1),
    }
    save_arrays(context.folder.artifacts / "projection.npz", arrays)
