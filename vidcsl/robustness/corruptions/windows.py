"""Corruptions of a video at its full rate, of which a clip then takes its frames."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vidcsl.robustness.corruptions import corrupt_and_inspect, find
from vidcsl.robustness.corruptions.codec import Recovered


@dataclass(frozen=True)
class Window:
    """The frames of a video from the first to the last of a clip, none left out.

    The published code damages whole videos and then chooses frames. On a clip of every fourth
    frame, a frame that is held or averaged with its neighbours is four frames away, not one, and a
    codec sees motion four times as fast: such corruptions would do much more harm than published.

    Args:
        frames: uint8 `[3, L, H, W]`, as decoded.
        shown: which of them are the clip's, int64 `[T]`.
        rate: frames per second of the video; 0: unknown.
        crop: `(frames [1, 1, 3, T, H, W], sizes [1, 2]) -> clips [1, 1, 3, T, S, S]`.
    """

    frames: Tensor
    shown: Tensor
    rate: float
    crop: Callable[[Tensor, Tensor], Tensor]

    def corrupt(self, name: str, *, severity: int, seed: int) -> Recovered:
        """The clip `[1, 3, T, S, S]` of the damaged frames, with what `Recovered` says of it."""
        whole = self.frames[None].float().div(255)
        found = corrupt_and_inspect(
            whole, name, severity=severity, seeds=[seed], frame_rate=self.rate
        )
        chosen = found.clips[:, :, self.shown.to(whole.device)]
        size = torch.tensor([chosen.shape[-2:]])
        return found._replace(clips=self.crop(chosen[:, None], size)[:, 0])


def acts_over_time(name: str) -> bool:
    """Whether a frame's corruption depends on the frames beside it; for others order is nothing."""
    return find(name)[1].over_time
