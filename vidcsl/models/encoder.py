"""What every encoder is: [0, 1] clips in, features out, with normalisation inside."""

import torch
from torch import Tensor, nn

from vidcsl.models.chunks import in_chunks

# Statistics of Kinetics-400 in torchvision's video weights.
MEAN, STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)


class Encoder(nn.Module):
    """A backbone behind the contract that pretraining, evaluation, attacks and corruptions rely on.

    Args:
        backbone: module from normalised clips `[N, 3, T, S, S]` to features `[N, feature_dim]`.
        feature_dim: length of a feature vector.
        clip_frames: frames T of a clip.
        frame_size: side S of the square frames, pixels.
        mean, std: per RGB channel, in units of [0, 1] pixels.

    In training mode, clips pass `chunk` at a time where that is not 0: see `chunks`.
    """

    mean: Tensor
    std: Tensor
    chunk: int = 0

    def __init__(
        self,
        backbone: nn.Module,
        *,
        feature_dim: int,
        clip_frames: int,
        frame_size: int,
        mean: tuple[float, float, float] = MEAN,
        std: tuple[float, float, float] = STD,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.feature_dim, self.clip_frames, self.frame_size = feature_dim, clip_frames, frame_size
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1, 1), persistent=False)

    def forward(self, clips: Tensor) -> Tensor:
        """Features `[N, D]` of clips `[N, 3, T, S, S]` with pixels in [0, 1]."""
        if self.training and self.chunk:
            return in_chunks(self._features, clips, size=self.chunk)
        return self._features(clips)

    def _features(self, clips: Tensor) -> Tensor:
        normalised = (clips - self.mean) / self.std
        features: Tensor = self.backbone(
            normalised.contiguous(memory_format=torch.channels_last_3d)
        )
        return features
