"""What a goal is: what an attack maximises, and when it has what it wants."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor


class Goal(Protocol):
    """A number for each clip from what the model puts out for it: logits, features, embeddings.

    Outputs are `[N, K]` or `[N, D]`, float32 or float64. A reference `[N, ...]` is what the goal
    keeps of each clip from the outset: its target class, its clean features.
    """

    def prepare(self, clean: Callable[[], Tensor], labels: Tensor) -> Tensor:
        """The reference, where wanted from the outputs at the clean clips, `clean()`."""

    def value(self, outputs: Tensor, labels: Tensor, reference: Tensor) -> Tensor:
        """What is maximised, `[N]`."""

    def reached(self, outputs: Tensor, labels: Tensor, reference: Tensor) -> Tensor:
        """Bool `[N]`: the clips that need no further attack."""
