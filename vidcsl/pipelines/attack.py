"""Attack the evaluated model; keep attacked clips; try them on other models."""

from collections import Counter, defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from vidcsl.augment.pipeline import EvalCrop
from vidcsl.config import load_config
from vidcsl.data.lists import VideoList
from vidcsl.distributed import DistributedContext
from vidcsl.errors import UserError
from vidcsl.io import Bar, key_of, save_arrays
from vidcsl.models.encoder import Classifier
from vidcsl.pipelines.context import EvaluationContext, model_name, open_context, required, subset
from vidcsl.pipelines.targets import build_attack_runs, build_attacks, build_input, build_targets
from vidcsl.robustness.attack_curve import (
    Attack,
    Curve,
    attack_curve,
    find_sets,
    predict,
    read_clip,
    read_set,
    write_clip,
    write_set,
)
from vidcsl.robustness.attacks import Solver
from vidcsl.robustness.attacks.specs import Run
from vidcsl.robustness.sanity import Trial, check_attack
from vidcsl.robustness.targets import Clips, Target, Views, classifier, directly
from vidcsl.robustness.threats import Universal
from vidcsl.run_folder import ResultCache, digest
from vidcsl.state import weights_digest

# ----------------------------------------------------------------------
# Attacks on the trained model, from a config to curves, tables and pictures.


def attack_targets(
    targets: Mapping[str, Target], test: VideoList, context: EvaluationContext
) -> None:
    """Every attack on every target (by what is appended to the attack's name)."""
    chosen = subset(test, context.cfg.ATTACK.MAX_CLIPS)
    sections: dict[str, dict[str, Any]] = {}
    for run in build_attack_runs(context.cfg):
        attacks = attacks_of(run, context)
        for suffix, target in targets.items():
            campaign = _Campaign(run.name + suffix, run, attacks, target, test, chosen, context)
            for section, found in campaign.result().items():
                sections.setdefault(section, {})[campaign.name] = found
            context.store(sections)


def attacked_pixels(
    context: EvaluationContext,
    test: VideoList,
    chosen: Sequence[int],
    *,
    answered: Container[int] = (),
) -> Iterator[Clips]:
    """This process's share of the chosen videos, as ATTACK.INPUT wants them; see `Job.clips`."""
    given = build_input(context.cfg)
    return context.clips(
        test,
        chosen,
        answered=answered,
        views=given.views,
        crops=given.crops,
        pixels=given.pixels,
    )


def attacks_of(run: Run, context: EvaluationContext) -> dict[str, Attack]:
    """The run's attack at each budget; a universal one is fitted on the job's training clips."""
    return build_attacks(run, context.cfg, training=partial(_training_clips, context))


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


def _training_clips(context: EvaluationContext) -> Iterator[Clips]:
    """Labelled training clips, evenly chosen; the same for every process."""
    return _alone(context).clips(context.train, _fitting(context))


def fitted_on(run: Run, context: EvaluationContext) -> dict[str, Any]:
    """What a universal attack depends on in addition: training clips. Of others, nothing."""
    universal = any(isinstance(threat, Universal) for threat in run.threats.values())
    return (
        {"fitted_on": context.settings(context.train, "", clips=_fitting(context))}
        if universal
        else {}
    )


def _fitting(context: EvaluationContext) -> list[int]:
    """Indices of the training videos that a universal attack is fitted on."""
    labelled = [i for i, video in enumerate(context.train.videos) if video.label >= 0]
    return [labelled[i] for i in subset(labelled, context.cfg.ATTACK.UNIVERSAL_CLIPS)]


def _alone(context: EvaluationContext) -> EvaluationContext:
    """The job as if this process were the only one."""
    return replace(
        context, distributed=DistributedContext(rank=0, size=1, device=context.distributed.device)
    )


