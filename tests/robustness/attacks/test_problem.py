import torch

from vidcsl.robustness.attacks.problem import Evaluation, Worst


def test_the_worst_is_a_fooled_clip_before_a_higher_goal():
    def evaluation(goal: list[float], fooled: list[bool]) -> Evaluation:
        return Evaluation(torch.tensor(goal), torch.tensor(fooled))

    worst = Worst(torch.zeros(5, 1), evaluation([1.0] * 5, [False, False, True, True, False]))
    offered = evaluation([0.5, 2.0, 9.0, 2.0], [True, False, False, True])
    worst.offer(torch.arange(4), torch.ones(4, 1), offered)
    assert worst.delta[:, 0].tolist() == [1, 1, 0, 1, 0]
    assert worst.goal.tolist() == [0.5, 2.0, 1.0, 2.0, 1.0]
    assert worst.fooled.tolist() == [True, False, True, True, False]
