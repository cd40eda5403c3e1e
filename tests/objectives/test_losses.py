import math

import pytest
import torch
import torch.nn.functional as F

from vidcsl.objectives.losses import alignment, contrastive_loss, similarity_matrix, uniformity


def unit(rows, dim, *, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, generator=generator, dtype=dtype), dim=1)


def masks(rows, columns, *, seed):
    generator = torch.Generator().manual_seed(seed)
    positives = torch.rand(rows, columns, generator=generator) < 0.2
    ignored = (torch.rand(rows, columns, generator=generator) < 0.3) & ~positives
    return positives, ignored


def naive(similarities, positives, ignored, temperature):
    losses, defined = [], []
    for i in range(len(similarities)):
        chosen = [j for j in range(similarities.shape[1]) if positives[i, j]]
        kept = [j for j in range(similarities.shape[1]) if not ignored[i, j]]
        fine = bool(chosen) and len(kept) > len(chosen)
        defined.append(fine)
        denominator = sum(math.exp(float(similarities[i, j]) / temperature) for j in kept)
        terms = [
            -math.log(math.exp(float(similarities[i, p]) / temperature) / denominator)
            for p in chosen
        ]
        losses.append(sum(terms) / len(terms) if fine else 0.0)
    return torch.tensor(losses, dtype=similarities.dtype), torch.tensor(defined)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("temperature", [0.07, 0.1, 0.5])
@pytest.mark.parametrize("shape", [(5, 7), (8, 8), (3, 20)])
def test_agrees_with_a_double_loop(seed, temperature, shape):
    rows, columns = shape
    similarities = unit(rows, 6, seed=seed).double() @ unit(columns, 6, seed=seed + 9).double().T
    positives, ignored = masks(rows, columns, seed=seed)
    loss, defined = contrastive_loss(
        similarities, positives=positives, ignored=ignored, temperature=temperature
    )
    wanted, wanted_defined = naive(similarities, positives, ignored, temperature)
    torch.testing.assert_close(loss, wanted)
    assert torch.equal(defined, wanted_defined)


def test_is_cross_entropy_with_one_positive():
    similarities = unit(6, 8) @ unit(10, 8, seed=1).T
    positives = F.one_hot(torch.arange(6), 10).bool()
    loss, _ = contrastive_loss(
        similarities, positives=positives, ignored=torch.zeros(6, 10).bool(), temperature=0.1
    )
    wanted = F.cross_entropy(similarities / 0.1, torch.arange(6), reduction="none")
    torch.testing.assert_close(loss, wanted)


def test_closed_forms():
    same = torch.ones(4, 4)  # all embeddings coincide: the softmax is uniform over the 3 others
    itself = torch.eye(4).bool()
    partner = torch.eye(4)[[1, 0, 3, 2]].bool()
    loss, _ = contrastive_loss(same, positives=partner, ignored=itself, temperature=0.1)
    torch.testing.assert_close(loss, torch.full((4,), math.log(3)))
    opposed = torch.where(partner, 1.0, -1.0)  # perfect pairs, all others opposite
    loss, _ = contrastive_loss(opposed, positives=partner, ignored=itself, temperature=0.5)
    torch.testing.assert_close(loss, torch.full((4,), math.log(1 + 2 * math.exp(-4))))


def test_gradients():
    anchors, candidates = (unit(4, 3, seed=s, dtype=torch.float64) for s in (0, 1))
    positives, ignored = masks(4, 9, seed=3)
    candidates = torch.cat([candidates, unit(5, 3, seed=2, dtype=torch.float64)])

    def loss(a, c):
        return contrastive_loss(a @ c.T, positives=positives, ignored=ignored, temperature=0.2)[0]

    inputs = (anchors.requires_grad_(), candidates.requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs)


def test_rows_without_positive_or_negative_are_zero_with_finite_gradient():
    anchors = unit(3, 4).requires_grad_()
    similarities = anchors @ unit(3, 4, seed=1).T
    positives = torch.tensor([[1, 0, 0], [0, 0, 0], [1, 0, 0]]).bool()
    ignored = torch.tensor([[0, 1, 1], [0, 0, 0], [0, 1, 0]]).bool()
    loss, defined = contrastive_loss(
        similarities, positives=positives, ignored=ignored, temperature=0.1
    )
    assert defined.tolist() == [False, False, True]
    assert loss[:2].tolist() == [0, 0]
    loss.sum().backward()
    assert anchors.grad.isfinite().all()
    assert anchors.grad[:2].abs().sum() == 0


def test_finite_at_the_smallest_temperature_in_bfloat16():
    embeddings = unit(8, 16).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        similarities = similarity_matrix(embeddings, embeddings)
    assert similarities.dtype == torch.float32
    partner = torch.eye(8)[[1, 0, 3, 2, 5, 4, 7, 6]].bool()
    loss, _ = contrastive_loss(
        similarities, positives=partner, ignored=torch.eye(8).bool(), temperature=0.01
    )
    assert loss.isfinite().all()


def test_alignment_and_uniformity_closed_forms():
    z = unit(5, 3)
    assert alignment(z, z) == 0
    torch.testing.assert_close(alignment(z, -z), torch.tensor(4.0))
    assert uniformity(z[:1].expand(4, 3)) == 0
    two = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    torch.testing.assert_close(uniformity(two), torch.tensor(-8.0))
