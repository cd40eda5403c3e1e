"""Fine-tuning, and the linear classifier of adversarial protocols."""

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidcsl.methods.adversarial.classifier import AdversarialTraining
from vidcsl.methods.losses import at_least_float32
from vidcsl.methods.method import ClipBatch
from vidcsl.methods.metrics import Metric
from vidcsl.methods.supervised import Supervised
from vidcsl.seeding import numpy_generator, torch_generator

# ----------------------------------------------------------------------
# Fine-tuning: every weight learns from the labels, deep layers less than the head.

# Blocks of our encoders, by which depth is counted.
_BLOCK = re.compile(r"encoder\.backbone\.(?:image\.)?((?:blocks|layer\d|features)\.\d+)\.")


class FineTuned(Supervised):
    """The supervised method with dropout before its head, and mixup.

    Args:
        encoder, feature_dim, classes, label_smoothing, options: as `Supervised`.
        dropout: share of the features that are dropped.
        mixup: both parameters of the Beta distribution that clips of a batch are mixed by (Zhang et
            al., "mixup", ICLR 2018); 0: not mixed.
        seed: of the draws.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        feature_dim: int,
        classes: int,
        label_smoothing: float = 0.0,
        dropout: float = 0.0,
        mixup: float = 0.0,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(
            encoder,
            feature_dim=feature_dim,
            classes=classes,
            label_smoothing=label_smoothing,
            **options,
        )
        self.dropout, self.mixup, self.seed = dropout, mixup, seed

    def forward(self, batch: ClipBatch) -> dict[str, Metric]:
        """Mean cross-entropy over all views; accuracy where nothing was mixed."""
        clips = batch.clips.flatten(0, 1)
        labels = batch.labels.repeat_interleave(batch.clips.shape[1])
        who = (self.seed, int(batch.progress * 1e9), *batch.videos[:1].tolist())
        share, partners = self._partners(len(clips), who)
        mixed = clips if share == 1 else share * clips + (1 - share) * clips[partners]
        features = self._dropped(self.encoder(mixed), who)
        logits = at_least_float32(self.head(features))
        loss = share * self._cross_entropy(logits, labels)
        if share < 1:
            loss = loss + (1 - share) * self._cross_entropy(logits, labels[partners])
        if self.mixup:
            return {"loss": loss}
        return {"loss": loss, "train_accuracy": (logits.argmax(dim=1) == labels).float().mean()}

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    def _partners(self, clips: int, who: tuple[int, ...]) -> tuple[float, Tensor]:
        """The share of its own that each clip keeps, and whose it takes the rest from."""
        if not self.mixup or not self.training:
            return 1.0, torch.arange(clips)
        rng = numpy_generator(*who, "mixup")
        return float(rng.beta(self.mixup, self.mixup)), torch.from_numpy(rng.permutation(clips))

    def _dropped(self, features: Tensor, who: tuple[int, ...]) -> Tensor:
        if not self.dropout or not self.training:
            return features
        generator = torch_generator(*who, "dropout")
        kept = torch.rand(features.shape, generator=generator) >= self.dropout
        return features * kept.to(features) / (1 - self.dropout)


def layer_decayed_groups(
    method: nn.Module, *, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Parameter groups whose learning rate shrinks by `layer_decay` a block, from the head down.

    Clark et al., "ELECTRA", ICLR 2020; Bao et al., "BEiT", ICLR 2022. What comes before the first
    block is one more layer, what comes after the last learns as the head does. Biases and norms do
    not decay.
    """
    depths = _depths([name for name, _ in method.named_parameters()])
    last = max(depths.values())
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in method.named_parameters():
        decays = parameter.ndim > 1
        groups.setdefault((depths[name], decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr_scale": layer_decay ** (last - depth),
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (depth, decays), parameters in groups.items()
    ]


def _depths(names: list[str]) -> dict[str, int]:
    """How deep each parameter lies: 0 before the first block, then a number a block."""
    blocks = list(dict.fromkeys(m[1] for m in map(_BLOCK.match, names) if m))
    place = {block: depth for depth, block in enumerate(blocks, start=1)}
    seen, depths = False, {}
    for name in names:
        match = _BLOCK.match(name)
        seen = seen or match is not None
        outside = len(blocks) + 1 if seen and _comes_last(name) else 0
        depths[name] = place[match[1]] if match else outside
    return depths


def _comes_last(name: str) -> bool:
    return name.startswith("head.") or ".norm." in name or ".fc_norm." in name


# ----------------------------------------------------------------------
# ALF: a linear head on a frozen encoder learns from clips that are perturbed against both.
#
# With SLF (the linear probe) and AFF (TRADES on all weights) the protocols of adversarial
# pretraining: Jiang et al., NeurIPS 2020; Fan et al., NeurIPS 2021.


class AdversarialLinear(AdversarialTraining):
    """Adversarial training of the head alone; the encoder stays in eval mode."""

    def __init__(self, encoder: nn.Module, **options: Any) -> None:
        super().__init__(encoder.requires_grad_(False), **options)

    def train(self, mode: bool = True) -> "AdversarialLinear":
        """The encoder keeps out of it."""
        super().train(mode)
        self.encoder.eval()
        return self
