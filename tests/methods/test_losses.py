import math
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


def bound(name, temperature=0.2):
    return partial(LOSSES[name], temperature=temperature, **OPTIONS.get(name, {}))


def unit(rows, dim=8, *, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, generator=generator, dtype=dtype), dim=1)


def any_pairs(rows, columns, *, seed, weighted=False):
    generator = torch.Generator().manual_seed(seed)
    positives = torch.rand(rows, columns, generator=generator) < 0.2
    ignored = (torch.rand(rows, columns, generator=generator) < 0.3) & ~positives
    if not weighted:
        return Pairs(positives, ignored)
    weights = torch.rand(rows, columns, generator=generator, dtype=torch.float64)
    return Pairs(positives, ignored, weights.where(weights > 0.2, 0.0))


def partners(rows):
    """Pairs of SimCLR: rows 2i and 2i + 1 are two views of one video."""
    ids = torch.arange(rows)
    return Pairs(ids[:, None] == (ids ^ 1)[None], ids[:, None] == ids[None])


def naive_nt_xent(positive, negative, weight, t):
    e = {j: weight[j] * math.exp(s / t) for j, s in {**positive, **negative}.items()}
    terms = [weight[j] * -math.log(math.exp(s / t) / sum(e.values())) for j, s in positive.items()]
    return sum(terms) / sum(weight[j] for j in positive)


def naive_supcon_in(positive, negative, weight, t):
    e = {j: weight[j] * math.exp(s / t) for j, s in {**positive, **negative}.items()}
    mean = sum(e[j] for j in positive) / sum(weight[j] for j in positive)
    return -math.log(mean / sum(e.values()))


def naive_hard_negative(positive, negative, weight, t, *, prior, concentration):
    count = sum(weight[j] for j in negative)
    mass = sum(weight[j] for j in positive)
    mean_positive = sum(weight[j] * math.exp(s / t) for j, s in positive.items()) / mass
    importance = {j: math.exp(s / t) ** concentration for j, s in negative.items()}
    mean_importance = sum(weight[j] * importance[j] for j in negative) / count
    drawn = sum(weight[j] * importance[j] * math.exp(s / t) for j, s in negative.items())
    against = (drawn / mean_importance - count * prior * mean_positive) / (1 - prior)
    against = max(against, count * math.exp(-1 / t))
    terms = [
        weight[j] * -math.log(math.exp(s / t) / (math.exp(s / t) + against))
        for j, s in positive.items()
    ]
    return sum(terms) / mass


def naive_rince(positive, negative, weight, t, *, order, density):
    mass = sum(weight[j] for j in positive)
    attraction = sum(weight[j] * math.exp(s / t) ** order for j, s in positive.items()) / mass
    everyone = sum(weight[j] * math.exp(s / t) for j, s in {**positive, **negative}.items())
    return -attraction / order + (density * everyone) ** order / order


NAIVE = {
    "nt_xent": naive_nt_xent,
    "supcon_in": naive_supcon_in,
    "debiased": partial(naive_hard_negative, concentration=0.0),
    "hard_negative": naive_hard_negative,
    "rince": naive_rince,
}


def naive(name, similarities, pairs, temperature):
    rows, columns = similarities.shape
    weights = pairs.weights if pairs.weights is not None else torch.ones(rows, columns)
    losses, defined = [], []
    for i in range(rows):
        weight = weights[i].tolist()
        kept = [j for j in range(columns) if not pairs.ignored[i, j] and weight[j] > 0]
        positive = {j: float(similarities[i, j]) for j in kept if pairs.positives[i, j]}
        negative = {j: float(similarities[i, j]) for j in kept if not pairs.positives[i, j]}
        fine = bool(positive) and bool(negative)
        options = OPTIONS.get(name, {})
        loss = NAIVE[name](positive, negative, weight, temperature, **options) if fine else 0.0
        losses.append(loss)
        defined.append(fine)
    return torch.tensor(losses, dtype=similarities.dtype), torch.tensor(defined)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("shape", [(5, 7), (8, 8), (3, 20)])
