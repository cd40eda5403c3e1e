"""Corrupt the test clips; export corrupted videos."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from vidcsl.config import dump_config
from vidcsl.data.lists import Row, Video, VideoList, write_list
from vidcsl.data.readers import open_reader
from vidcsl.distributed import DistributedContext
from vidcsl.errors import UserError
from vidcsl.io import Bar, replacing, save_arrays, stored_key, write_atomically
from vidcsl.models.encoder import Classifier
from vidcsl.pipelines.context import EvaluationContext, open_context, required, subset
from vidcsl.pipelines.data import build_corruptions, build_lists
from vidcsl.report.page import write_report
from vidcsl.robustness.corruption_table import (
    CLEAN,
    CorruptionTable,
    answered,
    bootstrap_intervals,
    by_category,
    category_scores,
    condition,
    corruption_table,
    mean_performance,
    mean_scores,
    robustness_scores,
    scored,
)
from vidcsl.robustness.corruptions import SEVERITIES, corrupt
from vidcsl.robustness.corruptions.draws import to_bytes
from vidcsl.run_folder import ResultCache, digest
from vidcsl.seeding import seed_of
from vidcsl.state import weights_digest

# ----------------------------------------------------------------------
# What the corruptions look like that hurt most: a film of each, kept for the report.

SHOWN_SEVERITIES = (0, 3, 5)  # shown side by side; 0 is the clean clip


def keep_corrupted_films(
    table: CorruptionTable, test: VideoList, context: EvaluationContext
) -> None:
    """Write `artifacts/corruption_NAME.npz` of the corruptions that cost most accuracy.

    They show one video, the first that is right when clean: the clip that was judged.
    """
    names = hurting(table, most=context.cfg.CORRUPT.EXAMPLES)
    right = np.flatnonzero(table.right_when_clean())
    if not context.distributed.is_main or not names or not len(right):
        return
    video = table.videos[int(right[0])]
    key = digest({"video": video, "names": names, "weights": context.weights})
    before = sorted(context.folder.artifacts.glob("corruption_*.npz"))
    wanted = [
        context.folder.artifacts / f"corruption_{name.replace('/', '.')}.npz" for name in names
    ]
    if before == sorted(wanted) and all(stored_key(path) == key for path in before):
        return
    for path in before:
        path.unlink()
    classes = context.train.classes
    (clip,) = context.clips(test, [video])
    for name, path in zip(names, wanted, strict=True):
        shown = [corrupt(clip.clips, name, severity=s, seeds=clip.seeds) for s in SHOWN_SEVERITIES]
        answers = [
            table.answers[condition(name, s) if s else CLEAN][video] for s in SHOWN_SEVERITIES
        ]
        frames = torch.cat(shown).permute(0, 2, 3, 4, 1).cpu()  # [3, T, H, W, 3]
        film = {
            "key": key,
            "frames": (frames * 255).round().byte().numpy(),
            "severities": SHOWN_SEVERITIES,
            "label": classes[answers[0][0]],
            "predictions": [classes[named] for _, named, _ in answers],
        }
        save_arrays(path, film, compressed=True)


def hurting(table: CorruptionTable, *, most: int) -> Sequence[str]:
    """The corruptions with the lowest accuracy over all severities, in the table's order."""
    lowest = sorted(table.names, key=lambda name: float(table.right(name).mean()))[:most]
    return [name for name in table.names if name in lowest]


# ----------------------------------------------------------------------
# Corruptions of the test clips, from a config to a table and scores, for one model or several.

INTERVALS = "95 %, bootstrap over videos, 1000 resamples"


def corrupt_clips(
    models: Mapping[str, nn.Module], test: VideoList, context: EvaluationContext
) -> None:
    """Accuracy of the first model under every corruption and severity, and the scores."""
    if build_corruptions(context.cfg) and models:
        model = next(iter(models.values()))  # the linear probe, where there is one
        table = judged(model, test, context)
        context.store({"corruptions": _section(table, context)})
        keep_corrupted_films(table, test, context)


def corruption_results(
    model: nn.Module, test: VideoList, context: EvaluationContext
) -> dict[str, Any]:
    """The section "corruptions" of the results."""
    return _section(judged(model, test, context), context)


def _section(table: CorruptionTable, context: EvaluationContext) -> dict[str, Any]:
    return {**summarise(table), **context.norms}


