"""What a training step computes in."""

from typing import Any

import torch

DTYPES: dict[str, torch.dtype | None] = {
    "float32": None,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class Precision:
    """Autocast of the forward pass, and the loss scale that float16's narrow range needs.

    Weights, their averages and the optimiser stay in float32; so do losses and similarities, see
    `objectives`.

    Args:
        name: in DTYPES.
        device: what is computed on.
    """

    def __init__(self, name: str = "float32", device: torch.device | None = None) -> None:
        self._device = device.type if device else "cpu"
        self._dtype = DTYPES[name]
        # Without float16 it passes everything through.
        self.scaler = torch.amp.GradScaler(self._device, enabled=name == "float16")

    def autocast(self) -> torch.autocast:
        """The block in which the forward pass runs."""
        return torch.autocast(self._device, self._dtype, enabled=self._dtype is not None)

    def state(self) -> dict[str, Any]:
        """The loss scale and its history, as plain numbers; empty without float16."""
        return self.scaler.state_dict()

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        if self.scaler.is_enabled() and state:
            self.scaler.load_state_dict(state)
