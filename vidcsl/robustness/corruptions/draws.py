"""Random numbers for a batch: one generator a clip, drawn on the CPU whatever the device."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Generators = Sequence[torch.Generator]


def draw_each(
    generators: Generators,
    draw: Callable[[torch.Generator], Tensor],
    *,
    device: torch.device | None = None,
) -> Tensor:
    """Call `draw` once a clip and stack the results to `[N, ...]`.

    Never one draw for the whole batch: a clip's numbers must not depend on its neighbours.
    """
    return torch.stack([draw(generator) for generator in generators]).to(device)


def normal_like(clips: Tensor, *, generators: Generators) -> Tensor:
    """Standard normal numbers of the clips' shape, on their device."""
    shape = clips.shape[1:]
    return draw_each(generators, lambda g: torch.randn(shape, generator=g), device=clips.device)


def uniform_like(clips: Tensor, *, generators: Generators) -> Tensor:
    """Uniform numbers in [0, 1) of the clips' shape, on their device."""
    shape = clips.shape[1:]
    return draw_each(generators, lambda g: torch.rand(shape, generator=g), device=clips.device)


def uniform(*shape: int, generators: Generators) -> Tensor:
    """Uniform numbers in [0, 1), `[N, *shape]`, left on the CPU."""
    return draw_each(generators, lambda g: torch.rand(shape, generator=g))
