"""Attacks on the trained model, from a config to curves, tables and pictures."""

from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode

from vidcsl import builders
from vidcsl.data.lists import VideoList
from vidcsl.engine.distributed import World
from vidcsl.engine.ledger import Ledger, digest
from vidcsl.engine.weights import weights_digest
from vidcsl.evaluation.arrays import key_of, save_arrays
from vidcsl.robustness.attack_curve import Attack, Curve, attack_curve, predict
from vidcsl.robustness.attacks.specs import Run
from vidcsl.robustness.clips import Clips
from vidcsl.robustness.sanity import Trial, check_attack
from vidcsl.robustness.targets import Target, directly
from vidcsl.robustness.threats import Universal
from vidcsl.stages.job import Job, subset


def attack_targets(targets: Mapping[str, Target], test: VideoList, job: Job) -> None:
    """Every attack on every target (by what is appended to the attack's name)."""
    chosen = subset(test, job.cfg.ATTACK.MAX_CLIPS)
    sections: dict[str, dict[str, Any]] = {}
    for run in builders.build_attack_runs(job.cfg):
        attacks = attacks_of(run, job)
        for suffix, target in targets.items():
            campaign = _Campaign(run.name + suffix, run, attacks, target, test, chosen, job)
            for section, found in campaign.result().items():
                sections.setdefault(section, {})[campaign.name] = found
            job.store(sections)


def attacked_pixels(
    job: Job, test: VideoList, chosen: Sequence[int], *, answered: Container[int] = ()
) -> Iterator[Clips]:
    """This process's share of the chosen videos, as ATTACK.INPUT wants them; see `Job.clips`."""
    given = builders.build_input(job.cfg)
    return job.clips(
        test,
        chosen,
        answered=answered,
        views=given.views,
        crops=given.crops,
        pixels=given.pixels,
    )


def attacks_of(run: Run, job: Job) -> dict[str, Attack]:
    """The run's attack at each budget; a universal one is fitted on the job's training clips."""
    return builders.build_attacks(run, job.cfg, training=partial(_training_clips, job))


def depends_on(cfg: CfgNode) -> dict[str, Any]:
    """What of the config an attacked clip depends on, beside model, attack and pixels."""
    return {
        "quantise": cfg.ATTACK.QUANTISE,
        "input": cfg.ATTACK.INPUT,
        "preprocessing": [cfg.ATTACK.PREPROCESSING, cfg.ATTACK.DRAWS],
        "views": [cfg.EVALUATE.TEST_VIEWS, cfg.EVALUATE.CROPS],
        "batch": cfg.EVALUATE.BATCH,  # sums over other batches are rounded in another way
        "seed": cfg.SEED,
    }


def _training_clips(job: Job) -> Iterator[Clips]:
    """Labelled training clips, evenly chosen; the same for every process."""
    return _alone(job).clips(job.train, _fitting(job))


def fitted_on(run: Run, job: Job) -> dict[str, Any]:
    """What a universal attack depends on in addition: training clips. Of others, nothing."""
    universal = any(isinstance(threat, Universal) for threat in run.threats.values())
    return {"fitted_on": job.settings(job.train, "", clips=_fitting(job))} if universal else {}


def _fitting(job: Job) -> list[int]:
    """Indices of the training videos that a universal attack is fitted on."""
    labelled = [i for i, video in enumerate(job.train.videos) if video.label >= 0]
    return [labelled[i] for i in subset(labelled, job.cfg.ATTACK.UNIVERSAL_CLIPS)]


def _alone(job: Job) -> Job:
    """The job as if this process were the only one."""
    return replace(job, world=World(rank=0, size=1, device=job.world.device))


