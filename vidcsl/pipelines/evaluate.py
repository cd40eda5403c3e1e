"""Evaluate one model: features, probes, attacks, corruptions, report.

`evaluate` is the whole order of events. Every part writes its section of results.json as soon as it
is done, and stores what it computed, so that a stopped evaluation continues where it was.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vidcsl.config import dump_config
from vidcsl.data.lists import VideoList
from vidcsl.errors import UserError
from vidcsl.evaluation.features import Features
from vidcsl.evaluation.geometry import describe_geometry, project
from vidcsl.evaluation.neighbours import RANKS, first_hits, knn_predictions, nearest
from vidcsl.evaluation.probes import correct_predictions, fit_attentive_probe, low_shot_accuracy
from vidcsl.evaluation.statistics import proportion_interval
from vidcsl.io import Log, save_arrays
from vidcsl.methods import Method
from vidcsl.methods.supervised import Supervised
from vidcsl.models.encoder import Classifier
from vidcsl.pipelines.attack import attack_targets
from vidcsl.pipelines.context import EvaluationContext, require_test_labels
from vidcsl.pipelines.corrupt import corruption_section, evaluate_corruptions, store_corrupted_clips
from vidcsl.pipelines.data import (
    build_augmentation,
    build_corruptions,
    build_splits,
    build_train_loader,
    build_transfer,
)
from vidcsl.pipelines.evaluations import join
from vidcsl.pipelines.targets import build_targets
from vidcsl.pipelines.training import (
    FinetuneRecipe,
    build_learner,
    build_trackers,
    finetune_recipe,
    robust_recipe,
)
from vidcsl.report.page import write_report
from vidcsl.robustness.targets import classifier
from vidcsl.run_folder import RunFolder, digest
from vidcsl.training.checkpoint import CheckpointWriter, load_newest
from vidcsl.training.optimisation import Schedule
from vidcsl.training.train import RunOutput, Trainer, TrainingData

# ----------------------------------------------------------------------
# Protocols on frozen features.


@dataclass(frozen=True)
class FrozenEvaluation:
    """The results of the protocols on frozen features, and these features.

    Args:
        results: the section `clean` of the results.
        gallery, queries: features of the training and of the test videos.
    """

    results: dict[str, Any]
    gallery: Features
    queries: Features


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
    run = {"name": cfg.NAME, "seed": cfg.SEED, "method": name, "weights": context.weights}
    context.store(run)
    if test is None:
        context.store({"data": {"train_videos": len(train), "classes": list(train.classes)}})
        evaluate_transfer(context)
    else:
        _evaluate_on(test, context)
    if context.distributed.is_main:
        join(context.folder)
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
    if cfg.ATTACK.RUNS:
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


# Accuracy protocols: on frozen features, with fine-tuning, on more splits and data sets.


def evaluate_frozen(
    train: VideoList, test: VideoList, context: EvaluationContext
) -> FrozenEvaluation:
    """kNN, retrieval, linear, attentive and low-shot probes, as the config enables them.

    All read the same features, which are extracted once.

    Raises:
        UserError: a test video has no label.
    """
    require_test_labels(test)
    cfg, seed, classes = context.cfg.EVALUATE, context.cfg.SEED, len(train.classes)
    gallery = context.features(train, clips=cfg.TRAIN_VIEWS, crops=1, training=True)
    queries = context.features(test, clips=cfg.TEST_VIEWS, crops=cfg.CROPS)
    results: dict[str, Any] = {
        "test_videos": len(queries),
        "views": f"{cfg.TEST_VIEWS} clips x {cfg.CROPS} crops",
        "train_views": f"{cfg.TRAIN_VIEWS} clips x 1 crop",
        **context.norms,
        "intervals": {},
    }
    intervals = results["intervals"]

    # Nearest neighbours. Unlabelled training videos cannot vote.
    labelled = gallery.labels >= 0
    vectors, labels = gallery.pooled()[labelled], gallery.labels[labelled]
    if cfg.KNN and len(vectors):
        named = knn_predictions(queries.pooled(), vectors, labels, classes=classes, k=cfg.KNN_K)
        correct = named == queries.labels
        results["knn_top1"] = float(correct.float().mean())
        intervals["knn_top1"] = proportion_interval(correct, seed=seed)
    if cfg.RETRIEVAL and len(vectors):
        ranks = [rank for rank in RANKS if rank <= len(vectors)]
        hits = first_hits(queries.pooled(), queries.labels, vectors, labels, within=max(ranks))
        results["retrieval"] = {f"R@{k}": float((hits <= k).float().mean()) for k in ranks}
        intervals |= {f"R@{k}": proportion_interval(hits <= k, seed=seed) for k in ranks}

    # Probes.
    if cfg.LINEAR:
        probe = context.linear_probe(gallery, train)
        add_accuracy(results, "linear", probe.logits(queries.values), queries.labels, seed=seed)
        results["linear_penalty"] = probe.penalty
        if isfinite(probe.held_out_top1):
            results["linear_held_out_top1"] = probe.held_out_top1
    if cfg.ATTENTIVE:
        _add_attentive_probe(results, train, test, context)
    if low_shot := _low_shot_probes(gallery, queries, classes=classes, context=context):
        results["low_shot"] = low_shot
    return FrozenEvaluation(results, gallery, queries)


def add_accuracy(
    results: dict[str, Any], name: str, logits: Tensor, labels: Tensor, *, seed: int
) -> None:
    """Add `NAME_top1` of videos and `NAME_clip_top1` of clips, with intervals, to `results`."""
    videos, clips = correct_predictions(logits, labels)
    for key, correct in ((f"{name}_top1", videos), (f"{name}_clip_top1", clips)):
        results[key] = float(correct.float().mean())
        results["intervals"][key] = proportion_interval(correct, seed=seed)


def add_head_accuracy(
    results: dict[str, Any],
    name: str,
    head: nn.Module,
    queries: Features,
    context: EvaluationContext,
) -> None:
    """Add the accuracy of a trained linear head on its encoder's features to `results`."""
    with torch.no_grad():
        logits = head(queries.values.to(context.distributed.device)).cpu()
    add_accuracy(results, name, logits, queries.labels, seed=context.cfg.SEED)


