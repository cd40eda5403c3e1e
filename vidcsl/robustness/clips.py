"""Batches to be judged: clips as a model sees them, or the frames of videos that it looks at."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vidcsl.data.loader import Batch
from vidcsl.robustness.targets import Crop, Look, Mean, OverViews, directly, frames_used


@dataclass(frozen=True)
class Clips:
    """Pixels to be judged, with what is known of them.

    Args:
        clips: float32 `[N, 3, T, H, W]` in [0, 1].
        labels: int64 `[N]`.
        seeds: one a video.
        videos: their indices in the list.
        look: how a model of clips sees these pixels.
    """

    clips: Tensor
    labels: Tensor
    seeds: Sequence[int]
    videos: Sequence[int]
    look: Look = directly

    def __len__(self) -> int:
        return len(self.clips)

    def take(self, rows: Tensor) -> "Clips":
        """The chosen rows, an index tensor."""
        chosen = rows.tolist()
        return replace(
            self,
            clips=self.clips[rows],
            labels=self.labels[rows],
            seeds=[self.seeds[i] for i in chosen],
            videos=[self.videos[i] for i in chosen],
        )


@torch.inference_mode()
def right_answers(model: nn.Module, batch: Clips) -> Tensor:
    """Bool `[N]`: which clips the model gets right."""
    return model(batch.clips).argmax(dim=1) == batch.labels


def cropped_clips(
    batch: Batch, crop: Crop, *, seeds: Sequence[int], videos: Sequence[int]
) -> Iterator[Clips]:
    """The first view of each video as the model takes it: cropped and resized."""
    yield Clips(crop(batch.frames[:, :1], batch.sizes)[:, 0], batch.labels, seeds, videos)


@dataclass(frozen=True)
class Views:
    """The look at the decoded frames of a video: views of them, cropped and averaged.

    Args:
        pattern: positions of each view's frames among those given, `[V, T]`.
        crop: from frames to what the model takes.
    """

    pattern: NDArray[np.int64]
    crop: Crop

    def __call__(self, model: nn.Module, mean: Mean) -> nn.Module:
        """The model of clips as one of these frames."""
        return OverViews(model, self.pattern, crop=self.crop, mean=mean)


def decoded_frames(
    batch: Batch, crop: Crop, *, seeds: Sequence[int], videos: Sequence[int]
) -> Iterator[Clips]:
    """The decoded frames that all views of a video read, each once; views and crop are the look.

    Videos of one size whose views read their frames in the same pattern come together.
    """
    alike: dict[tuple[bytes, int, int], list[tuple[int, Tensor]]] = defaultdict(list)
    views = {}
    for row, (height, width) in enumerate(batch.sizes.tolist()):
        read = batch.frame_indices[row].cpu().numpy()
        _, first = np.unique(read, return_index=True)
        pattern = frames_used(read)[1]
        flat = batch.frames[row, ..., :height, :width].transpose(0, 1).flatten(1, 2)
        key = (pattern.tobytes(), height, width)
        views[key] = pattern
        alike[key].append((row, flat[:, torch.from_numpy(first).to(flat.device)].float() / 255))
    for key, members in alike.items():
        rows = [row for row, _ in members]
        yield Clips(
            torch.stack([frames for _, frames in members]),
            batch.labels[rows],
            [seeds[row] for row in rows],
            [videos[row] for row in rows],
            look=Views(views[key], crop),
        )
