"""From a config to lists, samplers, augmentation and loaders."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from fvcore.common.config import CfgNode

from vidcsl.augment.pipeline import EvalCrop, TrainAugmentation
from vidcsl.config import value_of
from vidcsl.data import sampling, synthetic
from vidcsl.data.dataset import ClipDataset, ClipSampler, Cropper, OnDamage
from vidcsl.data.lists import VideoList, check_files, read_list
from vidcsl.data.loader import ClipLoader, build_loader
from vidcsl.distributed import DistributedContext
from vidcsl.errors import UserError
from vidcsl.robustness.corruptions import (
    SEVERITIES,
    SUITES,
    RandomCorruption,
    find,
    names,
    scored_names,
)

# ----------------------------------------------------------------------
# Corruptions, by name.


def build_corruptions(cfg: CfgNode) -> list[str]:
    """Full names ("P/jpeg") of those to test, whole suites spelt out, each once."""
    return full_names(cfg.CORRUPT.NAMES)


def build_random_corruption(cfg: CfgNode) -> RandomCorruption | None:
    """Corruption of training clips; None where its probability is 0.

    Raises:
        UserError: a name is unknown, there is none, or a severity is not one of 1 to 5.
    """
    options = cfg.AUGMENT
    if not options.CORRUPTION_PROBABILITY:
        return None
    chosen, severities = full_names(options.CORRUPTIONS), options.CORRUPTION_SEVERITIES
    if not chosen or not severities or not set(severities) <= set(SEVERITIES):
        raise UserError(
            "AUGMENT.CORRUPTION_PROBABILITY needs AUGMENT.CORRUPTIONS, and severities from 1 to 5 "
            f"in AUGMENT.CORRUPTION_SEVERITIES, not {list(severities)}"
        )
    return RandomCorruption(
        names=chosen, severities=severities, probability=options.CORRUPTION_PROBABILITY
    )


def full_names(given: Sequence[str]) -> list[str]:
    """Full names of corruptions, of whole suites (P, C, V: what their scores count) or of all."""
    suites = {"all": names(), **{suite: scored_names(suite) for suite in SUITES}}
    chosen = [suites[name] if name in suites else [find(name)[0]] for name in given]
    return list(dict.fromkeys(full for group in chosen for full in group))


# ----------------------------------------------------------------------
# Augmentation of training clips and crops of test clips.


def build_augmentation(cfg: CfgNode) -> TrainAugmentation:
    """Random views of training clips."""
    options = cfg.AUGMENT
    return TrainAugmentation(
        size=cfg.MODEL.FRAME_SIZE,
        cropped=options.CROP_BY == "decoder",
        crop_area=_pair("AUGMENT.CROP_AREA", options.CROP_AREA),
        crop_aspect=_pair("AUGMENT.CROP_ASPECT", options.CROP_ASPECT),
        flip=options.FLIP,
        jitter=_quadruple("AUGMENT.JITTER", options.JITTER),
        jitter_probability=options.JITTER_PROBABILITY,
        gray_probability=options.GRAY_PROBABILITY,
        blur_probability=_per_view("AUGMENT.BLUR_PROBABILITY", cfg),
        blur_sigma=_pair("AUGMENT.BLUR_SIGMA", options.BLUR_SIGMA),
        solarise_probability=_per_view("AUGMENT.SOLARISE_PROBABILITY", cfg),
        motion_probability=_per_view("AUGMENT.MOTION_PROBABILITY", cfg),
        corrupt=build_random_corruption(cfg),
        strengths=tuple(options.STRENGTHS),
    )


def build_crop(cfg: CfgNode, *, crops: int = 1) -> EvalCrop:
    """Fixed crops of test clips."""
    return EvalCrop(size=cfg.MODEL.FRAME_SIZE, crops=crops)


def _pair(key: str, values: Sequence[float]) -> tuple[float, float]:
    if len(values) != 2:
        raise UserError(f"{key} needs two values, not {list(values)}")
    return values[0], values[1]


def _quadruple(key: str, values: Sequence[float]) -> tuple[float, float, float, float]:
    if len(values) != 4:
        raise UserError(f"{key} needs four values, not {list(values)}")
    return values[0], values[1], values[2], values[3]


def _per_view(key: str, cfg: CfgNode) -> float | Sequence[float]:
    """One for all views, or one for each; clips that only vote are treated as the last one."""
    values: Sequence[float] = value_of(cfg, key)
    if not values:
        raise UserError(f"{key} needs a value, or one for each view: there is none")
    if len(values) == 1:
        return values[0]
    return (*values, *[values[-1]] * cfg.FALSE_NEGATIVES.VOTERS)


# ----------------------------------------------------------------------
# Which frames of a video become clips.

Indices = np.ndarray
Draw = Callable[..., Indices]
"""(length, stride=, rng=) -> [V, T], which may run past a short video's end."""


