"""Attack the evaluated model; keep attacked clips; try them on other models."""

from collections import Counter, defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
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
from vidcsl.io import Bar, save_arrays, stored_key
from vidcsl.models.encoder import Classifier
from vidcsl.pipelines.context import (
    EvaluationContext,
    load_context,
    model_name,
    require_test_videos,
    subset,
)
from vidcsl.pipelines.targets import attack_specs, build_attacks, build_input, build_targets
from vidcsl.robustness.attack_curve import Attack, Curve, attack_curve, predict
from vidcsl.robustness.attacked_clips import find_sets, read_clip, read_set, write_clip, write_set
from vidcsl.robustness.attacks import Solver
from vidcsl.robustness.attacks.specs import AttackSpec, versions
from vidcsl.robustness.sanity import CHECKS_VERSION, Trial, check_attack
from vidcsl.robustness.targets import (
    Clips,
    FrameViews,
    InputView,
    Target,
    classifier,
    clip_view,
)
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
    for spec in attack_specs(context.cfg):
        attacks = attacks_of(spec, context)
        for suffix, target in targets.items():
            campaign = Campaign(spec.name + suffix, spec, attacks, target, test, chosen, context)
            for section, found in campaign.result().items():
                sections.setdefault(section, {})[campaign.name] = found
            context.store(sections)


