"""The newest keys of earlier steps, and what is known of the videos they are of."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidcsl.errors import UserError
from vidcsl.objectives.false_negatives import Samples

OLD = -1  # the view number of a queued key: it is no view of the current batch


class KeyQueue(nn.Module):
    """First in, first out, the same on all processes.

    It starts as random directions of no known video, as in MoCo.

    Args:
        length: K, keys that are kept.
        dim: length of a key.
    """

    keys: Tensor
    videos: Tensor
    groups: Tensor
    labels: Tensor
    place: Tensor

    def __init__(self, *, length: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(length, dim), dim=1))
        for name in ("videos", "groups", "labels"):
            self.register_buffer(name, torch.full((length,), -1))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    def samples(self) -> Samples:
        """Of the K keys."""
        return Samples(
            self.videos, self.groups, self.labels, views=torch.full_like(self.videos, OLD)
        )

    @torch.no_grad()
    def push(self, keys: Tensor, samples: Samples) -> None:
        """Put the keys `[N, P]` of all processes in the place of the oldest ones.

        Raises:
            UserError: the queue is shorter than N.
        """
        check_queue(len(self.keys), keys=len(keys))
        places = (self.place + torch.arange(len(keys), device=keys.device)) % len(self.keys)
        self.keys[places] = keys.to(self.keys.dtype)
        self.videos[places] = samples.videos
        self.groups[places] = samples.groups
        self.labels[places] = samples.labels
        self.place.copy_((self.place + len(keys)) % len(self.keys))


def check_queue(length: int, *, keys: int) -> None:
    """Raise a UserError where the keys of one step do not fit a queue of `length`."""
    if length < keys:
        raise UserError(
            f"METHOD.QUEUE is {length}, shorter than the {keys} keys of one step "
            f"(TRAIN.BATCH x DATA.CLIPS): set METHOD.QUEUE to at least {keys}"
        )
