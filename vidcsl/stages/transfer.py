"""Attacked clips tried on other models: the transfer matrix."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidcsl.augment.pipeline import EvalCrop
from vidcsl.config import load_config
from vidcsl.engine.distributed import World
from vidcsl.engine.progress import Bar
from vidcsl.errors import UserError
from vidcsl.models.heads import Classifier
from vidcsl.robustness.attack_curve import predict
from vidcsl.robustness.clips import Views
from vidcsl.robustness.storage import find_sets, read_clip, read_set
from vidcsl.robustness.targets import classifier, directly
from vidcsl.stages.job import model_name
from vidcsl.stages.opening import open_job

_BATCH = 16


def transfer(paths: Sequence[Path], runs: Sequence[Path], world: World) -> dict[str, Any]:
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
        for name, found in _models(run, world):
            if name in models:
                raise UserError(
                    f"{run}: another run's model is {name} too; set NAME in {run}/config.yaml"
                )
            models[name] = found
    bar = Bar("transfer", total=len(attacked) * len(models), shown=world.is_main)
    answers: dict[tuple[Path, str], dict[int, bool]] = {}
    rows = []
    for place in attacked:
        described = read_set(place)
        clean = (place / str(described["clean"])).resolve()
        results = {}
        for name, (model, classes) in models.items():
            for each in (clean, place):
                if (each, name) not in answers:
                    answers[each, name] = _right(each, model, classes, world.device)
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


def _models(run: Path, world: World) -> Iterator[tuple[str, tuple[Classifier, tuple[str, ...]]]]:
    """(name, (module, classes)) of every head of a run."""
    cfg = load_config(run / "config.yaml", ["OUTPUT_DIR", str(run)])
    job, _ = open_job(cfg, world)
    for suffix, head in job.heads().items():
        model = Classifier(job.method.encoder, head).eval()  # type: ignore[arg-type]
        yield model_name(job, suffix), (model, job.train.classes)


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
