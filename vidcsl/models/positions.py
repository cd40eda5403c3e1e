"""Where a token lies in time, height and width: tables of positions for any grid of tokens."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

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


def interpolated(table: Tensor, grid: Grid) -> Tensor:
    """A table of positions `[1, T, H, W, dim]` for another grid: bicubic in space, linear in time.

    Space as timm does it for pictures; what is of the right size is left as it is.
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
    """A table that follows from the grid; kept for the grid that is usual, made for others.

    Args:
        make: from a grid to its table.
        grid: the usual one.
    """

    table: Tensor

    def __init__(self, make: Callable[[Grid], Tensor], grid: Grid) -> None:
        super().__init__()
        self.make, self.grid = make, grid
        self.register_buffer("table", make(grid), persistent=False)

    def forward(self, grid: Grid) -> Tensor:
        """The table of this grid, on the module's device."""
        return self.table if grid == self.grid else self.make(grid).to(self.table)
