"""Solvers by name."""

from collections.abc import Callable

from torch import Tensor

from vidcsl.robustness.attacks.noise import RandomNoise, RandomSearch
from vidcsl.robustness.attacks.pgd import FGSM, PGD, MomentumPGD
from vidcsl.robustness.attacks.problem import Problem

Solver = Callable[[Problem], Tensor]

SOLVERS: dict[str, Callable[..., Solver]] = {
    "fgsm": FGSM,
    "pgd": PGD,
    "mifgsm": MomentumPGD,
    "random_noise": RandomNoise,
    "random_search": RandomSearch,
}
