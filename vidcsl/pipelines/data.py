"""From a config to lists, samplers, augmentation and loaders."""

from collections.abc import Sequence
from pathlib import Path

from fvcore.common.config import CfgNode

from vidcsl.augment.pipeline import EvalCrop, TrainAugmentation
from vidcsl.augment.transforms import RandomColour, RandomResizedCrop
from vidcsl.config import value_of
from vidcsl.data import synthetic
from vidcsl.data.dataset import ClipDataset
from vidcsl.data.lists import VideoList, check_files, read_list
from vidcsl.data.loader import ClipLoader, build_loader
from vidcsl.data.sampling import TEST_SAMPLING, TRAIN_SAMPLING, Draw, ViewSampler
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

# Lists of videos ----------------------------------------------------------------------------------


def build_lists(
    cfg: CfgNode, distributed: DistributedContext
) -> tuple[VideoList, VideoList | None]:
    """Training and test videos, all present on disk; the synthetic set is rendered first.

    Raises:
        UserError: a list, a folder or a video is missing.
    """
    root, train_list, test_list = cfg.DATA.ROOT, cfg.DATA.TRAIN_LIST, cfg.DATA.TEST_LIST
    if cfg.SYNTHETIC.ENABLED:
        options = cfg.SYNTHETIC
        if len(synthetic.CLASSES) < options.CLASSES:
            raise UserError(
                f"SYNTHETIC.CLASSES is {options.CLASSES}; there are {len(synthetic.CLASSES)}"
            )
        if not root:
            raise UserError("DATA.ROOT is not set: the synthetic videos are rendered there")
        if distributed.is_main:
            synthetic.generate(
                root,
                classes=synthetic.CLASSES[: options.CLASSES],
                sources_per_class=options.SOURCES,
                clips_per_source=options.CLIPS,
                coherence=options.COHERENCE,
                frames=options.FRAMES,
                size=options.SIZE,
                seed=0,  # the data are the same for every seed of the run
            )
        distributed.barrier()
        train_list, test_list = str(Path(root) / "train.csv"), str(Path(root) / "test.csv")
    for key, value in (("DATA.ROOT", root), ("DATA.TRAIN_LIST", train_list)):
        if not value:
            raise UserError(f"{key} is not set: give the folder and the list of the videos")
    train = read_list(train_list, root=root)
    check_files(train.videos)
    if not test_list:
        return train, None
    test = read_list(test_list, root=root, classes=train.classes)
    check_files(test.videos)
    return train, test


_ENTRIES = {
    "SPLITS": ("TRAIN_LIST", "TEST_LIST"),
    "TRANSFER": ("NAME", "ROOT", "TRAIN_LIST", "TEST_LIST"),
}


def build_splits(cfg: CfgNode) -> list[tuple[VideoList, VideoList]]:
    """Training and test videos of EVALUATE.SPLITS, all present on disk."""
    return [_read_pair(*lists, root=cfg.DATA.ROOT) for lists in _entries(cfg, "SPLITS")]


def build_transfer(cfg: CfgNode) -> dict[str, tuple[VideoList, VideoList]]:
    """Training and test videos of EVALUATE.TRANSFER by the names of the data sets."""
    entries = _entries(cfg, "TRANSFER")
    return {name: _read_pair(*lists, root=root) for name, root, *lists in entries}


def check_lists(cfg: CfgNode) -> None:
    """Raise UserError for a malformed entry of EVALUATE.SPLITS or EVALUATE.TRANSFER."""
    for key in _ENTRIES:
        _entries(cfg, key)


def _entries(cfg: CfgNode, key: str) -> list[list[str]]:
    entries = [[part.strip() for part in text.split(",")] for text in cfg.EVALUATE[key]]
    for text, entry in zip(cfg.EVALUATE[key], entries, strict=True):
        if len(entry) != len(_ENTRIES[key]) or not all(entry):
            raise UserError(f"EVALUATE.{key}: {text!r} must be {','.join(_ENTRIES[key])}")
    return entries


