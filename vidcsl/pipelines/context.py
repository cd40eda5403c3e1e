"""The evaluation context, which every part of an evaluation takes, and how a model gets into it."""

import os
import sys
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from vidcsl.config import overridden, value_of
from vidcsl.data.lists import VideoList
from vidcsl.data.loader import Batch
from vidcsl.distributed import DistributedContext
from vidcsl.errors import UserError, VideoError
from vidcsl.evaluation.features import Features, extract_features
from vidcsl.evaluation.probes import LinearProbe, PooledTokens, fit_linear_probe
from vidcsl.io import Bar, Log
from vidcsl.methods import METHODS, Method
from vidcsl.methods.supervised import Supervised
from vidcsl.models.batchnorm import use_batchnorm
from vidcsl.models.encoder import Encoder
from vidcsl.models.layouts import State
from vidcsl.models.pretrained import fitted
from vidcsl.pipelines.data import build_crop, build_lists, build_test_loader
from vidcsl.pipelines.list_checks import in_order_of
from vidcsl.pipelines.method import build_method, require_labels
from vidcsl.pipelines.model import batchnorm_names, build_encoder, load_weights_of
from vidcsl.pipelines.training import check, output_dir
from vidcsl.report.summary import read_log
from vidcsl.robustness.targets import Clips, cropped_clips
from vidcsl.run_folder import RunFolder, digest
from vidcsl.seeding import seed_of
from vidcsl.state import load_parts, weights_digest
from vidcsl.training.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    load_newest,
    position_of,
)
from vidcsl.training.monitor import peak_memory_mib

Pixels = Callable[..., Iterator[Clips]]
"""`(batch, crop, *, seeds, videos) -> Clips`, see `vidcsl.robustness.targets.INPUTS`."""


