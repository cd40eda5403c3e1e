import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from vidcsl.evaluation.features import Features
from vidcsl.evaluation.geometry import (
    describe_geometry,
    describe_spectra,
    lidar,
    project,
    rankme,
)
from vidcsl.methods.metrics import class_margins, effective_rank


def made(values, labels):
    ids = torch.arange(len(values))
    return Features(values, labels, ids, ids)


def test_measures_agree_with_loops():
    generator = torch.Generator().manual_seed(0)
    values, labels = torch.randn(12, 3, 5, generator=generator), torch.arange(12) % 3
    described = describe_geometry(made(values, labels))
    z = F.normalize(values, dim=2)
    pairs = [(i, j) for i in range(12) for j in range(i)]
    same = [float(z[i, 0] @ z[j, 0]) for i, j in pairs if labels[i] == labels[j]]
    other = [float(z[i, 0] @ z[j, 0]) for i, j in pairs if labels[i] != labels[j]]
    assert described["same_class_similarity"] == pytest.approx(sum(same) / len(same), abs=1e-5)
    assert described["other_class_similarity"] == pytest.approx(sum(other) / len(other), abs=1e-5)
    assert sum(described["histogram"]["same_class"]) == len(same)
    assert sum(described["histogram"]["other_class"]) == len(other)
    assert described["margin"] == pytest.approx(float(class_margins(z[:, 0], labels).mean()))
    potentials = [float((-2 * (z[i, 0] - z[j, 0]).square().sum()).exp()) for i, j in pairs]
    wanted = math.log(sum(potentials) / len(potentials))
    assert described["uniformity"] == pytest.approx(wanted, abs=1e-5)
    assert described["effective_rank"] == pytest.approx(float(effective_rank(z[:, 0])))
    edges = described["histogram"]["edges"]
    for name, values in (("same_class", same), ("other_class", other)):
        counts = [sum(a <= v < b for v in values) for a, b in pairwise(edges)]
        assert described["histogram"][name] == counts
    wanted = float((z[:, 0] - z[:, 2]).square().sum(1).mean())
    assert described["alignment"] == pytest.approx(wanted, abs=1e-5)


def test_compact_classes_show():
    centres = torch.eye(4)[torch.arange(20) % 4]
    described = describe_geometry(made(centres[:, None], torch.arange(20) % 4))
    assert described["same_class_similarity"] == pytest.approx(1)
    assert described["other_class_similarity"] == pytest.approx(0)
    assert described["margin"] == pytest.approx(1)
    assert "alignment" not in described  # one view has no positive pair


def test_effective_rank_counts_directions():
    line = torch.linspace(-1, 1, 50)[:, None] * torch.randn(1, 8)
    assert float(effective_rank(line)) == pytest.approx(1, abs=1e-3)
    both = torch.cat([torch.eye(8), -torch.eye(8)])
    assert float(effective_rank(both)) == pytest.approx(8, abs=1e-3)


def test_a_map_of_the_sphere_shows_the_two_widest_directions():
    generator = torch.Generator().manual_seed(2)
    flat = torch.zeros(40, 6)
    flat[:, [1, 4]] = torch.randn(40, 2, generator=generator) * torch.tensor([0.1, 0.3])
    flat[:, 0] = 5.0  # features of nearly one direction: the sphere is flat there
    projection = project(made(flat[:, None], torch.zeros(40).long()))
    assert projection.shown > 0.99
    for column, wanted in enumerate((4, 1)):
        pair = torch.stack([projection.angles[:, column], flat[:, wanted]])
        assert torch.corrcoef(pair)[0, 1] > 0.99  # and not its opposite
    one = project(made(torch.randn(1, 1, 3), torch.zeros(1).long()))
    assert one.angles.shape == (1, 2)
    assert one.angles.isfinite().all()