def test_agrees_with_a_double_loop(name, weighted, temperature, shape):
    rows, columns = shape
    for seed in range(4):
        similarities = (
            unit(rows, 6, seed=seed, dtype=torch.float64)
            @ unit(columns, 6, seed=seed + 9, dtype=torch.float64).mT
        )
        pairs = any_pairs(rows, columns, seed=seed, weighted=weighted)
        loss, defined = bound(name, temperature)(similarities, pairs)
        wanted, wanted_defined = naive(name, similarities, pairs, temperature)
        torch.testing.assert_close(loss, wanted, rtol=1e-9, atol=1e-12)
        assert torch.equal(defined, wanted_defined)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_agree_with_finite_differences(name, weighted):
    similarities = (
        unit(4, 3, dtype=torch.float64) @ unit(9, 3, seed=2, dtype=torch.float64).T
    ).detach()
    pairs = any_pairs(4, 9, seed=3, weighted=weighted)
    assert bound(name)(similarities, pairs)[1].any()

    def loss(s):
        return bound(name)(s, pairs)[0]

    assert torch.autograd.gradcheck(loss, similarities.requires_grad_())


def test_is_cross_entropy_with_one_positive():
    similarities = unit(6, 8) @ unit(10, 8, seed=1).T
    pairs = Pairs(F.one_hot(torch.arange(6), 10).bool(), torch.zeros(6, 10).bool())
    loss, _ = nt_xent(similarities, pairs, temperature=0.1)
    wanted = F.cross_entropy(similarities / 0.1, torch.arange(6), reduction="none")
    torch.testing.assert_close(loss, wanted)


def test_over_a_queue_the_key_is_the_positive():
    queries, keys, queue = unit(5, 8), unit(5, 8, seed=1), unit(30, 8, seed=2)
    similarities = queries @ torch.cat([keys, queue]).T
    itself = torch.eye(5).bool()
    pairs = Pairs(
        torch.cat([itself, torch.zeros(5, 30).bool()], 1),
        torch.cat([~itself, torch.zeros(5, 30).bool()], 1),  # MoCo v2: other keys are no negatives
    )
    logits = torch.cat([(queries * keys).sum(1, keepdim=True), queries @ queue.T], 1) / 0.07
    wanted = F.cross_entropy(logits, torch.zeros(5).long(), reduction="none")
    torch.testing.assert_close(nt_xent(similarities, pairs, temperature=0.07)[0], wanted)


