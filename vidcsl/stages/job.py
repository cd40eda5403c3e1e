"""What every part of an evaluation needs: config, model, data, processes and the folder."""

import os
import time
from collections.abc import Callable, Container, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import nn

from vidcsl import builders
from vidcsl.data.lists import VideoList
from vidcsl.data.loader import Batch
from vidcsl.engine.distributed import World
from vidcsl.engine.ledger import digest
from vidcsl.engine.progress import Bar
from vidcsl.engine.run_folder import RunFolder
from vidcsl.engine.usage import peak_memory_mib
from vidcsl.engine.weights import weights_digest
from vidcsl.evaluation.attentive import PooledTokens
from vidcsl.evaluation.features import Features, extract_features
from vidcsl.evaluation.linear import LinearProbe, fit_linear_probe
from vidcsl.objectives import Method
from vidcsl.objectives.supervised import Supervised
from vidcsl.robustness.clips import Clips, cropped_clips
from vidcsl.seeding import seed_of

# What changes an encoder but none of its weights' names and shapes.
_SHAPELESS = ("NAME", "HEADS", "ATTENTION", "POSITIONS", "POOLING", "TEMPORAL")

Pixels = Callable[..., Iterator[Clips]]
"""`(batch, crop, *, seeds, videos) -> Clips`, see `vidcsl.robustness.clips`."""


@dataclass(frozen=True)
class Job:
    """What every part of the evaluation needs."""

    cfg: CfgNode
    method: Method
    train: VideoList
    world: World
    folder: RunFolder

    def store(self, sections: dict[str, Any]) -> None:
        """Merge sections into the results, on disk."""
        if self.world.is_main:
            self.folder.update_results(sections)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds of a stage, and the peak memory so far, to the results."""
        started = time.perf_counter()
        yield
        self.spend(stage, time.perf_counter() - started)

    def spend(self, stage: str, seconds: float) -> None:
        """Add what a stage took, and the peak memory so far, to the results."""
        if self.world.is_main:
            cost = self.folder.read_results().get("cost", {})
            cost.setdefault("seconds", {})[stage] = seconds
            peak = max(peak_memory_mib(self.world.device), cost.get("peak_memory_mib", 0.0))
            self.store({"cost": {**cost, "peak_memory_mib": peak}})

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """A progress bar over this process's share of `total` videos; gives how to advance it."""
        bar = Bar(title, total=-(-total // self.world.size), shown=self.world.is_main)
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
        if self.world.share(path.exists()):
            return Features.load(path)
        with self.timed(f"features of {Path(videos.source).name}"):
            found = self._extract(videos, clips=clips, crops=crops, tokens=tokens)
        if self.world.is_main:
            found.save(path)
        return found

    def linear_probe(self, gallery: Features, videos: VideoList | None = None) -> LinearProbe:
        """The probe fitted on training videos' features, by default the run's, kept like these."""
        videos = videos or self.train
        views = gallery.values.shape[1]
        key = self.settings(videos, self.weights, views=views, seed=self.cfg.SEED)
        path = self.folder.artifacts / f"linear_probe_{digest(key)}.npz"
        if self.world.is_main and not path.exists():
            with self.timed("linear probe"):
                classes = len(videos.classes)
                fit_linear_probe(gallery, classes=classes, seed=self.cfg.SEED).save(path)
        self.world.barrier()
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
        return {suffix: head.to(self.world.device) for suffix, head in heads.items()}

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
        several = len(builders.norm_sets(self.cfg)) > 1
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
            crop=builders.build_crop(self.cfg, crops=crops),
            world=self.world,
            title=f"features of {videos.source}",
            total=-(-len(videos) // self.world.size),
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
        crop = builders.build_crop(self.cfg, crops=crops)
        for batch in self._blocks(videos, chosen, answered=answered, views=views):
            indices = batch.indices.tolist()
            seeds = [seed_of(self.cfg.SEED, index) for index in indices]
            yield from pixels(batch.to(self.world.device), crop, seeds=seeds, videos=indices)

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
        alone = World(rank=0, size=1, device=self.world.device)
        listed = replace(videos, videos=tuple(videos.videos[i] for i in mine))
        loader = builders.build_test_loader(
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
        return [video for block in open_[self.world.rank :: self.world.size] for video in block]


def model_name(job: Job, head: str) -> str:
    """How a run's model is called beside others; `head` is what its attacks have appended."""
    norms = "".join(f" {name} norms" for name in job.norms.values())
    return f"{job.cfg.NAME}{head} seed{job.cfg.SEED}{norms}"


def normalisation_of(encoder: nn.Module) -> list[float]:
    """Mean and standard deviation within it, which are no weights; empty where it has none."""
    statistics = [getattr(encoder, name, torch.zeros(0)) for name in ("mean", "std")]
    return [round(value, 6) for each in statistics for value in each.flatten().tolist()]


def subset(videos: Sized, most: int) -> list[int]:
    """Indices of at most `most` videos, evenly chosen from the list; 0: all."""
    if not 0 < most < len(videos):
        return list(range(len(videos)))
    return np.linspace(0, len(videos) - 1, most).round().astype(int).tolist()
