"""What every part of an evaluation needs, and how runs and weights are opened."""

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

from vidcsl.config import overridden
from vidcsl.data.lists import VideoList
from vidcsl.data.loader import Batch
from vidcsl.distributed import DistributedContext
from vidcsl.errors import UserError
from vidcsl.evaluation.features import Features, extract_features
from vidcsl.evaluation.probes import LinearProbe, PooledTokens, fit_linear_probe
from vidcsl.io import Bar, Log
from vidcsl.methods import Method
from vidcsl.methods.supervised import Supervised
from vidcsl.models.encoder import Encoder
from vidcsl.models.layouts import State
from vidcsl.models.norm_sets import use_norms
from vidcsl.models.pretrained import fitted
from vidcsl.pipelines.data import build_crop, build_lists, build_test_loader
from vidcsl.pipelines.method import build_method, require_labels
from vidcsl.pipelines.model import build_encoder, load_weights_of, norm_sets
from vidcsl.pipelines.training import check, output_dir
from vidcsl.robustness.targets import Clips, cropped_clips
from vidcsl.run_folder import RunFolder, digest
from vidcsl.seeding import seed_of
from vidcsl.state import load_parts, weights_digest
from vidcsl.training.checkpoint import list_checkpoints, load_checkpoint, load_newest
from vidcsl.training.monitor import peak_memory_mib

# ----------------------------------------------------------------------
# What every part of an evaluation needs: config, model, data, processes and the folder.

# What changes an encoder but none of its weights' names and shapes.
_SHAPELESS = ("NAME", "HEADS", "ATTENTION", "POSITIONS", "POOLING", "TEMPORAL")

Pixels = Callable[..., Iterator[Clips]]
"""`(batch, crop, *, seeds, videos) -> Clips`, see `vidcsl.robustness.clips`."""


