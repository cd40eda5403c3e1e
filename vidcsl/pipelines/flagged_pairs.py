"""Pairs that the trained detector flags, correctly and wrongly, kept as pictures for the report."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from fvcore.common.config import CfgNode
from PIL import Image, ImageOps

from vidcsl.data.lists import Video, VideoList
from vidcsl.data.readers import open_reader
from vidcsl.distributed import DistributedContext
from vidcsl.errors import VideoError
from vidcsl.io import save_arrays
from vidcsl.methods import ContrastiveMethod, Method
from vidcsl.methods.false_negatives.detector import FlaggedPair, RecordingDetector
from vidcsl.pipelines.data import build_augmentation, build_train_loader
from vidcsl.run_folder import RunFolder
from vidcsl.training.train import augmented

BATCHES = 4  # so many are enough; with a queue, candidates are the videos of earlier batches
FRAMES = 3  # of each clip: first, middle and last
BOX = (128, 96)  # width and height of an original frame, in pixels


def keep_flagged_pairs(
    cfg: CfgNode,
    method: Method,
    train: VideoList,
    distributed: DistributedContext,
    folder: RunFolder,
) -> None:
    """Write `artifacts/pairs.npz`: pairs of a few batches that the trained method flags.

    Nothing is learned from these batches. A queue does move on, but evaluation does not use it.
    """
    most = cfg.FALSE_NEGATIVES.EXAMPLES if cfg.FALSE_NEGATIVES.DETECTOR != "none" else 0
    if not most or not isinstance(method, ContrastiveMethod):
        return
    path = folder.artifacts / "pairs.npz"
    if distributed.broadcast(path.exists()):
        return

    # Batches of the epoch after the last, so that they are new to the method.
    batches = build_train_loader(cfg, train, distributed).epoch(cfg.TRAIN.EPOCHS)
    augment, recording = build_augmentation(cfg), RecordingDetector(method.detector)
    stills: dict[int, np.ndarray] = {}  # by video, uint8 [K, S, S, 3]
    numbers: dict[int, list[int]] = {}  # by video, of the same frames in its file
    method.eval()  # BatchNorms keep their statistics
    method.detector = recording
    try:
        with torch.no_grad():
            for _, batch in zip(range(BATCHES), batches, strict=False):
                clips = augmented(
                    batch.to(distributed.device), augment, seed=cfg.SEED, progress=1.0
                )
                first = clips.clips[:, 0]  # [N, 3, T, S, S] in [0, 1]
                frames = torch.linspace(0, first.shape[2] - 1, FRAMES).round().long()
                pixels = (first[:, :, frames.to(first.device)] * 255).round().byte()
                pictures = pixels.permute(0, 2, 3, 4, 1).cpu().numpy()
                videos = batch.indices.tolist()
                stills.update(zip(videos, pictures, strict=True))
                chosen = batch.frame_indices[:, 0, frames.to(batch.frame_indices.device)]
                numbers.update(zip(videos, chosen.tolist(), strict=True))
                method(clips)
    finally:
        method.detector = recording.detector

    shown = choose(recording.found, known=set(stills), most=most)
    if not distributed.is_main or not shown:
        return
    correct = np.array([pair.correct for pair in shown])
    originals = [
        [original(cfg, train.videos[v], numbers[v]) for v in (pair.anchor, pair.candidate)]
        for pair in shown
    ]
    pairs = [[train.videos[v] for v in (pair.anchor, pair.candidate)] for pair in shown]
    arrays = {
        "anchors": np.stack([stills[pair.anchor] for pair in shown]),
        "candidates": np.stack([stills[pair.candidate] for pair in shown]),
        "originals": np.array(originals, np.uint8),
        "similarity": np.array([pair.similarity for pair in shown], np.float32),
        "correct": correct,
        "right": correct,  # its older name, for readers of earlier runs
        "classes": np.array([[train.classes[v.label] for v in pair] for pair in pairs]),
        "videos": np.array([[v.path.name for v in pair] for pair in pairs]),
    }
    save_arrays(path, arrays, compressed=True)


def original(cfg: CfgNode, video: Video, numbers: Sequence[int]) -> np.ndarray:
    """Frames of a video as they are in its file, fitted into BOX, uint8 `[K, 96, 128, 3]`."""
    options = {"short_side": cfg.DATA.SHORT_SIDE, "pixels": cfg.DATA.PIXELS}
    try:
        with open_reader(video.source(), backend=cfg.DATA.READER, **options) as reader:
            frames = reader.read(np.array(numbers))
    except VideoError:  # the training read it; a picture is not worth the end of a run
        frames = np.full((len(numbers), 1, 1, 3), 128, np.uint8)
    grey = (128, 128, 128)
    fitted = [ImageOps.pad(Image.fromarray(frame), BOX, color=grey) for frame in frames]
    return np.stack([np.asarray(frame) for frame in fitted])


def choose(found: Iterable[FlaggedPair], *, known: set[int], most: int) -> list[FlaggedPair]:
    """The most similar correct and wrong pairs, at most `most` of each; each video once."""
    chosen: list[FlaggedPair] = []
    for correct in (True, False):
        pairs = [p for p in found if p.correct is correct and {p.anchor, p.candidate} <= known]
        seen: set[int] = set()
        for pair in sorted(pairs, key=lambda p: (-p.similarity, p.anchor, p.candidate)):
            if len(seen) < 2 * most and not seen & {pair.anchor, pair.candidate}:
                chosen.append(pair)
                seen |= {pair.anchor, pair.candidate}
    return chosen