def _add_attentive_probe(
    results: dict[str, Any], train: VideoList, test: VideoList, context: EvaluationContext
) -> None:
    cfg, dim = context.cfg.EVALUATE, int(context.method.encoder.feature_dim)  # type: ignore[arg-type]
    gallery = context.features(
        train, clips=cfg.TRAIN_VIEWS, crops=1, tokens=cfg.TOKENS, training=True
    )
    queries = context.features(test, clips=cfg.TEST_VIEWS, crops=cfg.CROPS, tokens=cfg.TOKENS)
    # Fitted once: processes on other hardware could round differently and disagree.
    fitted: tuple[Tensor, dict[str, float]] | None = None
    with context.timed("attentive probe"):
        if context.distributed.is_main:
            probe = fit_attentive_probe(
                gallery,
                dim=dim,
                classes=len(train.classes),
                epochs=cfg.ATTENTIVE_EPOCHS,
                seed=context.cfg.SEED,
            )
            chosen = {"learning_rate": probe.learning_rate, "weight_decay": probe.weight_decay}
            if isfinite(probe.held_out_top1):
                chosen["held_out_top1"] = probe.held_out_top1
            fitted = probe.logits(queries.values), chosen
        logits, setting = context.distributed.broadcast(fitted)
    add_accuracy(results, "attentive", logits, queries.labels, seed=context.cfg.SEED)
    results["attentive_setting"] = setting


def _low_shot_probes(
    gallery: Features, queries: Features, *, classes: int, context: EvaluationContext
) -> dict[str, Any]:
    """`{"0.01": ...}` for each ratio of EVALUATE.LOW_SHOT, the same on every process."""
    cfg, found = context.cfg, {}
    for ratio in (ratio for ratio in cfg.EVALUATE.LOW_SHOT if ratio > 0):
        if ratio > 1:
            raise UserError(f"EVALUATE.LOW_SHOT {ratio:g}: ratios lie between 0 and 1")
        with context.timed(f"low-shot probe, {ratio:.0%}"):
            found[f"{ratio:g}"] = context.distributed.broadcast(
                low_shot_accuracy(
                    gallery,
                    queries,
                    ratio=ratio,
                    classes=classes,
                    draws=cfg.EVALUATE.LOW_SHOT_DRAWS,
                    seed=cfg.SEED,
                )
                if context.distributed.is_main
                else None
            )
    return found


# ----------------------------------------------------------------------
# Protocols that train a copy of the encoder with labels: fine-tuning, ALF and AFF.


