"""Linear probe: multinomial logistic regression on frozen features."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from vidcsl.errors import UserError
from vidcsl.evaluation.features import Features
from vidcsl.seeding import numpy_generator

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
FOLDS = 5


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe: `features @ weight.T + bias` are the logits.

    Args:
        weight, bias: `[classes, D]` and `[classes]`, for raw features (the standardisation that
            was used in fitting is folded in, so the probe is an `nn.Linear` that can be attacked).
        penalty: L2 penalty that was chosen.
        held_out_top1: cross-validated accuracy by which it was chosen.
    """

    weight: Tensor
    bias: Tensor
    penalty: float
    held_out_top1: float

    def save(self, path: Path) -> None:
        """Write it to an `.npz` file, whole or not at all."""
        partial = path.with_suffix(".partial.npz")
        np.savez(
            partial,
            weight=self.weight.numpy(),
            bias=self.bias.numpy(),
            penalty=self.penalty,
            held_out_top1=self.held_out_top1,
        )
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> "LinearProbe":
        """What `save` wrote.

        Raises:
            UserError: the file is damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                weight, bias = (torch.from_numpy(stored[name]) for name in ("weight", "bias"))
                return cls(weight, bias, float(stored["penalty"]), float(stored["held_out_top1"]))
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise UserError(f"{path} is damaged ({error}); remove it") from error

    def as_layer(self) -> nn.Linear:
        """The probe as a module."""
        layer = nn.Linear(self.weight.shape[1], self.weight.shape[0])
        layer.load_state_dict({"weight": self.weight, "bias": self.bias})
        return layer

    def logits(self, features: Tensor) -> Tensor:
        """Logits `[..., classes]` of features `[..., D]`."""
        return nn.functional.linear(features, self.weight, self.bias)


def fit_linear_probe(
    train: Features, *, classes: int, seed: int, penalties: Sequence[float] = PENALTIES
) -> LinearProbe:
    """Fit on every view of the labelled training videos.

    The penalty is chosen by cross-validation over five folds of training *groups*, so that no
    source video is on both sides, and the probe is then refitted on all. Test data are not seen.

    Raises:
        UserError: no labelled video, or fewer than two classes.
    """
    labelled = train.labels >= 0
    features, labels = train.values[labelled], train.labels[labelled]
    if len(labels.unique()) < 2:
        raise UserError("the linear probe needs labelled training videos of at least two classes")
    views = features.shape[1]
    flat, targets = features.flatten(0, 1), labels.repeat_interleave(views)
    mean = flat.mean(dim=0)
    std = flat.std(dim=0).clamp(min=1e-6)
    standard = (flat - mean) / std
    folds = _folds(train.groups[labelled], train.indices[labelled], seed=seed)
    fold_rows = folds.repeat_interleave(views)
    scores = [
        _cross_validate(standard, targets, fold_rows, classes=classes, penalty=penalty)
        for penalty in penalties
    ]
    # Among equals the strongest penalty: the simplest model that does as well.
    best = max(range(len(penalties)), key=lambda i: (scores[i], penalties[i]))
    weight, bias = _fit(standard, targets, classes=classes, penalty=penalties[best])
    weight = weight / std
    return LinearProbe(weight, bias - weight @ mean, penalties[best], scores[best])


def video_accuracy(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Top-1 of videos and of single clips, in [0, 1].

    Args:
        logits: `[n, V, classes]`; a video's prediction is the mean of its views' probabilities.
        labels: `[n]`.
    """
    videos = logits.softmax(dim=2).mean(dim=1).argmax(dim=1) == labels
    clips = logits.argmax(dim=2) == labels[:, None]
    return float(videos.float().mean()), float(clips.float().mean())


def _folds(groups: Tensor, indices: Tensor, *, seed: int) -> Tensor:
    """Fold 0 to 4 of each video, int64 `[n]`; a group is in one fold, a lone video its own."""
    own = torch.where(groups >= 0, groups, -2 - indices)
    sources, source = own.unique(return_inverse=True)
    order = numpy_generator(seed, "probe folds").permutation(len(sources))
    return torch.from_numpy(order)[source] % FOLDS


def _cross_validate(
    features: Tensor, labels: Tensor, folds: Tensor, *, classes: int, penalty: float
) -> float:
    """Share of rows that a probe fitted on the other folds gets right."""
    right = 0
    for fold in folds.unique().tolist():
        held = folds == fold
        weight, bias = _fit(features[~held], labels[~held], classes=classes, penalty=penalty)
        right += int(((features[held] @ weight.T + bias).argmax(dim=1) == labels[held]).sum())
    return right / len(labels)


def _fit(
    features: Tensor, labels: Tensor, *, classes: int, penalty: float
) -> tuple[Tensor, Tensor]:
    weight = features.new_zeros(classes, features.shape[1]).requires_grad_()
    bias = features.new_zeros(classes).requires_grad_()
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=200, history_size=10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        loss = nn.functional.cross_entropy(features @ weight.T + bias, labels)
        loss = loss + penalty * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    return weight.detach(), bias.detach()