@dataclass(frozen=True)
class EvaluationContext:
    """A trained model with its config, training videos, processes and run folder."""

    cfg: CfgNode
    method: Method
    train: VideoList
    distributed: DistributedContext
    folder: RunFolder

    def store(self, sections: dict[str, Any]) -> None:
        """Merge sections into results.json."""
        if self.distributed.is_main:
            self.folder.update_results(sections)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds of the block, and the peak memory so far, to the results."""
        started = time.perf_counter()
        yield
        self.store_cost(stage, time.perf_counter() - started)

    def store_cost(self, stage: str, seconds: float) -> None:
        """Add the seconds of a stage, and the peak memory so far, to the results."""
        if self.distributed.is_main:
            cost = self.folder.read_results().get("cost", {})
            cost.setdefault("seconds", {})[stage] = seconds
            peak = max(peak_memory_mib(self.distributed.device), cost.get("peak_memory_mib", 0.0))
            self.store({"cost": {**cost, "peak_memory_mib": peak}})

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """A progress bar for this process's part of `total` videos; yields how to advance it."""
        bar = Bar(title, total=-(-total // self.distributed.size), shown=self.distributed.is_main)
        try:
            yield bar.advance
        finally:
            bar.close()

    # Features and probes are stored in the run folder by the digest of all that they depend on.

    def features(
        self,
        videos: VideoList,
        *,
        clips: int,
        crops: int,
        tokens: int = 0,
        training: bool = False,
    ) -> Features:
        """Features of every view of every video in the list, extracted once and then stored.

        Args:
            videos: the list.
            clips, crops: number of clips per video, and of crops per clip.
            tokens: if not 0, at most this many tokens of each clip instead of its features.
            training: it is a training list, of which DATA.DAMAGED_LIMIT may be unreadable.

        Raises:
            UserError: more of the list is unreadable than the config allows.
        """
        found = self._stored_features(
            videos, clips=clips, crops=crops, tokens=tokens, training=training
        )
        read = set(found.indices.tolist())
        lost = [str(video.path) for k, video in enumerate(videos.videos) if k not in read]
        if len(lost) > self._tolerated(len(videos), training=training):
            key = "DATA.DAMAGED_LIMIT" if training else "DATA.ALLOW_DAMAGED_TEST"
            raise UserError(
                f"{len(lost)} of the {len(videos)} videos of {videos.source} cannot be read, more "
                f"than {key} {value_of(self.cfg, key)} allows; first: {lost[0]}"
            )
        return found

    def _tolerated(self, count: int, *, training: bool) -> int:
        """How many of a list's videos may be unreadable.

        One policy from the first step to the last figure: what training may do without, no part of
        the evaluation asks for. Test videos are another matter: without one, a figure is of
        another test.
        """
        data = self.cfg.DATA
        if data.ALLOW_DAMAGED_TEST:
            return count
        return int(data.DAMAGED_LIMIT * count) if training else 0

    def _stored_features(
        self, videos: VideoList, *, clips: int, crops: int, tokens: int, training: bool
    ) -> Features:
        kind = {"tokens": tokens} if tokens else {}
        key = self.settings(videos, self.weights, views=clips, crops=crops, **kind)
        path = self.folder.artifacts / f"features_{digest(key)}.npz"
        # As the main process sees it: on a shared disk the file may appear later for the others.
        if self.distributed.broadcast(path.exists()):
            return Features.load(path)
        encoder = self.method.encoder
        with self.timed(f"features of {Path(videos.source).name}"):
            found = extract_features(
                PooledTokens(encoder, most=tokens) if tokens else encoder,  # type: ignore[arg-type]
                self._batches(videos, range(len(videos)), views=clips, training=training),
                crop=build_crop(self.cfg, crops=crops),
                distributed=self.distributed,
                title=f"features of {videos.source}",
                total=-(-len(videos) // self.distributed.size),
            )
        if self.distributed.is_main:
            found.save(path)
        return found

    def gallery(self) -> Features:
        """Features of the training videos."""
        clips = self.cfg.EVALUATE.TRAIN_VIEWS
        return self.features(self.train, clips=clips, crops=1, training=True)

    def linear_probe(self, gallery: Features, videos: VideoList | None = None) -> LinearProbe:
        """The linear probe on the features of `videos` (by default the run's), stored likewise."""
        videos = videos or self.train
        views = gallery.values.shape[1]
        key = self.settings(videos, self.weights, views=views, seed=self.cfg.SEED)
        path = self.folder.artifacts / f"linear_probe_{digest(key)}.npz"
        # Fitted by one process and read by all, so that all have the same to the last bit.
        if self.distributed.is_main and not path.exists():
            with self.timed("linear probe"):
                classes = len(videos.classes)
                fit_linear_probe(gallery, classes=classes, seed=self.cfg.SEED).save(path)
        self.distributed.barrier()
        return LinearProbe.load(path)

    def heads(self) -> dict[str, nn.Linear]:
        """Linear classifiers on the encoder, by their suffix in the names of attacks."""
        heads = {}
        if self.cfg.EVALUATE.LINEAR:
            heads[""] = self.linear_probe(self.gallery()).as_layer()
        if isinstance(self.method, Supervised):
            heads["_own_head"] = self.method.head
        return {suffix: head.to(self.distributed.device) for suffix, head in heads.items()}

    def settings(self, videos: VideoList, weights: str, **more: Any) -> dict[str, Any]:
        """All that a stored result on these videos depends on: weights, pixels, and `more`."""
        root, encoder = self.cfg.DATA.ROOT, self.method.encoder
        listed = [(os.path.relpath(video.path, root), video.label) for video in videos.videos]
        clips = ("FRAMES", "STRIDE", "FPS", "WINDOW", "SHORT_VIDEO")
        data = (*clips, "SHORT_SIDE", "READER", "PIXELS")
        # These change what an encoder computes but no name or shape of its weights, so the digest
        # of the weights does not show them. The same holds for the pixels' mean and deviation.
        model = ("NAME", "HEADS", "ATTENTION", "POSITIONS", "POOLING", "TEMPORAL")
        statistics = [getattr(encoder, name, torch.zeros(0)) for name in ("mean", "std")]
        return {
            "weights": weights,
            "videos": digest({"videos": listed}),
            "data": {key: self.cfg.DATA[key] for key in data},
            "frame_size": self.cfg.MODEL.FRAME_SIZE,
            "model": {key: self.cfg.MODEL[key] for key in model},
            "sampling": self.cfg.EVALUATE.SAMPLING,
            "normalisation": [
                round(value, 6) for each in statistics for value in each.flatten().tolist()
            ],
            **self.norms,
            **more,
        }

    @property
    def norms(self) -> dict[str, str]:
        """`{"norms": EVALUATE.NORMS}` if the encoder has auxiliary BatchNorm, else nothing.

        The weights hold all sets of BatchNorms, so their digest does not show which one is used.
        """
        several = len(batchnorm_names(self.cfg)) > 1
        return {"norms": self.cfg.EVALUATE.NORMS} if several else {}

    @cached_property
    def weights(self) -> str:
        """The digest of the encoder's weights."""
        return weights_digest(self.method.encoder)

    def clips(
        self,
        videos: VideoList,
        chosen: Sequence[int],
        *,
        done: Container[int] = (),
        views: int = 1,
        crops: int = 1,
        pixels: Pixels = cropped_clips,
        training: bool = False,
        windows: bool = False,
    ) -> Iterator[Clips]:
        """This process's part of the chosen videos; by default their central clips.

        Args:
            videos: the list.
            chosen: indices in it.
            done: indices of videos with results; a block of these alone is not even decoded.
            views, crops: number of clips per video, and of crops per clip.
            pixels: turns the decoded views into clips.
            training: as for `features`.
            windows: batches also hold the frames between those of the clips.
        """
        crop = build_crop(self.cfg, crops=crops)
        for batch in self._batches(
            videos, chosen, done=done, views=views, training=training, windows=windows
        ):
            indices = batch.indices.tolist()
            seeds = [seed_of(self.cfg.SEED, index) for index in indices]
            yield from pixels(batch.to(self.distributed.device), crop, seeds=seeds, videos=indices)

    def _batches(
        self,
        videos: VideoList,
        chosen: Sequence[int],
        *,
        done: Container[int] = (),
        views: int,
        training: bool = False,
        windows: bool = False,
    ) -> Iterator[Batch]:
        """This process's batches of the chosen videos; their `indices` are those in the list."""
        size, distributed = self.cfg.EVALUATE.BATCH, self.distributed
        blocks = blocks_of_process(
            chosen, size=size, done=done, rank=distributed.rank, processes=distributed.size
        )
        mine = [video for block in blocks for video in block]
        if not mine:
            return
        # The blocks are this process's already: the loader must not divide them again.
        alone = DistributedContext(rank=0, size=1, device=distributed.device)
        listed = videos.chosen(mine)
        loader = build_test_loader(
            self.cfg,
            listed,
            alone,
            clips=views,
            batch=size,
            leave_out=self._tolerated(len(videos), training=training) > 0,
            windows=windows,
        )
        place = torch.tensor(mine)
        try:
            for batch in loader.epoch(0):
                yield replace(batch, indices=place[batch.indices])
        except VideoError as error:
            key = "DATA.DAMAGED_LIMIT 0.05" if training else "DATA.ALLOW_DAMAGED_TEST true"
            raise UserError(
                f"{error}; `vidcsl prepare scan` sets such videos aside, {key} leaves them out"
            ) from error


def blocks_of_process(
    chosen: Sequence[int], *, size: int, done: Container[int], rank: int, processes: int
) -> list[Sequence[int]]:
    """The blocks of `size` videos that this process computes, without those that are done.

    Blocks are the same for any number of processes and however much is done: a clip is always in a
    batch with the same others. Sums over other batches would be rounded in another way, and results
    would differ in the last bit.
    """
    blocks = [chosen[start : start + size] for start in range(0, len(chosen), size)]
    left = [block for block in blocks if any(video not in done for video in block)]
    # Only the last block may be short, and it is the last of its process, so batches are blocks.
    return left[rank::processes]


def model_name(context: EvaluationContext, head: str) -> str:
    """The name of a run's model in tables of several models; `head` is its attacks' suffix."""
    norms = "".join(f" {name} norms" for name in context.norms.values())
    return f"{context.cfg.NAME}{head} seed{context.cfg.SEED}{norms}"


def subset(videos: Sized, most: int) -> list[int]:
    """Indices of at most `most` videos, evenly spread over the list; 0: all."""
    if not 0 < most < len(videos):
        return list(range(len(videos)))
    return np.linspace(0, len(videos) - 1, most).round().astype(int).tolist()


# ----------------------------------------------------------------------
# Loading: a checkpoint of a run, or foreign weights.


def load_context(
    cfg: CfgNode,
    distributed: DistributedContext,
    *,
    checkpoint: Path | None = None,
    foreign: bool = False,
) -> tuple[EvaluationContext, VideoList | None]:
    """Load a trained model for evaluation, and the test videos, if DATA.TEST_LIST is set.

    The weights are the first that there are of: `checkpoint`; the checkpoint in the run folder that
    EVALUATE.CHECKPOINT names; TRAIN.WEIGHTS of a config that trains nothing (the checkpoint that an
    earlier evaluation in this folder used); MODEL.WEIGHTS.

    Args:
        cfg: the config.
        distributed: the processes.
        checkpoint: a checkpoint file.
        foreign: load MODEL.WEIGHTS in any case.

    Raises:
        UserError: there are no weights, or they do not fit.
    """
    check(cfg)
    folder = RunFolder(output_dir(cfg))
    state: dict[str, Any] | None = None
    source = ""
    if not foreign and checkpoint:
        state, source = load_checkpoint(checkpoint), str(checkpoint)
    elif not foreign and cfg.EVALUATE.CHECKPOINT != "last":
        path, _ = chosen_checkpoint(cfg, folder)
        state, source = load_checkpoint(path), str(path)
    elif not foreign:
        state, source = load_newest(folder.checkpoints), newest_checkpoint(folder)
        if state is None and cfg.TRAIN.WEIGHTS and not cfg.TRAIN.ENABLED:
            state, source = load_checkpoint(Path(cfg.TRAIN.WEIGHTS)), cfg.TRAIN.WEIGHTS
    if state is None and not cfg.MODEL.WEIGHTS:
        raise UserError(
            f"no checkpoint in {folder.checkpoints}: train first, or give --checkpoint or --weights"
        )
    train, test = build_lists(cfg, distributed)
    if distributed.is_main:
        folder.create()
    distributed.barrier()
    if state is None:
        method = Method(build_encoder(cfg).to(distributed.device))
        notes = load_weights_of(cfg, method.encoder)  # type: ignore[arg-type]
    else:
        train, test = in_order_of(state, METHODS[cfg.METHOD.NAME], train, test, source=source)
        method = build_method(cfg, train, distributed)
        notes = load_for_evaluation(method, state["method"], source=source)
    log_notes(notes, folder, distributed)
    return evaluation_context(cfg, method, train, distributed, folder), test


def evaluation_context(
    cfg: CfgNode,
    method: Method,
    train: VideoList,
    distributed: DistributedContext,
    folder: RunFolder,
) -> EvaluationContext:
    """The context of a loaded model, in eval mode and with the BatchNorms of EVALUATE.NORMS."""
    use_batchnorm(method.encoder, cfg.EVALUATE.NORMS)
    return EvaluationContext(cfg, method.eval(), train, distributed, folder)


def require_test_videos(test: VideoList | None) -> VideoList:
    """The test videos, all labelled; a UserError if there are none."""
    if test is None:
        raise UserError("DATA.TEST_LIST is not set: there are no clips to evaluate")
    require_test_labels(test)
    return test


def require_test_labels(test: VideoList) -> None:
    """Raise a UserError if a test video has no label."""
    advice = ": fill their class, or leave DATA.TEST_LIST empty to pretrain alone"
    require_labels(test, "evaluation", advice=advice)


def log_notes(notes: Sequence[str], folder: RunFolder, distributed: DistributedContext) -> None:
    """Print and log how weights were changed to fit."""
    if distributed.is_main and notes:
        log = Log(folder.log)
        for note in notes:
            print(f"vidcsl: {note}", file=sys.stderr)
            log.write("note", text=note)
        log.close()


def newest_checkpoint(folder: RunFolder) -> str:
    """The newest checkpoint of a run, in words, for messages and tables."""
    return f"the newest of {folder.checkpoints}"


def chosen_checkpoint(cfg: CfgNode, folder: RunFolder) -> tuple[Path, float]:
    """The checkpoint with the highest score of EVALUATE.CHECKPOINT, and that score.

    Raises:
        UserError: no checkpoint that is kept was scored.
    """
    by = cfg.EVALUATE.CHECKPOINT
    lines, _ = read_log(folder.log)
    scores = {line["epoch"]: line[by] for line in lines if line.get("kind") == "scores"}
    kept = [
        (scores[epoch], path)
        for path in list_checkpoints(folder.checkpoints)
        for epoch, step in [position_of(path)]
        if step == 0 and epoch in scores
    ]
    if not kept:
        raise UserError(
            f"EVALUATE.CHECKPOINT {by}: no checkpoint in {folder.checkpoints} was scored; train "
            "with EVALUATE.EVERY and TRAIN.KEEP_EVERY, or set EVALUATE.CHECKPOINT to last"
        )
    score, path = max(kept)
    return path, score


def with_checkpoint(cfg: CfgNode, folder: RunFolder, checkpoint: Path | None) -> CfgNode:
    """The config to store: it names the evaluated checkpoint if the folder has none of its own.

    Later commands on this folder (`vidcsl transfer`, say) then load the same weights.
    """
    if checkpoint is None or list_checkpoints(folder.checkpoints):
        return cfg
    weights = str(checkpoint.resolve())
    return overridden(cfg, {"TRAIN.ENABLED": False, "TRAIN.WEIGHTS": weights})


def fitted_weights(method: Method, weights: Mapping[str, Tensor]) -> tuple[State, list[str]]:
    """Adapt a method's weights to clips of another length or size.

    Args:
        method: the weights are made to fit its encoders, a momentum encoder too.
        weights: a method's state dict.

    Returns:
        The state dict, and a note for each kind of change.
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


def load_for_evaluation(method: Method, weights: Mapping[str, Tensor], *, source: str) -> list[str]:
    """Load the parts that evaluation needs (`Method.kept`); notes on changes made to fit.

    Raises:
        UserError: the weights belong to another architecture; the message names `source`.
    """
    found, notes = fitted_weights(method, weights)
    load_parts(method, found, parts=method.kept, source=source)
    return [f"{source}: {note}" for note in notes]
