"""Random draws, the floor under every attack; and a search by them."""

from dataclasses import dataclass, replace

from torch import Tensor

from vidcsl.errors import UserError
from vidcsl.robustness.attacks.problem import SOLVERS, Problem, Worst


@SOLVERS.register("random_noise", "the worst of some random draws")
@dataclass(frozen=True)
class RandomNoise:
    """The worst of some random draws from the threat: what any attack must beat.

    With one draw, its accuracy is simply that under noise: noise may also correct a prediction.
    """

    draws: int = 1

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise UserError(f"random noise needs 1 or more draws, not {self.draws}")

    def __call__(self, problem: Problem) -> Tensor:
        """The worst delta drawn for each row."""
        problem = replace(problem, warm=None)  # only its own draws count
        delta = problem.start(0)
        worst = Worst(delta, problem.evaluate(delta))
        for number in range(1, self.draws):
            delta = problem.start(number)
            worst.offer(problem.rows, delta, problem.evaluate(delta))
        return worst.delta


@SOLVERS.register("random_search", "random steps, kept where they raise the goal")
@dataclass(frozen=True)
class RandomSearch:
    """A walk that keeps each random step which raises the goal: outputs alone, no gradient.

    Args:
        queries: forward passes a clip.
        share: weight, from 0 to 1, of a fresh random draw in each step; it falls to a tenth.
        stop_when_fooled: leave a clip alone once it is misclassified.
    """

    queries: int = 100
    share: float = 0.5
    stop_when_fooled: bool = True

    def __post_init__(self) -> None:
        if self.queries < 1 or not 0 < self.share <= 1:
            raise UserError(f"random search needs 1 or more queries and a share in (0, 1]: {self}")

    def __call__(self, problem: Problem) -> Tensor:
        """The worst delta found for each row."""
        clean = problem.zero()
        worst = Worst(clean, problem.evaluate(clean))
        for query in range(self.queries - 1):
            rows = worst.robust() if self.stop_when_fooled else problem.rows
            if len(rows) == 0:
                break
            part, weight = problem.take(rows), self.share * 0.1 ** (query / self.queries)
            drawn = part.start(query)
            delta = part.project((1 - weight) * worst.delta[rows] + weight * drawn)
            if query == 0:
                delta = drawn
            worst.offer(rows, delta, part.evaluate(delta))
        return worst.delta
