"""`vidcsl train` from end to end."""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from vidcsl.config import differing_keys, dump_config, parse_config
from vidcsl.data.lists import VideoList
from vidcsl.data.loader import Batch
from vidcsl.distributed import DistributedContext
from vidcsl.errors import UserError
from vidcsl.io import save_arrays, say
from vidcsl.methods import ContrastiveMethod, Method
from vidcsl.methods.false_negatives import Detector, Observation, Samples, TeacherNeighbours
from vidcsl.pipelines.context import (
    fitted_weights,
    judged_alone,
    load_kept,
    make_context,
    newest_of,
    open_context,
    require_labelled,
    required,
    tell,
)
from vidcsl.pipelines.data import build_augmentation, build_lists, build_train_loader
from vidcsl.pipelines.evaluate import evaluate
from vidcsl.pipelines.method import build_method, earlier_rounds
from vidcsl.pipelines.model import load_weights_of
from vidcsl.pipelines.targets import check_classes
from vidcsl.pipelines.teachers import build_teacher, memory_of
from vidcsl.pipelines.training import (
    build_guard,
    build_optimiser_of,
    build_schedule,
    build_stepper,
    build_strategy,
    build_trackers,
    build_watchdog,
    build_writer,
    check,
    output_dir,
)
from vidcsl.run_folder import RunFolder
from vidcsl.state import joined, load_weights
from vidcsl.training.checkpoint import list_checkpoints, load_checkpoint, load_newest
from vidcsl.training.monitor import peak_memory_mib
from vidcsl.training.train import Trainer, augmented

# ----------------------------------------------------------------------
# How a training begins: in a fresh folder or from a checkpoint, from given weights or none.

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
    cfg: CfgNode, folder: RunFolder, distributed: DistributedContext, *, resume: bool
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
    distributed.barrier()  # no process may look before, and another after, the files are made
    if distributed.is_main:
        folder.create()
        folder.write_config(dump_config(cfg))
        folder.write_environment(distributed.device)
    distributed.barrier()
    return checkpoint


def load_start(
    cfg: CfgNode, method: Method, distributed: DistributedContext, folder: RunFolder
) -> None:
    """The weights that a config starts from, if any; what was changed to fit is said and logged."""
    if cfg.TRAIN.WEIGHTS:
        weights, notes = fitted_weights(method, load_checkpoint(Path(cfg.TRAIN.WEIGHTS))["method"])
        load_weights(method, weights, source=cfg.TRAIN.WEIGHTS)
        tell([f"{cfg.TRAIN.WEIGHTS}: {note}" for note in notes], folder, distributed)
    if not cfg.MODEL.WEIGHTS:
        return
    notes = load_weights_of(cfg, method.encoder)  # type: ignore[arg-type]
    method.encoder_replaced()
    tell(notes, folder, distributed)


def _check_unchanged(cfg: CfgNode, trained: str, folder: RunFolder) -> None:
    # The checkpoint's own config: an evaluation since then may have written another to the folder.
    before = parse_config(trained, where=f"the config in {newest_of(folder)}")
    changed = [key for key in differing_keys(cfg, before, sections=TRAINING) if key not in FREE]
    if changed:
        raise UserError(
            f"cannot continue {folder.path}: {', '.join(changed)} changed since it was started; "
            "set back or choose another OUTPUT_DIR"
        )


# ----------------------------------------------------------------------
# Pretraining, from a config to checkpoints, a log and the first part of the results.

_SHARES = ("removed", "precision", "recall")


def pretrain(
    cfg: CfgNode,
    method: Method,
    train: VideoList,
    distributed: DistributedContext,
    folder: RunFolder,
    checkpoint: dict[str, Any] | None,
) -> Method:
    """Train `method`, from `checkpoint` on where there is one; the trained one, as it was built.

    Afterwards the folder holds the checkpoints, the log and the training part of the results. What
    was given is of no more use: it may be compiled, or cut up over the processes.
    """
    teacher = getattr(getattr(method, "detector", None), "teacher", None)
    stacks = folder.hangs / f"rank{distributed.rank}.txt" if cfg.LOG.HANG_SECONDS else None
    loader = build_train_loader(cfg, train, distributed, stacks=stacks)
    trainer = Trainer(
        stepper=build_stepper(
            cfg,
            method,
            distributed,
            optimiser=lambda made: build_optimiser_of(cfg, made),
            strategy=build_strategy(cfg),
        ),
        batches=loader.epoch,
        augment=build_augmentation(cfg),
        schedule=build_schedule(cfg, steps_per_epoch=loader.steps),
        distributed=distributed,
        folder=folder,
        seed=cfg.SEED,
        damaged_limit=int(cfg.DATA.DAMAGED_LIMIT * len(train)),
        writer=build_writer(cfg, folder.checkpoints, distributed),
        guard=build_guard(cfg),
        trackers=lambda: build_trackers(cfg, folder),
        watchdog=build_watchdog(cfg, stacks, workers=loader.worker_pids),
        document={"config": dump_config(cfg), "classes": list(train.classes)},
    )
    if checkpoint:
        trainer.restore(checkpoint)
    # Also where it is over, but was killed before it could say so.
    if trainer.position.epoch < cfg.TRAIN.EPOCHS or _says_nothing(folder, distributed):
        summary = trainer.run()
        if distributed.is_main:
            folder.update_results(_results(cfg, train, trainer, summary))
    built = _as_built(cfg, method, train, distributed)
    if teacher is not None:
        built.detector.attach(teacher)  # type: ignore[operator, union-attr]
    return built