@dataclass(frozen=True)
class Campaign:
    """One attack, at growing budgets, on one target and the chosen test videos."""

    name: str
    spec: AttackSpec
    attacks: Mapping[str, Attack]
    target: Target
    test: VideoList
    chosen: Sequence[int]
    context: EvaluationContext

    def result(self) -> dict[str, Any]:
        """Attack the videos whose results are not cached; everything found, by section."""
        context = self.context
        result_cache = ResultCache(
            context.folder.result_cache, settings=self.settings, rank=context.distributed.rank
        )
        # The cache as the main process sees it, so that all divide the rest in the same way.
        done = context.distributed.broadcast(
            {*result_cache.results(self.name), *result_cache.results("unreadable")}
        )
        with context.bar(self.name, sum(video not in done for video in self.chosen)) as advance:
            curve = attack_curve(
                self.target,
                attacked_pixels(context, self.test, self.chosen, done=done),
                self.attacks,
                distributed=context.distributed,
                result_cache=result_cache,
                condition=self.name,
                advance=advance,
            ).over(self.chosen)
        if context.distributed.is_main:
            missing = [video for video in self.chosen if video not in curve.outcomes]
            result_cache.record("unreadable", missing, [True] * len(missing))
        context.store_cost(self.name, curve.seconds())
        self.store_examples(curve)
        return {
            "attacks": curve.accuracy(),
            "survival": curve.survival(),
            "attack_settings": {
                "attack": self.spec.spec,
                "solver": str(self.spec.solver),
                "clips": curve.clips,
                "clean": curve.clean / curve.clips,
                # Of everything but the budgets: curves with the same may be joined.
                "settings": digest({k: v for k, v in self.settings.items() if k != "threats"}),
                **context.norms,
            },
            "attack_classes": curve.by_class(len(context.train.classes)),
            "attack_frames": curve.frame_rms(),
            "attack_checks": self.checks(curve, result_cache),
        }

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All that the results depend on."""
        return self.context.settings(
            self.test,
            weights_digest(self.target(clip_view)),
            attack=self.name,
            words=self.spec.spec,  # the key of the result caches that exist
            solver=repr(self.spec.solver),
            threats={eps: repr(threat) for eps, threat in self.spec.threats.items()},
            **versions(*self.spec.threats.values(), self.spec.solver, self.target(clip_view)),
            **fitted_on(self.spec, self.context),
            **depends_on(self.context.cfg),
        )

    def checks(self, curve: Curve, result_cache: ResultCache) -> dict[str, Any]:
        """Whether the attack can be trusted, tried on a few clips where it fools about half."""
        survival, most = curve.survival(), self.context.cfg.ATTACK.CHECK_CLIPS
        found: dict[str, Any] = {}
        if self.context.distributed.is_main and survival and most:
            eps = min(survival, key=lambda eps: abs(survival[eps] - 0.5))
            correct = [video for video, one in curve.outcomes.items() if one.clean == one.label]
            videos = [correct[i] for i in subset(correct, most)]
            condition, asked = (
                f"{self.name} checks",
                {"eps": eps, "videos": videos, "version": CHECKS_VERSION},
            )
            known = result_cache.get(condition, 0)
            if known is None or known["asked"] != asked:
                clips = attacked_pixels(in_one_process(self.context), self.test, videos)
                trial = Trial(
                    [(self.target(each.view).eval(), each) for each in clips],
                    self.spec.threats[eps],
                    self.spec.solver,
                    self.spec.goal,
                    self.context.cfg.ATTACK.QUANTISE,
                )
                known = {"asked": asked, "checks": check_attack(trial)}
                result_cache.record(condition, [0], [known])
            found = {"eps": eps, "clips": len(videos), "checks": known["checks"]}
        self.context.distributed.barrier()
        return found

    def store_examples(self, curve: Curve) -> None:
        """Attack a few of the fooled clips once more, and keep their frames for the report."""
        context, classes = self.context, self.context.train.classes
        shown = pick_examples(curve, context.cfg.ATTACK.EXAMPLES)
        key = digest({**self.settings, "shown": shown})
        artifacts = context.folder.artifacts
        before = sorted(artifacts.glob(f"attack_{self.name}.*.npz"))
        up_to_date = [stored_key(path) for path in before] == [key] * len(shown)
        if context.distributed.broadcast(up_to_date):
            return
        for path in before if context.distributed.is_main else ():
            path.unlink()
        context.distributed.barrier()
        for batch in attacked_pixels(context, self.test, shown):
            model = self.target(batch.view).eval()
            for row, video in enumerate(batch.videos):
                one = batch.take(torch.tensor([row]))
                eps = str(curve.outcomes[video].fooled_at)
                attacked = self.attacks[eps](model, one.clips, one.labels, one.seeds)
                clean, adversarial = (int(predict(model, each)) for each in (one.clips, attacked))
                frames = torch.cat([one.clips, attacked]).permute(0, 2, 3, 4, 1)  # [2, T, H, W, 3]
                frames = frames.cpu()
                example = {
                    "eps": eps,
                    "clean": (frames[0] * 255).round().byte().numpy(),
                    "difference": (frames[1] - frames[0]).numpy().astype(np.float16),
                    "label": classes[int(one.labels)],
                    "clean_prediction": classes[clean],
                    "adversarial_prediction": classes[adversarial],
                }
                path = artifacts / f"attack_{self.name}.{video}.npz"
                save_arrays(path, {"key": key, **example}, compressed=True)


def pick_examples(curve: Curve, most: int) -> list[int]:
    """Videos to show: fooled by the budget that fooled most; one a class before any second.

    In the order of the list, so that the same outcomes show the same videos.
    """
    fooled = {video: one for video, one in curve.outcomes.items() if one.fooled_at is not None}
    if not fooled:
        return []
    counts = Counter(one.fooled_at for one in fooled.values())
    usual = max(curve.budgets, key=lambda eps: counts[eps])
    seen: Counter[int] = Counter()
    ranked = []
    for video, one in sorted(fooled.items()):
        if one.fooled_at == usual:
            ranked.append((seen[one.label], video))
            seen[one.label] += 1
    return sorted(video for _, video in sorted(ranked)[:most])


def attacked_pixels(
    context: EvaluationContext,
    test: VideoList,
    chosen: Sequence[int],
    *,
    done: Container[int] = (),
) -> Iterator[Clips]:
    """Those of the chosen videos that this process attacks, as the pixels of ATTACK.INPUT."""
    given = build_input(context.cfg)
    return context.clips(
        test,
        chosen,
        done=done,
        views=given.views,
        crops=given.crops,
        pixels=given.pixels,
    )


def attacks_of(spec: AttackSpec, context: EvaluationContext) -> dict[str, Attack]:
    """The attack at each budget; a universal one is fitted on training clips."""

    def training() -> Iterator[Clips]:
        # The same clips in every process, or each would fit another delta.
        alone = in_one_process(context)
        return alone.clips(context.train, fitting_videos(context), training=True)

    return build_attacks(spec, context.cfg, training=training)


def fitting_videos(context: EvaluationContext) -> list[int]:
    """Indices of the training videos that a universal attack is fitted on, evenly chosen."""
    labelled = [i for i, video in enumerate(context.train.videos) if video.label >= 0]
    return [labelled[i] for i in subset(labelled, context.cfg.ATTACK.UNIVERSAL_CLIPS)]


def fitted_on(spec: AttackSpec, context: EvaluationContext) -> dict[str, Any]:
    """What a universal attack depends on in addition: its training clips."""
    if not any(isinstance(threat, Universal) for threat in spec.threats.values()):
        return {}
    return {"fitted_on": context.settings(context.train, "", clips=fitting_videos(context))}


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


def in_one_process(context: EvaluationContext) -> EvaluationContext:
    """The context as if this process were the only one."""
    alone = DistributedContext(rank=0, size=1, device=context.distributed.device)
    return replace(context, distributed=alone)


# ----------------------------------------------------------------------
# Attacked clips as files, to look at and to try on other models.

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
    the clean ones; `set.json` describes each folder. Every clip is attacked, also one that is
    misclassified when clean, and until the solver's end, so that it misleads other models as well
    as it can. A stopped export resumes. Which model is attacked: see `open_context`.

    Returns:
        The folders, the clean one first.
    """
    context, listed = load_context(cfg, distributed, checkpoint=checkpoint, foreign=foreign)
    test = require_test_videos(listed)
    encoder, classes = context.method.encoder, len(context.train.classes)
    targets = build_targets(cfg, encoder, context.heads(), context.gallery(), classes=classes)
    source = cfg.MODEL.WEIGHTS if foreign else str(checkpoint or context.folder.checkpoints)
    places = []
    for given in attack_specs(cfg):
        spec = replace(given, solver=without_stopping(given.solver))
        attacks = attacks_of(spec, context)
        for suffix, target in targets.items():
            export = Export(spec, attacks, suffix, target, source, test, folder, context)
            places += [export.write(budget) for budget in (CLEAN, *attacks)]
    if not places:
        raise UserError("ATTACK.RUNS or ATTACK.TARGETS is empty: there is nothing to write")
    return list(dict.fromkeys(places))