@dataclass(frozen=True)
class EvaluationContext:
    """What every part of the evaluation needs."""

    cfg: CfgNode
    method: Method
    train: VideoList
    distributed: DistributedContext
    folder: RunFolder

    def store(self, sections: dict[str, Any]) -> None:
        """Merge sections into the results, on disk."""
        if self.distributed.is_main:
            self.folder.update_results(sections)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds of a stage, and the peak memory so far, to the results."""
        started = time.perf_counter()
        yield
        self.spend(stage, time.perf_counter() - started)

    def spend(self, stage: str, seconds: float) -> None:
        """Add what a stage took, and the peak memory so far, to the results."""
        if self.distributed.is_main:
            cost = self.folder.read_results().get("cost", {})
            cost.setdefault("seconds", {})[stage] = seconds
            peak = max(peak_memory_mib(self.distributed.device), cost.get("peak_memory_mib", 0.0))
            self.store({"cost": {**cost, "peak_memory_mib": peak}})

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """A progress bar over this process's share of `total` videos; gives how to advance it."""
        bar = Bar(title, total=-(-total // self.distributed.size), shown=self.distributed.is_main)
        try:
            yield bar.advance
        finally:
            bar.close()

    def features(self, videos: VideoList, *, clips: int, crops: int, tokens: int = 0) -> Features:
        """Features of every view of every video, in the order of the list.

        They are kept in the run's folder, and found there again by the same weights.

        Args:
            videos: the list.
            clips, crops: how often each video is looked at.
            tokens: where it is not 0, at most so many tokens of a clip in place of its features.
        """
        kind = {"tokens": tokens} if tokens else {}
        key = self.settings(videos, self.weights, views=clips, crops=crops, **kind)
        path = self.folder.artifacts / f"features_{digest(key)}.npz"
        if self.distributed.broadcast(path.exists()):
            return Features.load(path)
        with self.timed(f"features of {Path(videos.source).name}"):
            found = self._extract(videos, clips=clips, crops=crops, tokens=tokens)
        if self.distributed.is_main:
            found.save(path)
        return found

    def linear_probe(self, gallery: Features, videos: VideoList | None = None) -> LinearProbe:
        """The probe fitted on training videos' features, by default the run's, kept like these."""
        videos = videos or self.train
        views = gallery.values.shape[1]
        key = self.settings(videos, self.weights, views=views, seed=self.cfg.SEED)
        path = self.folder.artifacts / f"linear_probe_{digest(key)}.npz"
        if self.distributed.is_main and not path.exists():
            with self.timed("linear probe"):
                classes = len(videos.classes)
                fit_linear_probe(gallery, classes=classes, seed=self.cfg.SEED).save(path)
        self.distributed.barrier()
        return LinearProbe.load(path)

    def gallery(self) -> Features:
        """Features of the training videos."""
        return self.features(self.train, clips=self.cfg.EVALUATE.TRAIN_VIEWS, crops=1)

    def heads(self) -> dict[str, nn.Linear]:
        """The linear layers that name classes, by what is appended to an attack's name."""
        heads = {}
        if self.cfg.EVALUATE.LINEAR:
            heads[""] = self.linear_probe(self.gallery()).as_layer()
        if isinstance(self.method, Supervised):
            heads["_own_head"] = self.method.head
        return {suffix: head.to(self.distributed.device) for suffix, head in heads.items()}

    def settings(self, videos: VideoList, weights: str, **more: Any) -> dict[str, Any]:
        """What an answer about each of these videos depends on: weights, pixels, and `more`."""
        root = self.cfg.DATA.ROOT
        listed = [(os.path.relpath(video.path, root), video.label) for video in videos.videos]
        data = ("FRAMES", "STRIDE", "FPS", "WINDOW", "SHORT_SIDE", "SHORT_VIDEO", "READER")
        return {
            "weights": weights,
            "videos": digest({"videos": listed}),
            "data": {key: self.cfg.DATA[key] for key in data},
            "frame_size": self.cfg.MODEL.FRAME_SIZE,
            "model": {key: self.cfg.MODEL[key] for key in _SHAPELESS},
            "sampling": self.cfg.EVALUATE.SAMPLING,
            "normalisation": normalisation_of(self.method.encoder),
            **self.norms,
            **more,
        }

    @property
    def norms(self) -> dict[str, str]:
        """`{"norms": NAME}` of the BatchNorms that are judged, where the encoder has several sets.

        They all are in its weights, whose digest therefore does not tell.
        """
        several = len(norm_sets(self.cfg)) > 1
        return {"norms": self.cfg.EVALUATE.NORMS} if several else {}

    @cached_property
    def weights(self) -> str:
        """The digest of the encoder's weights."""
        return weights_digest(self.method.encoder)

    def _extract(self, videos: VideoList, *, clips: int, crops: int, tokens: int) -> Features:
        encoder = self.method.encoder
        return extract_features(
            PooledTokens(encoder, most=tokens) if tokens else encoder,  # type: ignore[arg-type]
            self._blocks(videos, range(len(videos)), views=clips),
            crop=build_crop(self.cfg, crops=crops),
            distributed=self.distributed,
            title=f"features of {videos.source}",
            total=-(-len(videos) // self.distributed.size),
        )

    def clips(
        self,
        videos: VideoList,
        chosen: Sequence[int],
        *,
        answered: Container[int] = (),
        views: int = 1,
        crops: int = 1,
        pixels: Pixels = cropped_clips,
    ) -> Iterator[Clips]:
        """This process's share of the chosen videos of the list; by default their central clips.

        Videos come in blocks of EVALUATE.BATCH, the same ones whatever the number of processes and
        however much is answered already: a clip is always computed beside the same others, so that
        its answer is the same to the last bit. Blocks answered as a whole are not even decoded.

        Args:
            videos: the list.
            chosen: indices in it.
            answered: indices of those that need not be judged again.
            views, crops: how often each video is looked at.
            pixels: what is made of the decoded views.
        """
        crop = build_crop(self.cfg, crops=crops)
        for batch in self._blocks(videos, chosen, answered=answered, views=views):
            indices = batch.indices.tolist()
            seeds = [seed_of(self.cfg.SEED, index) for index in indices]
            yield from pixels(batch.to(self.distributed.device), crop, seeds=seeds, videos=indices)

    def _blocks(
        self,
        videos: VideoList,
        chosen: Sequence[int],
        *,
        answered: Container[int] = (),
        views: int,
    ) -> Iterator[Batch]:
        """This process's share of the blocks of chosen videos; `indices` are those in the list."""
        mine = self._share(chosen, answered)
        if not mine:
            return
        alone = DistributedContext(rank=0, size=1, device=self.distributed.device)
        listed = replace(videos, videos=tuple(videos.videos[i] for i in mine))
        loader = build_test_loader(
            self.cfg, listed, alone, clips=views, batch=self.cfg.EVALUATE.BATCH
        )
        place = torch.tensor(mine)
        for batch in loader.epoch(0):
            yield replace(batch, indices=place[batch.indices])

    def _share(self, chosen: Sequence[int], answered: Container[int]) -> list[int]:
        size = self.cfg.EVALUATE.BATCH
        blocks = [chosen[start : start + size] for start in range(0, len(chosen), size)]
        open_ = [block for block in blocks if any(video not in answered for video in block)]
        # Only the last block may be short, and it is last in its share: batches are blocks.
        return [
            video
            for block in open_[self.distributed.rank :: self.distributed.size]
            for video in block
        ]


def model_name(context: EvaluationContext, head: str) -> str:
    """How a run's model is called beside others; `head` is what its attacks have appended."""
    norms = "".join(f" {name} norms" for name in context.norms.values())
    return f"{context.cfg.NAME}{head} seed{context.cfg.SEED}{norms}"


def normalisation_of(encoder: nn.Module) -> list[float]:
    """Mean and standard deviation within it, which are no weights; empty where it has none."""
    statistics = [getattr(encoder, name, torch.zeros(0)) for name in ("mean", "std")]
    return [round(value, 6) for each in statistics for value in each.flatten().tolist()]


def subset(videos: Sized, most: int) -> list[int]:
    """Indices of at most `most` videos, evenly chosen from the list; 0: all."""
    if not 0 < most < len(videos):
        return list(range(len(videos)))
    return np.linspace(0, len(videos) - 1, most).round().astype(int).tolist()


# ----------------------------------------------------------------------
# The model that is judged: a checkpoint of ours, or foreign weights, ready as a job.


def open_context(
    cfg: CfgNode,
    distributed: DistributedContext,
    *,
    checkpoint: Path | None = None,
    foreign: bool = False,
) -> tuple[EvaluationContext, VideoList | None]:
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
    check(cfg)
    folder = RunFolder(output_dir(cfg))
    document, source = (None, "") if foreign else _document(cfg, folder, checkpoint)
    if document is None and not cfg.MODEL.WEIGHTS:
        raise UserError(
            f"no checkpoint in {folder.checkpoints}: train first, or give --checkpoint or --weights"
        )
    train, test = build_lists(cfg, distributed)
    if distributed.is_main:
        folder.create()
    distributed.barrier()
    if document is None:
        method = Method(build_encoder(cfg).to(distributed.device))
        notes = load_weights_of(cfg, method.encoder)  # type: ignore[arg-type]
    else:
        method = build_method(cfg, train, distributed)
        notes = load_kept(method, document["method"], source=source)
    tell(notes, folder, distributed)
    return make_context(cfg, method, train, distributed, folder), test


def make_context(
    cfg: CfgNode,
    method: Method,
    train: VideoList,
    distributed: DistributedContext,
    folder: RunFolder,
) -> EvaluationContext:
    """The job of a loaded model: in eval mode, with the BatchNorms that EVALUATE.NORMS names."""
    use_norms(method.encoder, cfg.EVALUATE.NORMS)
    return EvaluationContext(cfg, method.eval(), train, distributed, folder)


def required(test: VideoList | None) -> VideoList:
    """The test videos, labelled, of a job that is nothing without them."""
    if test is None:
        raise UserError("DATA.TEST_LIST is not set: there are no clips to judge")
    require_labelled(test)
    return test


def require_labelled(test: VideoList) -> None:
    """Raise a UserError where a video that is to be judged has no label."""
    advice = ": fill their class, or leave DATA.TEST_LIST empty to pretrain alone"
    require_labels(test, "evaluation", advice=advice)


def tell(notes: Sequence[str], folder: RunFolder, distributed: DistributedContext) -> None:
    """Say, and log, what was changed of weights so that they fit."""
    if distributed.is_main and notes:
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
