"""`vidcsl neighbours` from a config to a page: what a teacher flags, before any training."""

import csv
import json
from pathlib import Path

import numpy as np
from fvcore.common.config import CfgNode
from torch import Tensor

from vidcsl.config import overridden
from vidcsl.data.lists import VideoList
from vidcsl.data.readers import open_reader
from vidcsl.distributed import DistributedContext
from vidcsl.errors import UserError, VideoError
from vidcsl.io import replacing, write_atomically
from vidcsl.methods.false_negatives import TeacherNeighbours
from vidcsl.pipelines.data import build_lists
from vidcsl.pipelines.method import build_false_negatives
from vidcsl.pipelines.teachers import build_teacher, teacher_weights
from vidcsl.report.neighbours import write_neighbours
from vidcsl.report.pictures import PairPicture, PairVideo, strip_uri
from vidcsl.run_folder import RunFolder
from vidcsl.teachers.neighbours import Teacher
from vidcsl.teachers.quality import Quality, measure

_FRAMES, _SHORT_SIDE = 4, 72  # of each video on the page


def measure_neighbours(
    cfg: CfgNode, distributed: DistributedContext, *, folder: Path, examples: int
) -> list[str]:
    """Write `neighbours.json`, `.csv` (each video) and `.html`; the main figures, a line each.

    Args:
        cfg: as for training, FALSE_NEGATIVES.DETECTOR teacher.
        distributed: the processes.
        folder: where to write; the teacher's array is kept there too.
        examples: pairs shown of either kind.

    Raises:
        UserError: the detector is another one, or the teacher cannot be built.
    """
    options = cfg.FALSE_NEGATIVES
    if options.DETECTOR != "teacher":
        raise UserError(
            "neighbours measures a teacher: set FALSE_NEGATIVES.DETECTOR teacher, it is "
            f"{options.DETECTOR}"
        )
    videos, _ = build_lists(cfg, distributed)
    weights = teacher_weights(cfg)
    alone = {}
    if len(weights) > 1:  # what each adds is seen by what each knows
        for name in weights:
            of_one = overridden(cfg, {"FALSE_NEGATIVES.TEACHER": name})
            alone[name] = _measure(of_one, videos, distributed, folder=folder, examples=0)[0]
    found, teacher, least = _measure(cfg, videos, distributed, folder=folder, examples=examples)
    figures = found.summary() | {
        "teacher": teacher.name,
        "rule": options.RULE,
        "treatment": options.TREATMENT,
        "list": videos.source,
        "videos": len(videos),
        "silent": teacher.silent(),
        "warning": warning_of(found),
        "alone": {name: quality.summary()["curve"] for name, quality in alone.items()},
    }
    paths = [folder / f"neighbours.{suffix}" for suffix in ("json", "csv", "html")]
    if distributed.is_main:
        write_atomically(paths[0], json.dumps(figures, indent=1) + "\n")
        _write_videos(paths[1], found, least.tolist(), videos)
        pairs = []
        for anchor, candidate, similarity, correct in found.examples:
            sides = (_side(cfg, videos, anchor), _side(cfg, videos, candidate))
            unknown = min(videos.videos[anchor].label, videos.videos[candidate].label) < 0
            verdict = "" if unknown else "of one class" if correct else "of two classes"
            pairs.append((PairPicture(*sides, similarity, correct), verdict))
        write_neighbours(paths[2], figures, pairs, title=f"{cfg.NAME}: what the teacher flags")
    lines = _lines(found, teacher.name)
    for name, quality in alone.items():
        lines += [f"{name} alone", *_curve(quality)]
    return [*lines, *(f"  {path}" for path in paths)]


def _measure(
    cfg: CfgNode,
    videos: VideoList,
    distributed: DistributedContext,
    *,
    folder: Path,
    examples: int,
) -> tuple[Quality, Teacher, Tensor]:
    """What the teacher of a config flags, the teacher, and its thresholds `[N]`."""
    detector = build_false_negatives(cfg, videos, distributed, dim=1).detector
    assert isinstance(detector, TeacherNeighbours)
    teacher = build_teacher(cfg, videos, distributed, RunFolder(folder))
    detector.to(distributed.device).attach(teacher)
    least = detector.least.cpu()
    found = measure(
        teacher,
        least,
        videos,
        agreement=detector.agreement,
        examples=examples,
        device=distributed.device,
    )
    return found, teacher, least


def warning_of(found: Quality) -> str:
    """What a person should know before training; empty where all is well."""
    if not found.flagged:
        return "This teacher flags no pair: training would be the same as without a detector."
    if found.precision is None or found.chance is None:
        return ""
    if found.precision <= 1.2 * found.chance:
        return (
            f"No better than chance: {found.precision:.1%} of the flagged pairs are right, "
            f"{found.chance:.1%} of all pairs are."
        )
    return ""


def _lines(found: Quality, name: str) -> list[str]:
    lines = [f"teacher {name}: {found.flagged:.1%} of the pairs flagged"]
    if found.precision is not None and found.recall is not None:
        lines[0] += (
            f", {found.precision:.1%} of them right (chance {found.chance:.1%}), "
            f"{found.recall:.1%} of the false negatives"
        )
    warning = warning_of(found)
    return [*lines, *_curve(found), *([f"  warning: {warning}"] if warning else [])]


def _curve(found: Quality) -> list[str]:
    return [
        f"  nearest {share:5.1%}  precision {precision:6.1%}  recall {recall:6.1%}"
        for share, precision, recall in found.curve
    ]


def _write_videos(path: Path, found: Quality, least: list[float], videos: VideoList) -> None:
    """A line for each measured video: how many it flags, from where on, and how surely."""
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["video", "flagged", "threshold", "expected_wrong"])
        for anchor, count in found.counts.items():
            wrong = found.expected_wrong.get(anchor)
            sure = "" if wrong is None else f"{wrong:.3f}"
            writer.writerow([videos.videos[anchor].path, count, f"{least[anchor]:.4f}", sure])


def _side(cfg: CfgNode, videos: VideoList, number: int) -> PairVideo:
    video = videos.videos[number]
    try:
        with open_reader(video.source(), backend=cfg.DATA.READER, short_side=_SHORT_SIDE) as reader:
            places = np.linspace(0, reader.num_frames - 1, _FRAMES).round().astype(np.int64)
            uri = strip_uri(np.ascontiguousarray(reader.read(places)))
    except VideoError:  # a user's features may be of videos that cannot be read
        uri = ""
    class_name = videos.classes[video.label] if video.label >= 0 else ""
    return PairVideo(uri, class_name, video.path.name)
