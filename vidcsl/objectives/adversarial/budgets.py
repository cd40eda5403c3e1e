"""A budget for each video, as large as the network bears."""

import torch
from torch import Tensor, nn

from vidcsl.objectives.false_negatives.samples import distinct
from vidcsl.objectives.world import Alone, World

LEVELS = 4  # steps between nothing and the whole budget


class Budgets(nn.Module):
    """Rises a step where all clips of a video are still named right under attack, else falls one.

    Balaji et al., "Instance Adaptive Adversarial Training", 2019; with steps of a quarter of the
    attack's budget, so that clips of one budget are attacked together. (Kinfu and Vidal adapt, for
    video, a distribution from which all clips draw their budget.)

    Args:
        videos: length of the training list.
        world: the processes that train together.
    """

    level: Tensor

    def __init__(self, *, videos: int, world: World | None = None) -> None:
        super().__init__()
        self.world = world or Alone()
        self.register_buffer("level", torch.ones(videos, dtype=torch.long))

    def share(self, videos: Tensor) -> Tensor:
        """Of the attack's budget, float `[N]` in [0, 1]."""
        return self.level[videos] / LEVELS

    @torch.no_grad()
    def learn(self, videos: Tensor, right: Tensor) -> None:
        """Which videos `[N]` were named right, bool `[N]`; on all processes alike."""
        everyone, named = self.world.gather(videos), self.world.gather(right.long())
        seen, first = distinct(everyone)
        self.level[seen] = (self.level[seen] + 2 * named[first] - 1).clamp(0, LEVELS)
