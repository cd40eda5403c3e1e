import pytest
import torch

from tests.robustness.attacks.models import Linear, predict, random_clips, seeded, sharp
from vidcsl.errors import UserError
from vidcsl.robustness.attacks import APGD, FAB, AutoAttack, Square, attack
from vidcsl.robustness.threats import Linf


def test_autoattack_is_no_weaker_than_its_parts():
    model, clips = sharp(), random_clips()
    labels = predict(model, clips)
    options = {"threat": Linf(0.012)}
    alone = [
        attack(model, clips, labels, solver=APGD(steps=10), **options),
        attack(model, clips, labels, goal="margin", solver=FAB(steps=8), **options),
        attack(model, clips, labels, goal="margin", solver=Square(queries=20), **options),
    ]
    parts = [predict(model, found) != labels for found in alone]
    made = AutoAttack(steps=10, queries=20)
    found = attack(model, clips, labels, solver=made, **options)
    fooled = predict(model, found) != labels
    assert 0 < fooled.sum() < 6  # or nothing is tested
    assert (fooled | ~torch.stack(parts).any(dim=0)).all()


def test_autoattack_of_few_classes():
    for classes in (2, 3):
        model, clips = seeded(Linear, 54, classes), random_clips(2, (3, 2, 3, 3))
        labels = predict(model, clips)
        made = AutoAttack(steps=5, queries=5)
        found = attack(model, clips, labels, threat=Linf(0.5), solver=made)
        assert (predict(model, found) != labels).all()


def test_autoattack_chooses_its_goals():
    model, clips = seeded(Linear, 54, 3), random_clips(2, (3, 2, 3, 3))
    labels = predict(model, clips)
    options = {"threat": Linf(1e-4), "solver": AutoAttack(steps=2, queries=2)}
    with pytest.raises(UserError, match="brings its own goals"):
        attack(model, clips, labels, goal="dlr", **options)
    with pytest.raises(UserError, match="positive where reached"):
        attack(model, clips, labels, threat=Linf(0.1), solver=FAB())