def build_train_sampler(cfg: CfgNode) -> ClipSampler:
    """Random clips, as DATA.SAMPLING says, and after them those of the voters."""
    draws = [_TRAIN[cfg.DATA.SAMPLING](cfg)]
    if voters := cfg.FALSE_NEGATIVES.VOTERS:
        draws.append(partial(sampling.random_clips, clip_frames=cfg.DATA.FRAMES, clips=voters))
    return _sampler(cfg, draws)


def build_test_sampler(cfg: CfgNode, *, clips: int) -> ClipSampler:
    """The same clips every time, as EVALUATE.SAMPLING says."""
    return _sampler(cfg, [_TEST[cfg.EVALUATE.SAMPLING](cfg, clips)])


def _sampler(cfg: CfgNode, draws: Sequence[Draw]) -> ClipSampler:
    shape: dict[str, Any] = {"wanted_fps": cfg.DATA.FPS, "policy": cfg.DATA.SHORT_VIDEO}
    return partial(_views, draws=draws, stride=_stride(cfg), **shape)


def _views(
    length: int,
    fps: float,
    rng: np.random.Generator,
    *,
    draws: Sequence[Draw],
    stride: float,
    wanted_fps: float,
    policy: str,
) -> Indices:
    step = sampling.stride_at(stride, fps=fps, wanted_fps=wanted_fps)
    clips = np.concatenate([draw(length, stride=step, rng=rng) for draw in draws])
    return sampling.fit_length(clips, length, policy=policy)


def _stride(cfg: CfgNode) -> float:
    if not cfg.DATA.WINDOW:
        return cfg.DATA.STRIDE
    return sampling.dense_stride(clip_frames=cfg.DATA.FRAMES, window=cfg.DATA.WINDOW)


def _random(cfg: CfgNode) -> Draw:
    return partial(sampling.random_clips, clip_frames=cfg.DATA.FRAMES, clips=cfg.DATA.CLIPS)


def _spaced(cfg: CfgNode) -> Draw:
    least, most = cfg.DATA.MIN_GAP, cfg.DATA.MAX_GAP
    if most and most < least:
        raise UserError(f"DATA.MAX_GAP {most} is below DATA.MIN_GAP {least}; 0 leaves it open")
    return partial(
        sampling.spaced_clips,
        clip_frames=cfg.DATA.FRAMES,
        clips=cfg.DATA.CLIPS,
        min_gap=least,
        max_gap=most,
    )


def _decreasing_interval(cfg: CfgNode) -> Draw:
    if cfg.DATA.CLIPS != 2:
        raise UserError("DATA.SAMPLING decreasing_interval makes pairs: set DATA.CLIPS to 2")
    return partial(sampling.decreasing_interval_clips, clip_frames=cfg.DATA.FRAMES)


def _random_segments(cfg: CfgNode) -> Draw:
    return _without_stride(
        partial(sampling.segment_clips, clip_frames=cfg.DATA.FRAMES, clips=cfg.DATA.CLIPS)
    )