def judged(model: nn.Module, test: VideoList, context: EvaluationContext) -> CorruptionTable:
    """The model's answers. What was answered before is not asked again."""
    cfg, names = context.cfg, build_corruptions(context.cfg)
    chosen = subset(test, cfg.CORRUPT.MAX_CLIPS)
    result_cache = ResultCache(
        context.folder.result_cache,
        settings=context.settings(
            test,
            weights_digest(model),
            evaluation="corruptions",
            batch=cfg.EVALUATE.BATCH,  # sums over other batches are rounded in another way
            seed=cfg.SEED,
        ),
        rank=context.distributed.rank,
    )
    # What the main process knows, so that all share the rest in the same way.
    known = context.distributed.broadcast(
        answered(result_cache, names) | set(result_cache.results("unreadable"))
    )
    left = sum(video not in known for video in chosen)
    with context.timed("corruptions"), context.bar("corruptions", left) as advance:
        clips = context.clips(test, chosen, answered=known)
        table = corruption_table(
            model,
            clips,
            names,
            distributed=context.distributed,
            result_cache=result_cache,
            advance=advance,
        ).over(chosen)
    if context.distributed.is_main:
        missing = sorted({*chosen} - {*table.videos})
        result_cache.record("unreadable", missing, [True] * len(missing))
    return table


def summarise(table: CorruptionTable) -> dict[str, Any]:
    """Accuracies, scores by suite and category with intervals, and the frames not recovered."""
    clean = float(table.right_when_clean().mean())
    suites = table.accuracies()
    return {
        "clean": clean,
        "clips": len(table.videos),
        **suites,
        "scores": {
            **robustness_scores(clean, suites),
            "intervals": INTERVALS,
            "suites": {
                suite: _suite_scores(table, clean, counted, suite)
                for suite, accuracies in suites.items()
                if (counted := scored(accuracies, suite=suite))
            },
        },
        "repeated_frames": table.repeated(),
    }


def _suite_scores(
    table: CorruptionTable, clean: float, accuracies: Mapping[str, Sequence[float]], suite: str
) -> dict[str, Any]:
    groups = {"all": list(accuracies), **by_category(accuracies, suite=suite)}
    shares = {
        group: np.mean([table.right(f"{suite}/{name}").mean(axis=1) for name in names], axis=0)
        for group, names in groups.items()
    }
    intervals = bootstrap_intervals(table.right_when_clean(), shares)
    means = {
        "all": mean_scores(clean, mean_performance(accuracies)),
        **category_scores(clean, accuracies, suite=suite),
    }
    return {group: {**means[group], "interval": intervals[group]} for group in groups}


def corrupt_checkpoints(
    cfg: CfgNode,
    distributed: DistributedContext,
    *,
    checkpoints: Sequence[Path],
    foreign: bool = False,
) -> dict[str, dict[str, Any]]:
    """Corrupt the test clips for each checkpoint; where none is named, for `open_job`'s choice.

    With one checkpoint the results and the report of the run's folder are brought up to date; with
    several all sections are stored together in `corruptions.json`.

    Returns:
        The section of each, by the checkpoint's path.
    """
    if not build_corruptions(cfg):
        raise UserError("CORRUPT.NAMES is empty: name corruptions, suites (P, C, V) or all")
    found: dict[str, dict[str, Any]] = {}
    for checkpoint in (*checkpoints,) or (None,):
        context, listed = open_context(cfg, distributed, checkpoint=checkpoint, foreign=foreign)
        test = required(listed)
        if distributed.is_main and not context.folder.config.exists():
            context.folder.write_config(dump_config(cfg))
        table = judged(_classifier(context), test, context)
        section = found[_source(context, checkpoint, foreign)] = _section(table, context)
        if len(checkpoints) < 2:
            keep_corrupted_films(table, test, context)
            _bring_up_to_date(section, context)
        elif distributed.is_main:
            text = json.dumps(found, indent=2) + "\n"
            write_atomically(context.folder.path / "corruptions.json", text)
    return found


def _source(context: EvaluationContext, checkpoint: Path | None, foreign: bool) -> str:
    newest = context.cfg.MODEL.WEIGHTS if foreign else f"the newest of {context.folder.checkpoints}"
    return str(checkpoint or newest)


def _classifier(context: EvaluationContext) -> nn.Module:
    """The encoder with its linear probe, or with its own head where probes are switched off."""
    heads = context.heads()
    if not heads:
        raise UserError("EVALUATE.LINEAR is false and the method has no head of its own: set it")
    return Classifier(context.method.encoder, next(iter(heads.values()))).eval()  # type: ignore[arg-type]


