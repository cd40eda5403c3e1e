"""The main job from end to end, or its evaluations alone."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from vidcsl import builders
from vidcsl.config import dump_config
from vidcsl.data.lists import VideoList
from vidcsl.engine.distributed import World
from vidcsl.engine.run_folder import RunFolder
from vidcsl.errors import UserError
from vidcsl.objectives import Method
from vidcsl.stages.evaluate import evaluate
from vidcsl.stages.opening import (
    judged_alone,
    load_kept,
    make_job,
    newest_of,
    open_job,
    require_labelled,
    required,
    tell,
)
from vidcsl.stages.removed_pairs import keep_removed_pairs
from vidcsl.stages.rounds import pretrain_in_rounds
from vidcsl.stages.starting import load_start, open_folder


def train_and_evaluate(cfg: CfgNode, world: World, *, resume: bool = False) -> RunFolder:
    """Pretrain, then run the evaluations that the config enables, then write the report."""
    builders.check(cfg)
    folder = RunFolder(builders.output_dir(cfg))
    with folder.held() if world.is_main else nullcontext():
        _train_and_evaluate(cfg, folder, world, resume=resume)
    return folder


def _train_and_evaluate(cfg: CfgNode, folder: RunFolder, world: World, *, resume: bool) -> None:
    checkpoint = open_folder(cfg, folder, world, resume=resume)
    train, test = builders.build_lists(cfg, world)
    if test is not None:
        require_labelled(test)
        builders.check_classes(cfg, len(train.classes))
    if cfg.TRAIN.ENABLED:
        method = pretrain_in_rounds(cfg, train, world, folder, checkpoint)
        keep_removed_pairs(cfg, method, train, world, folder)
    else:
        method = _untrained(cfg, train, world, folder, checkpoint)
    evaluate(make_job(cfg, method, train, world, folder), test)


def _untrained(
    cfg: CfgNode,
    train: VideoList,
    world: World,
    folder: RunFolder,
    checkpoint: dict[str, Any] | None,
) -> Method:
    method = builders.build_method(cfg, train, world)
    if checkpoint:
        tell(load_kept(method, checkpoint["method"], source=newest_of(folder)), folder, world)
    elif cfg.TRAIN.WEIGHTS or cfg.MODEL.WEIGHTS:
        load_start(cfg, method, world, folder)
    else:
        raise UserError(
            "TRAIN.ENABLED is false and there is no checkpoint: give TRAIN.WEIGHTS or MODEL.WEIGHTS"
        )
    return method


def evaluate_model(
    cfg: CfgNode, world: World, *, checkpoint: Path | None = None, foreign: bool = False
) -> RunFolder:
    """Evaluate a trained model without further training; which one: see `open_job`."""
    job, test = open_job(cfg, world, checkpoint=checkpoint, foreign=foreign)
    if test is not None or not cfg.EVALUATE.TRANSFER:
        required(test)
    if world.is_main:
        job.folder.write_config(dump_config(judged_alone(cfg, job.folder, checkpoint)))
        job.folder.write_environment(world.device)
    world.barrier()
    evaluate(job, test)
    return job.folder


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
    flagged = results.get("false_negatives", {})
    if "precision" in flagged:
        lines.append(
            f"  flagged pairs {flagged['removed']:.1%} of all, precision {flagged['precision']:.1%}"
        )
    files = (folder.results, folder.report, folder.checkpoints, folder.log)
    lines += [f"  {path}" for path in files if path.exists()]
    return "\n".join(lines)


def _checks(results: dict[str, Any], attack: str) -> list[dict[str, Any]]:
    found: dict[str, Any] = results.get("attack_checks", {}).get(attack, {})
    return list(found.get("checks", []))
