"""Video vision transformers on tubelets, with joint or divided attention, and their positions.

Arnab et al., "ViViT", ICCV 2021 (tubelets); Bertasius et al., "Is Space-Time Attention All You Need
for Video Understanding?", ICML 2021 (divided attention); Tong et al., "VideoMAE", 2022; Assran et
al., "V-JEPA 2", 2025 (rotary positions). Blocks are timm's.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import AttentionRope, trunc_normal_  # type: ignore[attr-defined]
from timm.models.eva import EvaBlock
from torch import Tensor, nn

from vidcsl.errors import UserError
from vidcsl.models.encoder import ENCODERS, Encoder, flat
from vidcsl.registry import Option

Grid = tuple[int, int, int]
"""Tokens along time, height and width."""


def sine_table(grid: Grid, dim: int) -> Tensor:
    """Sines and cosines of a token's index in the flattened grid, `[T * H * W, dim]`.

    Vaswani et al., "Attention Is All You Need", 2017, in VideoMAE's form (Tong et al., 2022).
    """
    number = torch.arange(grid[0] * grid[1] * grid[2], dtype=torch.float64)
    exponent = torch.arange(dim, dtype=torch.float64).div(2, rounding_mode="floor") * 2 / dim
    angle = number[:, None] / 10000**exponent  # [L, dim]
    table = torch.where(torch.arange(dim) % 2 == 0, angle.sin(), angle.cos())
    return table.float()


def rotary_table(grid: Grid, head_dim: int) -> Tensor:
    """Sines, then cosines, of the rotary angle of each channel of a head, `[L, 2 * head_dim]`.

    One third of the channels rotates with time, one with height, one with width; the rest does not
    rotate. This follows V-JEPA 2 (Assran et al., 2025). Within a third, its code pairs neighbouring
    channels but repeats the list of angles as a whole, so the two channels of a pair rotate by
    different angles. Its weights were trained that way, so this table does the same.
    """
    third = 2 * (head_dim // 3 // 2)  # even, because channels rotate in pairs
    frequency = 1 / 10000 ** (torch.arange(third // 2) / max(1, third / 2))
    axes = torch.meshgrid(*(torch.arange(size).float() for size in grid), indexing="ij")
    angles = [(axis.flatten()[:, None] * frequency).repeat(1, 2) for axis in axes]
    still = torch.zeros(angles[0].shape[0], head_dim - 3 * third)
    table = torch.cat([*angles, still], dim=1)  # [L, head_dim]
    return torch.cat([table.sin(), table.cos()], dim=1)


def interpolated(table: Tensor, grid: Grid) -> Tensor:
    """Resize positions `[1, T, H, W, dim]` to another grid: bicubic in space, linear in time.

    Space is resized as timm does for images; axes of the right size stay bit for bit.
    """
    _, time, *space, _ = table.shape
    new_time, *new_space = grid
    if space != new_space:
        maps = rearrange(table, "1 t h w c -> t c h w")
        maps = F.interpolate(maps, new_space, mode="bicubic", antialias=True, align_corners=False)
        table = rearrange(maps, "t c h w -> 1 t h w c")
    if time != new_time:
        rows = rearrange(table, "1 t h w c -> 1 (h w c) t")
        rows = F.interpolate(rows, new_time, mode="linear", align_corners=False)
        table = rearrange(rows, "1 (h w c) t -> 1 t h w c", h=new_space[0], w=new_space[1])
    return table


class FixedTable(nn.Module):
    """A position table computed from the grid, cached for one grid and recomputed for others.

    Args:
        make: grid -> table.
        grid: the grid to cache.
    """

    table: Tensor

    def __init__(self, make: Callable[[Grid], Tensor], grid: Grid) -> None:
        super().__init__()
        self.make, self.grid = make, grid
        self.register_buffer("table", make(grid), persistent=False)

    def forward(self, grid: Grid) -> Tensor:
        """The table for `grid`, on the module's device."""
        return self.table if grid == self.grid else self.make(grid).to(self.table)


