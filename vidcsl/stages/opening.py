"""The model that is judged: a checkpoint of ours, or foreign weights, ready as a job."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode
from torch import Tensor

from vidcsl import builders
from vidcsl.config import overridden
from vidcsl.data.lists import VideoList
from vidcsl.engine.checkpoint import list_checkpoints, load_checkpoint, load_newest
from vidcsl.engine.distributed import World
from vidcsl.engine.progress import Log
from vidcsl.engine.run_folder import RunFolder
from vidcsl.engine.weights import load_parts
from vidcsl.errors import UserError
from vidcsl.models.dual_norm import use_norms
from vidcsl.models.encoder import Encoder
from vidcsl.models.pretrained.fit import fitted
from vidcsl.models.pretrained.layout import State
from vidcsl.objectives import Method
from vidcsl.stages.job import Job


def open_job(
    cfg: CfgNode, world: World, *, checkpoint: Path | None = None, foreign: bool = False
) -> tuple[Job, VideoList | None]:
    """The job of a trained model, and the test videos, if there is a list of them.

    Args:
        cfg: the config.
        world: the processes.
        checkpoint: its weights; where none is named the newest of the run, in a folder without any
            those that it was judged with before (TRAIN.WEIGHTS of a config that trains nothing),
            and else MODEL.WEIGHTS.
        foreign: MODEL.WEIGHTS in any case.

    Raises:
        UserError: there are no weights, or they do not fit.
    """
    builders.check(cfg)
    folder = RunFolder(builders.output_dir(cfg))
    document, source = (None, "") if foreign else _document(cfg, folder, checkpoint)
    if document is None and not cfg.MODEL.WEIGHTS:
        raise UserError(
            f"no checkpoint in {folder.checkpoints}: train first, or give --checkpoint or --weights"
        )
    train, test = builders.build_lists(cfg, world)
    if world.is_main:
        folder.create()
    world.barrier()
    if document is None:
        method = Method(builders.build_encoder(cfg).to(world.device))
        notes = builders.load_weights_of(cfg, method.encoder)  # type: ignore[arg-type]
    else:
        method = builders.build_method(cfg, train, world)
        notes = load_kept(method, document["method"], source=source)
    tell(notes, folder, world)
    return make_job(cfg, method, train, world, folder), test


def make_job(
    cfg: CfgNode, method: Method, train: VideoList, world: World, folder: RunFolder
) -> Job:
    """The job of a loaded model: in eval mode, with the BatchNorms that EVALUATE.NORMS names."""
    use_norms(method.encoder, cfg.EVALUATE.NORMS)
    return Job(cfg, method.eval(), train, world, folder)


def required(test: VideoList | None) -> VideoList:
    """The test videos, labelled, of a job that is nothing without them."""
    if test is None:
        raise UserError("DATA.TEST_LIST is not set: there are no clips to judge")
    require_labelled(test)
    return test


def require_labelled(test: VideoList) -> None:
    """Raise a UserError where a video that is to be judged has no label."""
    advice = ": fill their class, or leave DATA.TEST_LIST empty to pretrain alone"
    builders.require_labels(test, "evaluation", advice=advice)


def tell(notes: Sequence[str], folder: RunFolder, world: World) -> None:
    """Say, and log, what was changed of weights so that they fit."""
    if world.is_main and notes:
        log = Log(folder.log)
        for note in notes:
            print(f"vidcsl: {note}", file=sys.stderr)
            log.write("note", text=note)
        log.close()


def newest_of(folder: RunFolder) -> str:
    """Where a run's newest weights come from, in words."""
    return f"the newest of {folder.checkpoints}"


def judged_alone(cfg: CfgNode, folder: RunFolder, checkpoint: Path | None) -> CfgNode:
    """The config that names the checkpoint, where the folder holds none of its own."""
    if checkpoint is None or list_checkpoints(folder.checkpoints):
        return cfg
    weights = str(checkpoint.resolve())
    return overridden(cfg, {"TRAIN.ENABLED": False, "TRAIN.WEIGHTS": weights})


def _document(
    cfg: CfgNode, folder: RunFolder, checkpoint: Path | None
) -> tuple[dict[str, Any] | None, str]:
    if checkpoint:
        return load_checkpoint(checkpoint), str(checkpoint)
    newest = load_newest(folder.checkpoints)
    if newest is None and cfg.TRAIN.WEIGHTS and not cfg.TRAIN.ENABLED:
        return load_checkpoint(Path(cfg.TRAIN.WEIGHTS)), cfg.TRAIN.WEIGHTS
    return newest, newest_of(folder)


def fitted_weights(method: Method, weights: Mapping[str, Tensor]) -> tuple[State, list[str]]:
    """A method's weights for clips of another length or size; sentences on what was changed.

    Args:
        method: for whose encoders the weights are made to fit, a momentum encoder too.
        weights: of a method, by our names.
    """
    found, notes = dict(weights), []
    for name, module in method.named_modules():
        if not isinstance(module, Encoder):
            continue
        start = f"{name}.backbone."
        own = {k.removeprefix(start): w for k, w in found.items() if k.startswith(start)}
        changed, said = fitted(own, module.backbone)
        found = {key: weight for key, weight in found.items() if not key.startswith(start)}
        found |= {f"{start}{key}": weight for key, weight in changed.items()}
        notes += said
    return found, list(dict.fromkeys(notes))


def load_kept(method: Method, weights: Mapping[str, Tensor], *, source: str) -> list[str]:
    """Load what evaluation needs of a method's weights; sentences on what was changed to fit.

    Raises:
        UserError: they are of another architecture; `source` says whose.
    """
    found, notes = fitted_weights(method, weights)
    load_parts(method, found, parts=method.kept, source=source)
    return [f"{source}: {note}" for note in notes]
