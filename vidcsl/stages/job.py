"""What every part of an evaluation needs: config, model, data, processes and the folder."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from fvcore.common.config import CfgNode

from vidcsl import builders
from vidcsl.data.lists import VideoList
from vidcsl.engine.distributed import World
from vidcsl.engine.progress import Bar
from vidcsl.engine.run_folder import RunFolder, peak_memory_mib
from vidcsl.evaluation.features import Features, extract_features
from vidcsl.objectives import Method
from vidcsl.robustness.clips import Clips
from vidcsl.seeding import seed_of


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
        if self.world.is_main:
            cost = self.folder.read_results().get("cost", {})
            cost.setdefault("seconds", {})[stage] = time.perf_counter() - started
            peak = max(peak_memory_mib(self.world.device), cost.get("peak_memory_mib", 0.0))
            self.store({"cost": {**cost, "peak_memory_mib": peak}})

    @contextmanager
    def bar(self, title: str, videos: VideoList) -> Iterator[Callable[[int], None]]:
        """A progress bar over this process's share of the videos; gives how to advance it."""
        total = -(-len(videos) // self.world.size)
        bar = Bar(title, total=total, shown=self.world.is_main)
        try:
            yield bar.advance
        finally:
            bar.close()

    def features(self, videos: VideoList, *, clips: int, crops: int) -> Features:
        """Features of every view of every video, in the order of the list."""
        loader = builders.build_test_loader(
            self.cfg, videos, self.world, clips=clips, batch=self.cfg.EVALUATE.BATCH
        )
        return extract_features(
            self.method.encoder,
            loader.epoch(0),
            crop=builders.build_crop(self.cfg, crops=crops),
            world=self.world,
            title=f"features of {videos.source}",
            total=-(-len(videos) // self.world.size),
        )

    def clips(self, videos: VideoList) -> Iterator[Clips]:
        """The central clip of every video, this process's share."""
        loader = builders.build_test_loader(
            self.cfg, videos, self.world, clips=1, batch=self.cfg.EVALUATE.BATCH
        )
        crop = builders.build_crop(self.cfg)
        for batch in loader.epoch(0):
            moved = batch.to(self.world.device)
            seeds = [seed_of(self.cfg.SEED, index) for index in batch.indices.tolist()]
            yield Clips(crop(moved.frames, moved.sizes)[:, 0], moved.labels, seeds)


def subset(videos: VideoList, most: int) -> VideoList:
    """At most `most` videos, evenly chosen from the list; 0: all."""
    if not 0 < most < len(videos):
        return videos
    chosen = np.linspace(0, len(videos) - 1, most).round().astype(int)
    return replace(videos, videos=tuple(videos.videos[i] for i in chosen))
