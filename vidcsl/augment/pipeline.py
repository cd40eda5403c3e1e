"""From decoded, padded frames to clips: random views to learn from, fixed crops to evaluate on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vidcsl.augment.transforms import (
    ClipDraws,
    apply_colour_,
    centre_boxes,
    clip_draws,
    colour_plan,
    crop_resize,
    random_resized_boxes,
    three_boxes,
)
from vidcsl.errors import UserError
from vidcsl.seeding import seed_of

# Clips whose colours are treated together: on a GPU many, to fill it with few launches; on the CPU
# one, which stays in the cache from one operation to the next.
_COLOUR_BATCH = 64
# What may be likelier in one view than in another.
_BY_VIEW = ("blur", "solarise", "motion")


@dataclass(frozen=True, kw_only=True)
class TrainAugmentation:
    """Random crop, flip, colour jitter, grayscale, blur, solarise and motion alone; a draw a clip.

    The defaults are those of SimCLR (Chen et al. 2020) without blur, with milder crops. A
    probability given as a sequence holds one value for each view, as the asymmetric views of BYOL
    (Grill et al. 2020) want it: blur (1.0, 0.1), solarise (0.0, 0.2).

    Args:
        size: side of the clips, pixels.
        cropped: whether the frames come cut out by `boxes` and of this size already.
        crop_area: smallest and largest share of the frame's area.
        crop_aspect: smallest and largest width / height of the crop.
        flip: probability of a left-right flip.
        jitter: strengths of brightness, contrast, saturation (factors in 1 ± strength) and hue
            (± strength turns, at most 0.5).
        jitter_probability: of the four together, in random order.
        gray_probability: of losing all colour.
        blur_probability: of a Gaussian blur; one number or one for each view.
        blur_sigma: smallest and largest standard deviation of the blur, pixels.
        solarise_probability: of inverting bright pixels; one number or one for each view.
        motion_probability: of taking away what stands still, so that two views of a video are alike
            in how it moves and not by its scene; one number or one for each view.
        corrupt: what is done to the finished clips in the end, `(clips, seeds) -> clips`.
        strengths: of crops and colours, from 0 (none) to 1 (as above), in equal parts of the
            training one after the other (Luo et al., "Rethinking the Effect of Data Augmentation
            in Adversarial Contrastive Learning", ICLR 2023).

    Raises:
        UserError: an option is out of its range.
    """

    size: int
    cropped: bool = False
    crop_area: tuple[float, float] = (0.3, 1.0)
    crop_aspect: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.8, 0.8, 0.8, 0.2)
    jitter_probability: float = 0.8
    gray_probability: float = 0.2
    blur_probability: float | Sequence[float] = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarise_probability: float | Sequence[float] = 0.0
    motion_probability: float | Sequence[float] = 0.0
    corrupt: Callable[[Tensor, Sequence[int]], Tensor] | None = None
    strengths: Sequence[float] = (1.0,)

    def __post_init__(self) -> None:
        _check_size(self.size)
        _check_interval("crop_area", self.crop_area, most=1.0)
        _check_interval("crop_aspect", self.crop_aspect)
        _check_interval("blur_sigma", self.blur_sigma)
        _check_jitter(self.jitter)
        _check_probability("flip", self.flip)
        for name in ("jitter", "gray", *_BY_VIEW):
            _check_probability(f"{name}_probability", getattr(self, f"{name}_probability"))
        _check_strengths(self.strengths, cropped=self.cropped)

    def strength(self, progress: float) -> float:
        """That of the part of the training in which `progress`, in [0, 1], lies."""
        parts = len(self.strengths)
        return self.strengths[min(int(progress * parts + 1e-9), parts - 1)]

    def weakened(self, strength: float) -> "TrainAugmentation":
        """The same augmentation, its crops nearer to the frame and its colours to the true ones."""
        least, most = self.crop_area
        brightness, contrast, saturation, hue = (strength * each for each in self.jitter)
        return replace(
            self,
            strengths=(1.0,),
            crop_area=(1 - strength * (1 - least), 1 - strength * (1 - most)),
            crop_aspect=(self.crop_aspect[0] ** strength, self.crop_aspect[1] ** strength),
            jitter=(brightness, contrast, saturation, hue),
            jitter_probability=strength * self.jitter_probability,
            gray_probability=strength * self.gray_probability,
            blur_probability=_scaled(self.blur_probability, strength),
            solarise_probability=_scaled(self.solarise_probability, strength),
            motion_probability=_scaled(self.motion_probability, strength),
        )

    def __call__(
        self, frames: Tensor, sizes: Tensor, seeds: Tensor, progress: float = 0.0
    ) -> Tensor:
        """Augment every view of every sample.

        Args:
            frames: uint8 `[N, V, 3, T, H, W]`, padded at the bottom and right.
            sizes: true (height, width), int64 `[N, 2]`.
            seeds: one for each sample, int64 `[N]`; each view derives its own.
            progress: share of the training that is done, which decides on the strength.

        Returns:
            float32 in [0, 1] `[N, V, 3, T, S, S]`, on the frames' device.
        """
        strength = self.strength(progress)
        if strength != 1:
            return self.weakened(strength)(frames, sizes, seeds)
        samples, views = frames.shape[:2]
        own = _own_seeds(seeds, views)
        draws = clip_draws(own)
        boxes = (
            torch.tensor([[0, 0, self.size, self.size]]).expand(samples * views, 4)
            if self.cropped
            else self._boxes(draws, sizes.repeat_interleave(views, 0))
        )
        clips = crop_resize(
            frames.flatten(0, 1), boxes, size=self.size, flip=draws.flip < self.flip
        )
        clips = self._colour_(clips, draws, samples, views)
        if self.corrupt is not None:
            clips = self.corrupt(clips, own)
        return clips.unflatten(0, (samples, views))

    def boxes(self, sizes: Tensor, seeds: Tensor, views: int) -> Tensor:
        """What is cut out of each view, (top, left, height, width), for a reader that cuts.

        Args:
            sizes: (height, width), int64 `[N, 2]`.
            seeds: one for each sample, int64 `[N]`.
            views: of each sample, V.

        Returns:
            int64 `[N, V, 4]` on the CPU.
        """
        boxes = self._boxes(clip_draws(_own_seeds(seeds, views)), sizes.repeat_interleave(views, 0))
        return boxes.unflatten(0, (len(seeds), views))

    def _boxes(self, draws: ClipDraws, sizes: Tensor) -> Tensor:
        return random_resized_boxes(draws, sizes, area=self.crop_area, aspect=self.crop_aspect)

    def _colour_(self, clips: Tensor, draws: ClipDraws, samples: int, views: int) -> Tensor:
        by_view = {
            f"{name}_probability": _per_view(
                name, getattr(self, f"{name}_probability"), views
            ).repeat(samples)
            for name in _BY_VIEW
        }
        plan = colour_plan(
            draws,
            jitter=self.jitter,
            jitter_probability=self.jitter_probability,
            gray_probability=self.gray_probability,
            blur_sigma=self.blur_sigma,
            **by_view,
        )
        count = 1 if clips.device.type == "cpu" else _COLOUR_BATCH
        for start in range(0, len(clips), count):
            stop = start + count
            apply_colour_(clips[start:stop], plan.rows(start, stop))
        return clips


@dataclass(frozen=True, kw_only=True)
class EvalCrop:
    """The central square, or three squares along the longer side, without chance.

    Args:
        size: side of the clips, pixels.
        ratio: the square's share of the short side, in (0, 1].
        crops: 1 (central) or 3 (start, centre, end of the longer side).

    Raises:
        UserError: an option is out of its range.
    """

    size: int
    ratio: float = 1.0
    crops: int = 1

    def __post_init__(self) -> None:
        _check_size(self.size)
        if not 0 < self.ratio <= 1:
            raise UserError(f"ratio must be above 0 and at most 1, got {self.ratio}")
        if self.crops not in (1, 3):
            raise UserError(f"crops must be 1 or 3, got {self.crops}")

    def __call__(self, frames: Tensor, sizes: Tensor) -> Tensor:
        """Crop every view of every sample.

        Args:
            frames: uint8 or float in [0, 1], `[N, V, 3, T, H, W]`, padded at the bottom and right.
            sizes: true (height, width), int64 `[N, 2]`.

        Returns:
            float `[N, V * crops, 3, T, S, S]`; the crops of one view lie side by side.
        """
        samples, views = frames.shape[:2]
        boxes = (
            centre_boxes(sizes, ratio=self.ratio)[:, None]
            if self.crops == 1
            else three_boxes(sizes, ratio=self.ratio)
        ).repeat_interleave(views, 0)  # [N * V, crops, 4]
        clips = [clip for clip in frames.flatten(0, 1) for _ in range(self.crops)]
        cropped = crop_resize(clips, boxes.flatten(0, 1), size=self.size)
        return cropped.unflatten(0, (samples, views * self.crops))


def _own_seeds(seeds: Tensor, views: int) -> list[int]:
    return [seed_of(seed, view, "augment") for seed in seeds.tolist() for view in range(views)]


def _per_view(name: str, probability: float | Sequence[float], views: int) -> Tensor:
    if isinstance(probability, int | float):
        return torch.full((views,), float(probability))
    if len(probability) != views:
        raise UserError(
            f"{name}_probability holds {len(probability)} values for {views} views: "
            "give one number, or one for each view"
        )
    return torch.tensor(probability, dtype=torch.float32)


def _scaled(probability: float | Sequence[float], factor: float) -> float | Sequence[float]:
    if isinstance(probability, int | float):
        return factor * probability
    return [factor * each for each in probability]


def _check_strengths(strengths: Sequence[float], *, cropped: bool) -> None:
    if not strengths or not all(0 <= strength <= 1 for strength in strengths):
        raise UserError(f"strengths must be one or more numbers in [0, 1], got {strengths}")
    if cropped and any(strength != 1 for strength in strengths):
        raise UserError(
            "strengths of the augmentation change the crops, which the decoder has cut already: "
            "set AUGMENT.CROP_BY to device"
        )


def _check_size(size: int) -> None:
    if size < 2:
        raise UserError(f"size must be at least 2 pixels, got {size}")


def _check_interval(name: str, interval: Sequence[float], most: float = float("inf")) -> None:
    if len(interval) != 2 or not 0 < interval[0] <= interval[1] <= most:
        limit = "" if most == float("inf") else f" <= {most:g}"
        raise UserError(f"{name} must be two numbers, 0 < low <= high{limit}, got {interval}")


def _check_jitter(strengths: Sequence[float]) -> None:
    if len(strengths) != 4 or min(strengths) < 0 or strengths[3] > 0.5:
        raise UserError(
            "jitter must be four numbers (brightness, contrast, saturation, hue), none below 0 and "
            f"hue at most 0.5, got {strengths}"
        )


def _check_probability(name: str, probability: float | Sequence[float]) -> None:
    values = [probability] if isinstance(probability, int | float) else probability
    if not all(0 <= value <= 1 for value in values):
        raise UserError(f"{name} must lie in [0, 1], got {probability}")