def _read_pair(train_list: str, test_list: str, *, root: str) -> tuple[VideoList, VideoList]:
    train = read_list(train_list, root=root)
    test = read_list(test_list, root=root, classes=train.classes)
    for videos in (train, test):
        check_files(videos.videos)
    return train, test


# Loaders ------------------------------------------------------------------------------------------


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
    dataset = ClipDataset(
        videos=videos,
        sampler=build_train_sampler(cfg),
        reader=cfg.DATA.READER,
        short_side=cfg.DATA.SHORT_SIDE,
        pixels=cfg.DATA.PIXELS,
        seed=cfg.SEED,
        purpose="train",
        on_damage="replace",
        timeout=cfg.DATA.TIMEOUT,
        cropper=augmentation if augmentation.cropped else None,
        cache=Path(cfg.DATA.CACHE) if cfg.DATA.CACHE else None,
    )
    return build_loader(
        dataset,
        batch_size=batch or cfg.TRAIN.BATCH,
        shuffle=True,
        drop_last=True,
        workers=cfg.DATA.WORKERS,
        rank=distributed.rank,
        world_size=distributed.size,
        pin_memory=distributed.device.type == "cuda",
        stacks=stacks,
    )


def build_test_loader(
    cfg: CfgNode,
    videos: VideoList,
    distributed: DistributedContext,
    *,
    clips: int,
    batch: int,
    leave_out: bool = False,
    windows: bool = False,
) -> ClipLoader:
    """`clips` evenly spaced clips of every video, in the order of the list.

    `leave_out`: unreadable videos are left out, as they are with DATA.ALLOW_DAMAGED_TEST.
    `windows`: samples also hold the frames between those of the clips.
    """
    dataset = ClipDataset(
        videos=videos,
        sampler=build_test_sampler(cfg, clips=clips),
        reader=cfg.DATA.READER,
        short_side=cfg.DATA.SHORT_SIDE,
        pixels=cfg.DATA.PIXELS,
        seed=cfg.SEED,
        purpose="test",
        on_damage="leave_out" if leave_out or cfg.DATA.ALLOW_DAMAGED_TEST else "error",
        timeout=cfg.DATA.TIMEOUT,
        cache=Path(cfg.DATA.CACHE) if cfg.DATA.CACHE else None,
        windows=windows,
    )
    return build_loader(
        dataset,
        batch_size=batch * distributed.size,
        shuffle=False,
        drop_last=False,
        workers=cfg.DATA.WORKERS,
        rank=distributed.rank,
        world_size=distributed.size,
        pin_memory=distributed.device.type == "cuda",
    )


# Which frames of a video become clips -------------------------------------------------------------


def build_train_sampler(cfg: CfgNode) -> ViewSampler:
    """Random clips by DATA.SAMPLING, followed by those of the support views.

    Raises:
        UserError: the sampler cannot give DATA.CLIPS clips, or DATA.MAX_GAP is below DATA.MIN_GAP.
    """
    data, support_views = cfg.DATA, cfg.FALSE_NEGATIVES.VOTERS
    if data.SAMPLING == "spaced" and 0 < data.MAX_GAP < data.MIN_GAP:
        raise UserError(
            f"DATA.MAX_GAP {data.MAX_GAP} is below DATA.MIN_GAP {data.MIN_GAP}; 0 sets no limit"
        )
    if data.SAMPLING == "decreasing_interval" and data.CLIPS != 2:
        raise UserError("DATA.SAMPLING decreasing_interval makes pairs: set DATA.CLIPS to 2")
    draws = [TRAIN_SAMPLING.bind(data.SAMPLING, data)]
    if support_views:
        draws.append(TRAIN_SAMPLING.bind("random", data, clips=support_views))
    return _view_sampler(cfg, draws)


