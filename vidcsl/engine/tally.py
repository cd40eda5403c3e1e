"""Running sums of what a method reports, exact over steps and processes."""

import torch
from torch import Tensor

from vidcsl.engine.distributed import World
from vidcsl.objectives.metrics import Metric, Share


class Tally:
    """Sums what is reported over steps; divides when asked.

    A scalar is averaged over steps and processes. Of a `Share` part and whole are summed first, so
    that steps and processes count by what they held; a share of nothing is left out.

    Args:
        world: the processes that tally together; all must report the same names.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.reset()

    def reset(self) -> None:
        """Start afresh."""
        self._sums: dict[str, Tensor] = {}  # [2] or [2, classes + 1]: part and whole

    def add(self, values: dict[str, Metric]) -> None:
        """Add one step's metrics."""
        for name, value in values.items():
            one = value if isinstance(value, Share) else Share(value, torch.ones_like(value))
            both = torch.stack([one.part.detach().double(), one.whole.detach().double()])
            self._sums[name] = self._sums[name] + both if name in self._sums else both

    def state(self) -> dict[str, list[float] | list[list[float]]]:
        """Sums over all processes, as plain numbers, for a checkpoint."""
        return {name: sums.tolist() for name, sums in self._totals().items()}

    def load(self, state: dict[str, list[float] | list[list[float]]]) -> None:
        """Go on from `state`; on one process only, as it holds the sums of all."""
        device = self._world.device
        self._sums = {
            name: torch.tensor(sums, dtype=torch.float64, device=device)
            for name, sums in state.items()
        }

    def averages(self) -> dict[str, float]:
        """Means and shares over everything tallied."""
        pairs = {name: sums.view(2, -1).sum(dim=1) for name, sums in self._totals().items()}
        return {name: float(part / whole) for name, (part, whole) in pairs.items() if whole}

    def by_class(self) -> dict[str, list[float | None]]:
        """The shares that were reported by class, for each class; None: a share of nothing."""
        return {
            name: [
                part / whole if whole else None
                for part, whole in zip(*sums[:, :-1].tolist(), strict=True)
            ]
            for name, sums in self._totals().items()
            if sums.dim() == 2
        }

    def _totals(self) -> dict[str, Tensor]:
        """The sums over all processes, in one exchange."""
        if not self._sums:
            return {}
        names = sorted(self._sums)
        joined = torch.cat([self._sums[name].flatten().to(self._world.device) for name in names])
        parts = self._world.total(joined).cpu().split([self._sums[name].numel() for name in names])
        return {
            name: part.view_as(self._sums[name]) for name, part in zip(names, parts, strict=True)
        }
