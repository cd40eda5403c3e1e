"""How a training begins: in a fresh folder or from a checkpoint, from given weights or none."""

from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from vidcsl import builders
from vidcsl.config import differing_keys, dump_config, parse_config
from vidcsl.engine.checkpoint import list_checkpoints, load_checkpoint, load_newest
from vidcsl.engine.distributed import World
from vidcsl.engine.run_folder import RunFolder
from vidcsl.engine.weights import load_weights
from vidcsl.errors import UserError
from vidcsl.objectives import Method
from vidcsl.stages.opening import fitted_weights, newest_of, tell

# What decides the weights: a run can only be continued with these as they were ...
TRAINING = (
    *("SEED", "PRECISION", "DATA", "SYNTHETIC", "AUGMENT", "MODEL", "METHOD", "LOSS"),
    *("ADVERSARIAL", "FALSE_NEGATIVES", "TRAIN"),
)
# ... but for these, which change nothing that is learned.
FREE = {
    *("DATA.ROOT", "DATA.TEST_LIST", "DATA.WORKERS", "DATA.DAMAGED_LIMIT"),
    *("DATA.ALLOW_DAMAGED_TEST", "DATA.TIMEOUT", "TRAIN.ENABLED", "TRAIN.KEEP"),
    *("TRAIN.KEEP_EVERY", "TRAIN.CHECKPOINT_BACKGROUND"),
    *("TRAIN.CHECKPOINT_EVERY", "TRAIN.CHECKPOINT_STEPS", "TRAIN.LOG_EVERY"),
    "FALSE_NEGATIVES.EXAMPLES",
}


def refuse_overwriting(folder: RunFolder) -> None:
    """Raise a UserError where the folder holds a run with a checkpoint."""
    if any(list_checkpoints(each.checkpoints) for each in (folder, folder.round(1))):
        raise UserError(
            f"{folder.path} already holds a run: continue it with --resume, or choose another "
            "OUTPUT_DIR"
        )


def open_folder(
    cfg: CfgNode, folder: RunFolder, world: World, *, resume: bool
) -> dict[str, Any] | None:
    """The newest checkpoint where the run is continued; a fresh folder otherwise.

    Raises:
        UserError: it holds a run that is not to be continued, or one of another training.
    """
    if not resume:
        refuse_overwriting(folder)
    checkpoint = load_newest(folder.checkpoints)
    if checkpoint and cfg.TRAIN.ENABLED:
        _check_unchanged(cfg, checkpoint["config"], folder)
    world.barrier()  # no process may look before, and another after, the files are made
    if world.is_main:
        folder.create()
        folder.write_config(dump_config(cfg))
        folder.write_environment(world.device)
    world.barrier()
    return checkpoint


def load_start(cfg: CfgNode, method: Method, world: World, folder: RunFolder) -> None:
    """The weights that a config starts from, if any; what was changed to fit is said and logged."""
    if cfg.TRAIN.WEIGHTS:
        weights, notes = fitted_weights(method, load_checkpoint(Path(cfg.TRAIN.WEIGHTS))["method"])
        load_weights(method, weights, source=cfg.TRAIN.WEIGHTS)
        tell([f"{cfg.TRAIN.WEIGHTS}: {note}" for note in notes], folder, world)
    if not cfg.MODEL.WEIGHTS:
        return
    notes = builders.load_weights_of(cfg, method.encoder)  # type: ignore[arg-type]
    method.encoder_replaced()
    tell(notes, folder, world)


def _check_unchanged(cfg: CfgNode, trained: str, folder: RunFolder) -> None:
    # The checkpoint's own config: an evaluation since then may have written another to the folder.
    before = parse_config(trained, where=f"the config in {newest_of(folder)}")
    changed = [key for key in differing_keys(cfg, before, sections=TRAINING) if key not in FREE]
    if changed:
        raise UserError(
            f"cannot continue {folder.path}: {', '.join(changed)} changed since it was started; "
            "set back or choose another OUTPUT_DIR"
        )
