import math

import pytest
import torch

from tests.methods.made import batch, make_method
from vidcsl.methods.lejepa import sigreg


def naive_statistic(sample):
    """Epps-Pulley of numbers `[N]` against N(0, 1), over the whole of [-3, 3], in steps of 3/16."""
    step, total = 3 / 16, 0.0
    for place in range(-16, 17):
        t = place * step
        gaussian = math.exp(-t * t / 2)
        real = sum(math.cos(t * x) for x in sample) / len(sample)
        imaginary = sum(math.sin(t * x) for x in sample) / len(sample)
        end = 0.5 if abs(place) == 16 else 1.0
        total += end * step * gaussian * ((real - gaussian) ** 2 + imaginary**2)
    return len(sample) * total


def test_the_statistic_against_the_whole_integral():
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(6, 2, 4, generator=generator, dtype=torch.float64)
    directions = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    directions /= directions.norm(dim=0)
    projected = (embeddings @ directions).permute(1, 2, 0).flatten(0, 1)
    wanted = sum(naive_statistic(each.tolist()) for each in projected) / len(projected)
    assert float(sigreg(embeddings, directions)) == pytest.approx(wanted, rel=1e-6)


def test_gaussian_embeddings_cost_less_than_collapsed_or_stretched_ones():
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(2000, 1, 3, generator=generator)
    directions = torch.eye(3)
    fitting = float(sigreg(drawn, directions))
    assert fitting < 2
    assert float(sigreg(0.2 * drawn, directions)) > 10 * fitting
    assert float(sigreg(3 * drawn, directions)) > 10 * fitting


def test_the_loss_weighs_agreement_and_gaussian():
    data = batch(videos=5, views=3)
    agreement = make_method("lejepa", gaussian=0.0)
    embeddings = agreement.projector(agreement.encoder(data.clips.flatten(0, 1)))
    embeddings = embeddings.unflatten(0, (5, 3))
    distances = [
        (view - video.mean(dim=0)).square().mean() for video in embeddings for view in video
    ]
    zero, one, half = (make_method("lejepa", gaussian=g)(data)["loss"] for g in (0.0, 1.0, 0.5))
    torch.testing.assert_close(zero, sum(distances) / len(distances))
    torch.testing.assert_close(half, (zero + one) / 2)


def test_directions_change_with_each_step_and_come_back_after_a_resume():
    data, method = batch(), make_method("lejepa", gaussian=1.0, slices=2)
    method.eval()
    first = method(data)["loss"]
    assert method(data)["loss"] == first
    method.after_step(0.0)
    second = method(data)["loss"]
    assert second != first
    resumed = make_method("lejepa", gaussian=1.0, slices=2).eval()
    resumed.load_state_dict(method.state_dict())
    assert resumed(data)["loss"] == second