def build_test_sampler(cfg: CfgNode, *, clips: int) -> ViewSampler:
    """The same clips every time, by EVALUATE.SAMPLING."""
    return _view_sampler(cfg, [TEST_SAMPLING.bind(cfg.EVALUATE.SAMPLING, cfg.DATA, clips=clips)])


def _view_sampler(cfg: CfgNode, draws: Sequence[Draw]) -> ViewSampler:
    data = cfg.DATA
    # Dense clips (TSM, Lin et al. 2019): T frames spread over WINDOW frames in a row.
    stride = data.WINDOW / data.FRAMES if data.WINDOW else data.STRIDE
    return ViewSampler(tuple(draws), stride=stride, fps=data.FPS, short_video=data.SHORT_VIDEO)


# Augmentation of training clips and crops of test clips -------------------------------------------


def build_augmentation(cfg: CfgNode) -> TrainAugmentation:
    """Augmentation of training clips by AUGMENT.

    Raises:
        UserError: an option has the wrong number of values or is out of range.
    """
    options = cfg.AUGMENT
    for key, count in (("CROP_AREA", 2), ("CROP_ASPECT", 2), ("JITTER", 4), ("BLUR_SIGMA", 2)):
        if len(options[key]) != count:
            number = {2: "two", 4: "four"}[count]
            raise UserError(f"AUGMENT.{key} needs {number} values, not {list(options[key])}")
    return TrainAugmentation(
        size=cfg.MODEL.FRAME_SIZE,
        cropped=options.CROP_BY == "decoder",
        crop=RandomResizedCrop(
            area=tuple(options.CROP_AREA), aspect=tuple(options.CROP_ASPECT), flip=options.FLIP
        ),
        colour=RandomColour(
            jitter=tuple(options.JITTER),
            jitter_probability=options.JITTER_PROBABILITY,
            gray_probability=options.GRAY_PROBABILITY,
            blur_probability=_per_view("AUGMENT.BLUR_PROBABILITY", cfg),
            blur_sigma=tuple(options.BLUR_SIGMA),
            solarise_probability=_per_view("AUGMENT.SOLARISE_PROBABILITY", cfg),
            motion_probability=_per_view("AUGMENT.MOTION_PROBABILITY", cfg),
        ),
        corrupt=build_random_corruption(cfg),
        strengths=tuple(options.STRENGTHS),
    )


def _per_view(key: str, cfg: CfgNode) -> float | Sequence[float]:
    """One value for all views, or one per view; support views use the last view's value."""
    values: Sequence[float] = value_of(cfg, key)
    if not values:
        raise UserError(f"{key} is empty: it needs one value, or one for each view")
    if len(values) == 1:
        return values[0]
    return (*values, *[values[-1]] * cfg.FALSE_NEGATIVES.VOTERS)


def build_crop(cfg: CfgNode, *, crops: int = 1) -> EvalCrop:
    """Fixed crops of test clips: the central square, or three squares for `crops` 3."""
    return EvalCrop(size=cfg.MODEL.FRAME_SIZE, crops=crops)


# Corruptions, by name -----------------------------------------------------------------------------


def build_corruptions(cfg: CfgNode) -> list[str]:
    """Full names ("P/jpeg") of the corruptions to test, each once; suites as their members."""
    return full_names(cfg.CORRUPT.NAMES)


def build_random_corruption(cfg: CfgNode) -> RandomCorruption | None:
    """Corruption of training clips; None if its probability is 0.

    Raises:
        UserError: a name is unknown or missing, or a severity is not one of 1 to 5.
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
    """Full names of corruptions, of whole suites (P, C, V: the scored ones) or of all."""
    suites = {"all": names(), **{suite: scored_names(suite) for suite in SUITES}}
    chosen = [suites[name] if name in suites else [find(name)[0]] for name in given]
    return list(dict.fromkeys(full for group in chosen for full in group))
