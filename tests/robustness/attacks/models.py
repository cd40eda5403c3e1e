"""Small models to attack, in double so that no rounding decides a sign."""

import torch
from torch import Tensor, nn

from vidcsl.robustness.attacks import GOALS, Problem
from vidcsl.robustness.threats import Threat

CLASSES = 4


class TinyNet(nn.Module):
    """Convolution, batch norm and dropout."""

    def __init__(self, dimensions: int = 3) -> None:
        super().__init__()
        convolution, norm = {2: (nn.Conv2d, nn.BatchNorm2d), 3: (nn.Conv3d, nn.BatchNorm3d)}[
            dimensions
        ]
        self.body = nn.Sequential(
            convolution(3, 8, 3, padding=1, bias=False), norm(8), nn.Tanh(), nn.Dropout(0.5)
        )
        self.head = nn.Linear(8, CLASSES)

    def forward(self, clips: Tensor) -> Tensor:
        return self.head(self.body(clips - 0.5).flatten(2).mean(2))


class Linear(nn.Module):
    def __init__(self, size: int, classes: int = CLASSES) -> None:
        super().__init__()
        self.head = nn.Linear(size, classes)

    def forward(self, clips: Tensor) -> Tensor:
        return self.head(clips.flatten(1))


def seeded(build: type, *args: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return build(*args).double().eval()


def sharp(dimensions: int = 3) -> nn.Module:
    """A TinyNet that small budgets fool."""
    net = seeded(TinyNet, dimensions)
    net.head.weight.data *= 30
    return net


def predict(model: nn.Module, clips: Tensor) -> Tensor:
    was = model.training
    with torch.no_grad():
        logits = model.eval()(clips)
    model.train(was)
    return logits.argmax(dim=1)


def random_clips(count: int = 6, shape: tuple[int, ...] = (3, 4, 6, 6)) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, *shape, dtype=torch.float64, generator=generator)


def problem_of(threat: Threat) -> Problem:
    """Six clips that are classified correctly, under cross-entropy."""
    model, clips = sharp(), random_clips()
    labels = predict(model, clips)
    with torch.no_grad():
        return Problem.of(model, threat, GOALS["cross_entropy"], clips, labels, seeds=range(6))


def numbers(goals: list[float]) -> Tensor:
    return torch.tensor(goals, dtype=torch.float64)


def direction(model: nn.Module, label: Tensor) -> Tensor:
    """The gradient of the two-class margin."""
    return (model.head.weight[1 - label] - model.head.weight[label]).detach()
