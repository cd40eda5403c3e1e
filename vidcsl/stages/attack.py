"""Attacks on the trained model, from a config to curves and pictures."""

from typing import Any

import numpy as np

from vidcsl import builders
from vidcsl.data.lists import VideoList
from vidcsl.models.heads import Classifier
from vidcsl.robustness.attack_curve import attack_curve
from vidcsl.stages.job import Job, subset


def attack_models(models: dict[str, Classifier], test: VideoList, job: Job) -> None:
    """Curves of accuracy over budgets, by attack and by model (suffix of its name)."""
    curves, survival, settings = {}, {}, {}
    chosen = subset(test, job.cfg.ATTACK.MAX_CLIPS)
    runs = {run.name: run for run in builders.build_attack_runs(job.cfg)}
    for norm, attacks in builders.build_attacks(job.cfg).items():
        for suffix, model in models.items():
            name = norm + suffix
            with job.timed(name), job.bar(name, len(chosen)) as advance:
                curve = attack_curve(
                    model, job.clips(test, chosen), attacks, world=job.world, advance=advance
                )
            curves[name], survival[name] = curve.accuracy(), curve.survival()
            settings[name] = {
                "attack": runs[norm].words,
                "solver": str(runs[norm].solver),
                "clips": curve.clips,
                "clean": curve.clean / curve.clips,
            }
            _store_example(name, curve.example, job)
            job.store({"attacks": curves, "survival": survival, "attack_settings": settings})


def _store_example(name: str, example: dict[str, Any] | None, job: Job) -> None:
    if example is None or not job.world.is_main:
        return
    classes = job.train.classes
    words = {
        key: classes[example[key]]
        for key in ("label", "clean_prediction", "adversarial_prediction")
    }
    np.savez_compressed(job.folder.artifacts / f"attack_{name}.npz", **{**example, **words})
