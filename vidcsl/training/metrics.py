"""Running sums of the metrics that a method reports, exact over steps and processes."""

import torch
from torch import Tensor

from vidcsl.distributed import DistributedContext
from vidcsl.methods.metrics import Metric, Ratio


class MetricAccumulator:
    """Sums the metrics of many steps on the device and divides only when asked.

    A scalar is averaged over steps and processes. A `Ratio` is summed in both parts first, so that
    steps and processes count by their number of items. A ratio whose whole is zero is left out.

    Args:
        distributed: the processes that accumulate together; all must report the same names.
    """

    def __init__(self, distributed: DistributedContext) -> None:
        self._distributed = distributed
        self.reset()

    def reset(self) -> None:
        """Forget all sums."""
        self._sums: dict[str, Tensor] = {}  # [2] or [2, classes + 1]: part and whole

    def add(self, values: dict[str, Metric]) -> None:
        """Add one step's metrics."""
        for name, value in values.items():
            ratio = value if isinstance(value, Ratio) else Ratio(value, torch.ones_like(value))
            # float64: counts of pairs over an epoch exceed what float32 can count exactly.
            both = torch.stack([ratio.part.detach().double(), ratio.whole.detach().double()])
            self._sums[name] = self._sums[name] + both if name in self._sums else both

    def averages(self) -> dict[str, float]:
        """The mean of each scalar and the value of each ratio."""
        pairs = {name: sums.view(2, -1).sum(dim=1) for name, sums in self._totals().items()}
        return {name: float(part / whole) for name, (part, whole) in pairs.items() if whole}

    def by_class(self) -> dict[str, list[float | None]]:
        """The ratios that were reported by class, for each class; None where the whole is zero."""
        return {
            name: [
                part / whole if whole else None
                for part, whole in zip(*sums[:, :-1].tolist(), strict=True)
            ]
            for name, sums in self._totals().items()
            if sums.dim() == 2
        }

    def state_dict(self) -> dict[str, list[float] | list[list[float]]]:
        """Sums over all processes as plain numbers, for a checkpoint."""
        return {name: sums.tolist() for name, sums in self._totals().items()}

    def load_state_dict(self, state: dict[str, list[float] | list[list[float]]]) -> None:
        """Continue from `state`; on one process only, because it holds the sums of all."""
        device = self._distributed.device
        self._sums = {
            name: torch.tensor(sums, dtype=torch.float64, device=device)
            for name, sums in state.items()
        }

    def _totals(self) -> dict[str, Tensor]:
        """The sums over all processes, in one exchange whatever the number of metrics."""
        if not self._sums:
            return {}
        names = sorted(self._sums)  # the order in which a method reports may differ by process
        device = self._distributed.device
        flat = torch.cat([self._sums[name].flatten().to(device) for name in names])
        parts = self._distributed.total(flat).cpu().split([self._sums[n].numel() for n in names])
        return {
            name: part.view_as(self._sums[name]) for name, part in zip(names, parts, strict=True)
        }
