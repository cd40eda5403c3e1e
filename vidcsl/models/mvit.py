"""MViT v2 S: a transformer that pools space as it goes, with relative positions.

Li et al., "MViTv2: Improved Multiscale Vision Transformers for Classification and Detection", CVPR
2022; the network is torchvision's.
"""

from torch import Tensor, nn
from torchvision.models.video.mvit import MSBlockConfig, MViT

from vidcsl.errors import UserError
from vidcsl.models.encoder import ENCODERS, Encoder, shallow

WIDTH = 96  # channels of the published first stage
BLOCKS = (1, 2, 11, 2)  # of the four stages; each later one halves space and doubles channels
REDUCTION = 32  # of space, from frames to the last stage


class PooledMViT(MViT):
    """torchvision's network up to its classifier."""

    def tokens(self, clips: Tensor) -> Tensor:
        """The class token, then one vector per place: `[N, 1 + L, 8 * width]`."""
        tokens = self.pos_encoding(self.conv_proj(clips).flatten(2).transpose(1, 2))
        grid = (self.pos_encoding.temporal_size, *self.pos_encoding.spatial_size)
        for block in self.blocks:
            tokens, grid = block(tokens, grid)
        normed: Tensor = self.norm(tokens)
        return normed

    def forward(self, clips: Tensor) -> Tensor:
        """Features `[N, 8 * width]`: the class token."""
        return self.tokens(clips)[:, 0]


@ENCODERS.register("mvit_v2_s", "MViT v2-S")
def mvit_v2_s(*, clip_frames: int, frame_size: int, width: int = 0, depth: int = 0) -> Encoder:
    """MViT v2 S; `width` below 96 or `depth` below 11 give a slim network.

    Raises:
        UserError: the clip cannot be cut into the pooled grid.
    """
    if frame_size % REDUCTION or clip_frames % 2:
        raise UserError(
            f"mvit_v2_s halves frames and pools space {REDUCTION} times: MODEL.FRAME_SIZE "
            f"{frame_size} must be a multiple of {REDUCTION}, DATA.FRAMES {clip_frames} even"
        )
    width = width or WIDTH
    backbone = PooledMViT(
        spatial_size=(frame_size, frame_size),
        temporal_size=clip_frames,
        block_setting=block_settings(width, shallow(BLOCKS, depth)),
        residual_pool=True,
        residual_with_cls_embed=False,
        rel_pos_embed=True,
        proj_after_attn=True,
        stochastic_depth_prob=0.0,  # dropping blocks is a choice of training, not of the encoder
        num_classes=1,
    )
    backbone.head = nn.Identity()
    return Encoder(
        backbone,
        feature_dim=8 * width,
        clip_frames=clip_frames,
        frame_size=frame_size,
        normalisation="pyslowfast",
    )


def block_settings(width: int, stages: tuple[int, ...]) -> list[MSBlockConfig]:
    """Settings of all blocks, for `stages[i]` blocks in stage i and `width` channels in the first.

    The first block of each later stage pools its queries and so halves space. Keys and values are
    pooled more in earlier stages, which keeps attention on their large grids cheap.
    """
    settings = []
    for stage, depth in enumerate(stages):
        for number in range(depth):
            first = stage > 0 and number == 0
            reach = 2 ** (len(stages) - 1 - stage)
            settings.append(
                MSBlockConfig(
                    num_heads=2**stage,
                    input_channels=width * 2 ** (stage - 1 if first else stage),
                    output_channels=width * 2**stage,
                    kernel_q=[3, 3, 3],
                    kernel_kv=[3, 3, 3],
                    stride_q=[1, 2, 2] if first else [1, 1, 1],
                    stride_kv=[1, reach, reach],
                )
            )
    return settings
