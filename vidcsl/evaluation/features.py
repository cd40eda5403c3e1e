"""Features of whole lists of videos, extracted once and shared by every protocol."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vidcsl.data.loader import Batch
from vidcsl.distributed import DistributedContext
from vidcsl.errors import UserError
from vidcsl.io import Bar, load_arrays, save_arrays


@dataclass(frozen=True)
class Features:
    """Features of V views of each of n videos, in the order of the list.

    Args:
        values: float32 `[n, V, D]`.
        labels, groups, indices: int64 `[n]`; label and group are -1 if unknown, `indices` are
            positions in the list (unreadable videos may be missing).
    """

    values: Tensor
    labels: Tensor
    groups: Tensor
    indices: Tensor

    def __len__(self) -> int:
        return len(self.values)

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Values, labels, groups and indices."""
        return self.values, self.labels, self.groups, self.indices

    def save(self, path: Path) -> None:
        """Write the features to an `.npz` file, atomically."""
        save_arrays(path, {name: getattr(self, name) for name in _PARTS})

    @classmethod
    def load(cls, path: Path) -> "Features":
        """What `save` wrote.

        Raises:
            UserError: the file is damaged.
        """
        return cls(*load_arrays(path, _PARTS))

    def pooled(self) -> Tensor:
        """One unit vector per video, `[n, D]`: the mean of its views' unit vectors."""
        # Twice: a view with long features must not outvote the others.
        views = nn.functional.normalize(self.values, dim=2)
        return nn.functional.normalize(views.mean(dim=1), dim=1)


_PARTS = ("values", "labels", "groups", "indices")


@torch.no_grad()
def extract_features(
    encoder: nn.Module,
    batches: Iterable[Batch],
    *,
    crop: Callable[[Tensor, Tensor], Tensor],
    distributed: DistributedContext,
    title: str,
    total: int,
    shown: bool = True,
) -> Features:
    """Run a frozen encoder over this process's batches and join the features of all processes.

    Args:
        encoder: clips `[N, 3, T, S, S]` -> features `[N, D]`; it is put into eval mode.
        batches: this process's part of the list.
        crop: `(frames, sizes) -> clips [N, V, 3, T, S, S]`, see `vidcsl.augment`.
        distributed: the processes.
        title, total: title of the progress bar, and the number of this process's videos.
        shown: whether there is a bar.

    Raises:
        UserError: no video can be read.
    """
    encoder.eval()
    bar = Bar(title, total=total, shown=shown and distributed.is_main)
    parts: list[tuple[np.ndarray, ...]] = []
    for batch in batches:
        moved = batch.to(distributed.device)
        clips = crop(moved.frames, moved.sizes)
        features = encoder(clips.flatten(0, 1)).float().unflatten(0, clips.shape[:2])
        ids = (batch.labels, batch.groups, batch.indices)
        # Off the device at once: a list's features may be larger than what it has left.
        parts.append(tuple(each.cpu().numpy() for each in (features, *ids)))
        bar.advance(len(batch))
    bar.close()
    everywhere = [part for each in distributed.collect(parts) for part in each]
    if not everywhere:
        raise UserError(f"{title}: no video can be read")
    values, labels, groups, indices = (
        np.concatenate(column) for column in zip(*everywhere, strict=True)
    )
    # In the order of the list and each video once, for any number of processes.
    _, order = np.unique(indices, return_index=True)
    return Features(*(torch.from_numpy(each[order]) for each in (values, labels, groups, indices)))
