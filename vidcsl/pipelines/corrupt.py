"""Evaluate models under corruption; export corrupted videos."""

import json
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
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
from vidcsl.data.loader import Batch
from vidcsl.data.readers import Reader, open_reader
from vidcsl.distributed import DistributedContext
from vidcsl.errors import UserError
from vidcsl.io import Bar, replacing, save_arrays, stored_key, write_atomically
from vidcsl.models.encoder import Classifier
from vidcsl.pipelines.context import (
    EvaluationContext,
    load_context,
    newest_checkpoint,
    require_test_videos,
    subset,
    with_checkpoint,
)
from vidcsl.pipelines.data import build_corruptions, build_lists
from vidcsl.pipelines.evaluations import evaluation_folder, join
from vidcsl.report.page import write_report
from vidcsl.robustness.corruption_table import (
    CLEAN,
    CorruptionTable,
    bootstrap_intervals,
    by_category,
    category_scores,
    condition,
    corrupted,
    corruption_table,
    finished_videos,
    mean_performance,
    mean_scores,
    robustness_scores,
    scored,
)
from vidcsl.robustness.corruptions import SEVERITIES, corrupt
from vidcsl.robustness.corruptions.draws import to_bytes
from vidcsl.robustness.corruptions.windows import Window, acts_over_time
from vidcsl.robustness.targets import Clips, Crop, cropped_clips
from vidcsl.run_folder import ResultCache, digest
from vidcsl.seeding import seed_of
from vidcsl.state import weights_digest

# ----------------------------------------------------------------------
# Accuracy under corruption, for one model or for several.

INTERVALS = (
    "95 %, bootstrap over videos, 1000 resamples; Wilson's where no video is right under some "
    "conditions alone"
)
SHOWN_SEVERITIES = (0, 3, 5)  # side by side in the report; 0 is the clean clip


def evaluate_corruptions(
    model: nn.Module, test: VideoList, context: EvaluationContext
) -> CorruptionTable:
    """A model's predictions under every corruption of CORRUPT.NAMES; cached ones are reused."""
    cfg, distributed, names = context.cfg, context.distributed, build_corruptions(context.cfg)
    chosen = subset(test, cfg.CORRUPT.MAX_CLIPS)
    result_cache = ResultCache(
        context.folder.result_cache,
        settings=context.settings(
            test,
            weights_digest(model),
            evaluation="corruptions",
            order=cfg.CORRUPT.ORDER,
            predictions="label, class, repeated frames, damaged",
            batch=cfg.EVALUATE.BATCH,  # sums over other batches are rounded in another way
            seed=cfg.SEED,
        ),
        rank=distributed.rank,
    )
    # The cache as the main process sees it, so that all divide the rest in the same way.
    done = distributed.broadcast(
        finished_videos(result_cache, names) | set(result_cache.results("unreadable"))
    )
    left = sum(video not in done for video in chosen)
    with context.timed("corruptions"), context.bar("corruptions", left) as advance:
        table = corruption_table(
            model,
            corrupted_pixels(context, test, chosen, names, done=done),
            names,
            distributed=distributed,
            result_cache=result_cache,
            advance=advance,
        ).over(chosen)  # the cache may hold more, of an earlier run with more clips
    # Videos that cannot be decoded are remembered, or every later run would try them again.
    if distributed.is_main:
        missing = sorted({*chosen} - {*table.videos})
        result_cache.record("unreadable", missing, [True] * len(missing))
    return table


def corrupted_pixels(
    context: EvaluationContext,
    test: VideoList,
    chosen: Sequence[int],
    names: Sequence[str],
    *,
    done: Container[int] = (),
) -> Iterator[Clips]:
    """The central clips; where CORRUPT.ORDER asks for it, with their videos at full rate."""
    wanted = context.cfg.CORRUPT.ORDER == "video" and any(acts_over_time(name) for name in names)
    pixels = clips_with_windows if wanted else cropped_clips
    return context.clips(test, chosen, done=done, pixels=pixels, windows=wanted)


def clips_with_windows(
    batch: Batch, crop: Crop, *, seeds: Sequence[int], videos: Sequence[int]
) -> Iterator[Clips]:
    """The central clips, each with all frames of its video from its first to its last."""
    shown = batch.frame_indices[:, 0].cpu()  # [N, T]
    windows = [
        Window(frames, indices - indices.min(), rate, crop)
        for frames, indices, rate in zip(batch.windows, shown, batch.rates, strict=True)
    ]
    for clips in cropped_clips(batch, crop, seeds=seeds, videos=videos):
        yield replace(clips, windows=windows)