CLOSED = {  # all embeddings coincide: three candidates, one of them the positive
    "nt_xent": math.log(3),
    "supcon_in": math.log(3),
    "debiased": math.log(1 + 2),
    "hard_negative": math.log(1 + 2),
    "rince": (-math.exp(2.5) + (0.1 * 3 * math.exp(5)) ** 0.5) / 0.5,
}
OPPOSED = {  # perfect pairs, all others opposite: e^5 against twice e^-5
    "nt_xent": math.log(1 + 2 * math.exp(-10)),
    "supcon_in": math.log(1 + 2 * math.exp(-10)),
    "debiased": math.log(1 + 2 * math.exp(-10)),  # the correction goes below the floor n e^(-1/t)
    "hard_negative": math.log(1 + 2 * math.exp(-10)),
    "rince": (-math.exp(2.5) + (0.1 * (math.exp(5) + 2 * math.exp(-5))) ** 0.5) / 0.5,
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_agree_with_closed_forms(name):
    pairs = partners(4)
    same = torch.ones(4, 4, dtype=torch.float64)
    loss, _ = bound(name)(same, pairs)
    torch.testing.assert_close(loss, torch.full((4,), CLOSED[name], dtype=torch.float64))
    opposed = torch.where(pairs.positives, 1.0, -1.0).double()
    loss, _ = bound(name)(opposed, pairs)
    torch.testing.assert_close(loss, torch.full((4,), OPPOSED[name], dtype=torch.float64))


def test_families_meet():
    z = unit(8, 4, dtype=torch.float64)
    similarities, pairs = z @ z.T, partners(8)
    plain, _ = nt_xent(similarities, pairs, temperature=0.2)

    def of(name, **options):
        return LOSSES[name](similarities, pairs, temperature=0.2, **options)[0]

    torch.testing.assert_close(of("supcon_in"), plain)  # one positive: nothing to average
    torch.testing.assert_close(of("debiased", prior=0.0), plain)
    torch.testing.assert_close(of("hard_negative", prior=0.0, concentration=0.0), plain)
    torch.testing.assert_close(of("rince", order=1e-7, density=1.0), plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_weight_of_zero_is_ignored_and_equal_weights_change_nothing(name):
    similarities = unit(6, 5, dtype=torch.float64) @ unit(11, 5, seed=1, dtype=torch.float64).T
    plain = any_pairs(6, 11, seed=1)
    ones = Pairs(plain.positives, plain.ignored, torch.ones(6, 11, dtype=torch.float64))
    zeros = Pairs(plain.positives, torch.zeros(6, 11).bool(), (~plain.ignored).double())
    wanted, defined = bound(name)(similarities, plain)
    for pairs in (ones, zeros):
        loss, also = bound(name)(similarities, pairs)
        torch.testing.assert_close(loss, wanted)
        assert torch.equal(also, defined)


@pytest.mark.parametrize("name", LOSSES)
def test_rows_without_positive_or_negative_are_zero_with_finite_gradient(name):
    anchors = unit(4, 4).requires_grad_()
    similarities = anchors @ unit(3, 4, seed=1).T
    positives = torch.tensor([[1, 0, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0]]).bool()
    ignored = torch.tensor([[0, 1, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]]).bool()
    loss, defined = bound(name)(similarities, Pairs(positives, ignored))
    assert defined.tolist() == [False, False, False, True]
    assert loss[:3].tolist() == [0, 0, 0]
    loss.sum().backward()
    assert anchors.grad.isfinite().all()
    assert anchors.grad[:3].abs().sum() == 0
    assert anchors.grad[3].abs().sum() > 0


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_finite_at_the_smallest_temperature(name, spread):
    z = F.normalize(unit(1, 16) + spread * unit(12, 16, seed=1), dim=1).requires_grad_()
    loss, defined = bound(name, temperature=0.01)(z @ z.T, partners(12))
    loss.sum().backward()
    assert defined.all()
    assert loss.isfinite().all()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_weight_of_nothing_is_as_ignored_at_any_temperature(name):
    # exp(2 / 0.02) times the smallest number of float32 would still be seen.
    similarities = torch.tensor([[-0.9, -0.8, 1.0], [0.9, -0.5, 1.0]])
    positives = torch.tensor([[True, False, False]] * 2)
    nothing = torch.tensor([[False, False, True]] * 2)
    weights = torch.tensor([[1.0, 1.0, 0.0]] * 2)
    loss = bound(name, temperature=0.02)
    kept, _ = loss(similarities, Pairs(positives, torch.zeros_like(nothing), weights))
    gone, _ = loss(similarities, Pairs(positives, nothing))
    torch.testing.assert_close(kept, gone)


VIEWS = 3


def in_groups(videos):
    ids = torch.arange(videos).repeat_interleave(VIEWS)
    return Samples(ids, ids // 2, ids % 4, torch.arange(VIEWS).repeat(videos))


def dense(anchors, candidates, loss, pairs):
    similarities = anchors @ candidates.T
    losses, defined = loss(similarities, pairs(similarities.detach(), slice(0, len(anchors))))
    return losses.sum(), defined


def simclr_pairs(batch, detector, treatment, counts=None):
    """The callback of a method: own views attracted, the detector's pairs treated."""

    def pairs(similarities, rows):
        block = batch[rows]
        video = block.same(batch, "videos")
        itself = video & block.same(batch, "views")
        untreated = Pairs(video & ~itself, itself)
        negatives = untreated.negatives()
        flagged, sure = detector.flagged_and_sure(similarities, negatives, block, batch, 1.0)
        for name, count in detection_counts(flagged, negatives, block, batch, classes=4).items():
            if counts is not None:
                counts[name] = counts.get(name, 0) + count
        return treatment(untreated, flagged, sure)

    return pairs


def gradients_of(function, anchors, candidates, *arguments, **options):
    inputs = [t.clone().requires_grad_() for t in (anchors, candidates)]
    total, defined = function(*inputs, *arguments, **options)
    (2 * total).backward()
    return total.detach(), defined, *(t.grad for t in inputs)


def relative(one, other):
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("treatment", TREATMENTS)
def test_blocks_give_the_dense_loss_and_gradient(name, detector, treatment):
    batch, z = in_groups(20), unit(60, dtype=torch.float64)
    counts, wanted_counts = {}, {}
    options = (batch, make_detector(detector), make_treatment(treatment))
    wanted = gradients_of(dense, z, z, bound(name, 0.1), simclr_pairs(*options, wanted_counts))
    found = gradients_of(
        blockwise_loss,
        z,
        z,
        loss=bound(name, 0.1),
        pairs=simclr_pairs(*options, counts),
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
    batch, z = in_groups(200), unit(600, 128)
    pairs = simclr_pairs(batch, make_detector(detector), make_treatment("eliminate"))
    wanted = gradients_of(dense, z.double(), z.double(), bound(name, 0.1), pairs)
    found = gradients_of(
        blockwise_loss, z, z, loss=bound(name, 0.1), pairs=pairs, views=VIEWS, block=100
    )
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
    batch, z = in_groups(4), unit(12)
    walk = partial(
        blockwise_loss,
        loss=bound("nt_xent", 0.1),
        pairs=simclr_pairs(batch, make_detector("none"), make_treatment("eliminate")),
        views=VIEWS,
        block=VIEWS,
    )
    assert not walk(z, z)[0].requires_grad
    _, _, to_anchors, to_candidates = gradients_of(walk, z, z)
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

    blockwise_loss(unit(400, 2), unit(columns, 2), loss=bound("nt_xent", 0.1), pairs=pairs)
    assert min(seen[:-1]) >= 32
    assert max(seen) * columns <= max(2**20, 32 * columns)


def test_gradcheck_of_the_walk():
    batch, z = in_groups(4), unit(12, 3, dtype=torch.float64)

    def loss(anchors, candidates):
        return blockwise_loss(
            anchors,
            candidates,
            loss=partial(nt_xent, temperature=0.3),
            pairs=simclr_pairs(batch, make_detector("labels"), make_treatment("attract")),
            views=VIEWS,
            block=5,
        )[0]

    assert torch.autograd.gradcheck(
        loss, (z.requires_grad_(), unit(12, 3, seed=1, dtype=z.dtype).requires_grad_())
    )


def test_float32_pairs_and_finite_gradients_under_bfloat16():
    batch, z = in_groups(8), unit(24, 16).bfloat16().requires_grad_()
    seen = []

    def pairs(similarities, rows):
        seen.append(similarities.dtype)
        return simclr_pairs(batch, make_detector("none"), make_treatment("eliminate"))(
            similarities, rows
        )

    with torch.autocast("cpu", torch.bfloat16):
        total, _ = blockwise_loss(z, z, loss=partial(nt_xent, temperature=0.01), pairs=pairs)
    total.backward()
    assert set(seen) == {torch.float32}
    assert total.dtype == torch.float32
    assert total.isfinite()
    assert z.grad.dtype == torch.bfloat16
    assert z.grad.isfinite().all()
