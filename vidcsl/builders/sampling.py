"""Which frames of a video become clips."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from fvcore.common.config import CfgNode

from vidcsl.data import sampling
from vidcsl.data.dataset import ClipSampler
from vidcsl.errors import UserError

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
