"""The processes that train together, as far as an objective needs them."""

from typing import Any, Protocol

from torch import Tensor


class World(Protocol):
    """The processes that train together: how their tensors meet."""

    rank: int
    size: int

    def gather(self, tensor: Tensor) -> Tensor:
        """`[N, ...]` of each process to `[size * N, ...]` in rank order, keeping gradients."""

    def total(self, tensor: Tensor) -> Tensor:
        """Sum over processes, without gradient."""

    def share(self, value: Any) -> Any:
        """The first process's value, on every process."""


class Alone:
    """A world of one process."""

    rank, size = 0, 1

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor

    def total(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor

    def share(self, value: Any) -> Any:
        """The value itself."""
        return value
