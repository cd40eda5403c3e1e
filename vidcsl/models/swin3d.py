"""Video Swin transformers: attention within windows of space and time that shift.

Liu et al., "Video Swin Transformer", CVPR 2022; the network is torchvision's.
"""

from torch import Tensor, nn
from torchvision.models.video.swin_transformer import SwinTransformer3d

from vidcsl.errors import UserError
from vidcsl.models.encoder import ENCODERS, Encoder, shallow


class PooledSwin3D(SwinTransformer3d):
    """torchvision's network up to its classifier."""

    def tokens(self, clips: Tensor) -> Tensor:
        """One vector per place, `[N, L, 8 * width]`."""
        tokens = self.features(self.pos_drop(self.patch_embed(clips)))  # [N, T', H', W', C]
        normed: Tensor = self.norm(tokens)
        return normed.flatten(1, 3)

    def forward(self, clips: Tensor) -> Tensor:
        """Features `[N, 8 * width]` of normalised clips `[N, 3, T, H, W]` of any size."""
        return self.tokens(clips).mean(dim=1)


@ENCODERS.register("swin3d_t", "Video Swin-T")
def swin3d_t(*, clip_frames: int, frame_size: int, width: int = 0, depth: int = 0) -> Encoder:
    """Video Swin T; `width` (a multiple of 3) below 96 or `depth` below 6 give a slim network."""
    return _build((2, 2, 6, 2), 3, clip_frames, frame_size, width=width or 96, depth=depth)


@ENCODERS.register("swin3d_s", "Video Swin-S")
def swin3d_s(*, clip_frames: int, frame_size: int, width: int = 0, depth: int = 0) -> Encoder:
    """Video Swin S; `width` (a multiple of 3) below 96 or `depth` below 18 give a slim network."""
    return _build((2, 2, 18, 2), 3, clip_frames, frame_size, width=width or 96, depth=depth)


@ENCODERS.register("swin3d_b", "Video Swin-B")
def swin3d_b(*, clip_frames: int, frame_size: int, width: int = 0, depth: int = 0) -> Encoder:
    """Video Swin B; `width` (a multiple of 4) below 128 or `depth` below 18 give a slim network."""
    return _build((2, 2, 18, 2), 4, clip_frames, frame_size, width=width or 128, depth=depth)


def _build(
    blocks: tuple[int, ...],
    heads: int,
    clip_frames: int,
    frame_size: int,
    *,
    width: int,
    depth: int,
) -> Encoder:
    if width % heads:
        raise UserError(f"MODEL.WIDTH {width} of this Swin must be a multiple of its {heads} heads")
    backbone = PooledSwin3D(
        patch_size=[2, 4, 4],
        embed_dim=width,
        depths=list(shallow(blocks, depth)),
        num_heads=[heads * 2**stage for stage in range(4)],
        window_size=[8, 7, 7],
        stochastic_depth_prob=0.0,  # dropping blocks is a choice of training, not of the encoder
        num_classes=1,
    )
    backbone.head = nn.Identity()
    return Encoder(
        backbone,
        feature_dim=8 * width,
        clip_frames=clip_frames,
        frame_size=frame_size,
        normalisation="imagenet",
    )
