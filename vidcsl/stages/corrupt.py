"""Corruptions of the test clips, from a config to a table and scores."""

from vidcsl import builders
from vidcsl.data.lists import VideoList
from vidcsl.models.heads import Classifier
from vidcsl.robustness.corruption_table import corruption_table
from vidcsl.robustness.scores import robustness_scores
from vidcsl.stages.job import Job, subset


def corrupt_clips(models: dict[str, Classifier], test: VideoList, job: Job) -> None:
    """Accuracy of the first model under every corruption and severity, and the scores."""
    names = builders.build_corruptions(job.cfg)
    if not names or not models:
        return
    chosen = subset(test, job.cfg.CORRUPT.MAX_CLIPS)
    model = next(iter(models.values()))  # the linear probe, where there is one
    with job.timed("corruptions"), job.bar("corruptions", len(chosen)) as advance:
        table, clean, clips = corruption_table(
            model, job.clips(test, chosen), names, world=job.world, advance=advance
        )
    suites: dict[str, dict[str, list[float]]] = {}
    for full_name, accuracies in table.items():
        suite, _, name = full_name.partition("/")
        suites.setdefault(suite, {})[name] = accuracies
    scores = robustness_scores(clean, suites)
    job.store({"corruptions": {"clean": clean, "clips": clips, **suites, "scores": scores}})
