"""Evaluation of a trained encoder, from a config to results, pictures and the report."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import nn

from vidcsl import builders
from vidcsl.data.lists import VideoList
from vidcsl.engine.distributed import World
from vidcsl.engine.progress import Bar
from vidcsl.engine.run_folder import RunFolder, peak_memory_mib
from vidcsl.errors import UserError
from vidcsl.evaluation.features import Features, extract_features
from vidcsl.evaluation.geometry import describe_geometry
from vidcsl.evaluation.linear import LinearProbe, fit_linear_probe, video_accuracy
from vidcsl.evaluation.neighbours import knn_accuracy, retrieval_recall
from vidcsl.models.heads import Classifier
from vidcsl.objectives import Method
from vidcsl.objectives.supervised import Supervised
from vidcsl.report.html import write_report
from vidcsl.robustness.benchmark import Clips, attack_curve, corruption_table
from vidcsl.robustness.scores import robustness_scores
from vidcsl.seeding import seed_of


def evaluate(
    cfg: CfgNode,
    method: Method,
    train: VideoList,
    test: VideoList | None,
    world: World,
    folder: RunFolder,
) -> None:
    """Run every evaluation that the config enables; each is on disk as soon as it is done."""
    job = _Job(cfg, method, train, world, folder)
    job.method.eval()
    job.store({"name": cfg.NAME, "seed": cfg.SEED, "method": cfg.METHOD.NAME})
    if test is None:
        job.store({"data": {"train_videos": len(train), "classes": list(train.classes)}})
    else:
        _evaluate_on(test, job)
    if cfg.REPORT.ENABLED and world.is_main:
        write_report(folder.path)
    world.barrier()


def _evaluate_on(test: VideoList, job: "_Job") -> None:
    cfg, train = job.cfg, job.train
    if any(video.label < 0 for video in test.videos):
        raise UserError(f"evaluation needs labels; some videos of {test.source} have none")
    job.store({"data": _describe_data(train, test)})
    with job.timed("features"):
        crops = cfg.EVALUATE.CROPS
        gallery = job.features(train, clips=cfg.EVALUATE.TRAIN_VIEWS, crops=1)
        queries = job.features(test, clips=cfg.EVALUATE.TEST_VIEWS, crops=crops)
    job.store({"geometry": describe_geometry(queries)})
    clean: dict[str, Any] = {
        "test_videos": len(queries),
        "views": f"{cfg.EVALUATE.TEST_VIEWS} clips x {crops} crops",
        **_neighbour_results(cfg, gallery, queries),
    }
    heads: dict[str, nn.Linear] = {}
    if cfg.EVALUATE.LINEAR:
        with job.timed("linear probe"):
            probe = job.world.share(
                fit_linear_probe(gallery, classes=len(train.classes), seed=cfg.SEED)
                if job.world.is_main
                else None
            )
        heads[""] = probe.as_layer()
        clean.update(_linear_results(probe, queries))
    if isinstance(job.method, Supervised):
        heads["_own_head"] = job.method.head
        with torch.no_grad():
            logits = job.method.head(queries.values.to(job.world.device)).cpu()
        top1 = video_accuracy(logits, queries.labels)
        clean.update(dict(zip(("own_head_top1", "own_head_clip_top1"), top1, strict=True)))
    job.store({"clean": clean})
    models = {
        suffix: Classifier(job.method.encoder, head).to(job.world.device).eval()  # type: ignore[arg-type]
        for suffix, head in heads.items()
    }
    _attack(models, test, job)
    _corrupt(models, test, job)


@dataclass(frozen=True)
class _Job:
    """What every part of the evaluation needs."""

    cfg: CfgNode
    method: Method
    train: VideoList
    world: World
    folder: RunFolder

    def store(self, sections: dict[str, Any]) -> None:
        """Merge sections into the results, on disk."""
        if self.world.is_main:
            self.folder.update_results(sections)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds of a stage, and the peak memory so far, to the results."""
        started = time.perf_counter()
        yield
        if self.world.is_main:
            cost = self.folder.read_results().get("cost", {})
            cost.setdefault("seconds", {})[stage] = time.perf_counter() - started
            peak = max(peak_memory_mib(self.world.device), cost.get("peak_memory_mib", 0.0))
            self.store({"cost": {**cost, "peak_memory_mib": peak}})

    @contextmanager
    def bar(self, title: str, videos: VideoList) -> Iterator[Callable[[int], None]]:
        """A progress bar over this process's share of the videos; gives how to advance it."""
        total = -(-len(videos) // self.world.size)
        bar = Bar(title, total=total, shown=self.world.is_main)
        try:
            yield bar.advance
        finally:
            bar.close()

    def features(self, videos: VideoList, *, clips: int, crops: int) -> Features:
        """Features of every view of every video, in the order of the list."""
        loader = builders.build_test_loader(
            self.cfg, videos, self.world, clips=clips, batch=self.cfg.EVALUATE.BATCH
        )
        return extract_features(
            self.method.encoder,
            loader.epoch(0),
            crop=builders.build_crop(self.cfg, crops=crops),
            world=self.world,
            title=f"features of {videos.source}",
            total=-(-len(videos) // self.world.size),
        )

    def clips(self, videos: VideoList) -> Iterator[Clips]:
        """The central clip of every video, this process's share."""
        loader = builders.build_test_loader(
            self.cfg, videos, self.world, clips=1, batch=self.cfg.EVALUATE.BATCH
        )
        crop = builders.build_crop(self.cfg)
        for batch in loader.epoch(0):
            moved = batch.to(self.world.device)
            seeds = [seed_of(self.cfg.SEED, index) for index in batch.indices.tolist()]
            yield Clips(crop(moved.frames, moved.sizes)[:, 0], moved.labels, seeds)


def _describe_data(train: VideoList, test: VideoList) -> dict[str, Any]:
    counts = np.bincount([video.label for video in test.videos], minlength=len(train.classes))
    return {
        "classes": list(train.classes),
        "train_videos": len(train),
        "test_videos": len(test),
        # The best that can be had without looking: always the most frequent class.
        "chance": float(counts.max() / counts.sum()),
    }


def _neighbour_results(cfg: CfgNode, gallery: Features, queries: Features) -> dict[str, Any]:
    labelled = gallery.labels >= 0
    if not labelled.any():
        return {}
    shown, known = gallery.pooled()[labelled], gallery.labels[labelled]
    sides = (queries.pooled(), queries.labels, shown, known)
    found: dict[str, Any] = {}
    if cfg.EVALUATE.KNN:
        found["knn_top1"] = knn_accuracy(*sides, k=cfg.EVALUATE.KNN_K)
    if cfg.EVALUATE.RETRIEVAL:
        found["retrieval"] = retrieval_recall(*sides)
    return found


def _linear_results(probe: LinearProbe, queries: Features) -> dict[str, Any]:
    videos, clips = video_accuracy(probe.logits(queries.values), queries.labels)
    return {
        "linear_top1": videos,
        "linear_clip_top1": clips,
        "linear_penalty": probe.penalty,
        "linear_held_out_top1": probe.held_out_top1,
    }


def _attack(models: dict[str, Classifier], test: VideoList, job: _Job) -> None:
    curves, survival, settings = {}, {}, {}
    videos = _subset(test, job.cfg.ATTACK.MAX_CLIPS)
    for norm, attacks in builders.build_attacks(job.cfg).items():
        for suffix, model in models.items():
            name = norm + suffix
            with job.timed(name), job.bar(name, videos) as advance:
                curve = attack_curve(
                    model, job.clips(videos), attacks, world=job.world, advance=advance
                )
            curves[name], survival[name] = curve.accuracy(), curve.survival()
            settings[name] = {
                "steps": job.cfg.ATTACK.STEPS,
                "restarts": job.cfg.ATTACK.RESTARTS,
                "frames": job.cfg.ATTACK.FRAMES,
                "clips": curve.clips,
                "clean": curve.clean / curve.clips,
            }
            _store_example(name, curve.example, job)
            job.store({"attacks": curves, "survival": survival, "attack_settings": settings})


def _store_example(name: str, example: dict[str, Any] | None, job: _Job) -> None:
    if example is None or not job.world.is_main:
        return
    classes = job.train.classes
    words = {
        key: classes[example[key]]
        for key in ("label", "clean_prediction", "adversarial_prediction")
    }
    np.savez_compressed(job.folder.artifacts / f"attack_{name}.npz", **{**example, **words})


def _corrupt(models: dict[str, Classifier], test: VideoList, job: _Job) -> None:
    names = builders.build_corruptions(job.cfg)
    if not names or not models:
        return
    videos = _subset(test, job.cfg.CORRUPT.MAX_CLIPS)
    model = next(iter(models.values()))  # the linear probe, where there is one
    with job.timed("corruptions"), job.bar("corruptions", videos) as advance:
        table, clean, clips = corruption_table(
            model, job.clips(videos), names, world=job.world, advance=advance
        )
    suites: dict[str, dict[str, list[float]]] = {}
    for full_name, accuracies in table.items():
        suite, _, name = full_name.partition("/")
        suites.setdefault(suite, {})[name] = accuracies
    scores = robustness_scores(clean, suites)
    job.store({"corruptions": {"clean": clean, "clips": clips, **suites, "scores": scores}})


def _subset(videos: VideoList, most: int) -> VideoList:
    """At most `most` videos, evenly chosen from the list; 0: all."""
    if not 0 < most < len(videos):
        return videos
    chosen = np.linspace(0, len(videos) - 1, most).round().astype(int)
    return replace(videos, videos=tuple(videos.videos[i] for i in chosen))
