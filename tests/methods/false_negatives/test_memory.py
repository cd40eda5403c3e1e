import pytest
import torch
import torch.nn.functional as F

from tests.methods.made import cosines, foreign
from vidcsl.errors import UserError
from vidcsl.methods.false_negatives import DETECTORS, Observation, Samples
from vidcsl.methods.false_negatives.memory import MemoryBank

CLASSES, VIEWS, DIM = 4, 2, 16


def rows_of(videos):
    ids = torch.arange(videos).repeat_interleave(VIEWS)
    return Samples(ids, ids, ids % CLASSES, torch.arange(VIEWS).repeat(videos))


def noisy_views(videos, *, epoch, noise=2.0):
    """Views that are mostly noise around a direction of the video's class."""
    generator = torch.Generator().manual_seed(epoch)
    classes = torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(99))
    typical = classes[torch.arange(videos) % CLASSES][:, None]
    return F.normalize(
        F.normalize(typical, dim=2)
        + noise * torch.randn(videos, VIEWS, DIM, generator=generator) / DIM**0.5,
        dim=2,
    )


def test_the_memory_is_an_average_over_visits_that_starts_without_zeros():
    detector = MemoryBank(videos=6, dim=DIM, momentum=0.6)
    seen = [noisy_views(4, epoch=epoch).mean(dim=1) for epoch in range(3)]
    for epoch in range(3):
        detector.learn(Observation(torch.arange(4), noisy_views(4, epoch=epoch), 0.0))
    weights = torch.tensor([0.36, 0.6, 1.0]) / 1.96
    wanted = sum(weight * each for weight, each in zip(weights, seen, strict=True))
    torch.testing.assert_close(detector.memory[:4], wanted)
    assert detector.visits.tolist() == [3] * 4 + [0] * 2
    assert (detector.memory[4:] == 0).all()


@pytest.mark.parametrize("earlier", [False, True])
def test_keys_of_no_video_are_neither_flagged_nor_counted(earlier):
    """The random ones of a fresh queue; the last video of the list is not theirs."""
    videos, fresh = 10, 30
    detector = MemoryBank(videos=videos, dim=DIM, ceiling=0.2, start=0.0, ramp=0.0, earlier=earlier)
    detector.learn(Observation(torch.arange(videos), noisy_views(videos, epoch=0), 0.0))
    if earlier:
        detector.learn_from(detector.memory, detector.visits)
    anchors = rows_of(videos)
    unknown = torch.full((fresh,), -1)
    keys = Samples(*(torch.cat([ids, unknown]) for ids in vars(anchors).values()))
    negatives = foreign(anchors, keys)
    flagged = detector(torch.zeros(negatives.shape), negatives, anchors, keys, 1.0)
    assert not flagged[:, -fresh:].any()
    own = foreign(anchors, anchors)
    alone = detector(torch.zeros(own.shape), own, anchors, anchors, 1.0)
    assert torch.equal(flagged[:, :-fresh], alone)
    assert alone.any()


def test_all_views_are_more_precise_than_two():
    videos, ceiling = 60, 0.1
    rows = rows_of(videos)
    negatives, same = foreign(rows, rows), rows.same(rows, "labels")
    memory = MemoryBank(videos=videos, dim=DIM, ceiling=ceiling, start=0.0, ramp=0.0)
    for epoch in range(12):
        views = noisy_views(videos, epoch=epoch)
        memory.learn(Observation(torch.arange(videos), views, 0.0))
    scores = views.flatten(0, 1) @ views.flatten(0, 1).T
    plain = DETECTORS["adaptive"](ceiling=ceiling, start=0.0, ramp=0.0)
    precision = {
        name: float((flagged & same).sum() / flagged.sum())
        for name, detector in {"memory": memory, "plain": plain}.items()
        for flagged in [detector(scores, negatives, rows, rows, 1.0)]
    }
    assert precision["memory"] > 0.9
    assert precision["memory"] > precision["plain"] + 0.2


def test_a_fraction_of_the_videos_seen_so_far_is_flagged():
    rows = rows_of(10)
    negatives = foreign(rows, rows)
    detector = MemoryBank(videos=10, dim=DIM, ceiling=0.5, start=0.5, ramp=0.0)
    detector.learn(Observation(torch.arange(6), noisy_views(6, epoch=0), 0.0))
    assert not detector(cosines(20), negatives, rows, rows, 0.4).any()
    flagged = detector(cosines(20), negatives, rows, rows, 0.5)
    # A half of the 10 that can be compared; views come in pairs.
    assert flagged[:12, :12].sum(dim=1).tolist() == [5 + 1] * 12
    assert not flagged[12:].any()
    assert not flagged[:, 12:].any()


def test_what_all_videos_have_in_common_does_not_count():
    """Against loops: the mean over the videos seen so far is subtracted."""
    rows = rows_of(10)
    negatives = foreign(rows, rows)
    detector = MemoryBank(videos=10, dim=DIM, ceiling=0.3, start=0.0, ramp=0.0)
    views = noisy_views(7, epoch=0) + 2 * F.normalize(torch.arange(DIM).float(), dim=0)
    detector.learn(Observation(torch.arange(7), views, 0.0))
    flagged = detector(cosines(20), negatives, rows, rows, 1.0)
    means = views.mean(dim=1)
    centred = F.normalize(means - means.mean(dim=0), dim=1)
    for i in range(14):
        others = [j for j in range(14) if j // 2 != i // 2]
        likeness = {j: float(centred[i // 2] @ centred[j // 2]) for j in others}
        top = sorted(others, key=lambda j, alike=likeness: -alike[j])[: int(0.3 * len(others))]
        assert {j // 2 for j in top} == {j // 2 for j in flagged[i].nonzero().flatten().tolist()}


def test_an_earlier_memory_bank_flags_from_the_first_step_on():
    rows = rows_of(10)
    negatives = foreign(rows, rows)
    options = {"videos": 10, "dim": DIM, "ceiling": 0.3, "start": 0.5, "ramp": 0.0, "earlier": True}
    first, second = MemoryBank(**options), MemoryBank(**options)
    first.learn(Observation(torch.arange(10), noisy_views(10, epoch=0), 0.0))
    assert not first(cosines(20), negatives, rows, rows, 0.0).any()
    wanted = first(cosines(20), negatives, rows, rows, 1.0)
    assert wanted.any()
    second.learn_from(first.memory, first.visits)
    assert torch.equal(second(cosines(20), negatives, rows, rows, 0.0), wanted)
    second.learn(Observation(torch.arange(10), noisy_views(10, epoch=7), 0.0))
    assert torch.equal(second(cosines(20), negatives, rows, rows, 0.0), wanted)
    resumed = MemoryBank(**options)
    resumed.load_state_dict(second.state_dict())
    assert torch.equal(resumed(cosines(20), negatives, rows, rows, 0.0), wanted)
    third = MemoryBank(**options)
    # A memory bank that is handed on holds what the run itself has seen.
    third.learn_from(second.memory, second.visits)
    assert not torch.equal(third(cosines(20), negatives, rows, rows, 0.0), wanted)
    with pytest.raises(UserError, match=f"bank of 9 videos by {DIM} numbers does not fit 10 by"):
        third.learn_from(first.memory[:9], first.visits[:9])