@dataclass(frozen=True)
class Export:
    """One attack on one target, to be written for each of its budgets, or `CLEAN`."""

    spec: AttackSpec
    attacks: Mapping[str, Attack]
    suffix: str
    target: Target
    source: str
    test: VideoList
    folder: Path
    context: EvaluationContext

    def write(self, budget: str) -> Path:
        """Write the clips under a budget, and return their folder."""
        context, cfg = self.context, self.context.cfg
        chosen = subset(self.test, cfg.ATTACK.MAX_CLIPS)
        if budget == CLEAN:
            name, place = CLEAN, self.folder / CLEAN
            how: dict[str, Any] = {"attack": None, "eps": "0"}
            fitted = {}
        else:
            name = self.spec.name + self.suffix
            place = self.folder / name / budget.replace("/", "_")
            how = {
                "attack": self.spec.spec,
                "eps": budget,
                "threat": repr(self.spec.threats[budget]),
                "solver": repr(self.spec.solver),
            }
            parts = (self.spec.threats[budget], self.spec.solver, self.target(clip_view))
            fitted = {**fitted_on(self.spec, context), **versions(*parts)}
        weights = weights_digest(self.target(clip_view))
        settings = context.settings(self.test, weights, **how, **fitted, **depends_on(cfg))
        result_cache = ResultCache(
            self.folder / "answers", settings=settings, rank=context.distributed.rank
        )
        done = context.distributed.broadcast(set(result_cache.results("written")))
        title = name if budget == CLEAN else f"{name} {budget}"
        with context.bar(title, sum(video not in done for video in chosen)) as advance:
            for batch in attacked_pixels(context, self.test, chosen, done=done):
                entries = list(self._write_batch(batch, budget, place))
                result_cache.record("written", batch.videos, entries)
                advance(len(batch))
        context.distributed.barrier()
        result_cache.reload()
        if context.distributed.is_main:
            written = result_cache.results("written")
            description = {
                **how,
                "clean": None if budget == CLEAN else "../../" + CLEAN,
                "quantise": cfg.ATTACK.QUANTISE,
                "model": {
                    "name": model_name(context, self.suffix.removeprefix(f"_{cfg.ATTACK.INPUT}")),
                    "method": cfg.METHOD.NAME,
                    "checkpoint": self.source,
                    "weights": weights,
                },
                "classes": list(context.train.classes),
                "look": {"input": cfg.ATTACK.INPUT, "crops": build_input(cfg).crops},
                "clips": [written[video] for video in chosen if video in written],
            }
            write_set(place, description)
        return place

    def _write_batch(self, batch: Clips, budget: str, place: Path) -> Iterator[dict[str, Any]]:
        """Write the files of a batch; an entry of set.json for each."""
        model, clips = self.target(batch.view).eval(), batch.clips
        if budget != CLEAN:
            clips = self.attacks[budget](model, clips, batch.labels, batch.seeds)
        views = batch.view.pattern.tolist() if isinstance(batch.view, FrameViews) else None
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


