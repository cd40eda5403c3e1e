"""`vidcsl replay`: a step whose loss diverged, again and watched."""

from pathlib import Path

from vidcsl.config import overridden, parse_config
from vidcsl.distributed import DistributedContext
from vidcsl.errors import UserError
from vidcsl.pipelines.data import build_lists
from vidcsl.pipelines.list_checks import refuse_changed_list
from vidcsl.pipelines.method import build_method
from vidcsl.pipelines.teachers import build_teacher
from vidcsl.pipelines.train import build_trainer, load_initial_weights
from vidcsl.run_folder import RunFolder
from vidcsl.training.checkpoint import load_checkpoint, read_step
from vidcsl.training.replay import in_words, replay


def replay_step(
    path: Path, distributed: DistributedContext, *, step: int | None = None, device: str = "auto"
) -> list[str]:
    """Repeat a kept step; what was found, line by line.

    The run's folder is read, not written to. One process takes the place of all that trained, so
    that sums may be rounded in another way.

    Args:
        path: of the kept step, `replay/stepNNNNNN.json` in a run's folder.
        distributed: of this process alone.
        step: another step after the same checkpoint, counted from 0.
        device: see DEVICE.

    Raises:
        UserError: the file, its checkpoint or the videos of the run are missing or changed.
    """
    kept = read_step(path)
    cfg = parse_config(kept.config, where=f"the config in {path}")
    # Hooks see no module inside a compiled one, nor a weight that is spread over processes.
    plain = {"DEVICE": device, "TRAIN.COMPILE": "none", "TRAIN.PARALLEL": "ddp"}
    cfg = overridden(cfg, {**plain, "LOG.HANG_SECONDS": 0.0})
    folder = RunFolder(path.resolve().parent.parent)
    train, _ = build_lists(cfg, distributed)
    checkpoint = load_checkpoint(kept.checkpoint) if kept.checkpoint else None
    if checkpoint is None and (cfg.FALSE_NEGATIVES.TUTOR or folder.path.parent.name == "rounds"):
        raise UserError(f"{path}: the run had no checkpoint yet, and began from a memory bank")
    method = build_method(cfg, train, distributed)
    if cfg.FALSE_NEGATIVES.DETECTOR == "teacher":
        teacher = build_teacher(cfg, train, distributed, folder)
        method.detector.attach(teacher)  # type: ignore[operator, union-attr]
    trainer = build_trainer(cfg, method, train, distributed, folder)
    if checkpoint is None:
        load_initial_weights(cfg, method, train, distributed, folder)
    else:
        refuse_changed_list(checkpoint, train, folder)
        trainer.restore(checkpoint)
    found = replay(trainer, step=kept.step if step is None else step)
    names = [str(train.videos[k].path) for k in found.videos]
    return [f"then: {kept.reason}", *in_words(found, names=names)]