def _bring_up_to_date(section: Mapping[str, Any], context: EvaluationContext) -> None:
    context.store({"name": context.cfg.NAME, "corruptions": section})
    if context.distributed.is_main and context.cfg.REPORT.ENABLED:
        write_report(context.folder.path)


# ----------------------------------------------------------------------
# The corrupted test set as video files and lists, for other tools.

# Visually lossless, and every player and reader opens it. The clean videos go through it too.
QUALITY = {"crf": "10", "preset": "medium"}
_FALLBACK_RATE = Fraction(25)


def export_corrupted(cfg: CfgNode, distributed: DistributedContext, *, folder: Path) -> list[Path]:
    """Write every test video, whole, clean and under every corruption and severity.

    `FOLDER/P/jpeg/3/CLASS/VIDEO.mp4`, and beside it the list `FOLDER/P/jpeg/3.csv`, whose paths
    are relative to `FOLDER/P/jpeg/3`; the clean ones are in `FOLDER/clean`. Frames have the short
    side DATA.SHORT_SIDE and are not cropped. A file that is there already stays, so that an
    export which was stopped goes on. Ranks share the videos.

    Returns:
        The lists.

    Raises:
        UserError: there is no test list or no corruption, two videos would have one name, or one
            cannot be read.
    """
    names = build_corruptions(cfg)
    _, test = build_lists(cfg, distributed)
    if test is None or not names:
        raise UserError("an export needs DATA.TEST_LIST and CORRUPT.NAMES")
    chosen = subset(test, cfg.CORRUPT.MAX_CLIPS)
    taken = Counter(_relative(cfg, test.videos[index]) for index in chosen)
    if twice := [str(path) for path, count in taken.items() if count > 1]:
        raise UserError(f"two videos of {test.source} would be exported to one file: {twice[0]}")
    targets = {_place(folder, name, s): (name, s) for name in names for s in SEVERITIES}
    targets = {folder / "clean": ("", 0), **targets}
    bar = Bar("export", total=-(-len(chosen) // distributed.size), shown=distributed.is_main)
    for index in chosen[distributed.rank :: distributed.size]:
        _export_video(cfg, test.videos[index], seed=seed_of(cfg.SEED, index), targets=targets)
        bar.advance()
    bar.close()
    distributed.barrier()
    lists = [path.with_name(path.name + ".csv") for path in targets]
    if distributed.is_main:
        rows = list(_rows(cfg, test, chosen))
        for path in lists:
            write_list(path, rows)
    return lists


def _place(folder: Path, name: str, severity: int) -> Path:
    return folder / name / str(severity)


def _export_video(
    cfg: CfgNode, video: Video, *, seed: int, targets: dict[Path, tuple[str, int]]
) -> None:
    """Decode once, corrupt as often as files are missing."""
    relative = _relative(cfg, video)
    missing = {
        path / relative: how for path, how in targets.items() if not (path / relative).exists()
    }
    if not missing:
        return
    with open_reader(
        video.source(), backend=cfg.DATA.READER, short_side=cfg.DATA.SHORT_SIDE
    ) as reader:
        frames = reader.read(np.arange(reader.num_frames))
        rate = Fraction(reader.fps).limit_denominator(1001) if reader.fps else _FALLBACK_RATE
    clip = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float().div_(255)  # [1, 3, T, H, W]
    for path, (name, severity) in missing.items():
        corrupted = corrupt(clip, name, severity=severity, seeds=[seed]) if severity else clip
        write_video(path, corrupted[0], rate=rate)


def write_video(path: Path, clip: Tensor, *, rate: Fraction) -> None:
    """A clip `[3, T, H, W]` in [0, 1] as H.264 in MP4, whole or not at all; odd sides padded."""
    frames = to_bytes(clip).permute(1, 2, 3, 0).cpu().numpy()
    frames = np.pad(
        frames, [(0, 0), *((0, side % 2) for side in frames.shape[1:3]), (0, 0)], "edge"
    )
    with replacing(path) as partial, av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options=QUALITY)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def _rows(cfg: CfgNode, test: VideoList, chosen: list[int]) -> Iterator[Row]:
    for index in chosen:
        video = test.videos[index]
        label = test.classes[video.label] if video.label >= 0 else ""
        group = str(video.group) if video.group >= 0 else ""
        yield Row(str(_relative(cfg, video)), label, group)


def _relative(cfg: CfgNode, video: Video) -> Path:
    return video.path.relative_to(cfg.DATA.ROOT).with_suffix(".mp4")
