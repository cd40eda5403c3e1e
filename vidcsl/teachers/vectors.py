"""A teacher's array: computed in parallel, kept, joined; or read from a user's file."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from vidcsl.data.lists import VideoList, read_rows
from vidcsl.data.prepare import jobs
from vidcsl.data.readers import Source
from vidcsl.data.shards import Span
from vidcsl.errors import UserError
from vidcsl.teachers.motion import MOTION_DIM, VERSION, describe_motion

FEATURE_SUFFIXES = (".npz", ".npy", ".safetensors")
COMPONENTS = 64  # of the motion descriptors that are compared
_BLOCK = 4096


def motion_vectors(
    videos: VideoList,
    folder: Path,
    *,
    workers: int = 0,
    backend: str = "auto",
    timeout: float | None = None,
) -> tuple[NDArray[np.float16], dict[str, str]]:
    """Motion descriptors of all videos of a list, computed at most once.

    A killed call continues where it stopped. What was computed from other bytes of the same name
    (another size, time or checksum) is computed again.

    Args:
        videos: the list.
        folder: where the array is kept; lists and runs may share it.
        workers: processes; 0: one for each core.
        backend: the reader.
        timeout: seconds for one video.

    Returns:
        Memory-mapped `[N, MOTION_DIM]` in the order of the list, zero for videos that cannot be
        read, and why those cannot, by path.

    Raises:
        UserError: a video is missing.
    """
    states = [repr((VERSION, backend, *video.identity())) for video in videos.videos]
    names = "\n".join(str(video.path) for video in videos.videos)
    digest = hashlib.sha256(names.encode()).hexdigest()[:16]
    path = folder / f"motion-{digest}.npy"
    folder.mkdir(parents=True, exist_ok=True)
    shape = (len(videos), MOTION_DIM)
    record = path.with_suffix(".jsonl")
    tasks = [
        jobs.Task(
            str(video.path),
            state,
            {
                "name": str(video.path),
                "span": video.span,
                "backend": backend,
                "array": path,
                "row": row,
            },
        )
        for row, (video, state) in enumerate(zip(videos.videos, states, strict=True))
    ]
    with FileLock(f"{path}.lock"):  # the runs of a study wait for the first of them
        if not path.exists():
            record.unlink(missing_ok=True)
            np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape).flush()
        outcomes = jobs.run(
            _describe,
            tasks,
            record=record,
            title="motion of the videos",
            workers=workers or jobs.default_workers(),
            timeout=timeout,
        )
        failed = [row for row, task in enumerate(tasks) if task.name in outcomes.failures]
        if failed:  # a file that was read before may be damaged now
            np.load(path, mmap_mode="r+")[failed] = 0
    return np.load(path, mmap_mode="r"), outcomes.failures


def _describe(
    *, name: str, span: Span | None, backend: str, array: Path, row: int
) -> dict[str, Any]:
    """One task: a video's descriptor, written to its row."""
    source = Source(name, span.read()) if span else Source(name)
    vector = describe_motion(source, backend=backend)
    stored = np.load(array, mmap_mode="r+")
    stored[row] = vector
    stored.flush()
    return {}


def read_features(path: Path, videos: VideoList) -> NDArray[np.float32]:
    """A user's features, in the order of a list.

    Args:
        path: `.npz` or `.safetensors` with a vector for each video, by the name that the list gives
            it; or `.npy`, `[N, D]` in the order of the list.
        videos: the list. Its videos that the file does not name have nothing said of them.

    Returns:
        `[N, D]`, zero where the file names no vector.

    Raises:
        UserError: the file is damaged, of other videos, or has a vector that is not finite or of
            another length; the first is named.
    """
    names = [row.video for row in read_rows(videos.source)]
    if path.suffix == ".npy":
        found = _load(path)
        if found.ndim != 2 or len(found) != len(names):
            raise UserError(
                f"the features {path} have the shape {list(found.shape)}; {videos.source} has "
                f"{len(names)} videos: give one row for each, in its order"
            )
        wrong = np.flatnonzero(~np.isfinite(found).all(axis=1))
        if wrong.size:
            raise UserError(
                f"the features {path}: {names[wrong[0]]} has a number that is not finite"
            )
        return found.astype(np.float32)
    named = _load(path)
    listed = set(names)
    unknown = next((name for name in named if name not in listed), None)
    if unknown is not None:
        raise UserError(f"the features {path} name {unknown}, which is not in {videos.source}")
    lengths = {name: np.asarray(named[name]).shape for name in names if name in named}
    expected = next(iter(lengths.values()), ())
    if len(expected) != 1:
        raise UserError(f"the features {path} have no vector for any video of {videos.source}")
    array = np.zeros((len(names), *expected), dtype=np.float32)
    for row, name in enumerate(names):
        if name not in named:
            continue
        vector = np.asarray(named[name])
        if vector.shape != expected:
            raise UserError(
                f"the features {path}: {name} has the shape {list(vector.shape)}, the videos "
                f"before it {list(expected)}"
            )
        if not np.isfinite(vector).all():
            raise UserError(f"the features {path}: {name} has a number that is not finite")
        array[row] = vector
    return array


