from functools import partial

import pytest
import torch
import torch.nn.functional as F

from tests.methods.made import make_detector, make_treatment
from vidcsl.methods.false_negatives import DETECTORS, TREATMENTS, Samples, detection_counts
from vidcsl.methods.losses import LOSSES, Pairs, blockwise_loss, nt_xent

OPTIONS = {
    "debiased": {"prior": 0.1},
    "hard_negative": {"prior": 0.1, "concentration": 1.0},
    "rince": {"order": 0.5, "density": 0.1},
}
VIEWS = 3


def unit(rows, dim=8, *, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, generator=generator, dtype=dtype), dim=1)


def samples(videos):
    ids = torch.arange(videos).repeat_interleave(VIEWS)
    return Samples(ids, ids // 2, ids % 4, torch.arange(VIEWS).repeat(videos))


def dense(anchors, candidates, loss, pairs):
    similarities = anchors @ candidates.T
    losses, defined = loss(similarities, pairs(similarities.detach(), slice(0, len(anchors))))
    return losses.sum(), defined


def simclr(batch, detector, treatment, counts=None):
    """The callback of a method: own views attracted, the detector's pairs treated."""

    def pairs(similarities, rows):
        block = batch[rows]
        video = block.same(batch, "videos")
        itself = video & block.same(batch, "views")
        untreated = Pairs(video & ~itself, itself)
        negatives = untreated.negatives()
        flagged = detector(similarities, negatives, block, batch, 1.0)
        for name, count in detection_counts(flagged, negatives, block, batch, classes=4).items():
            if counts is not None:
                counts[name] = counts.get(name, 0) + count
        return treatment(untreated, flagged)

    return pairs


def gradients(function, anchors, candidates, *arguments, **options):
    inputs = [t.clone().requires_grad_() for t in (anchors, candidates)]
    total, defined = function(*inputs, *arguments, **options)
    (2 * total).backward()
    return total.detach(), defined, *(t.grad for t in inputs)


def relative(one, other):
    return float((one - other).norm() / other.norm())


def bound(name):
    return partial(LOSSES[name], temperature=0.1, **OPTIONS.get(name, {}))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("treatment", TREATMENTS)
def test_blocks_give_the_dense_loss_and_gradient(name, detector, treatment):
    batch, z = samples(20), unit(60, dtype=torch.float64)
    counts, wanted_counts = {}, {}
    options = (batch, make_detector(detector), make_treatment(treatment))
    wanted = gradients(dense, z, z, bound(name), simclr(*options, wanted_counts))
    found = gradients(
        blockwise_loss,
        z,
        z,
        loss=bound(name),
        pairs=simclr(*options, counts),
        views=VIEWS,
        block=7,
    )
    assert all(torch.equal(counts[name], count) for name, count in wanted_counts.items())
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


# The debiased losses subtract sums of exponentials: what float32 leaves of that is up to the data.
@pytest.mark.parametrize("name", ["nt_xent", "supcon_in", "rince"])
@pytest.mark.parametrize("detector", ["none", "labels", "known_groups"])
def test_float32_is_exact_to_five_digits(name, detector):
    batch, z = samples(200), unit(600, 128)
    pairs = simclr(batch, make_detector(detector), make_treatment("eliminate"))
    wanted = gradients(dense, z.double(), z.double(), bound(name), pairs)
    found = gradients(blockwise_loss, z, z, loss=bound(name), pairs=pairs, views=VIEWS, block=100)
    assert relative(found[0].double(), wanted[0]) < 1e-6
    for one, other in zip(found[2:], wanted[2:], strict=True):
        assert relative(one.double(), other) < 1e-5


@pytest.mark.parametrize("block", [1, 5, 12, 1000])
def test_blocks_hold_whole_videos_and_cover_all_rows_in_order(block):
    seen = []

    def pairs(similarities, rows):
        seen.append(rows)
        assert similarities.shape == (rows.stop - rows.start, 12)
        return Pairs(similarities > 0, similarities < -0.5)

    blockwise_loss(
        unit(12),
        unit(12),
        loss=partial(nt_xent, temperature=0.1),
        pairs=pairs,
        views=3,
        block=block,
    )
    assert [i for rows in seen for i in range(rows.start, rows.stop)] == list(range(12))
    assert all(rows.start % 3 == 0 and rows.stop % 3 == 0 for rows in seen)


def test_only_wanted_gradients_are_computed():
    batch, z = samples(4), unit(12)
    walk = partial(
        blockwise_loss,
        loss=bound("nt_xent"),
        pairs=simclr(batch, make_detector("none"), make_treatment("eliminate")),
        views=VIEWS,
        block=VIEWS,
    )
    assert not walk(z, z)[0].requires_grad
    _, _, to_anchors, to_candidates = gradients(walk, z, z)
    anchors, keys = z.clone().requires_grad_(), z.clone()
    walk(anchors, keys)[0].backward()  # a queue: candidates without gradient
    assert keys.grad is None
    torch.testing.assert_close(2 * anchors.grad, to_anchors)
    keys.requires_grad_()
    walk(z, keys)[0].backward()
    torch.testing.assert_close(2 * keys.grad, to_candidates)
    both = z.clone().requires_grad_()  # one tensor in both roles
    walk(both, both)[0].backward()
    torch.testing.assert_close(2 * both.grad, to_anchors + to_candidates)


@pytest.mark.parametrize("columns", [1, 300, 4096, 100_000])
def test_blocks_are_neither_tiny_nor_large(columns):
    seen = []

    def pairs(similarities, rows):
        seen.append(len(similarities))
        return Pairs(similarities > 2, similarities > 2)

    blockwise_loss(unit(400, 2), unit(columns, 2), loss=bound("nt_xent"), pairs=pairs)
    assert min(seen[:-1]) >= 32
    assert max(seen) * columns <= max(2**20, 32 * columns)


def test_gradcheck_of_the_walk():
    batch, z = samples(4), unit(12, 3, dtype=torch.float64)

    def loss(anchors, candidates):
        return blockwise_loss(
            anchors,
            candidates,
            loss=partial(nt_xent, temperature=0.3),
            pairs=simclr(batch, make_detector("labels"), make_treatment("attract")),
            views=VIEWS,
            block=5,
        )[0]

    assert torch.autograd.gradcheck(
        loss, (z.requires_grad_(), unit(12, 3, seed=1, dtype=z.dtype).requires_grad_())
    )


def test_float32_pairs_and_finite_gradients_under_bfloat16():
    batch, z = samples(8), unit(24, 16).bfloat16().requires_grad_()
    seen = []

    def pairs(similarities, rows):
        seen.append(similarities.dtype)
        return simclr(batch, make_detector("none"), make_treatment("eliminate"))(similarities, rows)

    with torch.autocast("cpu", torch.bfloat16):
        total, _ = blockwise_loss(z, z, loss=partial(nt_xent, temperature=0.01), pairs=pairs)
    total.backward()
    assert set(seen) == {torch.float32}
    assert total.dtype == torch.float32
    assert total.isfinite()
    assert z.grad.dtype == torch.bfloat16
    assert z.grad.isfinite().all()
