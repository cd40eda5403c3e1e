"""ALF: a linear head on a frozen encoder learns from clips that are perturbed against both.

With SLF (the linear probe) and AFF (TRADES on all weights) the protocols of adversarial
pretraining: Jiang et al., NeurIPS 2020; Fan et al., NeurIPS 2021.
"""

from typing import Any

from torch import nn

from vidcsl.objectives.adversarial.at import AdversarialTraining


class AdversarialLinear(AdversarialTraining):
    """Adversarial training of the head alone; the encoder stays in eval mode."""

    def __init__(self, encoder: nn.Module, **options: Any) -> None:
        super().__init__(encoder.requires_grad_(False), **options)

    def train(self, mode: bool = True) -> "AdversarialLinear":
        """The encoder keeps out of it."""
        super().train(mode)
        self.encoder.eval()
        return self
