"""A training that goes astray is set back to its last checkpoint, and goes round what led it there.

The training is deterministic: repeated as it was, it would go astray again. So the batches around
the bad step are left out, as Chowdhery et al., "PaLM", JMLR 2023, did by hand.
"""

import math
from collections import deque
from typing import Any

import numpy as np

from vidcsl.errors import Diverged

WINDOW, ENOUGH = 100, 20  # losses that a spike is held against, and the least that say anything
LEAST_DEVIATION = 0.01  # of the mean: where a loss hardly moves, a small step is no spike


class Guard:
    """Tells a loss that went astray from those before it; remembers which steps to leave out.

    Args:
        spike: deviations above the mean of the last WINDOW losses that are a spike; 0: only a loss
            that is not finite goes astray.
        rollbacks: how often in all the training may be set back.
        skip: steps that are left out then, the last of them the bad one.
    """

    def __init__(self, *, spike: float = 0.0, rollbacks: int = 0, skip: int = 1) -> None:
        self.spike, self.rollbacks, self.skip = spike, rollbacks, skip
        self.done = 0
        self.left_out: set[int] = set()
        self._losses: deque[float] = deque(maxlen=WINDOW)

    def check(self, loss: float) -> None:
        """Take note of the loss of a step, over all processes.

        Raises:
            Diverged: it went astray.
        """
        if not math.isfinite(loss):
            raise Diverged("the loss is not finite")
        if self.spike and len(self._losses) >= ENOUGH:
            mean, deviation = float(np.mean(self._losses)), float(np.std(self._losses))
            limit = mean + self.spike * max(deviation, LEAST_DEVIATION * abs(mean))
            if loss > limit:
                raise Diverged(f"the loss leapt to {loss:.4g}, over {limit:.4g}")
        self._losses.append(loss)

    @property
    def may_roll_back(self) -> bool:
        """Whether the training may be set back once more."""
        return self.done < self.rollbacks

    def roll_back(self, *, bad_step: int) -> list[int]:
        """Count one, and leave out the steps that led to it; all that are left out by now."""
        self.done += 1
        self.left_out |= set(range(max(0, bad_step - self.skip + 1), bad_step + 1))
        return sorted(self.left_out)

    def state(self) -> dict[str, Any]:
        """All that decides what it will say, as plain values."""
        return {
            "losses": list(self._losses),
            "left_out": sorted(self.left_out),
            "done": self.done,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`; what was left out since stays left out."""
        self._losses = deque(state.get("losses", []), maxlen=WINDOW)
        self.left_out |= set(state.get("left_out", []))
        self.done = max(self.done, state.get("done", 0))
