"""Where a token lies in time, height and width: tables of positions for any grid of tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int, int]
"""Tokens along time, height and width."""


def sine_table(grid: Grid, dim: int) -> Tensor:
    """Sines and cosines of a token's number in the flattened grid, `[T * H * W, dim]`.

    Vaswani et al., "Attention Is All You Need", 2017, as VideoMAE has it (Tong et al., 2022).
    """
    number = torch.arange(grid[0] * grid[1] * grid[2], dtype=torch.float64)
    exponent = torch.arange(dim, dtype=torch.float64).div(2, rounding_mode="floor") * 2 / dim
    angle = number[:, None] / 10000**exponent  # [L, dim]
    table = torch.where(torch.arange(dim) % 2 == 0, angle.sin(), angle.cos())
    return table.float()


def rotary_table(grid: Grid, head_dim: int) -> Tensor:
    """Sines, then cosines, of the rotation of each pair of a head's channels, `[L, 2 * head_dim]`.

    A third of the channels turns with time, height and width each, the rest stays: V-JEPA 2's
    (Assran et al., 2025). Within a third its code pairs neighbouring channels but lays its angles
    out twice in a row, so that the two of a pair turn by different angles; so does this table, as
    its weights were trained that way.
    """
    share = 2 * (head_dim // 3 // 2)
    frequency = 1 / 10000 ** (torch.arange(share // 2) / max(1, share / 2))
    axes = torch.meshgrid(*(torch.arange(size).float() for size in grid), indexing="ij")
    angles = [(axis.flatten()[:, None] * frequency).repeat(1, 2) for axis in axes]
    still = torch.zeros(angles[0].shape[0], head_dim - 3 * share)
    table = torch.cat([*angles, still], dim=1)  # [L, head_dim]
    return torch.cat([table.sin(), table.cos()], dim=1)


def interpolated(table: Tensor, grid: Grid, new: Grid) -> Tensor:
    """A table of positions `[1, T * H * W, dim]` for another grid, by trilinear weights."""
    if grid == new:
        return table
    volume = table.transpose(1, 2).unflatten(2, grid)
    resized = F.interpolate(volume, size=new, mode="trilinear", align_corners=False)
    return resized.flatten(2).transpose(1, 2)