def open_video(cfg: CfgNode, video: Video) -> Reader:
    """A reader of all of a video's frames, at the size that the clips are cut from."""
    return open_reader(
        video.source(),
        backend=cfg.DATA.READER,
        short_side=cfg.DATA.SHORT_SIDE,
        pixels=cfg.DATA.PIXELS,
    )


def corruption_section(table: CorruptionTable, context: EvaluationContext) -> dict[str, Any]:
    """The section "corruptions" of the results.

    Accuracies, scores by suite and category with intervals, and the frames that were not recovered.
    """
    correct = table.correct_when_clean()
    clean, suites = float(correct.mean()), table.accuracies()
    by_suite: dict[str, dict[str, Any]] = {}
    for suite, accuracies in suites.items():
        counted = scored(accuracies, suite=suite)
        if not counted:
            continue
        groups = {"all": list(counted), **by_category(counted, suite=suite)}
        ratios = {
            group: np.mean([table.correct(f"{suite}/{name}").mean(1) for name in names], axis=0)
            for group, names in groups.items()
        }
        intervals = bootstrap_intervals(correct, ratios)
        means = {
            "all": mean_scores(clean, mean_performance(counted)),
            **category_scores(clean, counted, suite=suite),
        }
        by_suite[suite] = {
            group: {**means[group], "interval": intervals[group]} for group in groups
        }
    return {
        "clean": clean,
        "order": context.cfg.CORRUPT.ORDER,
        "clips": len(table.videos),
        **suites,
        "scores": {
            **robustness_scores(clean, suites),
            "intervals": INTERVALS,
            "suites": by_suite,
        },
        "repeated_frames": table.repeated(),
        "damaged_clips": table.damaged(),
        **context.norms,
    }


def store_corrupted_clips(
    table: CorruptionTable, test: VideoList, context: EvaluationContext
) -> None:
    """Write `artifacts/corruption_NAME.npz` for the corruptions that cost most accuracy.

    They show one video, the first that is classified correctly when clean: the clip of the table.
    """
    most = context.cfg.CORRUPT.EXAMPLES
    worst = sorted(table.names, key=lambda name: float(table.correct(name).mean()))[:most]
    names = [name for name in table.names if name in worst]
    correct = np.flatnonzero(table.correct_when_clean())
    if not context.distributed.is_main or not names or not len(correct):
        return
    video = table.videos[int(correct[0])]
    key = digest({"video": video, "names": names, "weights": context.weights})
    artifacts, classes = context.folder.artifacts, context.train.classes
    before = sorted(artifacts.glob("corruption_*.npz"))
    paths = [artifacts / f"corruption_{name.replace('/', '.')}.npz" for name in names]
    if before == sorted(paths) and all(stored_key(path) == key for path in before):
        return
    for path in before:
        path.unlink()
    (clip,) = corrupted_pixels(context, test, [video], names)
    for name, path in zip(names, paths, strict=True):
        shown = [corrupted(clip, name, s).clips.to(clip.clips.device) for s in SHOWN_SEVERITIES]
        conditions = [condition(name, s) if s else CLEAN for s in SHOWN_SEVERITIES]
        predictions = [table.predictions[each][video] for each in conditions]
        frames = torch.cat(shown).permute(0, 2, 3, 4, 1).cpu()  # [3, T, H, W, 3]
        arrays = {
            "key": key,
            "frames": (frames * 255).round().byte().numpy(),
            "severities": SHOWN_SEVERITIES,
            "label": classes[predictions[0][0]],
            "predictions": [classes[predicted] for _, predicted, *_ in predictions],
        }
        save_arrays(path, arrays, compressed=True)


