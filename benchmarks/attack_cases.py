"""What benchmarks attack: an encoder with its linear probe on clips, a small image classifier."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from vidcsl.config import load_config
from vidcsl.distributed import DistributedContext
from vidcsl.models.encoder import Classifier
from vidcsl.options import OPTIONS
from vidcsl.pipelines.context import EvaluationContext
from vidcsl.pipelines.data import build_lists
from vidcsl.pipelines.method import build_method
from vidcsl.run_folder import RunFolder
from vidcsl.state import load_weights, weights_digest
from vidcsl.training.checkpoint import load_newest


@dataclass(frozen=True)
class Case:
    """A trained classifier and the clips (or images) of its test list."""

    name: str
    model: nn.Module
    clips: Tensor
    labels: Tensor

    @torch.no_grad()
    def right(self) -> Tensor:
        """Which clips are right when clean, bool `[N]`."""
        return self.model(self.clips).argmax(1) == self.labels

    def take(self, most: int) -> "Case":
        """At most so many of the clips that are right when clean, evenly chosen."""
        right = self.right().nonzero()[:, 0]
        chosen = right[torch.linspace(0, len(right) - 1, min(most, len(right))).round().long()]
        return Case(self.name, self.model, self.clips[chosen], self.labels[chosen])


def load_case(path: Path, keep: Path, device: torch.device) -> Case:
    """Encoder of a run's newest checkpoint, its linear probe, its central test clips.

    Features, probe and clips are kept in a folder of their own: the run's is only read.
    """
    folder = RunFolder(keep / path.parent.name / path.name)
    folder.create()
    distributed = DistributedContext(rank=0, size=1, device=device)
    cfg = _config(path, folder.path)
    train, test = build_lists(cfg, distributed)
    method = build_method(cfg, train, distributed).eval()
    load_weights(method, load_newest(path / "checkpoints")["method"], source=str(path))
    stored = folder.path / f"case_{weights_digest(method.encoder)}.pt"
    if not stored.exists():
        context = EvaluationContext(cfg, method, train, distributed, folder)
        probe = context.linear_probe(
            context.features(train, clips=cfg.EVALUATE.TRAIN_VIEWS, crops=1)
        )
        batches = list(context.clips(test, range(len(test))))
        parts = ([batch.clips for batch in batches], [batch.labels for batch in batches])
        torch.save([*(torch.cat(part).cpu() for part in parts), probe.weight, probe.bias], stored)
    clips, labels, weight, bias = torch.load(stored, weights_only=True)
    head = nn.Linear(weight.shape[1], weight.shape[0])
    head.load_state_dict({"weight": weight, "bias": bias})
    model = Classifier(method.encoder, head).to(device).eval()
    return Case(path.parent.name, model, clips.to(device), labels.to(device))


def _config(path: Path, scratch: Path) -> Any:
    """The run's config, without options that this version no longer has."""
    document = yaml.safe_load((path / "config.yaml").read_text())
    known: dict[str, Any] = {}
    for section, values in document.items():
        pairs = values.items() if isinstance(values, dict) else [("", values)]
        for key, value in pairs:
            name = f"{section}.{key}".rstrip(".")
            if name in OPTIONS:
                known[name] = value
    (scratch / "config.yaml").write_text(yaml.safe_dump(known))
    return load_config(scratch / "config.yaml", ["OUTPUT_DIR", str(scratch / "run")])


class FrameNet(nn.Module):
    """A small image classifier, with its normalisation inside."""

    def __init__(self, classes: int, width: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
            layers += [nn.Conv2d(before, after, 3, padding=1, stride=2), nn.BatchNorm2d(after)]
            layers += [nn.ReLU(), nn.Conv2d(after, after, 3, padding=1), nn.ReLU()]
        self.body, self.head = nn.Sequential(*layers), nn.Linear(4 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, classes] of images [N, 3, H, W] in [0, 1]."""
        return self.head(self.body((images - 0.45) / 0.25).mean(dim=(2, 3)))


def image_case(case: Case, epochs: int = 12) -> Case:
    """A FrameNet trained on frames of half of the clips; middle frames of the other half."""
    order = torch.randperm(len(case.clips), generator=torch.Generator().manual_seed(0))
    half = len(order) // 2
    frames = case.clips[order[:half]].transpose(1, 2).flatten(0, 1)
    labels = case.labels[order[:half]].repeat_interleave(case.clips.shape[2])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FrameNet(int(case.labels.max()) + 1).to(frames.device)
        optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
        for _ in range(epochs):
            for rows in torch.randperm(len(frames)).split(64):
                loss = nn.functional.cross_entropy(model(frames[rows]), labels[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    held = order[half:]
    middle = case.clips[held, :, case.clips.shape[2] // 2]
    return Case("images", model.eval(), middle.contiguous(), case.labels[held])
