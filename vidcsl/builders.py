"""From a config to objects. Below this file nothing knows a config: all take plain arguments."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from fvcore.common.config import CfgNode
from numpy.typing import NDArray
from torch import Tensor, nn

from vidcsl.augment.pipeline import EvalCrop, TrainAugmentation
from vidcsl.data import sampling, synthetic
from vidcsl.data.dataset import ClipDataset, ClipSampler, OnDamage
from vidcsl.data.lists import VideoList, check_files, read_list
from vidcsl.data.loader import ClipLoader, build_loader
from vidcsl.engine.distributed import World
from vidcsl.engine.optim import build_optimiser, scaled_lr
from vidcsl.engine.train import Schedule
from vidcsl.errors import UserError
from vidcsl.models import ENCODERS, Encoder
from vidcsl.models.heads import projector
from vidcsl.objectives import CONTRASTIVE, Method
from vidcsl.objectives.false_negatives import DETECTORS, TREATMENTS
from vidcsl.objectives.supervised import Supervised
from vidcsl.robustness.attacks import PGD, attack
from vidcsl.robustness.benchmark import Attack
from vidcsl.robustness.corruptions import find, names
from vidcsl.robustness.threats import THREATS, Threat, choose_frames
from vidcsl.seeding import seed_of


def output_dir(cfg: CfgNode) -> Path:
    """Where the run is written."""
    return Path(cfg.OUTPUT_DIR or f"runs/{cfg.NAME}/seed{cfg.SEED}")


def check(cfg: CfgNode) -> None:
    """Find the mistakes that would otherwise show only after hours of training.

    Raises:
        UserError: an augmentation, attack or corruption cannot be built.
    """
    build_augmentation(cfg)
    build_crop(cfg, crops=cfg.EVALUATE.CROPS)
    build_attacks(cfg)
    build_corruptions(cfg)
    choose_frames(_frames(cfg.ATTACK.FRAMES), cfg.DATA.FRAMES, seeds=[0])


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
            frames=cfg.SYNTHETIC.FRAMES,
            size=cfg.SYNTHETIC.SIZE,
            seed=0,  # the data are the same for every seed of the run
        )
    world.barrier()
    root = Path(cfg.DATA.ROOT)
    return str(root / "train.csv"), str(root / "test.csv")


def build_train_loader(cfg: CfgNode, videos: VideoList, world: World) -> ClipLoader:
    """Random clips, shuffled, full batches only."""
    dataset = _build_dataset(
        cfg, videos, sampler=_train_sampler(cfg), purpose="train", on_damage="replace"
    )
    return _build_loader(cfg, dataset, world, batch_size=cfg.TRAIN.BATCH, training=True)


def build_test_loader(
    cfg: CfgNode, videos: VideoList, world: World, *, clips: int, batch: int
) -> ClipLoader:
    """`clips` evenly spaced clips of every video, in the order of the list."""
    sampler = partial(
        _uniform_views,
        clip_frames=cfg.DATA.FRAMES,
        stride=cfg.DATA.STRIDE,
        clips=clips,
        policy=cfg.DATA.SHORT_VIDEO,
    )
    # A replacement is already in the list: evaluation then counts each video once.
    on_damage: OnDamage = "replace" if cfg.DATA.ALLOW_DAMAGED_TEST else "error"
    dataset = _build_dataset(cfg, videos, sampler=sampler, purpose="test", on_damage=on_damage)
    return _build_loader(cfg, dataset, world, batch_size=batch * world.size, training=False)


def _build_dataset(
    cfg: CfgNode, videos: VideoList, *, sampler: ClipSampler, purpose: str, on_damage: OnDamage
) -> ClipDataset:
    return ClipDataset(
        videos=videos,
        sampler=sampler,
        reader=cfg.DATA.READER,
        short_side=cfg.DATA.SHORT_SIDE,
        seed=cfg.SEED,
        purpose=purpose,
        on_damage=on_damage,
        cache=Path(cfg.DATA.CACHE) if cfg.DATA.CACHE else None,
    )


def _build_loader(
    cfg: CfgNode, dataset: ClipDataset, world: World, *, batch_size: int, training: bool
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
    )


def _train_sampler(cfg: CfgNode) -> ClipSampler:
    shape = {"clip_frames": cfg.DATA.FRAMES, "stride": cfg.DATA.STRIDE}
    if cfg.DATA.SAMPLING == "decreasing_interval":
        if cfg.DATA.CLIPS != 2:
            raise UserError("DATA.SAMPLING decreasing_interval makes pairs: set DATA.CLIPS to 2")
        draw = partial(sampling.decreasing_interval_clips, **shape)
    else:
        draw = partial(sampling.random_clips, clips=cfg.DATA.CLIPS, **shape)
    return partial(_random_views, draw=draw, policy=cfg.DATA.SHORT_VIDEO)


def _random_views(
    num_frames: int,
    rng: np.random.Generator,
    *,
    draw: "partial[NDArray[np.int64]]",
    policy: str,
) -> NDArray[np.int64]:
    return sampling.fit_length(draw(num_frames, rng=rng), num_frames, policy=policy)


def _uniform_views(
    num_frames: int,
    _rng: np.random.Generator,
    *,
    clip_frames: int,
    stride: int,
    clips: int,
    policy: str,
) -> NDArray[np.int64]:
    views = sampling.uniform_clips(num_frames, clip_frames=clip_frames, stride=stride, clips=clips)
    return sampling.fit_length(views, num_frames, policy=policy)


def build_augmentation(cfg: CfgNode) -> TrainAugmentation:
    """Random views of training clips."""
    options = cfg.AUGMENT
    return TrainAugmentation(
        size=cfg.MODEL.FRAME_SIZE,
        crop_area=_pair("AUGMENT.CROP_AREA", options.CROP_AREA),
        crop_aspect=_pair("AUGMENT.CROP_ASPECT", options.CROP_ASPECT),
        flip=options.FLIP,
        jitter=_quadruple("AUGMENT.JITTER", options.JITTER),
        jitter_probability=options.JITTER_PROBABILITY,
        gray_probability=options.GRAY_PROBABILITY,
        blur_probability=_per_view(options.BLUR_PROBABILITY),
        blur_sigma=_pair("AUGMENT.BLUR_SIGMA", options.BLUR_SIGMA),
        solarise_probability=_per_view(options.SOLARISE_PROBABILITY),
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


def _per_view(values: Sequence[float]) -> float | Sequence[float]:
    return values[0] if len(values) == 1 else tuple(values)


def build_encoder(cfg: CfgNode) -> Encoder:
    """An encoder with fresh weights that depend on the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(cfg.SEED, "encoder"))
        return ENCODERS[cfg.MODEL.NAME](
            clip_frames=cfg.DATA.FRAMES, frame_size=cfg.MODEL.FRAME_SIZE, width=cfg.MODEL.WIDTH
        )


