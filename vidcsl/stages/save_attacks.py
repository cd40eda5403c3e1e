"""Attacked clips as files, to be looked at, and to be tried on other models."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from vidcsl import builders
from vidcsl.data.lists import VideoList
from vidcsl.engine.distributed import World
from vidcsl.engine.ledger import Ledger
from vidcsl.engine.weights import weights_digest
from vidcsl.errors import UserError
from vidcsl.robustness.attack_curve import Attack, predict
from vidcsl.robustness.attacks import Solver
from vidcsl.robustness.attacks.specs import Run
from vidcsl.robustness.clips import Clips, Views
from vidcsl.robustness.storage import write_clip, write_set
from vidcsl.robustness.targets import Target, directly
from vidcsl.stages.attack import attacked_pixels, attacks_of, depends_on, fitted_on
from vidcsl.stages.job import Job, model_name, subset
from vidcsl.stages.opening import open_job, required

CLEAN = "clean"


def save_attacks(
    cfg: CfgNode,
    world: World,
    *,
    folder: Path,
    checkpoint: Path | None = None,
    foreign: bool = False,
) -> list[Path]:
    """Attack the test clips under every attack and budget of the config, and keep them all.

    `FOLDER/pgd_linf/4_255/000012.mkv` is clip 12 of the list under that attack, `FOLDER/clean` has
    the clean ones; `set.json` describes each folder. Every clip is attacked, also one that is wrong
    when clean, and until the solver's end, so that it misleads other models as well as it can. An
    export that was stopped goes on. Which model: see `open_job`.

    Returns:
        The folders, the clean one first.
    """
    job, listed = open_job(cfg, world, checkpoint=checkpoint, foreign=foreign)
    test = required(listed)
    encoder, classes = job.method.encoder, len(job.train.classes)
    targets = builders.build_targets(cfg, encoder, job.heads(), job.gallery(), classes=classes)
    source = cfg.MODEL.WEIGHTS if foreign else str(checkpoint or job.folder.checkpoints)
    places = []
    for given in builders.build_attack_runs(cfg):
        run = replace(given, solver=to_the_end(given.solver))
        attacks = attacks_of(run, job)
        for suffix, target in targets.items():
            export = _Export(run, attacks, suffix, target, source, test, folder, job)
            places += [export.write(budget) for budget in (CLEAN, *attacks)]
    if not places:
        raise UserError("ATTACK.RUNS or ATTACK.TARGETS is empty: there is nothing to write")
    return list(dict.fromkeys(places))


@dataclass(frozen=True)
class _Export:
    """One attack on one target, to be written for each of its budgets, or `CLEAN`."""

    run: Run
    attacks: Mapping[str, Attack]
    suffix: str
    target: Target
    source: str
    test: VideoList
    folder: Path
    job: Job

    def write(self, budget: str) -> Path:
        """The folder of the clips under a budget."""
        job, chosen = self.job, subset(self.test, self.job.cfg.ATTACK.MAX_CLIPS)
        name = CLEAN if budget == CLEAN else self.run.name + self.suffix
        place = self.folder / name / ("" if budget == CLEAN else budget.replace("/", "_"))
        settings = self._settings(budget)
        ledger = Ledger(self.folder / "answers", settings=settings, rank=job.world.rank)
        done = job.world.share(set(ledger.answers("written")))
        title = name if budget == CLEAN else f"{name} {budget}"
        with job.bar(title, sum(video not in done for video in chosen)) as advance:
            for batch in attacked_pixels(job, self.test, chosen, answered=done):
                ledger.record("written", batch.videos, list(self._entries(batch, budget, place)))
                advance(len(batch))
        job.world.barrier()
        ledger.reload()
        if job.world.is_main:
            entries = ledger.answers("written")
            clips = [entries[video] for video in chosen if video in entries]
            write_set(place, {**self._description(budget), "clips": clips})
        return place

    def _entries(self, batch: Clips, budget: str, place: Path) -> Iterator[dict[str, Any]]:
        model, clips = self.target(batch.look).eval(), batch.clips
        if budget != CLEAN:
            clips = self.attacks[budget](model, clips, batch.labels, batch.seeds)
        views = batch.look.pattern.tolist() if isinstance(batch.look, Views) else None
        found = zip(
            batch.videos, clips, batch.labels.tolist(), predict(model, clips).tolist(), strict=True
        )
        for video, clip, label, prediction in found:
            yield {
                "file": write_clip(place / f"{video:06d}", clip).name,
                "video": str(self.test.videos[video].path),
                "index": video,
                "label": label,
                "prediction": prediction,
                "views": views,
            }

    def _settings(self, budget: str) -> dict[str, Any]:
        weights = weights_digest(self.target(directly))
        fitted = {} if budget == CLEAN else fitted_on(self.run, self.job)
        return self.job.settings(
            self.test, weights, **self._how(budget), **fitted, **depends_on(self.job.cfg)
        )

    def _how(self, budget: str) -> dict[str, Any]:
        if budget == CLEAN:
            return {"attack": None, "eps": "0"}
        threat, solver = repr(self.run.threats[budget]), repr(self.run.solver)
        return {"attack": self.run.words, "eps": budget, "threat": threat, "solver": solver}

    def _description(self, budget: str) -> Mapping[str, Any]:
        cfg = self.job.cfg
        return {
            **self._how(budget),
            "clean": None if budget == CLEAN else "../../" + CLEAN,
            "quantise": cfg.ATTACK.QUANTISE,
            "model": {
                "name": model_name(self.job, self.suffix.removeprefix(f"_{cfg.ATTACK.INPUT}")),
                "method": cfg.METHOD.NAME,
                "checkpoint": self.source,
                "weights": weights_digest(self.target(directly)),
            },
            "classes": list(self.job.train.classes),
            "look": {"input": cfg.ATTACK.INPUT, "crops": builders.build_input(cfg).crops},
        }


def to_the_end(solver: Solver) -> Solver:
    """The same solver, not content with clips that only just fool the model."""
    names = {field.name for field in fields(solver)}  # type: ignore[arg-type]
    change: Any = replace
    return change(solver, stop_when_fooled=False) if "stop_when_fooled" in names else solver
