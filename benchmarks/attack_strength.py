"""How much of an attack's strength inside a training step each saving keeps, on a trained model.

    python benchmarks/attack_strength.py RUN... [--eps 1] [--batches 6] [--json FILE]

RUN is the folder of a finished training by ACL or DynACL. Strength: by how much the attack raises
the loss of perturbed views of its training clips, augmented as in training, as a share of what ten
whole steps do. Cost: a step as a multiple of SimCLR's by the count of passes (docs/adversarial.md);
benchmarks/adversarial.py measures it.
"""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from common import Report, arguments
from fvcore.common.config import CfgNode

from vidcsl.config import overridden, parse_config
from vidcsl.data.lists import VideoList
from vidcsl.distributed import DistributedContext
from vidcsl.methods import ClipBatch, Method
from vidcsl.pipelines.data import build_augmentation, build_lists, build_train_loader
from vidcsl.pipelines.method import build_attack, build_method
from vidcsl.pipelines.training import build_strategy
from vidcsl.run_folder import RunFolder
from vidcsl.state import load_weights
from vidcsl.training.checkpoint import load_newest
from vidcsl.training.train import augmented

WHOLE = "10 steps"
VARIANTS: dict[str, tuple[int, int, float]] = {  # steps, every so many frames, share of the side
    WHOLE: (10, 1, 1.0),
    "5 steps": (5, 1, 1.0),
    "3 steps": (3, 1, 1.0),
    "2 steps": (2, 1, 1.0),
    "1 step": (1, 1, 1.0),
    "5 steps, every 2nd frame": (5, 2, 1.0),
    "3 steps, every 2nd frame": (3, 2, 1.0),
    "5 steps, 3/4 of the side": (5, 1, 0.75),
    "5 steps, half of the side": (5, 1, 0.5),
}


def main() -> None:
    """A table for each run."""
    parser = arguments(__doc__ or "")
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--eps", type=float, help="in 1/255; by default what was trained with")
    parser.add_argument("--batches", type=int, default=6)
    args = parser.parse_args()
    report = Report("attack_strength", ["torchvision"])
    for run in args.runs:
        _table(report, run, args)
    report.finish(args.json)


def _table(report: Report, run: Path, args: Any) -> None:
    distributed = DistributedContext(
        rank=0, size=1, device=torch.device("cuda" if torch.cuda.is_available() else "cpu")
    )
    checkpoint = load_newest(RunFolder(run).checkpoints)
    assert checkpoint is not None, f"no checkpoint in {run}"
    cfg = parse_config(checkpoint["config"], where=str(run))
    if args.eps:
        cfg = overridden(cfg, {"ADVERSARIAL.EPS": args.eps})
    train, _ = build_lists(cfg, distributed)
    method = build_method(cfg, train, distributed).train()
    build_strategy(cfg).prepare(method, distributed)
    batches = _batches(cfg, train, distributed, count=args.batches)

    def loss(attack: Callable[..., Any]) -> float:
        method.attack = attack  # type: ignore[assignment]
        return _adversarial_loss(method, checkpoint["method"], batches)

    still = loss(lambda _network, clips, _loss, **_: clips)
    gains = {name: loss(build_attack(_with(cfg, *each))) - still for name, each in VARIANTS.items()}
    for name, (steps, every, scale) in VARIANTS.items():
        report.row(
            run=run,
            eps=cfg.ADVERSARIAL.EPS,
            attack=name,
            of_simclr=(6 + 2 * steps * scale**2 / every) / 3,
            raises_loss_by=gains[name],
            strength=gains[name] / gains[WHOLE],
        )


def _with(cfg: CfgNode, steps: int, every: int, scale: float) -> CfgNode:
    values = {"STEPS": steps, "EVERY": every, "SCALE": scale, "COARSE_UNTIL": 1.0, "REPLAYS": 1}
    return overridden(cfg, {f"ADVERSARIAL.{key}": value for key, value in values.items()})


def _batches(
    cfg: CfgNode, train: VideoList, distributed: DistributedContext, *, count: int
) -> list[ClipBatch]:
    """The first ones of an epoch near the end of the training."""
    loader = build_train_loader(cfg, train, distributed)
    augment = build_augmentation(cfg)
    batches = islice(loader.epoch(cfg.TRAIN.EPOCHS - 1), count)
    return [augmented(batch, augment, seed=cfg.SEED, progress=0.99) for batch in batches]


def _adversarial_loss(method: Method, weights: dict[str, Any], batches: list[ClipBatch]) -> float:
    """The mean over the batches, each met by the weights as they were trained."""
    losses = []
    for batch in batches:
        load_weights(method, weights, source="the run")
        with torch.no_grad():
            losses.append(float(method(batch)["adversarial_loss"]))  # type: ignore[arg-type]
    return sum(losses) / len(losses)


if __name__ == "__main__":
    main()
