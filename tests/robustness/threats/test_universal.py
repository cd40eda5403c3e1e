"""Deltas of fewer numbers than a clip: flicker, universal perturbations."""

import pytest
import torch
from torch import Tensor

from vidcsl.errors import UserError
from vidcsl.robustness.threats import L1, L2, Flicker, Linf, Universal

SEEDS = [5, 6, 7]
THREATS = {
    "flicker": Flicker(0.3),
    "universal": Universal(Linf(0.3)),
    "cyclic": Universal(Linf(0.3), cyclic=True),
    "universal flicker": Universal(Flicker(0.3)),
    "universal l2": Universal(L2(2.0)),
    "universal l1": Universal(L1(5.0)),
}
EACH = pytest.mark.parametrize("name", THREATS)


def clips() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(3, 3, 4, 5, 5, dtype=torch.float64, generator=generator)


def started(threat, clean: Tensor) -> tuple[Tensor, Tensor]:
    mask = threat.mask(clean, SEEDS)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    return threat.start(clean, mask, generators), mask


@EACH
def test_pull_back_is_the_adjoint_of_perturb(name):
    """The gradient of any function of the perturbed clips, against autograd."""
    threat, clean = THREATS[name], clips()
    if "flicker" in name:  # which looks beyond its slope where the box holds pixels
        clean = 0.4 + 0.2 * clean
    delta, _ = started(threat, clean)
    assert delta.shape == threat.zero(clean).shape
    weights = torch.randn(clean.shape, dtype=torch.float64)
    delta = delta.clone().requires_grad_(True)
    (threat.perturb(clean, delta, SEEDS) * weights).sum().backward()
    found = threat.pull_back(clean, delta.detach(), weights, SEEDS)
    torch.testing.assert_close(found, delta.grad)


@EACH
def test_start_project_and_steps_keep_the_budget(name):
    threat, clean = THREATS[name], clips()
    delta, mask = started(threat, clean)
    gradient = torch.randn(delta.shape, dtype=torch.float64)
    step = threat.steepest_step(clean, delta, gradient, threat.eps, mask)
    assert float((step * gradient).sum()) > 0
    moved = threat.project(clean, delta + 3 * step, mask)
    assert (threat.size(moved) <= threat.eps * (1 + 1e-6)).all()
    torch.testing.assert_close(threat.project(clean, moved, mask), moved)
    threat.verify(clean, threat.perturb(clean, moved, SEEDS), mask)


def test_universal_perturbations_are_the_same_for_all_clips():
    clean = torch.full((3, 3, 4, 5, 5), 0.5)
    fixed, cyclic = Universal(Linf(0.3)), Universal(Linf(0.3), cyclic=True)
    delta, _ = started(fixed, clean)
    differences = fixed.perturb(clean, delta, SEEDS) - clean
    torch.testing.assert_close(differences, delta.expand_as(clean))
    turned = cyclic.perturb(clean, delta, range(40)[:3]) - clean
    for row in turned:  # each is the delta, turned in time
        assert any(torch.allclose(row, delta[0].roll(k, dims=1), atol=1e-6) for k in range(4))
    many = cyclic.perturb(clean[:1].expand(40, -1, -1, -1, -1), delta, range(40))
    assert len({clip.numpy().tobytes() for clip in many}) == 4


def test_cyclic_deltas_need_all_frames_of_clips():
    images = torch.rand(2, 3, 5, 5)
    with pytest.raises(UserError, match="not images"):
        Universal(Linf(0.1), cyclic=True).mask(images, [0, 1])
    with pytest.raises(UserError, match="changes all frames"):
        Universal(Linf(0.1, frames="first:1"), cyclic=True)


@pytest.mark.parametrize("ball", [Linf(0.3), L2(0.5), L1(0.5)], ids=["linf", "l2", "l1"])
def test_a_universal_delta_starts_and_steps_as_those_of_its_ball(ball):
    threat, grey = Universal(ball), torch.full((2, 3, 4, 5, 5), 0.5)
    mask = threat.mask(grey, SEEDS[:2])
    drawn = [
        float(threat.size(threat.start(grey, mask, [torch.Generator().manual_seed(seed)])))
        for seed in range(20)
    ]
    assert 0.75 * ball.eps < max(drawn) <= ball.eps * (1 + 1e-5)
    zero = threat.zero(grey)
    gradient = torch.randn(zero.shape, generator=torch.Generator().manual_seed(0))
    found = threat.steepest_step(grey, zero, gradient, 0.1, mask)
    assert float(threat.size(found)) == pytest.approx(0.1, rel=1e-4)
