"""Whether lists go with each other, with a checkpoint, and with what a config asks of them."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from fvcore.common.config import CfgNode

from vidcsl.config import value_of
from vidcsl.data.lists import VideoList, shared, shorten
from vidcsl.data.readers import open_reader
from vidcsl.distributed import DistributedContext
from vidcsl.errors import UserError, VideoError
from vidcsl.io import log_message
from vidcsl.methods import METHODS, ContrastiveMethod, Method
from vidcsl.methods.supervised import Supervised
from vidcsl.pipelines.data import build_splits, build_train_sampler
from vidcsl.pipelines.method import require_labels
from vidcsl.report.summary import list_warnings
from vidcsl.run_folder import RunFolder

# Parts of a method whose state is kept by a video's place in the training list.
BY_PLACE = ("detector.", "budgets.")


MOST_LOOKED_AT = 48  # videos of a list whose length is read: opening thousands would take minutes


def record_lists(
    cfg: CfgNode,
    train: VideoList,
    test: VideoList | None,
    folder: RunFolder,
    distributed: DistributedContext,
) -> None:
    """Write the section `lists` of the results; say what is common to both, and what is short."""
    if not distributed.is_main:
        return
    found: dict[str, Any] = {"train": train.digest}
    if test is not None:
        videos, groups = shared(train, test)
        found |= {
            "test": test.digest,
            "test_videos": len(test),
            "videos_in_both": len(videos),
            "groups_in_both": len(groups),
            "first_in_both": [each[0] for each in (videos, groups) if each],
        }
    short, looked_at = short_videos(cfg, train)
    found |= {"short": short, "looked_at": looked_at, "filled_by": cfg.DATA.SHORT_VIDEO}
    folder.update_results({"lists": found})
    for sentence in list_warnings(found):
        log_message(f"warning: {sentence}")


def refuse_unreadable_test(
    cfg: CfgNode, test: VideoList | None, distributed: DistributedContext
) -> None:
    """Raise a UserError, before hours of training, where its evaluation would end.

    The first and the last frame of some test videos are read, spread evenly over the list.
    """
    words = ""
    if test is not None and distributed.is_main and not cfg.DATA.ALLOW_DAMAGED_TEST:
        count = min(len(test), MOST_LOOKED_AT)
        for place in np.linspace(0, len(test) - 1, count).round().astype(int):
            try:
                source = test.videos[place].source()
                with open_reader(source, backend=cfg.DATA.READER, short_side=32) as reader:
                    reader.read(np.array([0, reader.num_frames - 1]))
            except VideoError as error:
                words = (
                    f"{error}: the evaluation would end there. `vidcsl prepare scan` sets such "
                    "videos aside, DATA.ALLOW_DAMAGED_TEST true leaves them out"
                )
                break
    if words := distributed.broadcast(words):
        raise UserError(words)


def short_videos(cfg: CfgNode, videos: VideoList) -> tuple[int, int]:
    """How many videos are shorter than a clip, and of how many the length was read.

    These are spread evenly over the list; those that cannot be opened are left out.
    """
    sampler, short, looked_at = build_train_sampler(cfg), 0, 0
    count = min(len(videos), MOST_LOOKED_AT)
    for place in np.linspace(0, len(videos) - 1, count).round().astype(int):
        try:
            source = videos.videos[place].source()
            with open_reader(source, backend=cfg.DATA.READER, short_side=32) as reader:
                length, fps = reader.num_frames, reader.fps
        except UserError:
            continue
        rate = fps / sampler.fps if fps and sampler.fps else 1.0
        looked_at += 1
        short += length < math.ceil((cfg.DATA.FRAMES - 1) * sampler.stride * rate) + 1
    return short, looked_at


def check_carried(
    cfg: CfgNode, train: VideoList, test: VideoList | None, *, training: bool
) -> None:
    """Find before the first step what would end, or be in vain, after hours.

    Args:
        cfg: the config.
        train, test: the lists; without a test list only the training is looked at.
        training: whether there will be one.

    Raises:
        UserError: the training lists lack labels, classes, groups or videos that an option needs.
    """
    if training:
        _check_training(cfg, train)
    if test is None:
        return
    # Protocols that train with labels; each on the training list of each split.
    tuned = {}
    if cfg.FINETUNE.ENABLED:
        tuned["FINETUNE.ENABLED"] = ("FINETUNE.BATCH", cfg.FINETUNE.BATCH)
    if cfg.ROBUST.PROTOCOLS:
        tuned["ROBUST.PROTOCOLS"] = ("ROBUST.BATCH", cfg.ROBUST.BATCH)
    splits = [videos for videos, _ in build_splits(cfg)]
    for who, (key, batch) in tuned.items():
        for videos in (train, *splits):
            require_labels(videos, who)
            _require_batch(videos, key, batch)
    for key in ("EVALUATE.LINEAR", "EVALUATE.ATTENTIVE", *tuned):
        if value_of(cfg, key):
            for videos in (train, *splits):
                _require_two(videos, key, "classes")


def _check_training(cfg: CfgNode, train: VideoList) -> None:
    kind, detector = METHODS[cfg.METHOD.NAME], cfg.FALSE_NEGATIVES.DETECTOR
    _require_batch(train, "TRAIN.BATCH", cfg.TRAIN.BATCH)
    if issubclass(kind, Supervised):
        _require_two(train, f"METHOD.NAME {cfg.METHOD.NAME}", "classes")
    if not issubclass(kind, ContrastiveMethod):
        return
    # Where all that these detectors flag leaves the loss, nothing is left of one class or group.
    needed = {"labels": "classes", "known_groups": "groups"}.get(detector)
    if needed:
        _require_two(train, f"FALSE_NEGATIVES.DETECTOR {detector}", needed)


def _require_batch(videos: VideoList, key: str, batch: int) -> None:
    if batch > len(videos):
        raise UserError(
            f"{key} {batch}: the {len(videos)} videos of {videos.source} do not fill one batch of "
            f"{batch}: set it to at most {len(videos)}"
        )


def _require_two(videos: VideoList, who: str, what: str) -> None:
    """Raise a UserError where all videos are of one class or group ("classes" or "groups")."""
    numbers = {each.label if what == "classes" else each.group for each in videos.videos} - {-1}
    if len(numbers) < 2:
        raise UserError(
            f"{who} needs videos of at least two {what}; those of {videos.source} are of "
            f"{len(numbers) or 'none'}"
        )


def refuse_changed_list(checkpoint: Mapping[str, Any], train: VideoList, folder: RunFolder) -> None:
    """Raise a UserError where a run was begun with another content of its training list.

    Its order of videos would be another one, and detectors would take one video for another.
    """
    if _is_other(checkpoint, train):
        raise UserError(
            f"cannot continue {folder.path}: the content of {train.source} changed since it was "
            "started; restore the list or choose another OUTPUT_DIR"
        )


def refuse_memory_of_another_list(
    checkpoint: Mapping[str, Any], method: Method, train: VideoList, *, key: str, source: str
) -> None:
    """Raise a UserError where weights hold what a method knows of each video of another list."""
    kept = [name for name in method.state_dict() if name.startswith(BY_PLACE)]
    if _is_other(checkpoint, train) and any(name in checkpoint["method"] for name in kept):
        raise UserError(
            f"{key} {source} keeps a memory of the videos of another list than {train.source}: "
            f"start from its encoder alone by --weights vidcsl:{source}"
        )


def _is_other(checkpoint: Mapping[str, Any], train: VideoList) -> bool:
    known = checkpoint.get("train_list")  # checkpoints of earlier versions have none
    return bool(known and train.digest and known != train.digest)


def in_order_of(
    checkpoint: Mapping[str, Any],
    kind: type[Method],
    train: VideoList,
    test: VideoList | None,
    *,
    source: str,
) -> tuple[VideoList, VideoList | None]:
    """The lists with their classes in the order that a checkpoint's head has them in.

    Args:
        checkpoint: its content.
        kind: the method that takes its weights.
        train, test: with the same classes.
        source: the checkpoint in words.

    Raises:
        UserError: the head has other classes.
    """
    known = list(checkpoint.get("classes", ()))
    head = "head" in kind.kept and any(name.startswith("head.") for name in checkpoint["method"])
    if not head or known in ([], list(train.classes)):
        return train, test
    if sorted(known) != sorted(train.classes):
        sides = {
            "there": [name for name in known if name not in train.classes],
            "here": [name for name in train.classes if name not in known],
        }
        words = "; ".join(
            f"only {side}: {shorten(found)}" for side, found in sides.items() if found
        )
        raise UserError(
            f"{source} classifies other classes than {train.source} lists ({words}): take its "
            "encoder alone by --weights vidcsl:CHECKPOINT"
        )
    return train.with_classes(known), None if test is None else test.with_classes(known)
