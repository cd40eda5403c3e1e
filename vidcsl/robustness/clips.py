"""A batch of clips to be judged, and which of them a model gets right."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Clips:
    """Clips to be judged: float32 `[N, 3, T, S, S]` in [0, 1], labels `[N]`, a seed a video."""

    clips: Tensor
    labels: Tensor
    seeds: Sequence[int]

    def __len__(self) -> int:
        return len(self.clips)

    def take(self, rows: Tensor) -> "Clips":
        """The chosen rows, an index tensor."""
        return Clips(self.clips[rows], self.labels[rows], [self.seeds[i] for i in rows.tolist()])


@torch.inference_mode()
def right_answers(model: nn.Module, batch: Clips) -> Tensor:
    """Bool `[N]`: which clips the model gets right."""
    return model(batch.clips).argmax(dim=1) == batch.labels