def build_method(cfg: CfgNode, videos: VideoList, world: World) -> Method:
    """Encoder, heads and loss, on the world's device.

    Raises:
        UserError: the method needs labels or views that the data do not give.
    """
    encoder = build_encoder(cfg)
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(cfg.SEED, "heads"))
        method = _METHODS[cfg.METHOD.NAME](cfg, encoder, videos, world)
    return method.to(world.device)


def _build_contrastive(cfg: CfgNode, encoder: Encoder, videos: VideoList, world: World) -> Method:
    name, detector = cfg.METHOD.NAME, cfg.FALSE_NEGATIVES.DETECTOR
    if cfg.DATA.CLIPS < 2:
        raise UserError(f"METHOD.NAME {name} needs DATA.CLIPS of at least 2")
    if name == "supcon" or detector == "labels":
        _require_labels(videos, f"METHOD.NAME {name} with FALSE_NEGATIVES.DETECTOR {detector}")
    if detector == "known_groups" and all(video.group < 0 for video in videos.videos):
        raise UserError(
            f"FALSE_NEGATIVES.DETECTOR known_groups needs the group column of {videos.source}"
        )
    options = cfg.FALSE_NEGATIVES
    return CONTRASTIVE[name](
        encoder,
        projector(
            in_dim=encoder.feature_dim,
            hidden_dim=cfg.METHOD.PROJECTOR_HIDDEN,
            out_dim=cfg.METHOD.PROJECTOR_DIM,
            layers=cfg.METHOD.PROJECTOR_LAYERS,
        ),
        temperature=cfg.METHOD.TEMPERATURE,
        detector=DETECTORS[detector](
            ceiling=options.CEILING,
            start=options.START,
            ramp=options.RAMP,
            aggregate=options.AGGREGATE,
        ),
        treatment=TREATMENTS[options.TREATMENT],
        world=world,
    )