def _load(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            return load_file(path)
        loaded = np.load(path, allow_pickle=False)
        return loaded if path.suffix == ".npy" else dict(loaded)
    except FileNotFoundError:
        raise UserError(f"there are no features at {path}") from None
    except Exception as error:  # NumPy, zip files and safetensors raise many kinds
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"cannot read the features {path}: {reason}") from error


def half_whitened(array: NDArray[Any]) -> NDArray[np.float32]:
    """The first COMPONENTS principal components, each divided by the root of its deviation.

    A few components, such as how much moves at all, hold most of the variance of motion
    descriptors, and say little of what happens. Full whitening would let the last components, which
    are noise, count as much as the first; half of it, in the exponent, does neither.

    Args:
        array: `[N, D]`; all-zero rows say nothing. The components are those of at most 4096 rows.

    Returns:
        `[N, min(COMPONENTS, D, rank)]`, centred; all-zero rows stay so.
    """
    sample = _sample(array)
    sample = sample[sample.any(axis=1)]
    mean = sample.mean(axis=0) if len(sample) else np.zeros(array.shape[1])
    _, deviations, axes = np.linalg.svd(sample - mean, full_matrices=False)
    kept = min(COMPONENTS, int((deviations > 1e-6 * deviations.max(initial=1e-6)).sum()))
    scaled = axes[:kept] / np.sqrt(deviations[:kept, None])
    found = np.zeros((len(array), kept), dtype=np.float32)
    for start in range(0, len(array), _BLOCK):
        rows = np.asarray(array[start : start + _BLOCK], dtype=np.float64)
        known = rows.any(axis=1, keepdims=True)
        found[start : start + _BLOCK] = ((rows - mean) @ scaled.T) * known
    return found


def join(
    arrays: Mapping[str, NDArray[Any]], path: Path, *, weights: Mapping[str, float] | None = None
) -> NDArray[np.float16]:
    """Several teachers' vectors as one: its cosine is the sum of theirs, on one scale.

    Of each teacher the mean over the videos is taken away, as what all share says nothing, and its
    cosines are divided by their standard deviation over pairs, as one teacher's cosines may all lie
    near 1 and another's spread.

    Args:
        arrays: `[N, D]` by name; all-zero rows say nothing.
        path: of the `.npy` file that is written.
        weights: of the teachers' cosines in the sum; 1 where none is given.

    Returns:
        Memory-mapped `[N, sum of D]`, rows of unit length; a row is zero where every teacher's is.
    """
    scales = {name: _scale(array) for name, array in arrays.items()}
    if weights:  # a cosine is a product of two vectors
        scales = {
            name: (mean, factor * np.sqrt(weights.get(name, 1.0)))
            for name, (mean, factor) in scales.items()
        }
    count, width = len(next(iter(arrays.values()))), sum(a.shape[1] for a in arrays.values())
    joined = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(count, width))
    for start in range(0, count, _BLOCK):
        parts = [
            _centred_units(array[start : start + _BLOCK], scales[name][0]) * scales[name][1]
            for name, array in arrays.items()
        ]
        joined[start : start + _BLOCK] = _units(np.concatenate(parts, axis=1))
    joined.flush()
    return np.load(path, mmap_mode="r")


def _sample(array: NDArray[Any]) -> NDArray[np.float64]:
    """At most 4096 rows, evenly spaced over the list."""
    rows = np.linspace(0, len(array) - 1, min(len(array), _BLOCK)).astype(np.int64)
    return np.asarray(array[rows], dtype=np.float64)


def _scale(array: NDArray[Any]) -> tuple[NDArray[np.float64], float]:
    """The mean of the known rows, and the factor that gives cosines a standard deviation of 1."""
    total, known = np.zeros(array.shape[1]), 0
    for start in range(0, len(array), _BLOCK):
        block = np.asarray(array[start : start + _BLOCK], dtype=np.float64)
        total, known = total + block.sum(axis=0), known + int(block.any(axis=1).sum())
    mean = total / max(known, 1)
    units = _centred_units(_sample(array), mean)
    units = units[units.any(axis=1)]
    cosines = (units @ units.T)[~np.eye(len(units), dtype=bool)]
    spread = float(cosines.std()) if cosines.size else 0.0
    # The square root, as a cosine is a product of two vectors.
    return mean, 1 / np.sqrt(spread) if spread > 0 else 0.0


def _centred_units(rows: NDArray[Any], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    known = np.asarray(rows).any(axis=1, keepdims=True)
    return _units((np.asarray(rows, dtype=np.float64) - mean) * known)


def _units(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 1e-12)


def is_features(name: str) -> bool:
    """Whether a teacher's name is a file of features."""
    return Path(name).suffix in FEATURE_SUFFIXES
