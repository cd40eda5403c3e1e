"""DynACL: ACL whose augmentation weakens with training, while the perturbed views count more.

Luo et al., "Rethinking the Effect of Data Augmentation in Adversarial Contrastive Learning", ICLR
2023. The augmentation's strengths are AUGMENT.STRENGTHS.
"""

from typing import Any

from vidcsl.objectives.adversarial.acl import ACL

GAIN = 2 / 3  # by how much the weight grows over the whole training


class DynACL(ACL):
    """ACL with weights of 2 - w and w, where w rises from 1 in as many stages as strengths fall.

    Args:
        stages: equal parts of the training.
        options: see `AdversarialContrast`.
    """

    def __init__(self, *modules: Any, stages: int = 1, **options: Any) -> None:
        super().__init__(*modules, **options)
        self.stages = stages

    def weight(self, progress: float) -> float:
        """w = min(1 + 2/3 of the stages that are over, 2)."""
        over = int(progress * self.stages + 1e-9) / self.stages
        return min(1 + GAIN * over, 2.0)