@dataclass(frozen=True)
class _Campaign:
    """One attack, at growing budgets, on one target and the chosen test videos."""

    name: str
    run: Run
    attacks: Mapping[str, Attack]
    target: Target
    test: VideoList
    chosen: Sequence[int]
    context: EvaluationContext

    def result(self) -> dict[str, Any]:
        """Attack what is not answered yet; what all answers say, by section of the results."""
        context = self.context
        result_cache = ResultCache(
            context.folder.answers, settings=self._settings, rank=context.distributed.rank
        )
        # What the main process knows, so that all share the rest in the same way.
        answered = context.distributed.share(
            {*result_cache.answers(self.name), *result_cache.answers("unreadable")}
        )
        with context.bar(self.name, sum(video not in answered for video in self.chosen)) as advance:
            curve = attack_curve(
                self.target,
                self._clips(self.chosen, answered=answered),
                self.attacks,
                distributed=context.distributed,
                result_cache=result_cache,
                condition=self.name,
                advance=advance,
            ).over(self.chosen)
        if context.distributed.is_main:
            missing = [video for video in self.chosen if video not in curve.outcomes]
            result_cache.record("unreadable", missing, [True] * len(missing))
        context.spend(self.name, curve.seconds())
        self._store_examples(curve)
        return {**self._sections(curve), "attack_checks": self._checks(curve, result_cache)}

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """All that the answers depend on."""
        return self.context.settings(
            self.test,
            weights_digest(self.target(directly)),
            attack=self.name,
            words=self.run.words,
            solver=repr(self.run.solver),
            threats={eps: repr(threat) for eps, threat in self.run.threats.items()},
            **fitted_on(self.run, self.context),
            **depends_on(self.context.cfg),
        )

    def _clips(self, videos: Sequence[int], *, answered: Container[int] = ()) -> Iterator[Clips]:
        return attacked_pixels(self.context, self.test, videos, answered=answered)

    def _sections(self, curve: Curve) -> dict[str, Any]:
        return {
            "attacks": curve.accuracy(),
            "survival": curve.survival(),
            "attack_settings": {
                "attack": self.run.words,
                "solver": str(self.run.solver),
                "clips": curve.clips,
                "clean": curve.clean / curve.clips,
                **self.context.norms,
            },
            "attack_classes": curve.by_class(len(self.context.train.classes)),
            "attack_frames": curve.frame_rms(),
        }

    def _checks(self, curve: Curve, result_cache: ResultCache) -> dict[str, Any]:
        """Whether the attack is to be believed, tried on a few clips at a telling budget."""
        survival, most = curve.survival(), self.context.cfg.ATTACK.CHECK_CLIPS
        found: dict[str, Any] = {}
        if self.context.distributed.is_main and survival and most:
            eps = min(survival, key=lambda eps: abs(survival[eps] - 0.5))
            right = [video for video, one in curve.outcomes.items() if one.clean == one.label]
            videos = [right[i] for i in subset(right, most)]
            condition, asked = f"{self.name} checks", {"eps": eps, "videos": videos}
            known = result_cache.get(condition, 0)
            if known is None or known["asked"] != asked:
                known = {"asked": asked, "checks": check_attack(self._trial(eps, videos))}
                result_cache.record(condition, [0], [known])
            found = {"eps": eps, "clips": len(videos), "checks": known["checks"]}
        self.context.distributed.barrier()
        return found

    def _trial(self, eps: str, videos: Sequence[int]) -> Trial:
        clips = replace(self, context=_alone(self.context))._clips(videos)
        return Trial(
            [(self.target(each.look).eval(), each) for each in clips],
            self.run.threats[eps],
            self.run.solver,
            self.run.goal,
            self.context.cfg.ATTACK.QUANTISE,
        )

    def _store_examples(self, curve: Curve) -> None:
        """Attack a few of the fallen clips once more, and keep what they look like."""
        shown = pick_examples(curve, self.context.cfg.ATTACK.EXAMPLES)
        key = digest({**self._settings, "shown": shown})
        artifacts = self.context.folder.artifacts
        before = sorted(artifacts.glob(f"attack_{self.name}.*.npz"))
        if self.context.distributed.share([key_of(path) for path in before] == [key] * len(shown)):
            return
        for path in before if self.context.distributed.is_main else ():
            path.unlink()
        self.context.distributed.barrier()
        for batch in self._clips(shown):
            for video, example in zip(batch.videos, self._examples(batch, curve), strict=True):
                path = artifacts / f"attack_{self.name}.{video}.npz"
                save_arrays(path, {"key": key, **example}, compressed=True)

    def _examples(self, batch: Clips, curve: Curve) -> Iterator[dict[str, Any]]:
        model, classes = self.target(batch.look).eval(), self.context.train.classes
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


# ----------------------------------------------------------------------
# Attacked clips as files, to be looked at, and to be tried on other models.

CLEAN = "clean"


