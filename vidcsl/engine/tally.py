"""Running sums of what a method reports, exact over steps and processes."""

import torch
from torch import Tensor

from vidcsl.engine.distributed import World

COUNTS = ("_pairs", "_rows")  # endings of names that count things; all other values are averaged


class Tally:
    """Sums values over steps; averages them over steps and processes when asked.

    Args:
        world: the processes that tally together; all must report the same names.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.reset()

    def reset(self) -> None:
        """Start afresh."""
        self._sums: dict[str, Tensor] = {}
        self._steps = 0.0

    def add(self, values: dict[str, Tensor]) -> None:
        """Add one step's scalars."""
        self._steps += 1
        for name, value in values.items():
            value = value.detach().double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def state(self) -> dict[str, float]:
        """Sums over all processes, as plain numbers, for a checkpoint."""
        if not self._sums:
            return {}
        names = sorted(self._sums)
        steps = torch.tensor(self._steps, dtype=torch.float64, device=self._world.device)
        local = torch.stack([steps, *(self._sums[name].to(steps.device) for name in names)])
        total = self._world.total(local).tolist()
        return dict(zip(["steps", *names], total, strict=True))

    def load(self, state: dict[str, float]) -> None:
        """Go on from `state`; on one process only, as it holds the sums of all."""
        rest = dict(state)
        self._steps = rest.pop("steps", 0.0)
        device = self._world.device
        self._sums = {
            name: torch.tensor(value, dtype=torch.float64, device=device)
            for name, value in rest.items()
        }

    def averages(self) -> dict[str, float]:
        """Means per step, and shares made of the pair counts.

        `removed` = removed / candidate pairs, `precision` = right / judged, `recall` = right /
        false-negative pairs; a share of nothing is left out.
        """
        sums = self.state()
        if not sums:
            return {}
        steps = sums.pop("steps")
        means = {name: total / steps for name, total in sums.items() if not name.endswith(COUNTS)}
        shares = {
            "removed": ("removed_pairs", "candidate_pairs"),
            "precision": ("right_pairs", "judged_pairs"),
            "recall": ("right_pairs", "false_negative_pairs"),
        }
        for name, (part, whole) in shares.items():
            if sums.get(whole):
                means[name] = sums[part] / sums[whole]
        if sums.get("undefined_rows"):
            means["undefined_rows"] = sums["undefined_rows"]
        return means
