"""AutoAttack (Croce & Hein 2020) for clips and images: four attacks, and the worst of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vidcsl.errors import UserError
from vidcsl.robustness.attacks.apgd import APGD
from vidcsl.robustness.attacks.fab import FAB, knows
from vidcsl.robustness.attacks.goals import GOALS, Targeted, targeted_dlr, targeted_margin
from vidcsl.robustness.attacks.problem import SOLVERS, Problem, Solver, Worst
from vidcsl.robustness.attacks.square import Square, searches
from vidcsl.robustness.threats import L1


@SOLVERS.register("autoattack", "apgd-ce, apgd-t, fab-t and square in turn (Croce & Hein 2020)")
@dataclass(frozen=True)
class AutoAttack:
    """The standard version: apgd-ce, apgd-t, fab-t, square, each on the clips still robust.

    Stops each clip at its first success; what is not fooled returns as the highest margin found.
    FAB and Square have no part where they do not know the norm (frame-sparse, budgets a frame; FAB:
    flicker, too). Under L1, as published, APGD starts five times and aims at five classes.

    Of fewer than four classes, for which DLR is not defined, APGD aims by the margin.

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
        # Whatever a part maximises, its deltas are compared by the margin: above 0 is success.
        by_margin = problem.aim(GOALS["margin"])
        clean = problem.zero()
        worst = Worst(clean, by_margin.evaluate(clean))

        sparse = type(problem.threat) is L1
        most = min(self.targets, 5) if sparse else self.targets

        def attack_robust(problem: Problem, solver: Solver) -> None:
            rows = worst.robust()
            if len(rows):
                delta = solver(problem.take(rows))
                worst.offer(rows, delta, by_margin.take(rows).evaluate(delta))

        def attack_targets(
            function: Callable[[Tensor, Tensor, Tensor], Tensor], solver: Solver
        ) -> None:
            """Target after target; as clips are fooled, several targets fill the batch again."""
            ranks = list(range(1, min(most, classes - 1) + 1))
            while len(rows := worst.robust()) and ranks:
                at_once = 1 if problem.threat.shared else len(problem.rows) // len(rows)
                now, ranks = ranks[:at_once], ranks[at_once:]
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
                        found = by_margin.take(still).evaluate(one[left])
                        worst.offer(still, one[left], found)

        attack_robust(problem, APGD(steps=self.steps, restarts=5 if sparse else 1))
        classes = problem.outputs(problem.clips[:1]).shape[1]
        aim = targeted_dlr if classes > 3 else targeted_margin  # DLR needs a fourth logit
        attack_targets(aim, APGD(steps=self.steps))
        if knows(problem.threat):
            attack_targets(targeted_margin, FAB(steps=self.steps))
        if searches(problem.threat):
            attack_robust(by_margin, Square(queries=self.queries))
        return worst.delta