def _build_supervised(cfg: CfgNode, encoder: Encoder, videos: VideoList, _world: World) -> Method:
    _require_labels(videos, "METHOD.NAME supervised")
    return Supervised(
        encoder,
        feature_dim=encoder.feature_dim,
        classes=len(videos.classes),
        label_smoothing=cfg.TRAIN.LABEL_SMOOTHING,
    )


_METHODS = {**dict.fromkeys(CONTRASTIVE, _build_contrastive), "supervised": _build_supervised}


def _require_labels(videos: VideoList, who: str) -> None:
    unlabelled = sum(video.label < 0 for video in videos.videos)
    if unlabelled:
        raise UserError(f"{who} needs labels; {unlabelled} videos of {videos.source} have none")


def build_optimiser_of(cfg: CfgNode, method: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of a method's parameters."""
    return build_optimiser(
        method,
        name=cfg.TRAIN.OPTIMISER,
        lr=_peak_lr(cfg),
        weight_decay=cfg.TRAIN.WEIGHT_DECAY,
        momentum=cfg.TRAIN.MOMENTUM,
    )


def build_schedule(cfg: CfgNode, *, steps_per_epoch: int) -> Schedule:
    """Length, learning rate, logging and checkpoints."""
    return Schedule(
        epochs=cfg.TRAIN.EPOCHS,
        steps_per_epoch=steps_per_epoch,
        peak_lr=_peak_lr(cfg),
        warmup_epochs=min(cfg.TRAIN.WARMUP_EPOCHS, cfg.TRAIN.EPOCHS),
        clip_gradient=cfg.TRAIN.CLIP_GRADIENT,
        log_every=cfg.TRAIN.LOG_EVERY,
        checkpoint_every=cfg.TRAIN.CHECKPOINT_EVERY,
        keep=cfg.TRAIN.KEEP,
    )


def _peak_lr(cfg: CfgNode) -> float:
    return scaled_lr(cfg.TRAIN.LR, batch=cfg.TRAIN.BATCH, reference_batch=cfg.TRAIN.LR_BATCH)


def use_bfloat16(cfg: CfgNode, device: torch.device) -> bool:
    """Whether pretraining computes in bfloat16: where asked, or where the hardware has it."""
    if cfg.PRECISION != "auto":
        return bool(cfg.PRECISION == "bfloat16")
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Emulated on other CPUs, where it is slower than float32.
    return bool(torch.cpu._is_avx512_bf16_supported())


def build_attacks(cfg: CfgNode) -> dict[str, dict[str, Attack]]:
    """`{"pgd_linf": {"0.25/255": attack, ...}, "pgd_l2": {...}}`, smallest budget first."""
    unknown = sorted(set(cfg.ATTACK.THREATS) - set(THREATS))
    if unknown:
        raise UserError(f"ATTACK.THREATS: unknown {unknown[0]!r}; choose from {sorted(THREATS)}")
    budgets = {
        "linf": {f"{eps:g}/255": eps / 255 for eps in sorted(cfg.ATTACK.EPS_LINF)},
        "l2": {f"{eps:g}": eps for eps in sorted(cfg.ATTACK.EPS_L2)},
    }
    frames = _frames(cfg.ATTACK.FRAMES)
    solver = PGD(steps=cfg.ATTACK.STEPS, restarts=cfg.ATTACK.RESTARTS)
    return {
        f"pgd_{norm}": {
            key: partial(_attack, threat=THREATS[norm](eps, frames=frames), solver=solver)
            for key, eps in budgets[norm].items()
        }
        for norm in cfg.ATTACK.THREATS
    }


def _attack(
    model: nn.Module,
    clips: Tensor,
    labels: Tensor,
    seeds: Sequence[int],
    *,
    threat: Threat,
    solver: PGD,
) -> Tensor:
    return attack(model, clips, labels, threat=threat, solver=solver, seeds=seeds)


def _frames(spec: str) -> str | list[int]:
    parts = spec.split(",")
    return [int(part) for part in parts] if all(part.strip().isdigit() for part in parts) else spec


def build_corruptions(cfg: CfgNode) -> list[str]:
    """Full names ("P/jpeg"), whole suites spelt out, each once."""
    suites = {"all": names(), "P": names("P"), "C": names("C")}
    chosen = [suites[name] if name in suites else [find(name)[0]] for name in cfg.CORRUPT.NAMES]
    return list(dict.fromkeys(full for group in chosen for full in group))
