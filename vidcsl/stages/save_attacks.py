"""Attacked clips as files, to be looked at, and to be tried on other models."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode
from torch import nn

from vidcsl import builders
from vidcsl.data.lists import VideoList
from vidcsl.engine.distributed import World
from vidcsl.engine.ledger import Ledger
from vidcsl.engine.weights import weights_digest
from vidcsl.robustness.attack_curve import predict
from vidcsl.robustness.attacks import Solver, attack
from vidcsl.robustness.attacks.specs import Run
from vidcsl.robustness.clips import Clips, Views
from vidcsl.robustness.storage import write_clip, write_set
from vidcsl.robustness.targets import Target, directly
from vidcsl.robustness.threats import Threat
from vidcsl.stages.attack import attacked_pixels, depends_on
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
    job, test = open_job(cfg, world, checkpoint=checkpoint, foreign=foreign)
    encoder, classes = job.method.encoder, len(job.train.classes)
    targets = builders.build_targets(cfg, encoder, job.heads(), job.gallery(), classes=classes)
    source = cfg.MODEL.WEIGHTS if foreign else str(checkpoint or job.folder.checkpoints)
    places = []
    for run in builders.build_attack_runs(cfg):
        for suffix, target in targets.items():
            export = _Export(run, suffix, target, source, required(test), folder, job)
            for budget, threat in ("0", None), *run.threats.items():
                places.append(export.write(budget, threat))
    return list(dict.fromkeys(places))


@dataclass(frozen=True)
class _Export:
    """One attack on one target, to be written for each of its budgets."""

    run: Run
    suffix: str
    target: Target
    source: str
    test: VideoList
    folder: Path
    job: Job

    def write(self, budget: str, threat: Threat | None) -> Path:
        """The folder of the clips under a threat; None: clean."""
        job, chosen = self.job, subset(self.test, self.job.cfg.ATTACK.MAX_CLIPS)
        name = CLEAN if threat is None else self.run.name + self.suffix
        place = self.folder / name / (budget.replace("/", "_") if threat else "")
        settings = self._settings(budget, threat)
        ledger = Ledger(self.folder / "answers", settings=settings, rank=job.world.rank)
        done = job.world.share(set(ledger.answers("written")))
        title = f"{name} {budget}" if threat else name
        with job.bar(title, sum(video not in done for video in chosen)) as advance:
            for batch in attacked_pixels(job, self.test, chosen, answered=done):
                ledger.record("written", batch.videos, list(self._entries(batch, threat, place)))
                advance(len(batch))
        job.world.barrier()
        ledger.reload()
        if job.world.is_main:
            entries = ledger.answers("written")
            clips = [entries[video] for video in chosen if video in entries]
            write_set(place, {**self._description(budget, threat), "clips": clips})
        return place

    def _entries(
        self, batch: Clips, threat: Threat | None, place: Path
    ) -> Iterator[dict[str, Any]]:
        model = self.target(batch.look).eval()
        clips = batch.clips if threat is None else self._attacked(model, batch, threat)
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

    def _attacked(self, model: nn.Module, batch: Clips, threat: Threat) -> Any:
        return attack(
            *(model, batch.clips, batch.labels),
            threat=threat,
            goal=self.run.goal,
            solver=to_the_end(self.run.solver),
            seeds=batch.seeds,
            quantise=self.job.cfg.ATTACK.QUANTISE,
        )

    def _settings(self, budget: str, threat: Threat | None) -> dict[str, Any]:
        weights = weights_digest(self.target(directly))
        return self.job.settings(
            self.test,
            weights,
            **_how(self.run, budget, threat),
            **depends_on(self.job.cfg),
        )

    def _description(self, budget: str, threat: Threat | None) -> Mapping[str, Any]:
        cfg = self.job.cfg
        return {
            **_how(self.run, budget, threat),
            "clean": None if threat is None else "../../" + CLEAN,
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


def _how(run: Run, budget: str, threat: Threat | None) -> dict[str, Any]:
    if threat is None:
        return {"attack": None, "eps": "0"}
    solver = repr(to_the_end(run.solver))
    return {"attack": run.words, "eps": budget, "threat": repr(threat), "solver": solver}


def to_the_end(solver: Solver) -> Solver:
    """The same solver, not content with clips that only just fool the model."""
    names = {field.name for field in fields(solver)}  # type: ignore[arg-type]
    change: Any = replace
    return change(solver, stop_when_fooled=False) if "stop_when_fooled" in names else solver