HEAD_DIM = 64  # of the published sizes
LEAST_ROTARY = 6  # channels of a head: a pair for each of three axes
PUBLISHED_CLIP = (16, 224)  # frames and pixels of the clips of VideoMAE's sine table


class VideoTransformer(nn.Module):
    """A transformer whose tokens are tubelets, a few frames deep and a patch wide.

    It accepts clips of another length and size than `grid`: learned and sine positions are
    interpolated, rotary ones extrapolated.

    Args:
        width, depth, heads: channels, blocks and attention heads.
        tubelet: (frames, pixels) of a token.
        grid: tokens along time, height and width.
        attention: "joint" over all tokens; "divided": over time, then over space.
        positions: "learned"; "sine", a fixed table; "rotary", applied within the attention.
        pooling: "mean": average the tokens, then LayerNorm (VideoMAE); "tokens": LayerNorm, then
            average; "class": LayerNorm, then the class token.
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        tubelet: tuple[int, int],
        grid: Grid,
        attention: str,
        positions: str,
        pooling: str,
    ) -> None:
        super().__init__()
        frames, pixels = tubelet
        kernel = (frames, pixels, pixels)
        self.patch_embed = nn.ModuleDict({"proj": Tubelets(3, width, kernel, stride=kernel)})
        self.attention, self.feature_dim = attention, width
        self.cls_token = _learned(1, 1, width) if pooling == "class" else None
        # Shaped like the grid, so that a checkpoint records the clip size it was trained for.
        self.pos_embed = _learned(1, *grid, width) if positions == "learned" else None
        numbered = partial(_sine_positions, tubelet=kernel, width=width)
        self.sine = FixedTable(numbered, grid) if positions == "sine" else None
        rotary = partial(rotary_table, head_dim=width // heads)
        turned = _attended_grids(grid, attention) if positions == "rotary" else ()
        self.ropes = nn.ModuleList(FixedTable(rotary, each) for each in turned)
        kind = {"joint": EvaBlock, "divided": DividedBlock}[attention]
        make = partial(kind, width, heads, num_prefix_tokens=self.prefix, norm_layer=_norm)
        extra = {"attn_type": "rope"} if attention == "joint" else {}
        self.blocks = nn.ModuleList(make(**extra) for _ in range(depth))
        self.norm = _norm(width) if pooling != "mean" else None
        self.fc_norm = _norm(width) if pooling == "mean" else None
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for block in self.blocks:
            if isinstance(block, DividedBlock):
                nn.init.zeros_(block.temporal_proj.weight)  # starts as space attention only

    @property
    def prefix(self) -> int:
        """Tokens before those of the tubelets."""
        return int(self.cls_token is not None)

    def tokens(self, clips: Tensor) -> Tensor:
        """One vector per tubelet, after the class token of pooling "class": `[N, L, width]`."""
        maps = self.patch_embed["proj"](clips)  # [N, C, T', H', W']
        grid: Grid = tuple(maps.shape[2:])
        tokens = flat(maps)
        if self.pos_embed is not None:
            tokens = tokens + interpolated(self.pos_embed, grid).flatten(1, 3)
        if self.sine is not None:
            tokens = tokens + self.sine(grid)
        if self.cls_token is not None:
            own = self.cls_token.expand(tokens.shape[0], -1, -1)
            tokens = torch.cat([own, tokens], dim=1)
        places = _attended_grids(grid, self.attention)
        ropes = [rope(each) for rope, each in zip(self.ropes, places, strict=False)]
        for block in self.blocks:
            if self.attention == "divided":
                tokens = block(tokens, grid, ropes=ropes or (None, None))
            else:
                tokens = block(tokens, rope=ropes[0] if ropes else None)
        return tokens if self.norm is None else self.norm(tokens)

    def forward(self, clips: Tensor) -> Tensor:
        """Features `[N, width]` of normalised clips `[N, 3, T, H, W]`."""
        tokens = self.tokens(clips)
        if self.cls_token is not None:
            return tokens[:, 0]
        pooled = tokens.mean(dim=1)
        return pooled if self.fc_norm is None else self.fc_norm(pooled)


class Tubelets(nn.Conv3d):
    """A convolution whose stride is its kernel, computed as the linear layer that it is.

    On some GPU builds of torch the convolution takes 10 to 20 times as long. Weights stay 5-D.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Maps `[N, C, T', H', W']` of clips `[N, 3, T, H, W]`: a view of tokens."""
        time, height, width = self.kernel_size
        grid = [size // step for size, step in zip(input.shape[2:], self.kernel_size, strict=True)]
        # What is too short for a tubelet is left out, as by the convolution.
        whole = input[:, :, : grid[0] * time, : grid[1] * height, : grid[2] * width]
        tubelets = rearrange(
            whole,
            "n c (t time) (h height) (w width) -> n (t h w) (c time height width)",
            **{"time": time, "height": height, "width": width},
        )
        tokens = F.linear(tubelets, self.weight.flatten(1), self.bias)
        return tokens.transpose(1, 2).unflatten(2, grid)


class DividedBlock(nn.Module):
    """Attention over time at each place, then over space in each frame, then an MLP.

    The class token skips the attention over time. In space each frame attends to its own copy, and
    the copies' outputs are averaged.
    """

    def __init__(
        self, dim: int, num_heads: int, *, num_prefix_tokens: int, norm_layer: type[nn.Module]
    ) -> None:
        super().__init__()
        self.prefix = num_prefix_tokens
        self.temporal_norm = norm_layer(dim)
        self.temporal_attn = AttentionRope(dim, num_heads, num_prefix_tokens=0)
        self.temporal_proj = nn.Linear(dim, dim)
        # Named as in an image transformer's block, so that image weights load.
        self.norm1 = norm_layer(dim)
        self.attn = AttentionRope(dim, num_heads, num_prefix_tokens=num_prefix_tokens)
        self.norm2 = norm_layer(dim)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, tokens: Tensor, grid: Grid, *, ropes: Sequence[Tensor | None]) -> Tensor:
        """Transform tokens `[N, prefix + L, width]`, L = T * H * W of `grid`."""
        batch, time = tokens.shape[0], grid[0]
        own, rest = tokens[:, : self.prefix], tokens[:, self.prefix :]
        tubes = rest.unflatten(1, (time, -1)).transpose(1, 2).flatten(0, 1)  # [N * places, T, C]
        moved = self.temporal_attn(self.temporal_norm(tubes), rope=ropes[0])
        tubes = tubes + self.temporal_proj(moved)
        frames = tubes.unflatten(0, (batch, -1)).transpose(1, 2).flatten(0, 1)  # [N * T, places, C]
        seen = torch.cat([own.repeat_interleave(time, dim=0), frames], dim=1)
        attended = self.attn(self.norm1(seen), rope=ropes[1]).unflatten(0, (batch, time))
        own = own + attended[:, :, : self.prefix].mean(dim=1)
        rest = frames.reshape(batch, -1, rest.shape[2]) + attended[:, :, self.prefix :].flatten(
            1, 2
        )
        joined = torch.cat([own, rest], dim=1)
        hidden = nn.functional.gelu(self.mlp.fc1(self.norm2(joined)))  # type: ignore[operator]
        through: Tensor = joined + self.mlp.fc2(hidden)  # type: ignore[operator]
        return through


def video_vit(
    *,
    clip_frames: int,
    frame_size: int,
    published: tuple[int, int],
    width: int = 0,
    depth: int = 0,
    heads: int = 0,
    tubelet: Sequence[int] = (2, 16),
    attention: str = "joint",
    positions: str = "sine",
    pooling: str = "mean",
) -> Encoder:
    """A video transformer with the `published` (width, depth) unless `width` or `depth` is given.

    `heads` 0 means one head per 64 channels. Other arguments: see `VideoTransformer`.

    Raises:
        UserError: the clip is not divisible into tubelets, or the width into heads.
    """
    if len(tubelet) != 2 or min(tubelet) < 1:
        raise UserError(
            f"MODEL.TUBELET needs two values from 1 on (frames, pixels), not {list(tubelet)}"
        )
    frames, pixels = tubelet
    if clip_frames % frames or frame_size % pixels:
        raise UserError(
            f"clips of DATA.FRAMES {clip_frames} and MODEL.FRAME_SIZE {frame_size} cannot be cut "
            f"into tubelets of {frames} frames and {pixels} x {pixels} pixels (MODEL.TUBELET)"
        )
    width, depth = width or published[0], depth or published[1]
    heads = heads or max(1, width // HEAD_DIM)
    if width % heads or (width // heads) % 2:
        raise UserError(f"MODEL.WIDTH {width} cannot be cut into {heads} heads of even size")
    if positions == "rotary" and width // heads < LEAST_ROTARY:
        raise UserError(
            f"MODEL.POSITIONS rotary turns pairs of channels in time, height and width: heads need "
            f"{LEAST_ROTARY} channels or more, not {width // heads} (MODEL.WIDTH, MODEL.HEADS)"
        )
    backbone = VideoTransformer(
        width=width,
        depth=depth,
        heads=heads,
        tubelet=(frames, pixels),
        grid=(clip_frames // frames, frame_size // pixels, frame_size // pixels),
        attention=attention,
        positions=positions,
        pooling=pooling,
    )
    return Encoder(
        backbone,
        feature_dim=width,
        clip_frames=clip_frames,
        frame_size=frame_size,
        normalisation="imagenet",
    )


ENCODERS.register(
    "video_vit_s",
    "video ViT-S",
    HEADS=Option(0, "video ViT: attention heads; 0: one for 64 channels", minimum=0),
    TUBELET=Option([2, 16], "video ViT: frames and pixels of a token"),
    ATTENTION=Option(
        "joint",
        "video ViT: over all tokens (joint), or over time, then over space (divided)",
        ("joint", "divided"),
    ),
    POSITIONS=Option("sine", "video ViT: position encoding", ("learned", "sine", "rotary")),
    POOLING=Option(
        "mean",
        "video ViT: mean of the tokens, normalised; mean of normalised tokens; a class token",
        ("mean", "tokens", "class"),
    ),
)(partial(video_vit, published=(384, 12)))
ENCODERS.register("video_vit_b", "video ViT-B")(partial(video_vit, published=(768, 12)))
ENCODERS.register("video_vit_l", "video ViT-L")(partial(video_vit, published=(1024, 24)))


def _learned(*shape: int) -> nn.Parameter:
    return nn.Parameter(trunc_normal_(torch.zeros(shape), std=0.02))


def _attended_grids(grid: Grid, attention: str) -> tuple[Grid, ...]:
    """For each attention of a block, the grid of tokens that attend to each other."""
    time, height, width = grid
    return (grid,) if attention == "joint" else ((time, 1, 1), (1, height, width))


def _sine_positions(grid: Grid, *, tubelet: Grid, width: int) -> Tensor:
    """VideoMAE's table `[1, L, width]`, interpolated for other clips than the published size.

    Computing it for the other grid would give its tokens other indices than in pretraining.
    """
    frames, pixels = PUBLISHED_CLIP
    times, heights, widths = tubelet
    numbered = (max(1, frames // times), max(1, pixels // heights), max(1, pixels // widths))
    table = sine_table(numbered, width).unflatten(0, numbered)[None]
    return interpolated(table, grid).flatten(1, 3)


_norm = partial(nn.LayerNorm, eps=1e-6)
