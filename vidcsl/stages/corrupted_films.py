"""What the corruptions look like that hurt most: a film of each, kept for the report."""

from collections.abc import Sequence

import numpy as np
import torch

from vidcsl.data.lists import VideoList
from vidcsl.engine.ledger import digest
from vidcsl.evaluation.arrays import key_of, save_arrays
from vidcsl.robustness.corruption_table import CLEAN, CorruptionTable, condition
from vidcsl.robustness.corruptions import corrupt
from vidcsl.stages.job import Job

SEVERITIES = (0, 3, 5)  # shown side by side; 0 is the clean clip


def keep_corrupted_films(table: CorruptionTable, test: VideoList, job: Job) -> None:
    """Write `artifacts/corruption_NAME.npz` of the corruptions that cost most accuracy.

    They show one video, the first that is right when clean: the clip that was judged.
    """
    names = hurting(table, most=job.cfg.CORRUPT.EXAMPLES)
    right = np.flatnonzero(table.right_when_clean())
    if not job.world.is_main or not names or not len(right):
        return
    video = table.videos[int(right[0])]
    key = digest({"video": video, "names": names, "weights": job.weights})
    before = sorted(job.folder.artifacts.glob("corruption_*.npz"))
    wanted = [job.folder.artifacts / f"corruption_{name.replace('/', '.')}.npz" for name in names]
    if before == sorted(wanted) and all(key_of(path) == key for path in before):
        return
    for path in before:
        path.unlink()
    classes = job.train.classes
    (clip,) = job.clips(test, [video])
    for name, path in zip(names, wanted, strict=True):
        shown = [corrupt(clip.clips, name, severity=s, seeds=clip.seeds) for s in SEVERITIES]
        answers = [table.answers[condition(name, s) if s else CLEAN][video] for s in SEVERITIES]
        frames = torch.cat(shown).permute(0, 2, 3, 4, 1).cpu()  # [3, T, H, W, 3]
        film = {
            "key": key,
            "frames": (frames * 255).round().byte().numpy(),
            "severities": SEVERITIES,
            "label": classes[answers[0][0]],
            "predictions": [classes[named] for _, named, _ in answers],
        }
        save_arrays(path, film, compressed=True)


def hurting(table: CorruptionTable, *, most: int) -> Sequence[str]:
    """The corruptions with the lowest accuracy over all severities, in the table's order."""
    lowest = sorted(table.names, key=lambda name: float(table.right(name).mean()))[:most]
    return [name for name in table.names if name in lowest]
