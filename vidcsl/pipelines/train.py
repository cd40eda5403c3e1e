"""`vidcsl train` from a config to the report, and `vidcsl evaluate` on a trained model."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from vidcsl.config import differing_keys, dump_config, parse_config
from vidcsl.data.lists import VideoList
from vidcsl.distributed import DistributedContext
from vidcsl.errors import UserError
from vidcsl.evaluation.features import extract_features
from vidcsl.evaluation.progress import score_features, worded
from vidcsl.evaluation.statistics import blind_precision
from vidcsl.io import log_message
from vidcsl.methods import METHODS, Method
from vidcsl.models.batchnorm import keep_batchnorm_in_use, use_batchnorm
from vidcsl.pipelines.context import (
    chosen_checkpoint,
    evaluation_context,
    fitted_weights,
    load_context,
    load_for_evaluation,
    log_notes,
    newest_checkpoint,
    require_test_labels,
    require_test_videos,
    subset,
    with_checkpoint,
)
from vidcsl.pipelines.data import (
    build_augmentation,
    build_corruptions,
    build_crop,
    build_lists,
    build_test_loader,
    build_train_loader,
)
from vidcsl.pipelines.evaluate import evaluate
from vidcsl.pipelines.evaluations import evaluation_folder
from vidcsl.pipelines.flagged_pairs import keep_flagged_pairs
from vidcsl.pipelines.list_checks import (
    check_carried,
    in_order_of,
    record_lists,
    refuse_changed_list,
    refuse_memory_of_another_list,
    refuse_unreadable_test,
)
from vidcsl.pipelines.method import build_method, earlier_rounds
from vidcsl.pipelines.model import load_weights_of
from vidcsl.pipelines.targets import check_classes
from vidcsl.pipelines.teachers import build_teacher, load_memory_bank
from vidcsl.pipelines.training import (
    build_learner,
    build_pretraining_optimiser,
    build_schedule,
    build_strategy,
    build_trackers,
    check,
    output_dir,
)
from vidcsl.report.summary import clean_under_attack, corruptions_run, nothing_learned
from vidcsl.run_folder import RunFolder
from vidcsl.state import full_tensor, load_weights
from vidcsl.training.checkpoint import (
    CheckpointWriter,
    list_checkpoints,
    load_checkpoint,
    load_newest,
)
from vidcsl.training.monitor import Watchdog, peak_memory_mib
from vidcsl.training.optimisation import Guard
from vidcsl.training.train import RunOutput, Trainer, TrainingData


def train_and_evaluate(
    cfg: CfgNode, distributed: DistributedContext, *, resume: bool = False
) -> RunFolder:
    """`vidcsl train`: pretrain, evaluate what the config enables, write the report.

    Raises:
        UserError: the config, the lists or the folder do not allow it; training diverged.
        Interrupted: SIGTERM or SIGINT was received; the state is saved.
    """
    check(cfg)
    folder = RunFolder(output_dir(cfg))
    with folder.lock() if distributed.is_main else nullcontext():
        if not resume:
            refuse_overwriting(folder)

        # Lists of videos. What evaluation would refuse is refused before hours of training.
        train, test = build_lists(cfg, distributed)
        if test is not None:
            require_test_labels(test)
            check_classes(cfg, len(train.classes))
        check_carried(cfg, train, test, training=cfg.TRAIN.ENABLED)
        refuse_unreadable_test(cfg, test, distributed)
        checkpoint = open_folder(cfg, folder, distributed, train)
        source, begins = newest_checkpoint(folder), checkpoint
        if checkpoint is None and cfg.TRAIN.WEIGHTS:
            source, begins = cfg.TRAIN.WEIGHTS, load_checkpoint(Path(cfg.TRAIN.WEIGHTS))
        if begins:
            kind = METHODS[cfg.METHOD.NAME]
            train, test = in_order_of(begins, kind, train, test, source=source)
        record_lists(cfg, train, test, folder, distributed)
        if distributed.is_main:
            log_message(overview(cfg, train, test))

        # The method: trained here, or only loaded.
        if cfg.TRAIN.ENABLED:
            method = pretrain_in_rounds(cfg, train, distributed, folder, checkpoint)
            keep_flagged_pairs(cfg, method, train, distributed, folder)
            load_chosen(cfg, method, folder, distributed)
        else:
            method = build_method(cfg, train, distributed)
            if checkpoint:
                notes = load_for_evaluation(method, checkpoint["method"], source=source)
                log_notes(notes, folder, distributed)
            elif cfg.TRAIN.WEIGHTS or cfg.MODEL.WEIGHTS:
                load_initial_weights(cfg, method, train, distributed, folder)
            else:
                raise UserError(
                    "TRAIN.ENABLED is false and there is no checkpoint: give TRAIN.WEIGHTS or "
                    "MODEL.WEIGHTS"
                )

        # Probes, attacks, corruptions, results.json and report.html.
        evaluate(evaluation_context(cfg, method, train, distributed, folder), test)
    return folder


def evaluate_model(
    cfg: CfgNode,
    distributed: DistributedContext,
    *,
    checkpoint: Path | None = None,
    foreign: bool = False,
) -> RunFolder:
    """`vidcsl evaluate`: evaluate a trained model; which one, see `load_context`.

    Where it writes: see `evaluation_folder`.
    """
    context, test = load_context(cfg, distributed, checkpoint=checkpoint, foreign=foreign)
    if test is not None or not cfg.EVALUATE.TRANSFER:
        require_test_videos(test)
    check_carried(cfg, context.train, test, training=False)
    trained = list_checkpoints(context.folder.checkpoints)
    folder = evaluation_folder(context, test, checkpoint=checkpoint)
    distributed.barrier()  # all processes look before one of them makes files
    if folder.path != context.folder.path and trained and not foreign:
        checkpoint = checkpoint or trained[-1]
    context = replace(context, folder=folder)
    if distributed.is_main:
        folder.create()
        folder.write_config(dump_config(with_checkpoint(cfg, folder, checkpoint)))
        folder.write_environment(distributed.device)
    distributed.barrier()
    record_lists(cfg, context.train, test, context.folder, distributed)
    evaluate(context, test)
    return context.folder


def overview(cfg: CfgNode, train: VideoList, test: VideoList | None) -> str:
    """What lies ahead, in a line: whoever waits for a bar wants to know what comes after it."""
    parts = []
    if cfg.TRAIN.ENABLED:
        if cfg.FALSE_NEGATIVES.DETECTOR == "teacher" and cfg.FALSE_NEGATIVES.TEACHER == "motion":
            parts.append(f"motion of {len(train)} videos")
        rounds = cfg.FALSE_NEGATIVES.ROUNDS
        length = f"{cfg.TRAIN.EPOCHS} epochs of {len(train) // cfg.TRAIN.BATCH} steps"
        parts.append(f"pretraining ({length}{f', {rounds} times' if rounds > 1 else ''})")
    if test is not None:
        parts.append(f"features of {len(train)} and {len(test)} videos, probes")
        parts += ["fine-tuning"] if cfg.FINETUNE.ENABLED else []
        parts += [f"protocol {name}" for name in cfg.ROBUST.PROTOCOLS]
        attacked = len(subset(test, cfg.ATTACK.MAX_CLIPS))
        parts += [f"attack {spec} on {attacked} clips" for spec in cfg.ATTACK.RUNS]
        if names := build_corruptions(cfg):
            clips = len(subset(test, cfg.CORRUPT.MAX_CLIPS))
            parts.append(f"{len(names)} corruption{'s'[: len(names) - 1]} of {clips} clips")
    parts += ["report"] if cfg.REPORT.ENABLED else []
    return "ahead: " + "; ".join(f"{k}. {part}" for k, part in enumerate(parts, start=1))


# ----------------------------------------------------------------------
# Start or resume.

# Options that decide the weights: a run is only resumed with these as they were ...
TRAINING = (
    *("SEED", "PRECISION", "DATA", "SYNTHETIC", "AUGMENT", "MODEL", "METHOD", "LOSS"),
    *("ADVERSARIAL", "FALSE_NEGATIVES", "TRAIN"),
)
# ... except for these among them, which change nothing that is learned.
FREE = {
    *("DATA.ROOT", "DATA.TEST_LIST", "DATA.WORKERS", "DATA.DAMAGED_LIMIT"),
    *("DATA.ALLOW_DAMAGED_TEST", "DATA.TIMEOUT", "TRAIN.ENABLED", "TRAIN.KEEP"),
    *("TRAIN.KEEP_EVERY", "TRAIN.CHECKPOINT_BACKGROUND"),
    *("TRAIN.CHECKPOINT_EVERY", "TRAIN.CHECKPOINT_STEPS", "TRAIN.LOG_EVERY"),
    "FALSE_NEGATIVES.EXAMPLES",
}


def refuse_overwriting(folder: RunFolder) -> None:
    """Raise a UserError if the folder holds a run with a checkpoint."""
    if any(list_checkpoints(each.checkpoints) for each in (folder, folder.round(1))):
        raise UserError(
            f"{folder.path} already holds a run: continue it with --resume, or choose another "
            "OUTPUT_DIR"
        )


def open_folder(
    cfg: CfgNode, folder: RunFolder, distributed: DistributedContext, train: VideoList
) -> dict[str, Any] | None:
    """Create the run's folder, or open it again; the newest checkpoint in it, if there is one.

    Raises:
        UserError: it holds a run with other training options or other training videos.
    """
    checkpoint = load_newest(folder.checkpoints)
    if checkpoint and cfg.TRAIN.ENABLED:
        # The checkpoint's own config: an evaluation may have written another to the folder since.
        before = parse_config(
            checkpoint["config"], where=f"the config in {newest_checkpoint(folder)}"
        )
        changed = [key for key in differing_keys(cfg, before, sections=TRAINING) if key not in FREE]
        if changed:
            # The learning rate falls over all epochs: with more of them, every step had another.
            longer = "TRAIN.EPOCHS" in changed and set(changed) <= {
                *("TRAIN.EPOCHS", "TRAIN.WARMUP_EPOCHS")
            }
            remedy = (
                "train on from its weights, in a new folder, with "
                f"TRAIN.WEIGHTS {list_checkpoints(folder.checkpoints)[-1]} OUTPUT_DIR NEW_FOLDER"
                if longer
                else "restore them or choose another OUTPUT_DIR"
            )
            raise UserError(
                f"cannot continue {folder.path}: {', '.join(changed)} changed since it was "
                f"started; {remedy}"
            )
        refuse_changed_list(checkpoint, train, folder)
    distributed.barrier()  # all processes look before one of them makes files
    if distributed.is_main:
        folder.create()
        folder.write_config(dump_config(cfg))
        folder.write_environment(distributed.device)
    distributed.barrier()
    return checkpoint


def load_initial_weights(
    cfg: CfgNode,
    method: Method,
    train: VideoList,
    distributed: DistributedContext,
    folder: RunFolder,
) -> None:
    """Load TRAIN.WEIGHTS and MODEL.WEIGHTS, if set; log what was changed to make them fit."""
    if cfg.TRAIN.WEIGHTS:
        source = cfg.TRAIN.WEIGHTS
        document = load_checkpoint(Path(source))
        refuse_memory_of_another_list(document, method, train, key="TRAIN.WEIGHTS", source=source)
        weights, notes = fitted_weights(method, document["method"])
        load_weights(method, weights, source=source)
        log_notes([f"{cfg.TRAIN.WEIGHTS}: {note}" for note in notes], folder, distributed)
    if cfg.MODEL.WEIGHTS:
        notes = load_weights_of(cfg, method.encoder)  # type: ignore[arg-type]
        method.encoder_replaced()
        log_notes(notes, folder, distributed)


# ----------------------------------------------------------------------
# Pretraining.

MOST_NAMED = 20  # videos that results name with each note; `prepare scan` names all


def pretrain_in_rounds(
    cfg: CfgNode,
    train: VideoList,
    distributed: DistributedContext,
    folder: RunFolder,
    checkpoint: dict[str, Any] | None,
) -> Method:
    """Iterative training: each round starts anew, and flags pairs by the memory bank of the last.

    With FALSE_NEGATIVES.ROUNDS 1, as by default, this is a single training run.

    Args:
        cfg: the config; every round is a whole training run by it, and earlier ones may use the
            method FALSE_NEGATIVES.ROUNDS_METHOD.
        train: the videos.
        distributed: the processes.
        folder: of the run; earlier rounds lie in its `rounds`.
        checkpoint: the last round's, if that has begun: the earlier ones are complete then.

    Returns:
        The method of the last round.
    """
    count = cfg.FALSE_NEGATIVES.ROUNDS
    earlier = [folder.round(number) for number in range(1, count)]
    bank: tuple[Tensor, Tensor] | None = None  # embeddings [N, P], and visits [N] of each video
    if cfg.FALSE_NEGATIVES.TUTOR and checkpoint is None:
        bank = load_memory_bank(
            cfg, Path(cfg.FALSE_NEGATIVES.TUTOR), train, key="FALSE_NEGATIVES.TUTOR"
        )
    for number, own in enumerate(earlier if checkpoint is None else [], start=1):
        if distributed.is_main:
            log_message(f"round {number} of {count}, in {own.path}")
        before = earlier_rounds(cfg)
        begun = open_folder(before, own, distributed, train)
        detector: Any = _one_round(before, train, distributed, own, begun, bank).detector
        bank = detector.memory, detector.visits
    method = _one_round(cfg, train, distributed, folder, checkpoint, bank)
    if earlier and distributed.is_main:
        cost = folder.read_results().get("cost", {})
        costs = [each.read_results().get("cost", {}).get("seconds", {}) for each in earlier]
        spent = sum(float(seconds.get("pretraining", 0.0)) for seconds in costs)
        seconds = {**cost.get("seconds", {}), "earlier rounds": spent}
        folder.update_results({"cost": {**cost, "seconds": seconds}})
    return method


def _one_round(
    cfg: CfgNode,
    train: VideoList,
    distributed: DistributedContext,
    folder: RunFolder,
    checkpoint: dict[str, Any] | None,
    bank: tuple[Tensor, Tensor] | None,
) -> Method:
    method = build_method(cfg, train, distributed)
    if cfg.FALSE_NEGATIVES.DETECTOR == "teacher":
        teacher = build_teacher(cfg, train, distributed, folder)
        method.detector.attach(teacher)  # type: ignore[operator, union-attr]
    if checkpoint is None:
        load_initial_weights(cfg, method, train, distributed, folder)
        if bank is not None:
            method.detector.learn_from(*bank)  # type: ignore[operator, union-attr]
    return pretrain(cfg, method, train, distributed, folder, checkpoint)


def pretrain(
    cfg: CfgNode,
    method: Method,
    train: VideoList,
    distributed: DistributedContext,
    folder: RunFolder,
    checkpoint: dict[str, Any] | None,
) -> Method:
    """One training run of `method`, from `checkpoint` on if there is one.

    Afterwards the folder holds the checkpoints, the log and the training sections of the results.

    Returns:
        The trained method, built anew. `method` itself may be compiled or sharded by now.
    """
    trainer = build_trainer(cfg, method, train, distributed, folder)
    if cfg.EVALUATE.EVERY:
        trainer.score = build_score(cfg, method, train, distributed)
    if checkpoint:
        trainer.restore(checkpoint)
    # A run that was killed between its last checkpoint and its results still has to write these.
    reported = distributed.broadcast("training" in folder.read_results())
    if trainer.position.epoch < cfg.TRAIN.EPOCHS or not reported:
        summary = trainer.run()
        if distributed.is_main:
            folder.update_results(_training_results(cfg, train, method, trainer, summary))
    # FSDP's shards are gathered on all processes, whether or not this one wrote the checkpoint.
    weights = {name: full_tensor(weight) for name, weight in method.state_dict().items()}
    trained = build_method(cfg, train, distributed)
    load_weights(trained, weights, source="the training run")
    teacher = getattr(getattr(method, "detector", None), "teacher", None)
    if teacher is not None:
        trained.detector.attach(teacher)  # type: ignore[operator, union-attr]
    return trained


def build_trainer(
    cfg: CfgNode,
    method: Method,
    train: VideoList,
    distributed: DistributedContext,
    folder: RunFolder,
) -> Trainer:
    """The trainer of a run at its first step."""
    stacks = folder.hangs / f"rank{distributed.rank}.txt"
    watched = cfg.LOG.HANG_SECONDS > 0
    loader = build_train_loader(cfg, train, distributed, stacks=stacks if watched else None)
    return Trainer(
        learner=build_learner(
            cfg,
            method,
            distributed,
            optimiser=lambda prepared: build_pretraining_optimiser(cfg, prepared),
            strategy=build_strategy(cfg),
        ),
        data=TrainingData(
            batches=loader.epoch,
            augment=build_augmentation(cfg),
            seed=cfg.SEED,
            damaged_limit=int(cfg.DATA.DAMAGED_LIMIT * len(train)),
        ),
        schedule=build_schedule(cfg, steps_per_epoch=loader.steps),
        output=RunOutput(
            folder=folder,
            writer=CheckpointWriter(
                folder.checkpoints,
                distributed,
                keep=cfg.TRAIN.KEEP,
                keep_every=cfg.TRAIN.KEEP_EVERY,
                background=cfg.TRAIN.CHECKPOINT_BACKGROUND,
            ),
            trackers=lambda: build_trackers(cfg, folder),
            document={
                "config": dump_config(cfg),
                "classes": list(train.classes),
                "train_list": train.digest,
            },
        ),
        distributed=distributed,
        guard=Guard(spike=cfg.GUARD.SPIKE, rollbacks=cfg.GUARD.ROLLBACKS, skip=cfg.GUARD.SKIP),
        watchdog=Watchdog(
            cfg.LOG.HANG_SECONDS,
            path=stacks,
            workers=loader.worker_pids,
            ends_run=cfg.LOG.HANG_ENDS,
        ),
    )


SCORED = 512  # training videos that show how far training has come


def build_score(
    cfg: CfgNode, method: Method, train: VideoList, distributed: DistributedContext
) -> Callable[[], tuple[dict[str, float], str]]:
    """What scores the encoder of `method` while it is trained: numbers, and one line of words.

    Two clips of each video, as evaluation crops them; nothing random is drawn.
    """
    chosen = torch.tensor(subset(train, SCORED))
    videos = train.chosen(chosen.tolist())
    counts = np.bincount([video.label for video in videos.videos if video.label >= 0], minlength=1)
    chance = float(counts.max() / max(1, counts.sum()))
    detector = getattr(method, "detector", None)

    def score() -> tuple[dict[str, float], str]:
        loader = build_test_loader(
            cfg, videos, distributed, clips=2, batch=cfg.EVALUATE.BATCH, leave_out=True
        )
        with keep_batchnorm_in_use(method.encoder):
            use_batchnorm(method.encoder, cfg.EVALUATE.NORMS)
            features = extract_features(
                method.encoder,
                loader.epoch(0),
                crop=build_crop(cfg),
                distributed=distributed,
                title="scores",
                total=len(videos),
                shown=False,
            )
        scores = score_features(
            replace(features, indices=chosen[features.indices]),
            classes=len(train.classes),
            seed=cfg.SEED,
            teacher=getattr(detector, "teacher", None),
        )
        return scores, worded(scores, chance=chance)

    return score


def load_chosen(
    cfg: CfgNode, method: Method, folder: RunFolder, distributed: DistributedContext
) -> None:
    """Give a trained method the weights of the checkpoint that EVALUATE.CHECKPOINT names."""
    if cfg.EVALUATE.CHECKPOINT == "last":
        return
    path, score = chosen_checkpoint(cfg, folder)
    notes = load_for_evaluation(method, load_checkpoint(path)["method"], source=str(path))
    log_notes(notes, folder, distributed)
    if distributed.is_main:
        log_message(
            f"evaluating {path.name}, the checkpoint with the highest {cfg.EVALUATE.CHECKPOINT} "
            f"({score:.2f})"
        )
        chosen = {"by": cfg.EVALUATE.CHECKPOINT, "score": score, "checkpoint": path.name}
        folder.update_results({"chosen_checkpoint": chosen})
    distributed.barrier()


def _training_results(
    cfg: CfgNode, train: VideoList, method: Method, trainer: Trainer, summary: dict[str, Any]
) -> dict[str, Any]:
    """The sections of results.json that training writes."""
    by_teacher = cfg.FALSE_NEGATIVES.DETECTOR == "teacher"
    names = ("flagged", "removed", "precision", "recall")  # "removed": older name of "flagged"
    detection: dict[str, Any] = {name: summary[name] for name in names if name in summary}
    chance_loss = method.loss_of_chance(videos=cfg.TRAIN.BATCH, clips=cfg.DATA.CLIPS)
    chance = blind_precision([video.label for video in train.videos])
    if chance is not None and "recall" in detection:
        detection["chance"] = chance
        detection["by_class"] = {
            name: {k: values[label] for k, values in summary["by_class"].items()}
            for label, name in enumerate(train.classes)
        }
    return {
        "name": cfg.NAME,
        "seed": cfg.SEED,
        "method": cfg.METHOD.NAME,
        "training": {
            "epochs": cfg.TRAIN.EPOCHS,
            "rounds": cfg.FALSE_NEGATIVES.ROUNDS,
            "rounds_method": cfg.FALSE_NEGATIVES.ROUNDS_METHOD,
            **({} if chance_loss is None else {"loss_of_chance": chance_loss}),
            "loss": summary.get("loss"),  # None if the guard left out all of the last epoch
            "damaged_videos": sorted(trainer.damaged),
            "readers": sorted(trainer.readers),
            "notes": {
                note: {
                    "videos": len(videos),
                    "first": [str(train.videos[k].path) for k in sorted(videos)[:MOST_NAMED]],
                }
                for note, videos in sorted(trainer.notes.items())
            },
        },
        "false_negatives": {
            "detector": cfg.FALSE_NEGATIVES.DETECTOR,
            "treatment": cfg.FALSE_NEGATIVES.TREATMENT,
            **({"teacher": cfg.FALSE_NEGATIVES.TEACHER} if by_teacher else {}),
            **detection,
        },
        "cost": {
            "seconds": {"pretraining": summary["seconds"]},
            "clips_per_second": summary["clips_per_second"],
            "peak_memory_mib": peak_memory_mib(trainer.distributed.device),
        },
    }


# ----------------------------------------------------------------------
# The summary on the terminal.


def headline(folder: RunFolder) -> str:
    """Where everything was written, and the main numbers, one per line."""
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
        # Of single clips, so that clean accuracy is another than that of whole videos above.
        before = clean_under_attack(results, name)
        start = "" if before is None else f"clean: {before:.1%}, "
        lines.append(f"  {name}  {start}{points}")
        for each in results.get("attack_checks", {}).get(name, {}).get("checks", []):
            if not each["passed"]:
                lines.append(f"    warning: check failed: {each['name']} ({each['seen']})")
    scores = results.get("corruptions", {}).get("scores", {})
    if "mean" in scores:
        accuracy, over = scores["mean"]["accuracy"], corruptions_run(scores)
        unharmed = f"{results['corruptions']['clean']:.1%} when clean"
        lines.append(f"  corruptions   mean accuracy {accuracy:.1%} ({unharmed}), {over}")
    detection = results.get("false_negatives", {})
    if "precision" in detection:
        flagged = detection.get("flagged", detection.get("removed"))
        chance = detection.get("chance")
        blind = "" if chance is None else f" ({chance:.1%} at random)"
        lines.append(
            f"  flagged pairs {flagged:.1%} of all, precision {detection['precision']:.1%}{blind}"
        )
    lines += [f"  warning: {sentence}" for sentence in nothing_learned(results)]
    files = (folder.results, folder.report, folder.checkpoints, folder.log)
    lines += [f"  {path}" for path in files if path.exists()]
    return "\n".join(lines)