def without_stopping(solver: Solver) -> Solver:
    """The same solver, which does not stop at clips that only just fool the model."""
    names = {field.name for field in fields(solver)}  # type: ignore[arg-type]
    change: Any = replace
    return change(solver, stop_when_fooled=False) if "stop_when_fooled" in names else solver


# ----------------------------------------------------------------------
# Attacked clips tried on other models: the transfer matrix.

BATCH = 16


def transfer(
    paths: Sequence[Path], runs: Sequence[Path], distributed: DistributedContext
) -> dict[str, Any]:
    """How models fare on clips that were made to fool others.

    Args:
        paths: folders with sets of attacked clips, at any depth.
        runs: folders of runs, whose newest weights are tried, with the linear probe and, if the
            model has one, with its own head.
        distributed: this process.

    Returns:
        `{"models": [names], "sets": [{"path", "model" (attacked), "attack", "eps", "clips",
        "results": {name: {"clean", "accuracy", "fooled"}}}]}`: accuracies on the clean and on the
        attacked clips, and the ratio of those correct when clean that are misclassified when
        attacked.

    Raises:
        UserError: a set or a run cannot be read, or they do not fit each other.
    """
    attacked = [place for place in find_sets(paths) if read_set(place)["attack"] is not None]
    if not attacked:
        raise UserError(f"{paths[0]} holds clean clips only: give the set of an attack")
    models: dict[str, tuple[Classifier, Sequence[str]]] = {}
    for run in runs:
        cfg = load_config(run / "config.yaml", ["OUTPUT_DIR", str(run)])
        context, _ = load_context(cfg, distributed)
        for suffix, head in context.heads().items():
            name = model_name(context, suffix)
            if name in models:
                raise UserError(
                    f"{run}: another run's model is {name} too; set NAME in {run}/config.yaml"
                )
            model = Classifier(context.method.encoder, head).eval()  # type: ignore[arg-type]
            models[name] = model, context.train.classes
    total = len(attacked) * len(models)
    bar = Bar("transfer", total=total, unit="attacks x models", shown=distributed.is_main)
    of_clean: dict[tuple[Path, str], dict[int, bool]] = {}
    rows = []
    for place in attacked:
        described = read_set(place)
        clean = (place / str(described["clean"])).resolve()
        results = {}
        for name, (model, classes) in models.items():
            if (clean, name) not in of_clean:
                of_clean[clean, name] = correct_clips(clean, model, classes, distributed.device)
            before = of_clean[clean, name]
            after = correct_clips(place, model, classes, distributed.device)
            videos = sorted(before.keys() & after.keys())
            known = [video for video in videos if before[video]]
            fooled = sum(not after[video] for video in known)
            results[name] = {
                "clean": len(known) / len(videos) if videos else None,
                "accuracy": sum(after[video] for video in videos) / len(videos) if videos else None,
                "fooled": fooled / len(known) if known else None,
            }
            bar.advance()
        rows.append(
            {
                "path": str(place),
                "model": described["model"]["name"],
                "attack": described["attack"],
                "eps": described["eps"],
                "clips": len(described["clips"]),
                "results": results,
            }
        )
    bar.close()
    return {"models": list(models), "sets": rows}