def _says_nothing(folder: RunFolder, distributed: DistributedContext) -> bool:
    said: bool = distributed.share("training" in folder.read_results())
    return not said


def _as_built(
    cfg: CfgNode, trained: Method, train: VideoList, distributed: DistributedContext
) -> Method:
    weights = {name: joined(weight) for name, weight in trained.state_dict().items()}
    method = build_method(cfg, train, distributed)
    load_weights(method, weights, source="the training")
    return method


def _results(
    cfg: CfgNode, train: VideoList, trainer: Trainer, summary: dict[str, Any]
) -> dict[str, Any]:
    shares: dict[str, Any] = {k: summary[k] for k in _SHARES if k in summary}
    if {v.label for v in train.videos} != {-1} and "recall" in shares:
        labels = np.array([video.label for video in train.videos])
        counts = np.bincount(labels[labels >= 0])
        # What a blind guess would score, to hold the precision against.
        shares["chance"] = float((counts * (counts - 1)).sum() / (len(train) * (len(train) - 1)))
        shares["by_class"] = {
            name: {k: values[label] for k, values in summary["by_class"].items()}
            for label, name in enumerate(train.classes)
        }
    detector = cfg.FALSE_NEGATIVES.DETECTOR
    return {
        "name": cfg.NAME,
        "seed": cfg.SEED,
        "method": cfg.METHOD.NAME,
        "training": {
            "epochs": cfg.TRAIN.EPOCHS,
            "rounds": cfg.FALSE_NEGATIVES.ROUNDS,
            "rounds_method": cfg.FALSE_NEGATIVES.ROUNDS_METHOD,
            "loss": summary.get("loss"),  # none where the guard left out all of the last epoch
            "damaged_videos": sorted(trainer.damaged),
            "readers": sorted(trainer.readers),
        },
        "false_negatives": {
            "detector": detector,
            "treatment": cfg.FALSE_NEGATIVES.TREATMENT,
            **({"teacher": cfg.FALSE_NEGATIVES.TEACHER} if detector == "teacher" else {}),
            **shares,
        },
        "cost": {
            "seconds": {"pretraining": summary["seconds"]},
            "clips_per_second": summary["clips_per_second"],
            "peak_memory_mib": peak_memory_mib(trainer.distributed.device),
        },
    }


# ----------------------------------------------------------------------
# Trainings from the start, one after the other, each judged by what the one before remembers.

_Memory = tuple[Tensor, Tensor]
"""Of each video: a mean embedding, `[N, P]`, and how often it was seen, `[N]`."""


def pretrain_in_rounds(
    cfg: CfgNode,
    train: VideoList,
    distributed: DistributedContext,
    folder: RunFolder,
    checkpoint: dict[str, Any] | None,
) -> Method:
    """The method of the last round, which the run's folder holds; earlier ones lie in its `rounds`.

    Args:
        cfg: the config; each round is a whole training by it, earlier ones maybe by another method.
        train: the videos.
        world: the processes.
        folder: of the run.
        checkpoint: the last round's, where it has begun: earlier ones are over then.
    """
    count = cfg.FALSE_NEGATIVES.ROUNDS
    before, earlier = earlier_rounds(cfg), [folder.round(n) for n in range(1, count)]
    memory, tutor = None, cfg.FALSE_NEGATIVES.TUTOR
    if tutor and checkpoint is None:
        memory = memory_of(cfg, Path(tutor), key="FALSE_NEGATIVES.TUTOR")
    for number, each in enumerate(earlier if checkpoint is None else [], start=1):
        if distributed.is_main:
            say(f"round {number} of {count}, in {each.path}")
        begun = open_folder(before, each, distributed, resume=True)
        detector: Any = _round(before, train, distributed, each, begun, memory).detector
        memory = detector.memory, detector.visits
    method = _round(cfg, train, distributed, folder, checkpoint, memory)
    if earlier and distributed.is_main:
        _count(earlier, folder)
    return method


