"""Local random generators, each named by what it is for; nothing here touches a global seed."""

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # importing torch takes seconds, and a report draws numbers without it
    import torch


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part and on their order.

    Hashing, not adding, keeps (seed 1, sample 2) apart from (seed 2, sample 1), and is the same
    on every platform and Python run, as `hash()` is not.

    Args:
        parts: for example `(run seed, epoch, sample, "augment")`.
    """
    text = "\x1f".join(f"s{part}" if isinstance(part, str) else f"i{int(part)}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def sample_seed(run: int, epoch: int, index: int) -> int:
    """The seed of everything that augmentation draws for a video in an epoch."""
    return seed_of(run, epoch, index)


def numpy_generator(*parts: int | str) -> np.random.Generator:
    """A NumPy generator seeded by `seed_of(*parts)`."""
    return np.random.default_rng(seed_of(*parts))


def torch_generator(*parts: int | str) -> "torch.Generator":
    """A CPU torch generator seeded by `seed_of(*parts)`.

    On the CPU whatever the model's device, so that a GPU run draws the same numbers.
    """
    import torch

    return torch.Generator().manual_seed(seed_of(*parts))