def transfer_table(found: dict[str, Any]) -> str:
    """The matrix in Markdown: accuracy in per cent and, in brackets, the ratio fooled."""
    models = found["models"]
    header = ["attacked model", "attack", "eps", *models]
    first = found["sets"][0]["results"]
    clean = ["", "clean", "0", *(f"{100 * first[name]['clean']:.1f}" for name in models)]
    cells = [header, ["---"] * len(header), clean]
    for row in found["sets"]:
        line = [row["model"], row["attack"], row["eps"]]
        for name in models:
            accuracy, fooled = row["results"][name]["accuracy"], row["results"][name]["fooled"]
            shown = "–" if fooled is None else f"{100 * fooled:.1f}"
            line.append(f"{100 * accuracy:.1f} ({shown})")
        cells.append(line)
    lines = [f"| {' | '.join(row)} |" for row in cells]
    note = "Accuracy in %; in brackets, the % of clips correct when clean that the attack fools."
    return "\n".join([*lines, note])


def correct_clips(
    place: Path, model: Classifier, classes: Sequence[str], device: torch.device
) -> dict[int, bool]:
    """Whether a model classifies each clip of a set correctly, by index in the list of videos."""
    described = read_set(place)
    if list(classes) != described["classes"]:
        raise UserError(f"{place}: its classes are not those of the model")
    correct = {}
    size, crops = model.encoder.frame_size, described["look"]["crops"]
    for entries, clips in _batches(place, described):
        views = entries[0]["views"]
        if views is None and clips.shape[-1] != size:
            raise UserError(
                f"{place}: clips of {clips.shape[-1]} pixels, the model takes {size}: make the set "
                "with ATTACK.INPUT frames"
            )
        view: InputView = clip_view
        if views is not None:
            view = FrameViews(np.array(views), EvalCrop(size=size, crops=crops))
        predicted = predict(classifier(model)(view).eval(), clips.to(device)).tolist()
        for entry, prediction in zip(entries, predicted, strict=True):
            correct[entry["index"]] = prediction == entry["label"]
    return correct


def _batches(
    place: Path, described: dict[str, Any]
) -> Iterator[tuple[list[dict[str, Any]], Tensor]]:
    """(entries, clips [N, 3, T, H, W]) of clips of one shape that are viewed alike."""
    alike: dict[Any, list[tuple[dict[str, Any], Tensor]]] = defaultdict(list)

    def popped(key: Any) -> tuple[list[dict[str, Any]], Tensor]:
        members = alike.pop(key)
        return [entry for entry, _ in members], torch.stack([clip for _, clip in members])

    for entry in described["clips"]:
        clip = read_clip(place / entry["file"])
        key = (tuple(clip.shape), str(entry["views"]))
        alike[key].append((entry, clip))
        if len(alike[key]) == BATCH:
            yield popped(key)
    for key in list(alike):
        yield popped(key)
