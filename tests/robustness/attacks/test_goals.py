import pytest
import torch
from torch import nn

from tests.robustness.attacks.models import Linear, predict, random_clips, seeded, sharp
from vidcsl.errors import UserError
from vidcsl.robustness.attacks import GOALS, PGD, attack
from vidcsl.robustness.attacks.goals import (
    FeatureDistance,
    NeighbourSwitch,
    Targeted,
    cross_entropy,
    dlr,
    hinge,
    margin,
    targeted_cross_entropy,
    targeted_dlr,
    targeted_margin,
)
from vidcsl.robustness.threats import L2, Linf

LOGITS = torch.tensor([[3.0, 1.0, 0.5, -1.0, 0.0], [0.0, 2.0, 4.0, 1.0, 3.0]])
LABELS = torch.tensor([0, 1])


def test_goals_against_naive_loops():
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(7, 5, generator=generator)
    labels = torch.randint(5, (7,), generator=generator)
    for row, label, loss, gap in zip(
        logits, labels, cross_entropy(logits, labels), margin(logits, labels), strict=True
    ):
        others = [float(z) for k, z in enumerate(row) if k != label]
        assert gap == pytest.approx(max(others) - float(row[label]), abs=1e-5)
        assert loss == pytest.approx(float(row.exp().sum().log() - row[label]), abs=1e-5)
    assert torch.equal(margin(logits, labels) > 0, logits.argmax(dim=1) != labels)


def test_class_goals_by_hand():
    torch.testing.assert_close(dlr(LOGITS, LABELS), torch.tensor([-2 / 2.5, 2 / 2.0]))
    targets = torch.tensor([4, 3])
    torch.testing.assert_close(targeted_margin(LOGITS, LABELS, targets), torch.tensor([-3.0, -1.0]))
    scales = torch.tensor([3 - (0.5 + 0.0) / 2, 4 - (2.0 + 1.0) / 2])
    expected = torch.tensor([-3.0, -1.0]) / scales
    torch.testing.assert_close(targeted_dlr(LOGITS, LABELS, targets), expected)
    loss = -LOGITS.softmax(1).gather(1, targets[:, None]).squeeze(1).log()
    torch.testing.assert_close(-targeted_cross_entropy(LOGITS, LABELS, targets), loss)
    # Margins -2 and 2: the hinge is linear far below its confidence, and zero above it.
    torch.testing.assert_close(hinge(LOGITS, LABELS), torch.tensor([-2.05, 0.0]))
    near = torch.tensor([[1.0, 1.02]])
    torch.testing.assert_close(hinge(near, LABELS[:1]), torch.tensor([-(0.03**2) / 0.05]))


def test_dlr_does_not_change_with_the_scale_of_the_logits():
    for goal in (dlr, lambda z, y: targeted_dlr(z, y, torch.tensor([4, 3]))):
        torch.testing.assert_close(goal(LOGITS, LABELS), goal(100 * LOGITS, LABELS))


def test_targets_by_rank_are_the_next_most_probable_classes():
    ranks = [Targeted(targeted_dlr, rank).prepare(lambda: LOGITS, LABELS) for rank in range(1, 5)]
    assert torch.stack(ranks, 1).tolist() == [[1, 2, 4, 3], [2, 4, 3, 0]]
    with pytest.raises(UserError, match=r"rank 5: .* ranks from 1 to"):
        Targeted(targeted_dlr, 5).prepare(lambda: LOGITS, LABELS)


@pytest.mark.parametrize(
    ("goal", "classes", "message"),
    [("dlr", 2, "3 or more classes, not 2"), ("targeted_dlr", 3, "4 or more classes, not 3")],
)
def test_too_few_classes_are_an_error(goal, classes, message):
    model, clips = seeded(Linear, 54, classes), random_clips(2, (3, 2, 3, 3))
    labels = predict(model, clips)
    with pytest.raises(UserError, match=message):
        attack(model, clips, labels, threat=Linf(0.01), goal=goal, solver=PGD(steps=2))


def encoder() -> nn.Module:
    net = sharp()
    net.head = nn.Identity()
    return net.eval()


def features(clips: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return encoder()(clips)


def test_feature_distance_moves_far_from_the_clean_features():
    clips = random_clips()
    noise = clips + 0.02 * torch.sign(torch.rand_like(clips) - 0.5)
    solver = PGD(steps=10)
    found = attack(
        encoder(), clips, None, threat=Linf(0.02), goal="feature_distance", solver=solver
    )
    near, far = (
        1 - torch.cosine_similarity(features(moved), features(clips)) for moved in (noise, found)
    )
    assert (far > 3 * near).all()


def gallery() -> torch.Tensor:
    clips = random_clips(12)
    return features(clips[torch.arange(12) % 12].roll(1, 2))


def test_switching_neighbours_without_labels():
    clips = random_clips()
    goal = NeighbourSwitch(gallery(), k=2)
    own = goal.prepare(lambda: features(clips), torch.full((6,), -1))
    similar = (
        torch.nn.functional.normalize(features(clips)) @ torch.nn.functional.normalize(gallery()).T
    )
    assert torch.equal(own.nonzero()[:, 1].view(6, 2), similar.topk(2).indices.sort(1).values)
    found = attack(encoder(), clips, None, threat=L2(4.0), goal=goal, solver=PGD(steps=30))
    after = (
        torch.nn.functional.normalize(features(found)) @ torch.nn.functional.normalize(gallery()).T
    )
    switched = ~own.gather(1, after.argmax(1, keepdim=True)).squeeze(1)
    assert switched.sum() >= 4


def test_switching_to_neighbours_of_another_class():
    clips, classes = random_clips(), torch.arange(12) % 3
    labels = torch.arange(6) % 3
    goal = NeighbourSwitch(gallery(), classes, k=2)
    own = goal.prepare(lambda: features(clips), labels)
    assert torch.equal(own, labels[:, None] == classes[None])
    before = goal.value(features(clips), labels, own)
    found = attack(encoder(), clips, labels, threat=L2(2.0), goal=goal, solver=PGD(steps=10))
    after = goal.value(features(found), labels, own)
    assert ((after > before) | (before > 0)).all()
    assert torch.equal(goal.reached(features(found), labels, own), after > 0)


def test_goals_on_classes_need_labels_and_galleries_must_fit():
    with pytest.raises(UserError, match="do not fit"):
        attack(sharp(), random_clips(), None, threat=Linf(0.1), solver=PGD(steps=1))
    with pytest.raises(UserError, match="k = 4 needs a gallery"):
        NeighbourSwitch(torch.rand(6, 3), k=4)
    with pytest.raises(UserError, match="as many classes"):
        NeighbourSwitch(torch.rand(6, 3), torch.zeros(5))
    goal = NeighbourSwitch(torch.rand(6, 3), torch.tensor([0, 0, 0, 1, 1, 1]))
    with pytest.raises(UserError, match="needs 1 videos"):
        goal.prepare(lambda: torch.rand(1, 3), torch.tensor([2]))


def test_every_named_goal_is_defined_on_logits():
    for name, goal in GOALS.items():
        reference = goal.prepare(lambda: LOGITS, LABELS)
        assert goal.value(LOGITS, LABELS, reference).shape == (2,), name
        assert goal.reached(LOGITS, LABELS, reference).dtype == torch.bool, name
    assert isinstance(GOALS["feature_distance"], FeatureDistance)
