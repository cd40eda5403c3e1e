"""Accuracy under attack by budget, counted exactly over all processes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vidcsl.engine.distributed import World
from vidcsl.robustness.clips import Clips, right_answers

Attack = Callable[[nn.Module, Tensor, Tensor, Sequence[int]], Tensor]
"""`(model, clips [N, 3, T, S, S], labels [N], seeds [N]) -> adversarial clips`."""


@dataclass
class Curve:
    """Right answers by budget, in the order of the budgets.

    Args:
        right: under attack, by budget; `clean` is without attack, `clips` how many there were.
        example: one clip that the attack changes, for the pictures (main process).
    """

    right: dict[str, int]
    clean: int = 0
    clips: int = 0
    example: dict[str, Any] | None = field(default=None, repr=False)

    def accuracy(self) -> dict[str, float]:
        """Share of all clips that are right under attack, by budget."""
        return {eps: count / self.clips for eps, count in self.right.items()}

    def survival(self) -> dict[str, float]:
        """Share of the clips right when clean that are still right, by budget; empty if none."""
        return {eps: count / self.clean for eps, count in self.right.items() if self.clean}


def attack_curve(
    model: nn.Module,
    batches: Iterable[Clips],
    attacks: Mapping[str, Attack],
    *,
    world: World,
    advance: Callable[[int], None] = lambda _: None,
) -> Curve:
    """Accuracy by budget.

    A clip is attacked only while it is right: one that is wrong when clean, or was fooled within
    a smaller budget, is fooled within every larger one too, as the threats are nested. This makes
    the curve fall monotonically and is the pointwise worst case over the budgets so far.

    Args:
        model: clips -> logits, on the world's device, in eval mode.
        batches: this process's share.
        attacks: by budget, smallest first.
        world: the processes.
        advance: called with the number of clips done.
    """
    curve = Curve(right=dict.fromkeys(attacks, 0))
    for batch in batches:
        standing = batch.take(right_answers(model, batch).nonzero()[:, 0])
        curve.clips += len(batch)
        curve.clean += len(standing)
        for eps, attack in attacks.items():
            if len(standing):
                attacked = attack(model, standing.clips, standing.labels, standing.seeds)
                right = right_answers(model, replace(standing, clips=attacked))
                if curve.example is None and not right.all():
                    curve.example = _example(model, standing, attacked, int(right.int().argmin()))
                    curve.example["eps"] = eps
                standing = standing.take(right.nonzero()[:, 0])
            curve.right[eps] += len(standing)
        advance(len(batch))
    return _joined(curve, world)


@torch.inference_mode()
def _example(model: nn.Module, clean: Clips, attacked: Tensor, row: int) -> dict[str, Any]:
    pair = torch.stack([clean.clips[row], attacked[row]])
    predictions = model(pair).argmax(dim=1).tolist()
    frames = pair.permute(0, 2, 3, 4, 1).cpu()  # [2, T, S, S, 3]
    return {
        "clean": (frames[0] * 255).round().byte().numpy(),
        "difference": (frames[1] - frames[0]).numpy().astype(np.float16),
        "label": int(clean.labels[row]),
        "clean_prediction": predictions[0],
        "adversarial_prediction": predictions[1],
    }


def _joined(curve: Curve, world: World) -> Curve:
    counts = torch.tensor([*curve.right.values(), curve.clean, curve.clips], device=world.device)
    *right, clean, clips = world.total(counts).tolist()
    return Curve(dict(zip(curve.right, right, strict=True)), clean, clips, curve.example)