def _uniform(cfg: CfgNode, clips: int) -> Draw:
    draw = partial(sampling.uniform_clips, clip_frames=cfg.DATA.FRAMES, clips=clips)
    return _without_rng(draw)


def _middle_segments(cfg: CfgNode, clips: int) -> Draw:
    draw = partial(sampling.segment_clips, clip_frames=cfg.DATA.FRAMES, clips=clips)
    return _without_rng(_without_stride(draw))


class _Without:
    """Calls a function without one of the arguments that it is given; can be pickled."""

    def __init__(self, name: str, function: Draw) -> None:
        self.name, self.function = name, function

    def __call__(self, length: int, **arguments: Any) -> Indices:
        del arguments[self.name]
        return self.function(length, **arguments)


_without_stride = partial(_Without, "stride")
_without_rng = partial(_Without, "rng")

_TRAIN: dict[str, Callable[[CfgNode], Draw]] = {
    "random": _random,
    "spaced": _spaced,
    "decreasing_interval": _decreasing_interval,
    "segment": _random_segments,
}
_TEST: dict[str, Callable[[CfgNode, int], Draw]] = {
    "uniform": _uniform,
    "segment": _middle_segments,
}


# ----------------------------------------------------------------------
# Lists, datasets and loaders.


def build_lists(
    cfg: CfgNode, distributed: DistributedContext
) -> tuple[VideoList, VideoList | None]:
    """Training and test videos, all present on disk; the synthetic set is rendered first.

    Raises:
        UserError: a list, a folder or a video is missing.
    """
    if cfg.SYNTHETIC.ENABLED:
        train_list, test_list = _render(cfg, distributed)
    else:
        train_list, test_list = cfg.DATA.TRAIN_LIST, cfg.DATA.TEST_LIST
    for key, value in (("DATA.ROOT", cfg.DATA.ROOT), ("DATA.TRAIN_LIST", train_list)):
        if not value:
            raise UserError(f"{key} is not set: give the folder of videos and the list of them")
    train = read_list(train_list, root=cfg.DATA.ROOT)
    check_files(train.videos)
    if not test_list:
        return train, None
    test = read_list(test_list, root=cfg.DATA.ROOT, classes=train.classes)
    check_files(test.videos)
    return train, test


def build_splits(cfg: CfgNode) -> list[tuple[VideoList, VideoList]]:
    """Training and test videos of EVALUATE.SPLITS, all present on disk."""
    return [_read_pair(*lists, root=cfg.DATA.ROOT) for lists in _entries(cfg, "SPLITS")]


def build_transfer(cfg: CfgNode) -> dict[str, tuple[VideoList, VideoList]]:
    """Training and test videos of EVALUATE.TRANSFER by the names of the data sets."""
    entries = _entries(cfg, "TRANSFER")
    return {name: _read_pair(*lists, root=root) for name, root, *lists in entries}


def check_lists(cfg: CfgNode) -> None:
    """Find entries of EVALUATE.SPLITS and EVALUATE.TRANSFER that are not of their form."""
    for key in _FORMS:
        _entries(cfg, key)


_FORMS = {
    "SPLITS": ("TRAIN_LIST", "TEST_LIST"),
    "TRANSFER": ("NAME", "ROOT", "TRAIN_LIST", "TEST_LIST"),
}


def _entries(cfg: CfgNode, key: str) -> list[list[str]]:
    entries = [[part.strip() for part in text.split(",")] for text in cfg.EVALUATE[key]]
    for text, entry in zip(cfg.EVALUATE[key], entries, strict=True):
        if len(entry) != len(_FORMS[key]) or not all(entry):
            raise UserError(f"EVALUATE.{key}: {text!r} must be {','.join(_FORMS[key])}")
    return entries


def _read_pair(train_list: str, test_list: str, *, root: str) -> tuple[VideoList, VideoList]:
    train = read_list(train_list, root=root)
    test = read_list(test_list, root=root, classes=train.classes)
    for videos in (train, test):
        check_files(videos.videos)
    return train, test


