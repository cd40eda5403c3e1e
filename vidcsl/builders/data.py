"""Lists, datasets and loaders."""

from pathlib import Path

from fvcore.common.config import CfgNode

from vidcsl.builders.augment import build_augmentation
from vidcsl.builders.sampling import build_test_sampler, build_train_sampler
from vidcsl.data import synthetic
from vidcsl.data.dataset import ClipDataset, ClipSampler, Cropper, OnDamage
from vidcsl.data.lists import VideoList, check_files, read_list
from vidcsl.data.loader import ClipLoader, build_loader
from vidcsl.engine.distributed import World
from vidcsl.errors import UserError


def build_lists(cfg: CfgNode, world: World) -> tuple[VideoList, VideoList | None]:
    """Training and test videos, all present on disk; the synthetic set is rendered first.

    Raises:
        UserError: a list, a folder or a video is missing.
    """
    if cfg.SYNTHETIC.ENABLED:
        train_list, test_list = _render(cfg, world)
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


def _render(cfg: CfgNode, world: World) -> tuple[str, str]:
    if len(synthetic.CLASSES) < cfg.SYNTHETIC.CLASSES:
        raise UserError(
            f"SYNTHETIC.CLASSES is {cfg.SYNTHETIC.CLASSES}; there are {len(synthetic.CLASSES)}"
        )
    if not cfg.DATA.ROOT:
        raise UserError("DATA.ROOT is not set: say where to render the synthetic videos")
    if world.is_main:
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
    world.barrier()
    root = Path(cfg.DATA.ROOT)
    return str(root / "train.csv"), str(root / "test.csv")


def build_train_loader(
    cfg: CfgNode, videos: VideoList, world: World, *, batch: int = 0, stacks: Path | None = None
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
        cfg, dataset, world, batch_size=batch or cfg.TRAIN.BATCH, training=True, stacks=stacks
    )


def build_test_loader(
    cfg: CfgNode, videos: VideoList, world: World, *, clips: int, batch: int
) -> ClipLoader:
    """`clips` evenly spaced clips of every video, in the order of the list."""
    sampler = build_test_sampler(cfg, clips=clips)
    on_damage: OnDamage = "leave_out" if cfg.DATA.ALLOW_DAMAGED_TEST else "error"
    dataset = _build_dataset(cfg, videos, sampler=sampler, purpose="test", on_damage=on_damage)
    return _build_loader(cfg, dataset, world, batch_size=batch * world.size, training=False)


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
    world: World,
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
        rank=world.rank,
        world_size=world.size,
        pin_memory=world.device.type == "cuda",
        stacks=stacks,
    )
