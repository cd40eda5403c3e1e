"""From decoded, padded frames to clips: random views for training, fixed crops for evaluation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vidcsl.augment.transforms import (
    RandomColour,
    RandomResizedCrop,
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


@dataclass(frozen=True, kw_only=True)
class TrainAugmentation:
    """Random crop, flip and colours of training clips; each clip has its own random numbers.

    Args:
        size: side S of the output clips, pixels, at least 2.
        cropped: the reader has cut the frames by `boxes` and resized them to `size` already.
        crop: options of crop and flip.
        colour: options of jitter, grayscale, blur, solarise and motion alone.
        corrupt: last step, `(clips [N * V, 3, T, S, S], one seed per clip) -> clips`; None: none.
        strengths: strengths of crop and colour in [0, 1] over the training run, for equal parts of
            the run in this order; 1 is the full augmentation, 0 leaves the central square and the
            flip (Luo et al., "Rethinking the Effect of Data Augmentation in Adversarial
            Contrastive Learning", ICLR 2023).

    Raises:
        UserError: an option is out of range.
    """

    size: int
    cropped: bool = False
    crop: RandomResizedCrop = field(default_factory=RandomResizedCrop)
    colour: RandomColour = field(default_factory=RandomColour)
    corrupt: Callable[[Tensor, Sequence[int]], Tensor] | None = None
    strengths: Sequence[float] = (1.0,)

    def __post_init__(self) -> None:
        _check_size(self.size)
        if not self.strengths or not all(0 <= strength <= 1 for strength in self.strengths):
            raise UserError(
                f"strengths must be one or more numbers in [0, 1], got {self.strengths}"
            )
        # The decoder draws its boxes at full strength: it does not know the progress of the run.
        if self.cropped and any(strength != 1 for strength in self.strengths):
            raise UserError(
                "strengths of the augmentation change the crops, which the decoder has cut "
                "already: set AUGMENT.CROP_BY to device"
            )

    def __call__(
        self, frames: Tensor, sizes: Tensor, seeds: Tensor, progress: float = 0.0
    ) -> Tensor:
        """Augment every view of every sample.

        Args:
            frames: uint8 `[N, V, 3, T, H, W]`, padded at the bottom and right.
            sizes: true (height, width), int64 `[N, 2]`.
            seeds: one per sample, int64 `[N]`; each view derives its own.
            progress: completed fraction of the training run, in [0, 1]; selects the strength.

        Returns:
            float32 in [0, 1] `[N, V, 3, T, S, S]`, on the device of `frames`.
        """
        strength = self.strength(progress)
        if strength != 1:
            return self.weakened(strength)(frames, sizes, seeds)
        samples, views = frames.shape[:2]
        clip_seeds = _clip_seeds(seeds, views)
        draws = clip_draws(clip_seeds)

        if self.cropped:
            boxes = torch.tensor([[0, 0, self.size, self.size]]).expand(samples * views, 4)
        else:
            boxes = random_resized_boxes(
                draws,
                sizes.repeat_interleave(views, 0),
                area=self.crop.area,
                aspect=self.crop.aspect,
            )
        flip = draws.flip < self.crop.flip
        clips = crop_resize(frames.flatten(0, 1), boxes, size=self.size, flip=flip)

        plan = colour_plan(draws, self.colour, views=views)
        # A GPU is filled with few launches on many clips; on a CPU, a single clip stays in the
        # cache from one operation to the next.
        batch = 1 if clips.device.type == "cpu" else 64
        for start in range(0, len(clips), batch):
            apply_colour_(clips[start : start + batch], plan.rows(start, start + batch))

        if self.corrupt is not None:
            clips = self.corrupt(clips, clip_seeds)
        return clips.unflatten(0, (samples, views))

    def boxes(self, sizes: Tensor, seeds: Tensor, views: int) -> Tensor:
        """The crop boxes (top, left, height, width) of all views, for a reader that crops.

        Args:
            sizes: true (height, width), int64 `[N, 2]`.
            seeds: one per sample, int64 `[N]`.
            views: views per sample, V.

        Returns:
            int64 `[N, V, 4]` on the CPU.
        """
        boxes = random_resized_boxes(
            clip_draws(_clip_seeds(seeds, views)),
            sizes.repeat_interleave(views, 0),
            area=self.crop.area,
            aspect=self.crop.aspect,
        )
        return boxes.unflatten(0, (len(seeds), views))

    def strength(self, progress: float) -> float:
        """The strength at `progress`, the completed fraction of the training run in [0, 1]."""
        parts = len(self.strengths)
        # 1e-9, because the product may round to just below a whole number (0.29 * 100).
        return self.strengths[min(int(progress * parts + 1e-9), parts - 1)]

    def weakened(self, strength: float) -> "TrainAugmentation":
        """The same augmentation with crop and colour at `strength` in [0, 1]; flips stay."""
        return replace(
            self,
            strengths=(1.0,),
            crop=self.crop.weakened(strength),
            colour=self.colour.weakened(strength),
        )


@dataclass(frozen=True, kw_only=True)
class EvalCrop:
    """The central square, or three squares along the longer side; nothing is random.

    Args:
        size: side S of the output clips, pixels, at least 2.
        ratio: side of the square as a fraction of the short side, in (0, 1].
        crops: 1 (central) or 3 (start, centre, end of the longer side).

    Raises:
        UserError: an option is out of range.
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
            float `[N, V * crops, 3, T, S, S]`; the crops of one view are adjacent.
        """
        samples, views = frames.shape[:2]
        if self.crops == 1:
            boxes = centre_boxes(sizes, ratio=self.ratio)[:, None]
        else:
            boxes = three_boxes(sizes, ratio=self.ratio)
        boxes = boxes.repeat_interleave(views, 0).flatten(0, 1)  # [N * V * crops, 4]
        # References, not copies: three crops read the same frames.
        clips = [clip for clip in frames.flatten(0, 1) for _ in range(self.crops)]
        return crop_resize(clips, boxes, size=self.size).unflatten(0, (samples, views * self.crops))


def _clip_seeds(seeds: Tensor, views: int) -> list[int]:
    return [seed_of(seed, view, "augment") for seed in seeds.tolist() for view in range(views)]


def _check_size(size: int) -> None:
    if size < 2:
        raise UserError(f"size must be at least 2 pixels, got {size}")
