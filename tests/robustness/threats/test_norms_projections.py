import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vidcsl.robustness.threats.norms import nearest_in_l1, nearest_in_l2, shrinkage, water_level

SEEDS = st.integers(0, 10_000)
SIZES = st.integers(1, 12)
EPS = st.sampled_from([0.0, 1e-4, 0.1, 0.7, 3.0])


def problem(seed: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Four rows in double: deltas, ties and zeros among them, and boxes around zero."""
    generator = torch.Generator().manual_seed(seed)
    delta = 2 * torch.randn(4, size, generator=generator, dtype=torch.float64)
    delta[0] = delta[0].round()
    delta[1] *= torch.rand(size, generator=generator) > 0.5
    low, high = torch.rand(2, 4, size, generator=generator).double()
    low = -low
    low[2, ::2], high[3, ::2] = 0.0, 0.0  # pixels that are black or white already
    return delta, low, high


def bisected(clip, norm, eps: float, top: float) -> Tensor:
    """The point clip(t) whose norm, falling with t, is eps: by plain bisection."""
    low, high = 0.0, top
    if norm(clip(0.0)) <= eps:
        return clip(0.0)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if norm(clip(middle)) > eps else (low, middle)
    return clip(high)


@settings(max_examples=40)
@given(seed=SEEDS, size=SIZES, eps=EPS)
def test_l2_against_bisection_of_the_optimality_conditions(seed, size, eps):
    delta, low, high = problem(seed, size)
    found = nearest_in_l2(delta, low, high, eps)
    for row, d, below, above in zip(found, delta, low, high, strict=True):
        expected = bisected(
            lambda t, d=d, below=below, above=above: (d / (1 + t)).clamp(below, above),
            lambda x: float(x.norm()),
            eps,
            1e9,
        )
        torch.testing.assert_close(row, expected, rtol=1e-5, atol=1e-6)


@settings(max_examples=40)
@given(seed=SEEDS, size=SIZES, eps=EPS)
def test_l1_against_bisection_of_the_optimality_conditions(seed, size, eps):
    delta, low, high = problem(seed, size)
    found = nearest_in_l1(delta, low, high, eps)
    for row, d, below, above in zip(found, delta, low, high, strict=True):
        expected = bisected(
            lambda t, d=d, below=below, above=above: (d.sign() * (d.abs() - t).clamp_min(0)).clamp(
                below, above
            ),
            lambda x: float(x.abs().sum()),
            eps,
            100.0,
        )
        torch.testing.assert_close(row, expected, rtol=1e-5, atol=2e-6)


@settings(max_examples=40)
@given(seed=SEEDS, size=SIZES, eps=EPS, norm=st.sampled_from([1, 2]))
def test_inside_idempotent_and_no_allowed_point_is_nearer(seed, size, eps, norm):
    delta, low, high = problem(seed, size)
    nearest = {1: nearest_in_l1, 2: nearest_in_l2}[norm]
    found = nearest(delta, low, high, eps)
    assert (torch.linalg.vector_norm(found, norm, dim=1) <= eps * (1 + 1e-9) + 1e-15).all()
    assert ((found >= low - 1e-12) & (found <= high + 1e-12)).all()
    torch.testing.assert_close(nearest(found, low, high, eps), found, rtol=1e-6, atol=1e-9)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(30):
        other = torch.rand(4, size, generator=generator).double() * (high - low) + low
        scale = eps / torch.linalg.vector_norm(other, norm, dim=1, keepdim=True).clamp_min(1e-12)
        other = other * scale.clamp(max=1)
        # For the nearest point of a convex set: <delta - found, other - found> <= 0.
        assert (((delta - found) * (other - found)).sum(1) <= 1e-5 * (1 + eps)).all()


@settings(max_examples=40)
@given(seed=SEEDS, size=SIZES, share=st.floats(0, 0.99))
def test_water_level_against_its_definition(seed, size, share):
    generator = torch.Generator().manual_seed(seed)
    slopes, caps = torch.rand(2, 4, size, generator=generator).double()
    slopes[0, 1:] = 0.0  # such terms never rise
    caps = caps.where(slopes > 0, 0.0)
    target = share * caps.sum(1)
    reached = torch.minimum(slopes * water_level(slopes, caps, target), caps).sum(1)
    torch.testing.assert_close(reached, target, atol=1e-5, rtol=1e-5)


def test_water_level_of_more_than_all_caps_is_infinite():
    level = water_level(torch.ones(2, 3), torch.ones(2, 3), torch.tensor([3.1, 2.9]))
    assert level.isinf()[:, 0].tolist() == [True, False]


@settings(max_examples=40)
@given(seed=SEEDS, size=SIZES, share=st.floats(0, 1))
def test_shrinkage_against_its_definition(seed, size, share):
    generator = torch.Generator().manual_seed(seed)
    sizes, caps = torch.rand(2, 4, size, generator=generator).double()
    target = share * torch.minimum(sizes, caps).sum(1)
    level = shrinkage(sizes, caps, target)
    left = torch.minimum((sizes - level).clamp_min(0), caps).sum(1)
    torch.testing.assert_close(left, target, atol=1e-5, rtol=1e-5)


def test_float32_at_the_size_of_a_clip():
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(2, 3 * 16 * 112 * 112, generator=generator)
    low, high = -torch.rand(delta.shape, generator=generator), torch.ones_like(delta) / 2
    for nearest, norm, eps in ((nearest_in_l2, 2, 5.0), (nearest_in_l1, 1, 50.0)):
        found = nearest(delta, low, high, eps)
        exact = nearest(delta.double(), low.double(), high.double(), eps)
        sizes = torch.linalg.vector_norm(found.double(), norm, dim=1)
        assert (abs(sizes - eps) < 1e-3 * eps).all()
        assert (found.double() - exact).norm() < 1e-3 * exact.norm()