def corrupt_checkpoints(
    cfg: CfgNode,
    distributed: DistributedContext,
    *,
    checkpoints: Sequence[Path],
    foreign: bool = False,
) -> dict[str, dict[str, Any]]:
    """Evaluate checkpoints under corruption; if none is named, the one of `load_context`.

    One checkpoint updates the results and the report of the run folder. Several are stored together
    in `corruptions.json`.

    Returns:
        The section of each, by the checkpoint's path.
    """
    if not build_corruptions(cfg):
        raise UserError("CORRUPT.NAMES is empty: name corruptions, suites (P, C, V) or all")
    found: dict[str, dict[str, Any]] = {}
    for checkpoint in (*checkpoints,) or (None,):
        context, listed = load_context(cfg, distributed, checkpoint=checkpoint, foreign=foreign)
        test, folder = require_test_videos(listed), context.folder
        if len(checkpoints) < 2:
            folder = evaluation_folder(context, test, checkpoint=checkpoint)
            distributed.barrier()  # all processes look before one of them makes files
            context = replace(context, folder=folder)
        if distributed.is_main and not folder.config.exists():
            folder.write_config(dump_config(with_checkpoint(cfg, folder, checkpoint)))
        heads = context.heads()
        if not heads:
            raise UserError("set EVALUATE.LINEAR to true: the method has no head of its own")
        head = next(iter(heads.values()))  # the linear probe, or else the method's own head
        model = Classifier(context.method.encoder, head).eval()  # type: ignore[arg-type]
        table = evaluate_corruptions(model, test, context)
        default = cfg.MODEL.WEIGHTS if foreign else newest_checkpoint(folder)
        section = found[str(checkpoint or default)] = corruption_section(table, context)
        if len(checkpoints) < 2:
            store_corrupted_clips(table, test, context)
            context.store({"name": cfg.NAME, "weights": context.weights, "corruptions": section})
            if distributed.is_main:
                join(folder)
            if distributed.is_main and cfg.REPORT.ENABLED:
                write_report(folder.path)
        elif distributed.is_main:
            text = json.dumps(found, indent=2) + "\n"
            write_atomically(folder.path / "corruptions.json", text)
    return found


# ----------------------------------------------------------------------
# The corrupted test set as video files and lists, for other tools.

# Visually lossless, and every player and reader opens it. The clean videos are coded likewise, so
# that this codec is not what tells clean and corrupted videos apart.
QUALITY = {"crf": "10", "preset": "medium"}


def export_corrupted(cfg: CfgNode, distributed: DistributedContext, *, folder: Path) -> list[Path]:
    """Write every test video, whole, clean and under every corruption and severity.

    `FOLDER/P/jpeg/3/CLASS/VIDEO.mp4`, and beside it the list `FOLDER/P/jpeg/3.csv`, whose paths
    are relative to `FOLDER/P/jpeg/3`; the clean ones are in `FOLDER/clean`. Frames have the short
    side DATA.SHORT_SIDE and are not cropped. Existing files are kept, so that a stopped export
    continues where it was. The processes divide the videos.

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
    relative = {
        index: test.videos[index].path.relative_to(cfg.DATA.ROOT).with_suffix(".mp4")
        for index in chosen
    }
    if twice := [str(path) for path, count in Counter(relative.values()).items() if count > 1]:
        raise UserError(f"two videos of {test.source} would be exported to one file: {twice[0]}")
    targets = {folder / "clean": ("", 0)}
    targets |= {folder / name / str(s): (name, s) for name in names for s in SEVERITIES}
    bar = Bar("export", total=-(-len(chosen) // distributed.size), shown=distributed.is_main)
    for index in chosen[distributed.rank :: distributed.size]:
        paths = {place / relative[index]: how for place, how in targets.items()}
        missing = {path: how for path, how in paths.items() if not path.exists()}
        if missing:
            video = test.videos[index]
            _export_video(cfg, video, seed=seed_of(cfg.SEED, index), targets=missing)
        bar.advance()
    bar.close()
    distributed.barrier()
    lists = [place.with_name(place.name + ".csv") for place in targets]
    if distributed.is_main:
        rows = []
        for index in chosen:
            video = test.videos[index]
            label = test.classes[video.label] if video.label >= 0 else ""
            group = str(video.group) if video.group >= 0 else ""
            rows.append(Row(str(relative[index]), label, group))
        for path in lists:
            write_list(path, rows)
    return lists


def _export_video(
    cfg: CfgNode, video: Video, *, seed: int, targets: Mapping[Path, tuple[str, int]]
) -> None:
    """Decode a video once, and write it under each (corruption, severity) of `targets`."""
    with open_video(cfg, video) as reader:
        frames = reader.read(np.arange(reader.num_frames))
        rate = Fraction(reader.fps).limit_denominator(1001) if reader.fps else Fraction(25)
    clip = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float().div_(255)  # [1, 3, T, H, W]
    for path, (name, severity) in targets.items():
        found = corrupt(clip, name, severity=severity, seeds=[seed]) if severity else clip
        write_video(path, found[0], rate=rate)


def write_video(path: Path, clip: Tensor, *, rate: Fraction) -> None:
    """Write a clip `[3, T, H, W]` in [0, 1] as H.264 in MP4, atomically; odd sides are padded."""
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
