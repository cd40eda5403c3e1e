"""Solvers by name."""

from collections.abc import Callable

from torch import Tensor

from vidcsl.robustness.attacks.adam import Adam
from vidcsl.robustness.attacks.apgd import APGD
from vidcsl.robustness.attacks.autoattack import AutoAttack
from vidcsl.robustness.attacks.fab import FAB
from vidcsl.robustness.attacks.noise import RandomNoise, RandomSearch
from vidcsl.robustness.attacks.pgd import FGSM, PGD, MomentumPGD
from vidcsl.robustness.attacks.problem import Problem
from vidcsl.robustness.attacks.square import Square

Solver = Callable[[Problem], Tensor]

SOLVERS: dict[str, Callable[..., Solver]] = {
    "fgsm": FGSM,
    "pgd": PGD,
    "mifgsm": MomentumPGD,
    "apgd": APGD,
    "adam": Adam,
    "fab": FAB,
    "square": Square,
    "autoattack": AutoAttack,
    "random_noise": RandomNoise,
    "random_search": RandomSearch,
}
