"""AutoAttack (Croce & Hein 2020) for clips and images: four attacks, and the worst of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from vidcsl.errors import UserError
from vidcsl.robustness.attacks.apgd import APGD
from vidcsl.robustness.attacks.fab import FAB, knows
from vidcsl.robustness.attacks.goals import GOALS, Goal, Targeted, targeted_dlr, targeted_margin
from vidcsl.robustness.attacks.problem import Problem, Worst
from vidcsl.robustness.attacks.square import Square

Stage = tuple[Goal, Callable[[Problem], Tensor]]


@dataclass(frozen=True)
class AutoAttack:
    """The standard version: apgd-ce, apgd-t, fab-t, square, each on the clips still right.

    Stops each clip at its first success; what is not fooled returns as the highest margin found.
    FAB has no part where it does not know the norm (frame-sparse, flicker, budgets a frame).

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
        for goal, solver in self._stages(problem):
            rows = worst.standing()
            if len(rows) == 0:
                break
            delta = solver(problem.take(rows).aim(goal))
            worst.offer(rows, delta, judge.take(rows).judge(delta))
        return worst.delta

    def _stages(self, problem: Problem) -> Iterator[Stage]:
        yield GOALS["cross_entropy"], APGD(steps=self.steps)
        ranks = range(1, min(self.targets, problem.classes() - 1) + 1)
        for rank in ranks:
            yield Targeted(targeted_dlr, rank), APGD(steps=self.steps)
        for rank in ranks if knows(problem.threat) else ():
            yield Targeted(targeted_margin, rank), FAB(steps=self.steps)
        yield GOALS["margin"], Square(queries=self.queries)
