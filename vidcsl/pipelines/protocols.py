"""Probes, neighbours and fine-tuning, on one split, several splits or other data sets."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from vidcsl.config import dump_config
from vidcsl.data.lists import VideoList
from vidcsl.errors import UserError
from vidcsl.evaluation.features import Features
from vidcsl.evaluation.neighbours import RANKS, first_hits, knn_predictions
from vidcsl.evaluation.probes import fit_attentive_probe, low_shot_accuracy, video_answers
from vidcsl.evaluation.statistics import bootstrap_interval
from vidcsl.methods.supervised import Supervised
from vidcsl.pipelines.context import EvaluationContext, require_labelled
from vidcsl.pipelines.data import (
    build_augmentation,
    build_splits,
    build_train_loader,
    build_transfer,
)
from vidcsl.pipelines.training import FinetuneRecipe, build_learner, finetune_recipe
from vidcsl.run_folder import RunFolder, digest
from vidcsl.training.checkpoint import CheckpointWriter, load_newest
from vidcsl.training.optimisation import Schedule
from vidcsl.training.train import RunOutput, Trainer, TrainingData

# ----------------------------------------------------------------------
# The protocols on frozen features of one pair of lists, from a config to the numbers.


@dataclass(frozen=True)
class ProtocolOutcome:
    """What the protocols found, and what they found it with.

    Args:
        results: the section `clean` of the results.
        gallery, queries: features of the training and of the test videos.
    """

    results: dict[str, Any]
    gallery: Features
    queries: Features


def run_protocols(train: VideoList, test: VideoList, context: EvaluationContext) -> ProtocolOutcome:
    """Every protocol that the config enables; each reads the same features, extracted once.

    Raises:
        UserError: a test video has no label.
    """
    require_labelled(test)
    cfg = context.cfg.EVALUATE
    gallery = context.features(train, clips=cfg.TRAIN_VIEWS, crops=1)
    queries = context.features(test, clips=cfg.TEST_VIEWS, crops=cfg.CROPS)
    results: dict[str, Any] = {
        "test_videos": len(queries),
        "views": f"{cfg.TEST_VIEWS} clips x {cfg.CROPS} crops",
        "train_views": f"{cfg.TRAIN_VIEWS} clips x 1 crop",
        **context.norms,
        "intervals": {},
    }
    if bool((gallery.labels >= 0).any()):
        _neighbours(results, context.cfg, gallery, queries, classes=len(train.classes))
    if cfg.LINEAR:
        probe = context.linear_probe(gallery, train)
        answers = video_answers(probe.logits(queries.values), queries.labels)
        add_accuracy(results, "linear", *answers, seed=context.cfg.SEED)
        results["linear_penalty"] = probe.penalty
        if isfinite(probe.held_out_top1):
            results["linear_held_out_top1"] = probe.held_out_top1
    if cfg.ATTENTIVE:
        _attentive(results, train, test, context)
    results.update(_low_shot(context, gallery, queries, classes=len(train.classes)))
    return ProtocolOutcome(results, gallery, queries)


def add_accuracy(
    results: dict[str, Any], name: str, videos: Tensor, clips: Tensor, *, seed: int
) -> None:
    """`NAME_top1` of videos and `NAME_clip_top1` of clips, with their intervals, into `results`."""
    for key, right in ((f"{name}_top1", videos), (f"{name}_clip_top1", clips)):
        results[key] = float(right.float().mean())
        results["intervals"][key] = bootstrap_interval(right, seed=seed)


def _neighbours(
    results: dict[str, Any], cfg: CfgNode, gallery: Features, queries: Features, *, classes: int
) -> None:
    labelled = gallery.labels >= 0
    shown, known = gallery.pooled()[labelled], gallery.labels[labelled]
    asked = queries.pooled()
    if cfg.EVALUATE.KNN:
        named = knn_predictions(asked, shown, known, classes=classes, k=cfg.EVALUATE.KNN_K)
        right = named == queries.labels
        results["knn_top1"] = float(right.float().mean())
        results["intervals"]["knn_top1"] = bootstrap_interval(right, seed=cfg.SEED)
    if cfg.EVALUATE.RETRIEVAL:
        ranks = [rank for rank in RANKS if rank <= len(shown)]
        place = first_hits(asked, queries.labels, shown, known, within=max(ranks))
        results["retrieval"] = {f"R@{k}": float((place <= k).float().mean()) for k in ranks}
        for rank in ranks:
            interval = bootstrap_interval(place <= rank, seed=cfg.SEED)
            results["intervals"][f"R@{rank}"] = interval


def _attentive(
    results: dict[str, Any], train: VideoList, test: VideoList, context: EvaluationContext
) -> None:
    cfg, dim = context.cfg.EVALUATE, int(context.method.encoder.feature_dim)  # type: ignore[arg-type]
    views = {"clips": cfg.TRAIN_VIEWS, "crops": 1}
    tokens = context.features(train, **views, tokens=cfg.TOKENS)
    asked = context.features(test, clips=cfg.TEST_VIEWS, crops=cfg.CROPS, tokens=cfg.TOKENS)
    with context.timed("attentive probe"):
        logits, chosen = context.distributed.broadcast(
            _attended(tokens, asked, dim, len(train.classes), context.cfg)
            if context.distributed.is_main
            else None
        )
    add_accuracy(results, "attentive", *video_answers(logits, asked.labels), seed=context.cfg.SEED)
    results["attentive_setting"] = chosen


def _attended(
    tokens: Features, asked: Features, dim: int, classes: int, cfg: CfgNode
) -> tuple[Tensor, dict[str, float]]:
    """Logits of the test clips, and what was chosen."""
    probe = fit_attentive_probe(
        tokens, dim=dim, classes=classes, epochs=cfg.EVALUATE.ATTENTIVE_EPOCHS, seed=cfg.SEED
    )
    chosen = {"learning_rate": probe.learning_rate, "weight_decay": probe.weight_decay}
    if isfinite(probe.held_out_top1):
        chosen["held_out_top1"] = probe.held_out_top1
    return probe.logits(asked.values), chosen


def _low_shot(
    context: EvaluationContext, gallery: Features, queries: Features, *, classes: int
) -> dict[str, Any]:
    """`{"low_shot": {"0.01": ...}}`, the same on every process."""
    cfg, found = context.cfg, {}
    for share in (share for share in cfg.EVALUATE.LOW_SHOT if share > 0):
        if share > 1:
            raise UserError(f"EVALUATE.LOW_SHOT {share:g}: shares lie between 0 and 1")
        with context.timed(f"low-shot probe, {share:.0%}"):
            found[f"{share:g}"] = context.distributed.broadcast(
                low_shot_accuracy(
                    gallery,
                    queries,
                    share=share,
                    classes=classes,
                    draws=cfg.EVALUATE.LOW_SHOT_DRAWS,
                    seed=cfg.SEED,
                )
                if context.distributed.is_main
                else None
            )
    return {"low_shot": found} if found else {}


# ----------------------------------------------------------------------
# Fine-tuning of a copy of the encoder, from a config to accuracies; goes on after a kill.


def finetune(results: dict[str, Any], test: VideoList, context: EvaluationContext) -> None:
    """Train a copy of the encoder with a fresh head, and add how well it names the test videos."""
    recipe = finetune_recipe(context.cfg)
    name_videos(results, "finetune", trained(context, recipe), test, context)


def name_videos(
    results: dict[str, Any],
    name: str,
    method: Supervised,
    test: VideoList,
    context: EvaluationContext,
) -> None:
    """Add how well a trained method names the test videos, `NAME_top1`."""
    method.eval()
    tuned = replace(context, method=method)
    queries = tuned.features(
        test, clips=context.cfg.EVALUATE.TEST_VIEWS, crops=context.cfg.EVALUATE.CROPS
    )
    with torch.no_grad():
        logits = method.head(queries.values.to(context.distributed.device)).cpu()
    add_accuracy(results, name, *video_answers(logits, queries.labels), seed=context.cfg.SEED)


def trained(context: EvaluationContext, recipe: FinetuneRecipe) -> Supervised:
    """A copy of the encoder under a head, trained by the recipe.

    What it learns lies in the run's folder, under the recipe's name, by the weights it started
    from and the videos: a stopped training goes on where it was, a finished one is not repeated.
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
    method = recipe.build(deepcopy(context.method.encoder), context.train, distributed)
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
        title = _TITLES.get(recipe.name, recipe.name)
        with context.timed(f"{title} on {Path(context.train.source).name}"):
            trainer.run()
    return method


_TITLES = {"finetune": "fine-tuning"}


# ----------------------------------------------------------------------
# The protocols on more than one pair of lists: splits, averaged, and other data sets.


def run_splits(first: dict[str, Any], context: EvaluationContext) -> None:
    """The protocols on EVALUATE.SPLITS, and their average with what the first split gave."""
    found = [_on_split(train, test, context) for train, test in build_splits(context.cfg)]
    if found:
        each = [first, *found]
        averages = {key: mean(values) for key, values in _shared_numbers(each).items()}
        context.store({"splits": {"count": len(each), "mean": averages, "each": each}})


def run_transfer(context: EvaluationContext) -> None:
    """The protocols on EVALUATE.TRANSFER, each data set with its own gallery and queries."""
    pairs = build_transfer(context.cfg)
    found = {name: run_protocols(*pair, context).results for name, pair in pairs.items()}
    if found:
        context.store({"transfer": found})


def _on_split(train: VideoList, test: VideoList, context: EvaluationContext) -> dict[str, Any]:
    results = run_protocols(train, test, context).results
    if context.cfg.FINETUNE.ENABLED:
        finetune(results, test, replace(context, train=train))
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
