"""AutoAttack (Croce & Hein 2020) for clips and images: four attacks, and the worst of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vidcsl.errors import UserError
from vidcsl.robustness.attacks.apgd import APGD
from vidcsl.robustness.attacks.fab import FAB, knows
from vidcsl.robustness.attacks.goals import GOALS, Targeted, targeted_dlr, targeted_margin
from vidcsl.robustness.attacks.problem import Problem, Worst
from vidcsl.robustness.attacks.square import Square

Solver = Callable[[Problem], Tensor]


@dataclass(frozen=True)
class AutoAttack:
    """The standard version: apgd-ce, apgd-t, fab-t, square, each on the clips still right.

    Stops each clip at its first success; what is not fooled returns as the highest margin found.
    FAB has no part where it does not know the norm (frame-sparse, flicker, budgets a frame). Of
    fewer than four classes, for which DLR is not defined, APGD aims by the margin.

    Args:
        steps: of APGD and of FAB, for each target.
        targets: classes that APGD and FAB aim at, from the most probable other class on.
        queries: of Square.
    """

    steps: int = 100
    targets: int = 9
    queries: int = 5000

    def __post_init__(self) -> None:
        if min(self.steps, self.targets, self.queries) < 1:
            raise UserError(f"AutoAttack needs 1 or more steps, targets and queries: {self}")

    def __call__(self, problem: Problem) -> Tensor:
        """The worst delta found for each row."""
        if problem.goal is not GOALS["cross_entropy"]:
            raise UserError("AutoAttack brings its own goals: choose none")
        judge = problem.aim(GOALS["margin"])
        clean = problem.zero()
        worst = Worst(clean, judge.judge(clean))
        _attack_standing(problem, judge, worst, APGD(steps=self.steps))
        classes = problem.classes()
        ranks = list(range(1, min(self.targets, classes - 1) + 1))
        aim = targeted_dlr if classes > 3 else targeted_margin  # DLR looks at the fourth logit
        _attack_targets(problem, judge, worst, ranks, aim, APGD(steps=self.steps))
        if knows(problem.threat):
            _attack_targets(problem, judge, worst, ranks, targeted_margin, FAB(steps=self.steps))
        _attack_standing(judge, judge, worst, Square(queries=self.queries))
        return worst.delta


def _attack_standing(problem: Problem, judge: Problem, worst: Worst, solver: Solver) -> None:
    rows = worst.standing()
    if len(rows):
        delta = solver(problem.take(rows))
        worst.offer(rows, delta, judge.take(rows).judge(delta))


def _attack_targets(
    problem: Problem,
    judge: Problem,
    worst: Worst,
    ranks: Sequence[int],
    function: Callable[[Tensor, Tensor, Tensor], Tensor],
    solver: Solver,
) -> None:
    """Target after target; as clips fall, several targets at once fill the batch again."""
    while len(rows := worst.standing()) and ranks:
        room = 1 if problem.threat.shared else len(problem.rows) // len(rows)
        now, ranks = ranks[:room], ranks[room:]
        part = problem.take(rows)
        aimed = [part.aim(Targeted(function, rank)) for rank in now]
        every = part.take(torch.arange(len(rows), device=rows.device).repeat(len(now)))
        reference = torch.cat([one.reference for one in aimed])
        delta = solver(replace(every, goal=aimed[0].goal, reference=reference))
        for one in delta.split(len(rows)):
            # A clip keeps its first success, as if the targets had come one by one.
            left = (~worst.fooled[rows]).nonzero()[:, 0]
            if len(left):
                still = rows[left]
                worst.offer(still, one[left], judge.take(still).judge(one[left]))
