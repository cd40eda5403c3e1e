"""The main job from end to end, or its evaluations alone."""

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
from vidcsl.stages.evaluate import evaluate
from vidcsl.stages.opening import fitted_weights, load_kept, make_job, newest_of, open_job, tell
from vidcsl.stages.pretrain import pretrain
from vidcsl.stages.removed_pairs import keep_removed_pairs

# What decides the weights: a run can only be continued with these as they were ...
TRAINING = (
    *("SEED", "PRECISION", "DATA", "SYNTHETIC", "AUGMENT", "MODEL", "METHOD"),
    *("ADVERSARIAL", "FALSE_NEGATIVES", "TRAIN"),
)
# ... but for these, which change nothing that is learned.
FREE = {
    *("DATA.ROOT", "DATA.TEST_LIST", "DATA.WORKERS", "DATA.CACHE", "DATA.DAMAGED_LIMIT"),
    *("DATA.ALLOW_DAMAGED_TEST", "DATA.TIMEOUT", "TRAIN.ENABLED", "TRAIN.KEEP"),
    *("TRAIN.KEEP_EVERY", "TRAIN.CHECKPOINT_BACKGROUND"),
    *("TRAIN.CHECKPOINT_EVERY", "TRAIN.CHECKPOINT_STEPS", "TRAIN.LOG_EVERY"),
    "FALSE_NEGATIVES.EXAMPLES",
}


def train_and_evaluate(cfg: CfgNode, world: World, *, resume: bool = False) -> RunFolder:
    """Pretrain, then run the evaluations that the config enables, then write the report."""
    builders.check(cfg)
    folder = RunFolder(builders.output_dir(cfg))
    checkpoint = _open_folder(cfg, folder, world, resume=resume)
    train, test = builders.build_lists(cfg, world)
    method = builders.build_method(cfg, train, world)
    if checkpoint is None:
        _load_start(cfg, method, world, folder)
    if cfg.TRAIN.ENABLED:
        method = pretrain(cfg, method, train, world, folder, checkpoint)
        keep_removed_pairs(cfg, method, train, world, folder)
    elif checkpoint:
        tell(load_kept(method, checkpoint["method"], source=newest_of(folder)), folder, world)
    elif not (cfg.TRAIN.WEIGHTS or cfg.MODEL.WEIGHTS):
        raise UserError(
            "TRAIN.ENABLED is false and there is no checkpoint: give TRAIN.WEIGHTS or MODEL.WEIGHTS"
        )
    evaluate(make_job(cfg, method, train, world, folder), test)
    return folder


def evaluate_model(
    cfg: CfgNode, world: World, *, checkpoint: Path | None = None, foreign: bool = False
) -> RunFolder:
    """Evaluate a trained model without further training; which one: see `open_job`."""
    job, test = open_job(cfg, world, checkpoint=checkpoint, foreign=foreign)
    if world.is_main:
        job.folder.write_config(dump_config(cfg))
        job.folder.write_environment()
    world.barrier()
    evaluate(job, test)
    return job.folder


def refuse_overwriting(folder: RunFolder) -> None:
    """Raise a UserError where the folder holds a run with a checkpoint."""
    if list_checkpoints(folder.checkpoints):
        raise UserError(
            f"{folder.path} already holds a run: continue it with --resume, or choose another "
            "OUTPUT_DIR"
        )


def headline(folder: RunFolder) -> str:
    """Where everything was written, and the main numbers, a line each."""
    results = folder.read_results()
    clean, data = results.get("clean", {}), results.get("data", {})
    lines = [f"results in {folder.path}"]
    if "linear_top1" in clean:
        lines.append(
            f"  linear probe  {clean['linear_top1']:.1%} of videos (chance {data['chance']:.1%})"
        )
    if "own_head_top1" in clean:
        lines.append(f"  own head      {clean['own_head_top1']:.1%} of videos")
    if "knn_top1" in clean:
        lines.append(f"  kNN           {clean['knn_top1']:.1%}")
    if "retrieval" in clean:
        lines.append(f"  retrieval     R@1 {clean['retrieval']['R@1']:.1%}")
    for name, curve in results.get("attacks", {}).items():
        points = ", ".join(f"{eps}: {accuracy:.1%}" for eps, accuracy in curve.items())
        lines.append(f"  {name}  {points}")
        failed = [check for check in _checks(results, name) if not check["passed"]]
        lines += [f"    warning: not so: {each['name']} ({each['seen']})" for each in failed]
    scores = results.get("corruptions", {}).get("scores", {})
    if scores.get("mPC") is not None:
        lines.append(f"  corruptions   mean accuracy {scores['mPC']:.1%}")
    removed = results.get("false_negatives", {})
    if "precision" in removed:
        lines.append(
            f"  removed pairs {removed['removed']:.1%} of all, precision {removed['precision']:.1%}"
        )
    files = (folder.results, folder.report, folder.checkpoints, folder.log)
    lines += [f"  {path}" for path in files if path.exists()]
    return "\n".join(lines)


def _load_start(cfg: CfgNode, method: Method, world: World, folder: RunFolder) -> None:
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


def _checks(results: dict[str, Any], attack: str) -> list[dict[str, Any]]:
    found: dict[str, Any] = results.get("attack_checks", {}).get(attack, {})
    return list(found.get("checks", []))


def _open_folder(
    cfg: CfgNode, folder: RunFolder, world: World, *, resume: bool
) -> dict[str, Any] | None:
    """The newest checkpoint where the run is continued; a fresh folder otherwise."""
    if not resume:
        refuse_overwriting(folder)
    checkpoint = load_newest(folder.checkpoints)
    if checkpoint and cfg.TRAIN.ENABLED:
        _check_unchanged(cfg, checkpoint["config"], folder)
    world.barrier()  # no process may look before, and another after, the files are made
    if world.is_main:
        folder.create()
        folder.write_config(dump_config(cfg))
        folder.write_environment()
    world.barrier()
    return checkpoint


def _check_unchanged(cfg: CfgNode, trained: str, folder: RunFolder) -> None:
    # The checkpoint's own config: an evaluation since then may have written another to the folder.
    before = parse_config(trained, where=f"the config in {newest_of(folder)}")
    changed = [key for key in differing_keys(cfg, before, sections=TRAINING) if key not in FREE]
    if changed:
        raise UserError(
            f"cannot continue {folder.path}: {', '.join(changed)} changed since it was started; "
            "set back or choose another OUTPUT_DIR"
        )