def _round(
    cfg: CfgNode,
    train: VideoList,
    distributed: DistributedContext,
    folder: RunFolder,
    checkpoint: dict[str, Any] | None,
    memory: _Memory | None,
) -> Method:
    method = build_method(cfg, train, distributed)
    detector = getattr(method, "detector", None)
    if isinstance(detector, TeacherNeighbours):
        detector.attach(build_teacher(cfg, train, distributed, folder))
    if checkpoint is None:
        load_start(cfg, method, distributed, folder)
        if memory is not None:
            method.detector.learn_from(*memory)  # type: ignore[operator, union-attr]
    return pretrain(cfg, method, train, distributed, folder, checkpoint)


def _count(earlier: list[RunFolder], folder: RunFolder) -> None:
    """Add what the earlier rounds took to the costs of the run."""
    seconds = {**_seconds(folder), "earlier rounds": sum(map(_pretraining, earlier))}
    folder.update_results({"cost": {**folder.read_results().get("cost", {}), "seconds": seconds}})


def _pretraining(folder: RunFolder) -> float:
    return float(_seconds(folder).get("pretraining", 0.0))


def _seconds(folder: RunFolder) -> dict[str, float]:
    seconds: dict[str, float] = folder.read_results().get("cost", {}).get("seconds", {})
    return seconds


# ----------------------------------------------------------------------
# Some of the pairs that a detector removes, right and wrong ones, kept for the report.

BATCHES = 4  # looked at; a queue's candidates are the videos of the batches before
FRAMES = 3  # of a clip: its first, middle and last


@dataclass(frozen=True)
class RemovedPair:
    """Two videos by their indices, how alike the detector found them, and whether it was right."""

    anchor: int
    candidate: int
    similarity: float
    right: bool


class RecordingDetector(Detector):
    """Does what another detector does and writes down what it flags; learns nothing."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector
        self.found: list[RemovedPair] = []

    def learn(self, observation: Observation) -> None:
        """The state stays as the training left it."""

    def forward(
        self,
        scores: Tensor,
        negatives: Tensor,
        anchors: Samples,
        candidates: Samples,
        progress: float,
    ) -> Tensor:
        """The other's answer, bool `[b, M]`."""
        flagged: Tensor = self.detector(scores, negatives, anchors, candidates, progress)
        rows, columns = flagged.nonzero(as_tuple=True)
        labels = anchors.labels[rows], candidates.labels[columns]
        judged = (labels[0] >= 0) & (labels[1] >= 0)  # else nobody knows whether it was right
        found = (
            anchors.videos[rows],
            candidates.videos[columns],
            scores[rows, columns],
            labels[0] == labels[1],
        )
        self.found += [
            RemovedPair(*values)
            for values in zip(*(each[judged].tolist() for each in found), strict=True)
        ]
        return flagged


def keep_removed_pairs(
    cfg: CfgNode,
    method: Method,
    train: VideoList,
    distributed: DistributedContext,
    folder: RunFolder,
) -> None:
    """Write `artifacts/pairs.npz`: pairs of a few batches that the trained method removes.

    Nothing is learned from these batches. A queue moves on, but evaluation does not ask it.
    """
    most = cfg.FALSE_NEGATIVES.EXAMPLES if cfg.FALSE_NEGATIVES.DETECTOR != "none" else 0
    if not most or not isinstance(method, ContrastiveMethod):
        return
    path = folder.artifacts / "pairs.npz"
    if distributed.share(path.exists()):
        return
    loader = build_train_loader(cfg, train, distributed)
    found, clips = _removed(cfg, method, loader.epoch(cfg.TRAIN.EPOCHS), distributed)
    shown = choose(found, known=set(clips), most=most)
    if distributed.is_main and shown:
        save_arrays(path, _arrays(shown, clips, train), compressed=True)


def choose(found: Iterable[RemovedPair], *, known: set[int], most: int) -> list[RemovedPair]:
    """The surest right and wrong ones, at most so many of either; a video is shown once."""
    kept: list[RemovedPair] = []
    for right in (True, False):
        of_kind = (p for p in found if p.right is right and {p.anchor, p.candidate} <= known)
        seen: set[int] = set()
        chosen: list[RemovedPair] = []
        for pair in sorted(of_kind, key=lambda p: (-p.similarity, p.anchor, p.candidate)):
            if len(chosen) < most and not seen & {pair.anchor, pair.candidate}:
                chosen.append(pair)
                seen |= {pair.anchor, pair.candidate}
        kept += chosen
    return kept


