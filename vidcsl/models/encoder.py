"""What every encoder is: [0, 1] clips in, features out, with normalisation inside."""

import torch
from torch import Tensor, nn

from vidcsl.errors import UserError
from vidcsl.models.chunks import in_chunks

Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]

# Mean and standard deviation of RGB, in units of [0, 1] pixels.
NORMALISATIONS: dict[str, Statistics] = {
    # of Kinetics-400, in torchvision's video weights
    "kinetics": ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # of PySlowFast, and of the MViT that torchvision took from it
    "pyslowfast": ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "dpn": ((124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3),
    "symmetric": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


class Encoder(nn.Module):
    """A backbone behind the contract that pretraining, evaluation, attacks and corruptions rely on.

    Args:
        backbone: module from normalised clips `[N, 3, T, S, S]` to features `[N, feature_dim]`. Its
            `tokens(clips) -> [N, L, C]`, if it has one, gives what it pools these from.
        feature_dim: length of a feature vector.
        clip_frames: frames T of a clip.
        frame_size: side S of the square frames, pixels.
        normalisation: a name in `NORMALISATIONS`.

    In training mode, clips pass `chunk` at a time where that is not 0: see `chunks`. They have the
    layout that 3-D convolutions are faster in, `channels_last`, where that is not switched off.
    """

    mean: Tensor
    std: Tensor
    chunk: int = 0
    channels_last: bool = True

    def __init__(
        self,
        backbone: nn.Module,
        *,
        feature_dim: int,
        clip_frames: int,
        frame_size: int,
        normalisation: str = "kinetics",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.feature_dim, self.clip_frames, self.frame_size = feature_dim, clip_frames, frame_size
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.ones(1, 3, 1, 1, 1), persistent=False)
        self.normalise_by(normalisation)

    def normalise_by(self, name: str, *, bgr: bool = False) -> None:
        """Normalise by the statistics of this name from now on.

        Args:
            name: in `NORMALISATIONS`.
            bgr: they were laid over BGR pixels as they stand: red got the mean that is listed last.
        """
        self.normalisation = name
        mean, std = (torch.tensor(each) for each in NORMALISATIONS[name])
        self.mean.copy_((mean.flip(0) if bgr else mean).view(1, 3, 1, 1, 1))
        self.std.copy_((std.flip(0) if bgr else std).view(1, 3, 1, 1, 1))

    def forward(self, clips: Tensor) -> Tensor:
        """Features `[N, D]` of clips `[N, 3, T, S, S]` with pixels in [0, 1]."""
        if self.training and self.chunk:
            return in_chunks(self._features, clips, size=self.chunk)
        return self._features(clips)

    def tokens(self, clips: Tensor) -> Tensor:
        """What the features are pooled from, one vector a place in space and time: `[N, L, C]`.

        Raises:
            UserError: the backbone has none.
        """
        if not hasattr(self.backbone, "tokens"):
            raise UserError(f"{type(self.backbone).__name__} gives no tokens, only pooled features")
        tokens: Tensor = self.backbone.tokens(self.normalised(clips))  # type: ignore[operator]
        return tokens

    def _features(self, clips: Tensor) -> Tensor:
        features: Tensor = self.backbone(self.normalised(clips))
        return features

    def normalised(self, clips: Tensor) -> Tensor:
        """The clips `[N, 3, T, H, W]` in [0, 1], as the backbone takes them."""
        normalised = (clips - self.mean) / self.std
        layout = torch.channels_last_3d if self.channels_last else torch.contiguous_format
        return normalised.contiguous(memory_format=layout)


def published_or(value: int, published: int) -> int:
    """A size that was asked for; 0 is the published one."""
    return value or published


def shallow(blocks: tuple[int, ...], depth: int) -> tuple[int, ...]:
    """Blocks of each stage, of none more than `depth`; 0: as published."""
    return tuple(min(count, depth) for count in blocks) if depth else blocks


def flat(maps: Tensor) -> Tensor:
    """Feature maps `[N, C, T, H, W]` as tokens `[N, T * H * W, C]`."""
    return maps.flatten(2).transpose(1, 2)