def save_attacks(
    cfg: CfgNode,
    distributed: DistributedContext,
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
    context, listed = open_context(cfg, distributed, checkpoint=checkpoint, foreign=foreign)
    test = required(listed)
    encoder, classes = context.method.encoder, len(context.train.classes)
    targets = build_targets(cfg, encoder, context.heads(), context.gallery(), classes=classes)
    source = cfg.MODEL.WEIGHTS if foreign else str(checkpoint or context.folder.checkpoints)
    places = []
    for given in build_attack_runs(cfg):
        run = replace(given, solver=to_the_end(given.solver))
        attacks = attacks_of(run, context)
        for suffix, target in targets.items():
            export = _Export(run, attacks, suffix, target, source, test, folder, context)
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
    context: EvaluationContext

    def write(self, budget: str) -> Path:
        """The folder of the clips under a budget."""
        context, chosen = self.context, subset(self.test, self.context.cfg.ATTACK.MAX_CLIPS)
        name = CLEAN if budget == CLEAN else self.run.name + self.suffix
        place = self.folder / name / ("" if budget == CLEAN else budget.replace("/", "_"))
        settings = self._settings(budget)
        result_cache = ResultCache(
            self.folder / "answers", settings=settings, rank=context.distributed.rank
        )
        done = context.distributed.share(set(result_cache.answers("written")))
        title = name if budget == CLEAN else f"{name} {budget}"
        with context.bar(title, sum(video not in done for video in chosen)) as advance:
            for batch in attacked_pixels(context, self.test, chosen, answered=done):
                result_cache.record(
                    "written", batch.videos, list(self._entries(batch, budget, place))
                )
                advance(len(batch))
        context.distributed.barrier()
        result_cache.reload()
        if context.distributed.is_main:
            entries = result_cache.answers("written")
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
        fitted = {} if budget == CLEAN else fitted_on(self.run, self.context)
        return self.context.settings(
            self.test, weights, **self._how(budget), **fitted, **depends_on(self.context.cfg)
        )

    def _how(self, budget: str) -> dict[str, Any]:
        if budget == CLEAN:
            return {"attack": None, "eps": "0"}
        threat, solver = repr(self.run.threats[budget]), repr(self.run.solver)
        return {"attack": self.run.words, "eps": budget, "threat": threat, "solver": solver}

    def _description(self, budget: str) -> Mapping[str, Any]:
        cfg = self.context.cfg
        return {
            **self._how(budget),
            "clean": None if budget == CLEAN else "../../" + CLEAN,
            "quantise": cfg.ATTACK.QUANTISE,
            "model": {
                "name": model_name(self.context, self.suffix.removeprefix(f"_{cfg.ATTACK.INPUT}")),
                "method": cfg.METHOD.NAME,
                "checkpoint": self.source,
                "weights": weights_digest(self.target(directly)),
            },
            "classes": list(self.context.train.classes),
            "look": {"input": cfg.ATTACK.INPUT, "crops": build_input(cfg).crops},
        }


def to_the_end(solver: Solver) -> Solver:
    """The same solver, not content with clips that only just fool the model."""
    names = {field.name for field in fields(solver)}  # type: ignore[arg-type]
    change: Any = replace
    return change(solver, stop_when_fooled=False) if "stop_when_fooled" in names else solver


# ----------------------------------------------------------------------
# Attacked clips tried on other models: the transfer matrix.

_BATCH = 16


def transfer(
    paths: Sequence[Path], runs: Sequence[Path], distributed: DistributedContext
) -> dict[str, Any]:
    """How models fare on clips that were made to fool others.

    Args:
        paths: folders with sets of attacked clips, at any depth.
        runs: folders of runs, whose newest weights are tried, with the linear probe and, where
            there is one, with the model's own head.
        world: this process.

    Returns:
        `{"models": [names], "sets": [{"path", "model" (attacked), "attack", "eps", "clips",
        "results": {name: {"clean", "accuracy", "fooled"}}}]}`: accuracies on the clean and on the
        attacked clips, and the share of those right when clean that are wrong when attacked.

    Raises:
        UserError: a set or a run cannot be read, or they do not fit each other.
    """
    places = find_sets(paths)
    attacked = [place for place in places if read_set(place)["attack"] is not None]
    if not attacked:
        raise UserError(f"{paths[0]} holds clean clips only")
    models: dict[str, tuple[Classifier, tuple[str, ...]]] = {}
    for run in runs:
        for name, found in _models(run, distributed):
            if name in models:
                raise UserError(
                    f"{run}: another run's model is {name} too; set NAME in {run}/config.yaml"
                )
            models[name] = found
    bar = Bar("transfer", total=len(attacked) * len(models), shown=distributed.is_main)
    answers: dict[tuple[Path, str], dict[int, bool]] = {}
    rows = []
    for place in attacked:
        described = read_set(place)
        clean = (place / str(described["clean"])).resolve()
        results = {}
        for name, (model, classes) in models.items():
            for each in (clean, place):
                if (each, name) not in answers:
                    answers[each, name] = _right(each, model, classes, distributed.device)
            results[name] = _compare(answers[clean, name], answers.pop((place, name)))
            bar.advance()
        told = {key: described[key] for key in ("attack", "eps")}
        source = described["model"]["name"]
        clips = len(described["clips"])
        rows.append(
            {"path": str(place), "model": source, **told, "clips": clips, "results": results}
        )
    bar.close()
    return {"models": list(models), "sets": rows}


def transfer_table(found: dict[str, Any]) -> str:
    """The matrix in Markdown: accuracy in per cent and, in brackets, the share fooled."""
    models = found["models"]
    header = ["attacked model", "attack", "eps", *models]
    cells = [header, ["---"] * len(header)]
    for row in found["sets"]:
        shares = [row["results"][name] for name in models]
        cells.append(
            [row["model"], row["attack"], row["eps"]]
            + [f"{100 * each['accuracy']:.1f} {_fooled(each['fooled'])}" for each in shares]
        )
    first = found["sets"][0]["results"]
    clean = ["", "clean", "0", *(f"{100 * first[name]['clean']:.1f}" for name in models)]
    cells.insert(2, clean)
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([*lines, "Accuracy, %; in brackets: of the clips right when clean, % fooled."])


def _fooled(share: float | None) -> str:
    return "(–)" if share is None else f"({100 * share:.1f})"


def _models(
    run: Path, distributed: DistributedContext
) -> Iterator[tuple[str, tuple[Classifier, tuple[str, ...]]]]:
    """(name, (module, classes)) of every head of a run."""
    cfg = load_config(run / "config.yaml", ["OUTPUT_DIR", str(run)])
    context, _ = open_context(cfg, distributed)
    for suffix, head in context.heads().items():
        model = Classifier(context.method.encoder, head).eval()  # type: ignore[arg-type]
        yield model_name(context, suffix), (model, context.train.classes)


def _right(
    place: Path, model: Classifier, classes: Sequence[str], device: torch.device
) -> dict[int, bool]:
    """Which clips of a set a model names right, by their index in the list of videos."""
    described = read_set(place)
    if list(classes) != described["classes"]:
        raise UserError(f"{place}: its classes are not those of the model that it is tried on")
    right = {}
    size = model.encoder.frame_size
    for entries, clips, views in _batches(place, described):
        if views is None and clips.shape[-1] != size:
            raise UserError(
                f"{place}: clips of {clips.shape[-1]} pixels, the model takes {size}: make the set "
                "with ATTACK.INPUT frames"
            )
        look = directly if views is None else _look(views, described["look"]["crops"], model)
        named = predict(classifier(model)(look).eval(), clips.to(device)).tolist()
        for entry, prediction in zip(entries, named, strict=True):
            right[entry["index"]] = prediction == entry["label"]
    return right


def _look(views: Tensor, crops: int, model: Classifier) -> Views:
    size = model.encoder.frame_size
    return Views(views.numpy(), EvalCrop(size=size, crops=crops))


def _batches(
    place: Path, described: dict[str, Any]
) -> Iterator[tuple[list[dict[str, Any]], Tensor, Tensor | None]]:
    """(entries, clips [N, 3, T, H, W], views) of clips of one shape that are looked at alike."""
    alike: dict[Any, list[tuple[dict[str, Any], Tensor]]] = defaultdict(list)
    for entry in described["clips"]:
        clip = read_clip(place / entry["file"])
        key = (tuple(clip.shape), str(entry["views"]))
        alike[key].append((entry, clip))
        if len(alike[key]) == _BATCH:
            yield _batch(alike.pop(key))
    for members in alike.values():
        yield _batch(members)


def _batch(
    members: Sequence[tuple[dict[str, Any], Tensor]],
) -> tuple[list[dict[str, Any]], Tensor, Tensor | None]:
    entries = [entry for entry, _ in members]
    views = entries[0]["views"]
    clips = torch.stack([clip for _, clip in members])
    return entries, clips, None if views is None else torch.tensor(views)


def _compare(clean: dict[int, bool], attacked: dict[int, bool]) -> dict[str, float | None]:
    videos = sorted(clean.keys() & attacked.keys())
    before = [video for video in videos if clean[video]]
    fooled = sum(not attacked[video] for video in before)
    return {
        "clean": len(before) / len(videos) if videos else None,
        "accuracy": sum(attacked[video] for video in videos) / len(videos) if videos else None,
        "fooled": fooled / len(before) if before else None,
    }
