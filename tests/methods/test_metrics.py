import math

import pytest
import torch
import torch.nn.functional as F

from vidcsl.methods.metrics import (
    alignment,
    class_margins,
    describe_batch,
    effective_rank,
    uniformity,
)


def unit(rows, dim, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, generator=generator), dim=1)


@pytest.mark.parametrize("shape", [(40, 6), (5, 12)])
def test_effective_rank_is_the_entropy_of_the_spectrum(shape):
    z = unit(*shape)
    energy = torch.linalg.svdvals(z - z.mean(0)).square()
    share = (energy / energy.sum()).tolist()
    wanted = math.exp(-sum(s * math.log(s) for s in share if s > 1e-12))
    assert float(effective_rank(z)) == pytest.approx(wanted, rel=1e-4)


def test_margins_against_a_loop():
    z, labels = unit(11, 4), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 5])
    margins = class_margins(z, labels)
    for i in range(11):
        mine = [j for j in range(11) if labels[j] == labels[i] and j != i]
        if not mine:
            assert margins[i].isnan()
            continue
        own = z[i] @ F.normalize(z[mine].mean(0), dim=0)
        others = [
            float(z[i] @ F.normalize(z[labels == k].mean(0), dim=0))
            for k in (0, 1, 2, 5)
            if k != labels[i]
        ]
        assert float(margins[i]) == pytest.approx(float(own) - max(others), abs=1e-5)


def test_one_class_has_no_margin():
    assert class_margins(unit(4, 3), torch.zeros(4, dtype=torch.long)).isnan().all()


def test_a_batch_against_loops():
    z, labels = unit(16, 5).unflatten(0, (8, 2)), torch.tensor([0, 0, 1, 1, 2, 2, -1, -1])
    described = describe_batch(z, labels)
    pairs = [(i, j) for i in range(6) for j in range(i)]
    same = [float(z[i, 0] @ z[j, 0]) for i, j in pairs if labels[i] == labels[j]]
    other = [float(z[i, 0] @ z[j, 0]) for i, j in pairs if labels[i] != labels[j]]
    for name, wanted in (("same_class", same), ("other_class", other)):
        ratio = described[f"{name}_similarity"]
        assert int(ratio.whole) == len(wanted)
        assert float(ratio.part / ratio.whole) == pytest.approx(sum(wanted) / len(wanted), abs=1e-5)
    assert float(described["alignment"]) == pytest.approx(
        float((z[:, 0] - z[:, 1]).square().sum(1).mean()), abs=1e-5
    )
    assert int(described["margin"].whole) == 6  # the unlabelled two have none


def test_compact_classes_have_a_larger_margin_than_an_even_spread():
    labels = torch.arange(60) % 3
    compact = F.normalize(torch.eye(3)[labels] + 0.1 * unit(60, 3), dim=1)
    spread = unit(60, 3)
    assert class_margins(compact, labels).mean() > 0.8 > class_margins(spread, labels).mean()


def test_unlabelled_or_single_videos_give_what_they_can():
    described = describe_batch(unit(8, 3)[:, None], torch.full((8,), -1))
    assert "alignment" not in described
    assert described["same_class_similarity"].whole == 0
    assert described["margin"].whole == 0
    assert set(describe_batch(unit(2, 3)[None], torch.zeros(1).long())) == {"alignment"}


def test_alignment_and_uniformity_closed_forms():
    z = unit(5, 3)
    assert alignment(z, z) == 0
    torch.testing.assert_close(alignment(z, -z), torch.tensor(4.0))
    assert uniformity(z[:1].expand(4, 3)) == 0
    two = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    torch.testing.assert_close(uniformity(two), torch.tensor(-8.0))
