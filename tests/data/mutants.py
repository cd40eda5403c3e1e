"""Damage to a video file's bytes, of many kinds, decided by a seed."""

from collections.abc import Callable

import numpy as np

# Fields that a reader allocates by or counts by, in the containers of the tests.
_FIELDS = (b"avih", b"strf", b"strh", b"indx", b"idx1", b"tkhd", b"stsz", b"stts", b"stco")
_FIELDS += (
    b"avc1",
    b"stsc",
    b"ctts",
    b"moov",
    b"mdat",
    b"RIFF",
    b"LIST",
    b"elst",
    b"\x16\x54\xae\x6b",
)

Bytes = bytes
Rng = np.random.Generator


def cut_short(data: Bytes, rng: Rng) -> Bytes:
    return data[: rng.integers(1, len(data))]


def flip_bits(data: Bytes, rng: Rng) -> Bytes:
    mutant = np.frombuffer(data, np.uint8).copy()
    count = int(4 ** rng.integers(0, 6))  # 1 to 1024
    places = rng.integers(0, len(data), count)
    mutant[places] ^= (1 << rng.integers(0, 8, count)).astype(np.uint8)
    return mutant.tobytes()


def swap_chunks(data: Bytes, rng: Rng) -> Bytes:
    a, b, c, d = np.sort(rng.integers(0, len(data), 4))
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def zero_a_stretch(data: Bytes, rng: Rng) -> Bytes:
    start = rng.integers(0, len(data))
    stop = min(len(data), start + int(rng.integers(1, len(data) // 4)))
    return data[:start] + bytes(stop - start) + data[stop:]


def drop_a_stretch(data: Bytes, rng: Rng) -> Bytes:
    start = rng.integers(0, len(data))
    return data[:start] + data[start + int(rng.integers(1, len(data) // 8)) :]


def repeat_a_stretch(data: Bytes, rng: Rng) -> Bytes:
    start = rng.integers(0, len(data))
    stop = start + int(rng.integers(1, len(data) // 8))
    return data[:stop] + data[start:]


def noise(data: Bytes, rng: Rng) -> Bytes:
    start = rng.integers(0, len(data))
    size = int(rng.integers(1, 2000))
    return data[:start] + rng.bytes(size) + data[start + size :]


def empty(data: Bytes, rng: Rng) -> Bytes:
    return b""


def only_noise(data: Bytes, rng: Rng) -> Bytes:
    return rng.bytes(int(rng.integers(1, 50_000)))


def huge_sizes(data: Bytes, rng: Rng) -> Bytes:
    """Large numbers into one to three places of a header's field."""
    mutant = bytearray(data)
    present = [field for field in _FIELDS if field in data]
    for _ in range(rng.integers(1, 4)):
        field = present[rng.integers(len(present))] if present else data[:4]
        place = data.index(field) + int(rng.integers(-4, 60))
        value = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff", b"\x00\x7f\xff\xff")
        new = value[rng.integers(len(value))]
        place = max(0, min(place, len(data) - len(new)))
        mutant[place : place + len(new)] = new
    return bytes(mutant)


def same(data: Bytes, rng: Rng) -> Bytes:
    return data


MUTATIONS: dict[str, Callable[[Bytes, Rng], Bytes]] = {
    "cut_short": cut_short,
    "flip_bits": flip_bits,
    "swap_chunks": swap_chunks,
    "zero_a_stretch": zero_a_stretch,
    "drop_a_stretch": drop_a_stretch,
    "repeat_a_stretch": repeat_a_stretch,
    "noise": noise,
    "empty": empty,
    "only_noise": only_noise,
    "huge_sizes": huge_sizes,
    "wrong_extension": same,  # and the name says another container
}

_SHARES = {"flip_bits": 6, "huge_sizes": 5, "cut_short": 3, "empty": 0.3, "only_noise": 0.5}


def mutant(data: Bytes, *, seed: int) -> tuple[str, Bytes]:
    """The kind of damage that the seed chooses, and the damaged bytes."""
    rng = np.random.default_rng(seed)
    names = list(MUTATIONS)
    weights = np.array([_SHARES.get(name, 1.0) for name in names])
    name = names[rng.choice(len(names), p=weights / weights.sum())]
    return name, MUTATIONS[name](data, rng)