@torch.no_grad()
def _removed(
    cfg: CfgNode,
    method: ContrastiveMethod,
    batches: Iterable[Batch],
    distributed: DistributedContext,
) -> tuple[list[RemovedPair], dict[int, Tensor]]:
    """The pairs that are removed, and the first view of each video of this process."""
    augment, detector = build_augmentation(cfg), method.detector
    recording = RecordingDetector(detector)
    clips: dict[int, Tensor] = {}
    method.eval()
    method.detector = recording
    try:
        for _, batch in zip(range(BATCHES), batches, strict=False):
            looked_at = augmented(
                batch.to(distributed.device), augment, seed=cfg.SEED, progress=1.0
            )
            stills = _stills(looked_at.clips[:, 0])
            clips.update(zip(batch.indices.tolist(), stills, strict=True))
            method(looked_at)
    finally:
        method.detector = detector
    return recording.found, clips


def _stills(clips: Tensor) -> Tensor:
    """uint8 `[N, K, S, S, 3]` of clips `[N, 3, T, S, S]` in [0, 1]."""
    frames = torch.linspace(0, clips.shape[2] - 1, FRAMES).round().long()
    return (clips[:, :, frames.to(clips.device)] * 255).round().byte().permute(0, 2, 3, 4, 1).cpu()


def _arrays(shown: list[RemovedPair], clips: dict[int, Tensor], train: VideoList) -> dict[str, Any]:
    sides = [[pair.anchor for pair in shown], [pair.candidate for pair in shown]]
    anchors, candidates = (np.stack([clips[video].numpy() for video in side]) for side in sides)
    videos = [[train.videos[video] for video in pair] for pair in zip(*sides, strict=True)]
    return {
        "anchors": anchors,
        "candidates": candidates,
        "similarity": np.array([pair.similarity for pair in shown], np.float32),
        "right": np.array([pair.right for pair in shown]),
        "classes": np.array([[train.classes[v.label] for v in pair] for pair in videos]),
        "videos": np.array([[v.path.name for v in pair] for pair in videos]),
    }


# ----------------------------------------------------------------------
# The main job from end to end, or its evaluations alone.


def train_and_evaluate(
    cfg: CfgNode, distributed: DistributedContext, *, resume: bool = False
) -> RunFolder:
    """Pretrain, then run the evaluations that the config enables, then write the report."""
    check(cfg)
    folder = RunFolder(output_dir(cfg))
    with folder.held() if distributed.is_main else nullcontext():
        _train_and_evaluate(cfg, folder, distributed, resume=resume)
    return folder


def _train_and_evaluate(
    cfg: CfgNode, folder: RunFolder, distributed: DistributedContext, *, resume: bool
) -> None:
    checkpoint = open_folder(cfg, folder, distributed, resume=resume)
    train, test = build_lists(cfg, distributed)
    if test is not None:
        require_labelled(test)
        check_classes(cfg, len(train.classes))
    if cfg.TRAIN.ENABLED:
        method = pretrain_in_rounds(cfg, train, distributed, folder, checkpoint)
        keep_removed_pairs(cfg, method, train, distributed, folder)
    else:
        method = _untrained(cfg, train, distributed, folder, checkpoint)
    evaluate(make_context(cfg, method, train, distributed, folder), test)


def _untrained(
    cfg: CfgNode,
    train: VideoList,
    distributed: DistributedContext,
    folder: RunFolder,
    checkpoint: dict[str, Any] | None,
) -> Method:
    method = build_method(cfg, train, distributed)
    if checkpoint:
        tell(load_kept(method, checkpoint["method"], source=newest_of(folder)), folder, distributed)
    elif cfg.TRAIN.WEIGHTS or cfg.MODEL.WEIGHTS:
        load_start(cfg, method, distributed, folder)
    else:
        raise UserError(
            "TRAIN.ENABLED is false and there is no checkpoint: give TRAIN.WEIGHTS or MODEL.WEIGHTS"
        )
    return method


def evaluate_model(
    cfg: CfgNode,
    distributed: DistributedContext,
    *,
    checkpoint: Path | None = None,
    foreign: bool = False,
) -> RunFolder:
    """Evaluate a trained model without further training; which one: see `open_job`."""
    context, test = open_context(cfg, distributed, checkpoint=checkpoint, foreign=foreign)
    if test is not None or not cfg.EVALUATE.TRANSFER:
        required(test)
    if distributed.is_main:
        context.folder.write_config(dump_config(judged_alone(cfg, context.folder, checkpoint)))
        context.folder.write_environment(distributed.device)
    distributed.barrier()
    evaluate(context, test)
    return context.folder


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
