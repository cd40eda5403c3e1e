"""The protocols on frozen features of one pair of lists, from a config to the numbers."""

from dataclasses import dataclass
from math import isfinite
from typing import Any

from fvcore.common.config import CfgNode
from torch import Tensor

from vidcsl.data.lists import VideoList
from vidcsl.errors import UserError
from vidcsl.evaluation.attentive import fit_attentive_probe
from vidcsl.evaluation.features import Features
from vidcsl.evaluation.intervals import bootstrap_interval
from vidcsl.evaluation.linear import video_answers
from vidcsl.evaluation.low_shot import low_shot_accuracy
from vidcsl.evaluation.neighbours import RANKS, first_hits, knn_predictions
from vidcsl.stages.job import Job
from vidcsl.stages.opening import require_labelled


@dataclass(frozen=True)
class Outcome:
    """What the protocols found, and what they found it with.

    Args:
        results: the section `clean` of the results.
        gallery, queries: features of the training and of the test videos.
    """

    results: dict[str, Any]
    gallery: Features
    queries: Features


def run_protocols(train: VideoList, test: VideoList, job: Job) -> Outcome:
    """Every protocol that the config enables; each reads the same features, extracted once.

    Raises:
        UserError: a test video has no label.
    """
    require_labelled(test)
    cfg = job.cfg.EVALUATE
    gallery = job.features(train, clips=cfg.TRAIN_VIEWS, crops=1)
    queries = job.features(test, clips=cfg.TEST_VIEWS, crops=cfg.CROPS)
    results: dict[str, Any] = {
        "test_videos": len(queries),
        "views": f"{cfg.TEST_VIEWS} clips x {cfg.CROPS} crops",
        "train_views": f"{cfg.TRAIN_VIEWS} clips x 1 crop",
        **job.norms,
        "intervals": {},
    }
    if bool((gallery.labels >= 0).any()):
        _neighbours(results, job.cfg, gallery, queries, classes=len(train.classes))
    if cfg.LINEAR:
        probe = job.linear_probe(gallery, train)
        answers = video_answers(probe.logits(queries.values), queries.labels)
        add_accuracy(results, "linear", *answers, seed=job.cfg.SEED)
        results["linear_penalty"] = probe.penalty
        if isfinite(probe.held_out_top1):
            results["linear_held_out_top1"] = probe.held_out_top1
    if cfg.ATTENTIVE:
        _attentive(results, train, test, job)
    results.update(_low_shot(job, gallery, queries, classes=len(train.classes)))
    return Outcome(results, gallery, queries)


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


def _attentive(results: dict[str, Any], train: VideoList, test: VideoList, job: Job) -> None:
    cfg, dim = job.cfg.EVALUATE, int(job.method.encoder.feature_dim)  # type: ignore[arg-type]
    views = {"clips": cfg.TRAIN_VIEWS, "crops": 1}
    tokens = job.features(train, **views, tokens=cfg.TOKENS)
    asked = job.features(test, clips=cfg.TEST_VIEWS, crops=cfg.CROPS, tokens=cfg.TOKENS)
    with job.timed("attentive probe"):
        logits, chosen = job.world.share(
            _attended(tokens, asked, dim, len(train.classes), job.cfg)
            if job.world.is_main
            else None
        )
    add_accuracy(results, "attentive", *video_answers(logits, asked.labels), seed=job.cfg.SEED)
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


def _low_shot(job: Job, gallery: Features, queries: Features, *, classes: int) -> dict[str, Any]:
    """`{"low_shot": {"0.01": ...}}`, the same on every process."""
    cfg, found = job.cfg, {}
    for share in (share for share in cfg.EVALUATE.LOW_SHOT if share > 0):
        if share > 1:
            raise UserError(f"EVALUATE.LOW_SHOT {share:g}: shares lie between 0 and 1")
        with job.timed(f"low-shot probe, {share:.0%}"):
            found[f"{share:g}"] = job.world.share(
                low_shot_accuracy(
                    gallery,
                    queries,
                    share=share,
                    classes=classes,
                    draws=cfg.EVALUATE.LOW_SHOT_DRAWS,
                    seed=cfg.SEED,
                )
                if job.world.is_main
                else None
            )
    return {"low_shot": found} if found else {}
