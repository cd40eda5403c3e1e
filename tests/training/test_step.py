import pytest
import torch

from tests.methods.made import make_method
from tests.training.trained import ALONE, batches
from vidcsl.training.train import Stepper, augmented

BATCH = next(batches(ALONE)(0, 0))


def step(clip):
    """One step of plain gradient descent: what it reports, and how far the weights moved."""
    method = make_method("simclr", distributed=ALONE)
    before = {name: weight.detach().clone() for name, weight in method.named_parameters()}
    stepper = Stepper(method, torch.optim.SGD(method.parameters()), clip_gradient=clip)
    clips = augmented(BATCH, lambda frames, *_: frames, seed=0, progress=0.0)
    outputs = stepper(clips, lr=0.5)
    weights = method.named_parameters()
    moved = torch.cat([(weight.detach() - before[name]).flatten() for name, weight in weights])
    return outputs, float(moved.norm()) / 0.5


@pytest.mark.parametrize("share", [0.0, 2.0, 0.25])
def test_the_norm_of_the_gradient_is_told_whether_it_is_clipped_or_not(share):
    plain, length = step(0.0)
    norm = plain["gradient_norm"]
    assert float(norm.part / norm.whole) == pytest.approx(length, rel=1e-4)
    told, moved = step(share * length)
    assert float(told["gradient_norm"].part) == pytest.approx(length, rel=1e-4)
    assert moved == pytest.approx(min(1.0, share or 1.0) * length, rel=1e-4)