def evaluate_finetuned(
    results: dict[str, Any], recipe: FinetuneRecipe, test: VideoList, context: EvaluationContext
) -> Supervised:
    """Train a copy of the encoder and a new head by a recipe; add their accuracy to `results`."""
    method = train_with_labels(context, recipe).eval()
    cfg = context.cfg.EVALUATE
    queries = replace(context, method=method).features(test, clips=cfg.TEST_VIEWS, crops=cfg.CROPS)
    add_head_accuracy(results, recipe.name, method.head, queries, context)
    return method


def train_with_labels(context: EvaluationContext, recipe: FinetuneRecipe) -> Supervised:
    """A copy of the encoder under a head, trained by the recipe.

    Its run folder lies in the context's, under the recipe's name and a digest of the initial
    weights, the videos and the settings: a stopped training run is continued, a finished one is not
    repeated.
    """
    cfg, distributed = context.cfg, context.distributed
    how = {
        "augment": dict(cfg.AUGMENT),
        "clips": {key: cfg.DATA[key] for key in ("CLIPS", "SAMPLING", "MIN_GAP", "MAX_GAP")},
        "step": [cfg.PRECISION, cfg.TRAIN.CLIP_GRADIENT],
        "seed": cfg.SEED,
        **recipe.settings,
    }
    settings = context.settings(context.train, context.weights, **how)
    folder = RunFolder(context.folder.path / recipe.name / digest(settings))
    if distributed.is_main:
        folder.create()
        folder.write_config(dump_config(cfg))
    distributed.barrier()
    encoder = deepcopy(context.method.encoder)
    method = recipe.build(encoder, context.train, distributed)  # type: ignore[arg-type]
    loader = build_train_loader(cfg, context.train, distributed, batch=recipe.batch)
    trainer = Trainer(
        learner=build_learner(cfg, method, distributed, optimiser=recipe.optimiser),
        data=TrainingData(
            batches=loader.epoch,
            augment=build_augmentation(cfg),
            seed=cfg.SEED,
            damaged_limit=int(cfg.DATA.DAMAGED_LIMIT * len(context.train)),
        ),
        schedule=Schedule(
            epochs=recipe.epochs,
            steps_per_epoch=loader.steps,
            peak_lr=recipe.lr,
            warmup_epochs=recipe.warmup_epochs,
            log_every=cfg.TRAIN.LOG_EVERY,
        ),
        output=RunOutput(
            folder=folder,
            writer=CheckpointWriter(folder.checkpoints, distributed, keep=1),
            document={"config": dump_config(cfg), "classes": list(context.train.classes)},
        ),
        distributed=distributed,
    )
    checkpoint = load_newest(folder.checkpoints)
    if checkpoint:
        trainer.restore(checkpoint)
    if trainer.position.epoch < recipe.epochs:
        title = "fine-tuning" if recipe.name == "finetune" else recipe.name
        with context.timed(f"{title} on {Path(context.train.source).name}"):
            trainer.run()
    return method


# ----------------------------------------------------------------------
# The protocols on more lists: further splits, averaged, and other data sets.


def evaluate_splits(first: dict[str, Any], context: EvaluationContext) -> None:
    """The protocols on EVALUATE.SPLITS, averaged together with the results on the first split."""
    each = [first]
    for train, test in build_splits(context.cfg):
        results = evaluate_frozen(train, test, context).results
        if context.cfg.FINETUNE.ENABLED:
            recipe = finetune_recipe(context.cfg)
            evaluate_finetuned(results, recipe, test, replace(context, train=train))
        each.append(results)
    if len(each) > 1:
        averages = {key: mean(values) for key, values in _shared_accuracies(each).items()}
        context.store({"splits": {"count": len(each), "mean": averages, "each": each}})


def evaluate_transfer(context: EvaluationContext) -> None:
    """The protocols on EVALUATE.TRANSFER: other data sets, each with its own gallery."""
    pairs = build_transfer(context.cfg)
    found = {name: evaluate_frozen(*pair, context).results for name, pair in pairs.items()}
    if found:
        context.store({"transfer": found})


def _shared_accuracies(each: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """The accuracies that all results have, including those in retrieval and low-shot."""
    flat = [
        {
            **results,
            **results.get("retrieval", {}),
            **{
                f"low_shot_{ratio}_{key}": found[key]
                for ratio, found in results.get("low_shot", {}).items()
                for key in ("top1", "clip_top1")
            },
        }
        for results in each
    ]
    keys = [key for key in flat[0] if key.endswith("top1") or key.startswith("R@")]
    return {key: [one[key] for one in flat] for key in keys if all(key in one for one in flat)}


# The sections of the results whose numbers trackers receive.
