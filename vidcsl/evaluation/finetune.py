"""Methods that train with labels on a pretrained encoder: fine-tuning, and ALF.

SLF (the linear probe), ALF and AFF (TRADES on all weights) are the protocols of adversarial
pretraining: Jiang et al., NeurIPS 2020; Fan et al., NeurIPS 2021.
"""

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vidcsl.methods.adversarial.classifier import AdversarialTraining
from vidcsl.methods.losses import at_least_float32
from vidcsl.methods.method import ClipBatch
from vidcsl.methods.metrics import Metric
from vidcsl.methods.supervised import Supervised
from vidcsl.seeding import numpy_generator, torch_generator

# The blocks of our encoders, by which depth is counted.
_BLOCK = re.compile(r"encoder\.backbone\.(?:image\.)?((?:blocks|layer\d|features)\.\d+)\.")


class FineTuned(Supervised):
    """Supervised training with dropout before the head, and mixup.

    Args:
        encoder, feature_dim, classes, label_smoothing, options: as `Supervised`.
        dropout: ratio of the features that are dropped.
        mixup: both parameters of the Beta distribution by which clips of a batch are mixed (Zhang
            et al., "mixup", ICLR 2018); 0: no mixing.
        seed: seed of the random draws.
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
        """Mean cross-entropy over all views; accuracy if clips are not mixed."""
        clips = batch.clips.flatten(0, 1)
        labels = batch.labels.repeat_interleave(batch.clips.shape[1])
        # Seeded by the run, the position in training and the batch: a resumed run draws the same,
        # and no two processes do.
        key = (self.seed, int(batch.progress * 1e9), *batch.videos[:1].tolist())

        ratio, partners, mixed = 1.0, torch.arange(len(clips)), clips
        if self.mixup and self.training:
            rng = numpy_generator(*key, "mixup")
            ratio = float(rng.beta(self.mixup, self.mixup))
            partners = torch.from_numpy(rng.permutation(len(clips)))
            mixed = ratio * clips + (1 - ratio) * clips[partners]

        features = self.encoder(mixed)
        if self.dropout and self.training:
            generator = torch_generator(*key, "dropout")
            kept = torch.rand(features.shape, generator=generator) >= self.dropout
            features = features * kept.to(features) / (1 - self.dropout)

        logits = at_least_float32(self.head(features))
        smooth = self.label_smoothing
        loss = ratio * F.cross_entropy(logits, labels, label_smoothing=smooth)
        if ratio < 1:
            other = F.cross_entropy(logits, labels[partners], label_smoothing=smooth)
            loss = loss + (1 - ratio) * other
        if self.mixup:
            return {"loss": loss}
        return {"loss": loss, "train_accuracy": (logits.argmax(dim=1) == labels).float().mean()}


def layer_decayed_groups(
    method: nn.Module, *, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Parameter groups whose learning rate shrinks by `layer_decay` per block, from the head down.

    Clark et al., "ELECTRA", ICLR 2020; Bao et al., "BEiT", ICLR 2022. Parameters before the first
    block count as one more layer; the head and the final norm have the full rate. Biases and norms
    have no weight decay.
    """
    names = [name for name, _ in method.named_parameters()]
    blocks = list(dict.fromkeys(match[1] for match in map(_BLOCK.match, names) if match))
    depth_of = {block: depth for depth, block in enumerate(blocks, start=1)}
    last = 0
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    in_blocks = False  # parameters come in the order of the forward pass
    for name, parameter in method.named_parameters():
        match = _BLOCK.match(name)
        in_blocks = in_blocks or match is not None
        is_last = name.startswith("head.") or ".norm." in name or ".fc_norm." in name
        depth = depth_of[match[1]] if match else len(blocks) + 1 if in_blocks and is_last else 0
        last = max(last, depth)
        groups.setdefault((depth, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr_scale": layer_decay ** (last - depth),
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (depth, decays), parameters in groups.items()
    ]


class AdversarialLinear(AdversarialTraining):
    """ALF: adversarial training of a linear head; the encoder is frozen and in eval mode.

    The clips are perturbed against encoder and head together.
    """

    def __init__(self, encoder: nn.Module, **options: Any) -> None:
        super().__init__(encoder.requires_grad_(False), **options)

    def train(self, mode: bool = True) -> "AdversarialLinear":
        """Train mode for the head alone: the encoder's BatchNorm statistics must not change."""
        super().train(mode)
        self.encoder.eval()
        return self