def _render(cfg: CfgNode, distributed: DistributedContext) -> tuple[str, str]:
    if len(synthetic.CLASSES) < cfg.SYNTHETIC.CLASSES:
        raise UserError(
            f"SYNTHETIC.CLASSES is {cfg.SYNTHETIC.CLASSES}; there are {len(synthetic.CLASSES)}"
        )
    if not cfg.DATA.ROOT:
        raise UserError("DATA.ROOT is not set: say where to render the synthetic videos")
    if distributed.is_main:
        synthetic.generate(
            cfg.DATA.ROOT,
            classes=synthetic.CLASSES[: cfg.SYNTHETIC.CLASSES],
            sources_per_class=cfg.SYNTHETIC.SOURCES,
            clips_per_source=cfg.SYNTHETIC.CLIPS,
            coherence=cfg.SYNTHETIC.COHERENCE,
            frames=cfg.SYNTHETIC.FRAMES,
            size=cfg.SYNTHETIC.SIZE,
            seed=0,  # the data are the same for every seed of the run
        )
    distributed.barrier()
    root = Path(cfg.DATA.ROOT)
    return str(root / "train.csv"), str(root / "test.csv")


def build_train_loader(
    cfg: CfgNode,
    videos: VideoList,
    distributed: DistributedContext,
    *,
    batch: int = 0,
    stacks: Path | None = None,
) -> ClipLoader:
    """Random clips, shuffled, full batches only, by default of TRAIN.BATCH videos.

    `stacks`: see `build_loader`.
    """
    augmentation = build_augmentation(cfg)
    dataset = _build_dataset(
        cfg,
        videos,
        sampler=build_train_sampler(cfg),
        purpose="train",
        on_damage="replace",
        crops=augmentation.boxes if augmentation.cropped else None,
    )
    return _build_loader(
        cfg, dataset, distributed, batch_size=batch or cfg.TRAIN.BATCH, training=True, stacks=stacks
    )


def build_test_loader(
    cfg: CfgNode, videos: VideoList, distributed: DistributedContext, *, clips: int, batch: int
) -> ClipLoader:
    """`clips` evenly spaced clips of every video, in the order of the list."""
    sampler = build_test_sampler(cfg, clips=clips)
    on_damage: OnDamage = "leave_out" if cfg.DATA.ALLOW_DAMAGED_TEST else "error"
    dataset = _build_dataset(cfg, videos, sampler=sampler, purpose="test", on_damage=on_damage)
    return _build_loader(
        cfg, dataset, distributed, batch_size=batch * distributed.size, training=False
    )


def _build_dataset(
    cfg: CfgNode,
    videos: VideoList,
    *,
    sampler: ClipSampler,
    purpose: str,
    on_damage: OnDamage,
    crops: Cropper | None = None,
) -> ClipDataset:
    return ClipDataset(
        videos=videos,
        sampler=sampler,
        reader=cfg.DATA.READER,
        short_side=cfg.DATA.SHORT_SIDE,
        seed=cfg.SEED,
        purpose=purpose,
        on_damage=on_damage,
        timeout=cfg.DATA.TIMEOUT,
        crops=crops,
        crop_size=cfg.MODEL.FRAME_SIZE,
        cache=Path(cfg.DATA.CACHE) if cfg.DATA.CACHE else None,
    )


def _build_loader(
    cfg: CfgNode,
    dataset: ClipDataset,
    distributed: DistributedContext,
    *,
    batch_size: int,
    training: bool,
    stacks: Path | None = None,
) -> ClipLoader:
    return build_loader(
        dataset,
        batch_size=batch_size,
        shuffle=training,
        drop_last=training,
        workers=cfg.DATA.WORKERS,
        rank=distributed.rank,
        world_size=distributed.size,
        pin_memory=distributed.device.type == "cuda",
        stacks=stacks,
    )