@dataclass(frozen=True)
class _Campaign:
    """One attack, at growing budgets, on one target and the chosen test videos."""

    name: str
    run: Run
    attacks: Mapping[str, Attack]
    target: Target
    test: VideoList
    chosen: Sequence[int]
    job: Job

    def result(self) -> dict[str, Any]:
        """Attack what is not answered yet; what all answers say, by section of the results."""
        job = self.job
        ledger = Ledger(job.folder.answers, settings=self._settings, rank=job.world.rank)
        # What the main process knows, so that all share the rest in the same way.
        answered = job.world.share({*ledger.answers(self.name), *ledger.answers("unreadable")})
        with job.bar(self.name, sum(video not in answered for video in self.chosen)) as advance:
            curve = attack_curve(
                self.target,
                self._clips(self.chosen, answered=answered),
                self.attacks,
                world=job.world,
                ledger=ledger,
                condition=self.name,
                advance=advance,
            ).over(self.chosen)
        if job.world.is_main:
            missing = [video for video in self.chosen if video not in curve.outcomes]
            ledger.record("unreadable", missing, [True] * len(missing))
        job.spend(self.name, curve.seconds())
        self._store_examples(curve)
        return {**self._sections(curve), "attack_checks": self._checks(curve, ledger)}

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """All that the answers depend on."""
        return self.job.settings(
            self.test,
            weights_digest(self.target(directly)),
            attack=self.name,
            words=self.run.words,
            solver=repr(self.run.solver),
            threats={eps: repr(threat) for eps, threat in self.run.threats.items()},
            **fitted_on(self.run, self.job),
            **depends_on(self.job.cfg),
        )

    def _clips(self, videos: Sequence[int], *, answered: Container[int] = ()) -> Iterator[Clips]:
        return attacked_pixels(self.job, self.test, videos, answered=answered)

    def _sections(self, curve: Curve) -> dict[str, Any]:
        return {
            "attacks": curve.accuracy(),
            "survival": curve.survival(),
            "attack_settings": {
                "attack": self.run.words,
                "solver": str(self.run.solver),
                "clips": curve.clips,
                "clean": curve.clean / curve.clips,
                **self.job.norms,
            },
            "attack_classes": curve.by_class(len(self.job.train.classes)),
            "attack_frames": curve.frame_rms(),
        }

    def _checks(self, curve: Curve, ledger: Ledger) -> dict[str, Any]:
        """Whether the attack is to be believed, tried on a few clips at a telling budget."""
        survival, most = curve.survival(), self.job.cfg.ATTACK.CHECK_CLIPS
        found: dict[str, Any] = {}
        if self.job.world.is_main and survival and most:
            eps = min(survival, key=lambda eps: abs(survival[eps] - 0.5))
            right = [video for video, one in curve.outcomes.items() if one.clean == one.label]
            videos = [right[i] for i in subset(right, most)]
            condition, asked = f"{self.name} checks", {"eps": eps, "videos": videos}
            known = ledger.get(condition, 0)
            if known is None or known["asked"] != asked:
                known = {"asked": asked, "checks": check_attack(self._trial(eps, videos))}
                ledger.record(condition, [0], [known])
            found = {"eps": eps, "clips": len(videos), "checks": known["checks"]}
        self.job.world.barrier()
        return found

    def _trial(self, eps: str, videos: Sequence[int]) -> Trial:
        clips = replace(self, job=_alone(self.job))._clips(videos)
        return Trial(
            [(self.target(each.look).eval(), each) for each in clips],
            self.run.threats[eps],
            self.run.solver,
            self.run.goal,
            self.job.cfg.ATTACK.QUANTISE,
        )

    def _store_examples(self, curve: Curve) -> None:
        """Attack a few of the fallen clips once more, and keep what they look like."""
        shown = pick_examples(curve, self.job.cfg.ATTACK.EXAMPLES)
        key = digest({**self._settings, "shown": shown})
        artifacts = self.job.folder.artifacts
        before = sorted(artifacts.glob(f"attack_{self.name}.*.npz"))
        if self.job.world.share([key_of(path) for path in before] == [key] * len(shown)):
            return
        for path in before if self.job.world.is_main else ():
            path.unlink()
        self.job.world.barrier()
        for batch in self._clips(shown):
            for video, example in zip(batch.videos, self._examples(batch, curve), strict=True):
                path = artifacts / f"attack_{self.name}.{video}.npz"
                save_arrays(path, {"key": key, **example}, compressed=True)

    def _examples(self, batch: Clips, curve: Curve) -> Iterator[dict[str, Any]]:
        model, classes = self.target(batch.look).eval(), self.job.train.classes
        for row, video in enumerate(batch.videos):
            one = batch.take(torch.tensor([row]))
            eps = str(curve.outcomes[video].fooled_at)
            attacked = self.attacks[eps](model, one.clips, one.labels, one.seeds)
            before, after = (int(predict(model, clips)) for clips in (one.clips, attacked))
            frames = (
                torch.cat([one.clips, attacked]).permute(0, 2, 3, 4, 1).cpu()
            )  # [2, T, H, W, 3]
            yield {
                "eps": eps,
                "clean": (frames[0] * 255).round().byte().numpy(),
                "difference": (frames[1] - frames[0]).numpy().astype(np.float16),
                "label": classes[int(one.labels)],
                "clean_prediction": classes[before],
                "adversarial_prediction": classes[after],
            }


def pick_examples(curve: Curve, most: int) -> list[int]:
    """Videos to show: of those that fell to the budget most fell to, one a class before any second.

    In the order of the list, so that the same outcomes show the same videos.
    """
    fallen = {video: one for video, one in curve.outcomes.items() if one.fooled_at is not None}
    if not fallen:
        return []
    counts = Counter(one.fooled_at for one in fallen.values())
    usual = max(curve.budgets, key=lambda eps: counts[eps])
    seen: Counter[int] = Counter()
    ranked = []
    for video, one in sorted(fallen.items()):
        if one.fooled_at == usual:
            ranked.append((seen[one.label], video))
            seen[one.label] += 1
    return sorted(video for _, video in sorted(ranked)[:most])
