"""Accuracy under corruption, counted exactly over all processes; each video is decoded once."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import nn

from vidcsl.engine.distributed import World
from vidcsl.robustness.clips import Clips, right_answers
from vidcsl.robustness.corruptions import SEVERITIES, corrupt


def corruption_table(
    model: nn.Module,
    batches: Iterable[Clips],
    names: Sequence[str],
    *,
    world: World,
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[dict[str, list[float]], float, int]:
    """Accuracy by corruption at severities 1 to 5, clean accuracy, and the number of clips.

    Arguments as in `attack_curve`; `names` as in `vidcsl.robustness.corruptions`.
    """
    right = torch.zeros(len(names), len(SEVERITIES), dtype=torch.int64)
    clean = clips = 0
    for batch in batches:
        clips += len(batch)
        clean += int(right_answers(model, batch).sum())
        for row, name in enumerate(names):
            for column, severity in enumerate(SEVERITIES):
                corrupted = corrupt(batch.clips, name, severity=severity, seeds=batch.seeds)
                answers = right_answers(model, replace(batch, clips=corrupted))
                right[row, column] += int(answers.sum())
        advance(len(batch))
    counts = torch.cat([right.flatten(), torch.tensor([clean, clips])]).to(world.device)
    *cells, clean, clips = world.total(counts).tolist()
    table = torch.tensor(cells, dtype=torch.float64).view(right.shape) / clips
    return dict(zip(names, table.tolist(), strict=True)), clean / clips, clips