def test_distances_on_the_map_are_angles_from_the_mean_direction():
    ring = torch.tensor([[3.0, 1.0, 0.0], [3.0, -1.0, 0.0], [3.0, 0.0, 1.0], [3.0, 0.0, -1.0]])
    angles = project(made(ring[:, None], torch.zeros(4).long())).angles
    wanted = torch.full((4,), 1 / 3).atan().rad2deg()
    assert torch.allclose(angles.norm(dim=1), wanted)
    opposite = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])  # no mean
    assert project(made(opposite[:, None], torch.zeros(4).long())).angles.norm(dim=1).tolist() == (
        pytest.approx([90.0] * 4)
    )


def test_unlabelled_videos_are_of_no_class():
    generator = torch.Generator().manual_seed(0)
    values, labels = torch.randn(12, 2, 5, generator=generator), torch.arange(12) % 3
    some = made(torch.cat([values, values[:4]]), torch.cat([labels, torch.full((4,), -1)]))
    mixed, alone = describe_geometry(some), describe_geometry(made(values, labels))
    for name in ("same_class_similarity", "other_class_similarity", "margin", "histogram"):
        assert mixed[name] == alone[name]


def test_unlabelled_videos_give_no_class_figures():
    described = describe_geometry(made(torch.randn(6, 2, 4), torch.full((6,), -1)))
    wanted = {"uniformity", "effective_rank", "alignment", "rankme", "lidar", "spectrum"}
    assert set(described) == {*wanted, "participation_ratio"}


def test_rankme_against_the_published_formula():
    values = torch.randn(9, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    lengths = torch.linalg.eigvalsh(values.T @ values).sqrt()
    fractions = [float(length / lengths.sum()) + 1e-7 for length in lengths]
    wanted = math.exp(-sum(p * math.log(p) for p in fractions))
    assert float(rankme(values)) == pytest.approx(wanted)


def test_lidar_against_the_published_formula():
    values = torch.randn(30, 3, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    values[:, :, 0] += 5 * torch.arange(30)[:, None]
    centres = values.mean(dim=1)
    between = sum(torch.outer(c, c) for c in centres - centres.mean(dim=0)) / 30
    within = sum(
        torch.outer(view - centre, view - centre)
        for video, centre in zip(values, centres, strict=True)
        for view in video
    ) / (30 * 3) + 1e-4 * torch.eye(4)
    lengths, axes = torch.linalg.eigh(within)
    root = axes @ torch.diag(lengths.rsqrt()) @ axes.T
    eigenvalues = torch.linalg.eigvalsh(root @ between @ root)
    fractions = [float(value / eigenvalues.sum()) + 1e-7 for value in eigenvalues]
    wanted = math.exp(-sum(p * math.log(p) for p in fractions))
    assert float(lidar(values)) == pytest.approx(wanted)
    assert 1 <= wanted < 1.1  # one direction tells the videos apart


def test_lidar_sees_no_rank_where_views_differ_as_much_as_videos():
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(60, 1, 6, generator=generator)
    directions[:, :, 3:] = 0  # three that tell videos apart
    noise = torch.randn(60, 4, 6, generator=generator) * torch.tensor([0.01] * 3 + [1.0] * 3)
    assert 2.5 < float(lidar(directions + noise)) < 3.2
    assert float(rankme((directions + noise)[:, 0])) > 5


def test_spectra_of_known_features():
    labels = torch.arange(40) % 4
    collapsed = describe_spectra(torch.eye(6)[labels], labels)  # each class is one point
    assert collapsed["spectrum"][:4] == pytest.approx([1 / 3] * 3 + [0])
    assert collapsed["participation_ratio"] == pytest.approx(3)
    assert collapsed["class_variance"] == pytest.approx(1)
    assert collapsed["affinity_spectrum"] == pytest.approx([1] * 4)

    spread = torch.cat([torch.eye(8), -torch.eye(8)])  # of every class everywhere
    even = describe_spectra(spread, torch.arange(16) // 2 % 2)
    assert even["participation_ratio"] == pytest.approx(8)
    assert even["class_variance"] == pytest.approx(1 / 8)
    assert even["spectral_gap"] == pytest.approx(1)
    assert even["affinity_spectrum"] == pytest.approx([0, 0], abs=1e-9)

    unlabelled = describe_spectra(spread, torch.full((16,), -1))
    assert set(unlabelled) == {"spectrum", "participation_ratio"}
