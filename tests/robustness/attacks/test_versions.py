"""Cached results of attacks are found by a version, which rises where numbers change."""

import pytest
import torch
from torch import nn

from tests.robustness.attacks.models import predict, random_clips, sharp
from vidcsl.robustness.attacks import FAB, PGD, SOLVERS, attack
from vidcsl.robustness.attacks.goals import margin
from vidcsl.robustness.attacks.specs import versions
from vidcsl.robustness.targets import Expectation, GaussianNoise, NeighbourVote
from vidcsl.robustness.threats import L1, L2, Flicker, FrameSparse, Linf, Universal

THREATS = {
    "linf": Linf(0.02),
    "l2": L2(0.4),
    "l1": L1(3.0),
    "l21": FrameSparse(0.6),
    "flicker": Flicker(0.05),
}
OPTIONS = {
    "pgd": {"steps": 6, "stop_when_fooled": False},
    "mifgsm": {"steps": 6, "stop_when_fooled": False},
    "apgd": {"steps": 12, "stop_when_fooled": False},
    "adam": {"steps": 10, "stop_when_fooled": False},
    "fab": {"steps": 6},
    "square": {"queries": 20, "stop_when_fooled": False},
    "random_search": {"queries": 10, "stop_when_fooled": False},
}
# Mean rise of the margin, by solver and threat, with the versions that gave it.
KNOWN: dict[str, dict[str, tuple[int, int, float]]] = {
    "pgd": {
        "linf": (1, 1, 0.249584),
        "l2": (1, 2, 0.284087),
        "l1": (1, 2, 0.2765869),
        "l21": (1, 2, 0.2413386),
        "flicker": (1, 2, 0.3547741),
    },
    "mifgsm": {
        "linf": (1, 1, 0.2495784),
        "l2": (1, 2, 0.2908874),
        "l1": (1, 2, 0.2775693),
        "l21": (1, 2, 0.2413867),
        "flicker": (1, 2, 0.3547741),
    },
    "apgd": {
        "linf": (1, 1, 0.249585),
        "l2": (1, 2, 0.2908075),
        "l1": (1, 2, 0.2729659),
        "l21": (1, 2, 0.2420822),
        "flicker": (1, 2, 0.3547741),
    },
    "adam": {
        "linf": (1, 1, 0.1888968),
        "flicker": (1, 2, 0.2597232),
    },
    "fab": {
        "linf": (2, 1, 0.0912097),
        "l2": (2, 2, 0.1412181),
        "l1": (2, 2, 0.08703686),
    },
    "square": {
        "linf": (1, 1, 0.04822903),
        "l2": (1, 2, 0.05340349),
        "l1": (1, 2, 0.1064259),
        "flicker": (1, 2, 0.2585366),
    },
    "random_search": {
        "linf": (1, 1, 0.006283596),
        "l2": (1, 2, 0.01024501),
        "l1": (1, 2, 0.004181368),
        "l21": (1, 2, 0.008345571),
        "flicker": (1, 2, 0.05330822),
    },
}


def test_a_part_whose_numbers_changed_is_part_of_the_key():
    assert versions(Linf(0.1), PGD()) == {}  # its results are found as before
    assert versions(L2(0.1), PGD()) == {"versions": {"L2": 2}}
    assert versions(Universal(L1(1.0)), FAB()) == {"versions": {"L1": 2, "FAB": 2}}
    gallery = nn.functional.normalize(torch.eye(4), dim=1)
    vote = NeighbourVote(nn.Identity(), gallery, torch.arange(4), classes=4, k=1)
    behind = Expectation(vote, GaussianNoise(), draws=2)
    for target in (vote, behind):
        assert versions(Linf(0.1), PGD(), target) == {"versions": {"NeighbourVote": 2}}


@pytest.mark.parametrize("solver", KNOWN)
def test_numbers_change_with_the_version_alone(solver):
    """If the numbers change on purpose: raise VERSION, and write both down here."""
    model, clips = sharp(), random_clips()
    labels = predict(model, clips)
    for name, (of_solver, of_threat, gain) in KNOWN[solver].items():
        threat, made = THREATS[name], SOLVERS[solver](**OPTIONS[solver])
        found = attack(model, clips, labels, threat=threat, goal="margin", solver=made)
        with torch.no_grad():
            gained = margin(model(found), labels) - margin(model(clips), labels)
        now = (getattr(made, "VERSION", 1), threat.VERSION)
        assert now == (of_solver, of_threat)
        assert float(gained.mean()) == pytest.approx(gain, rel=1e-5), name
