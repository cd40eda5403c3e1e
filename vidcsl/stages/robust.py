"""The adversarial protocols ALF and AFF, from a config to classifiers and accuracies."""

from typing import Any

from fvcore.common.config import CfgNode

from vidcsl import builders
from vidcsl.data.lists import VideoList
from vidcsl.models.heads import Classifier
from vidcsl.robustness.targets import Target, classifier
from vidcsl.stages.corrupt import corruption_results
from vidcsl.stages.finetune import Recipe, name_videos, trained
from vidcsl.stages.job import Job


def robust_classifiers(results: dict[str, Any], test: VideoList, job: Job) -> dict[str, Classifier]:
    """Train what ROBUST.PROTOCOLS names, by what is appended to the names of attacks on it.

    `NAME_top1` of test videos goes into the results. Training lies in the run's folder, as
    fine-tuning does, and is not repeated.
    """
    found = {}
    for name in job.cfg.ROBUST.PROTOCOLS:
        method = trained(job, _recipe(job.cfg, name))
        name_videos(results, name, method, test, job)
        found[f"_{name}"] = Classifier(method.encoder, method.head).eval()  # type: ignore[arg-type]
    return found


def _recipe(cfg: CfgNode, name: str) -> Recipe:
    settings = {key: value for key, value in cfg.ROBUST.items() if key != "PROTOCOLS"}
    return Recipe(
        name,
        settings={"robust": settings, "adversarial": dict(cfg.ADVERSARIAL)},
        epochs=cfg.ROBUST.EPOCHS,
        batch=cfg.ROBUST.BATCH,
        build=lambda *given: builders.build_robust(cfg, name, *given),
        optimiser=lambda made: builders.build_robust_optimiser(cfg, name, made),
        schedule=lambda steps: builders.build_robust_schedule(cfg, name, steps_per_epoch=steps),
    )


def robust_targets(classifiers: dict[str, Classifier]) -> dict[str, Target]:
    """The same as targets of attacks."""
    return {suffix: classifier(model) for suffix, model in classifiers.items()}


def corrupt_robust(classifiers: dict[str, Classifier], test: VideoList, job: Job) -> None:
    """The section "robust" of the results: each of them under every corruption."""
    if classifiers and builders.build_corruptions(job.cfg):
        job.store(
            {
                "robust": {
                    suffix.removeprefix("_"): {"corruptions": corruption_results(model, test, job)}
                    for suffix, model in classifiers.items()
                }
            }
        )
