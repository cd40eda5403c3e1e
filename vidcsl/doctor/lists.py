"""Whether the lists of a run are sound: all there, readable, training and test apart."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from vidcsl.data.lists import Row, Video, VideoList, check_files, read_list, read_rows, shorten
from vidcsl.data.readers import open_reader
from vidcsl.doctor.finding import Finding
from vidcsl.errors import UserError

TRIED = 16  # videos of each list


def examine_lists(
    *,
    root: str,
    train: str,
    test: str,
    reader: str = "auto",
    tolerated: float = 0.0,
    tolerated_test: float = 0.0,
) -> Iterator[Finding]:
    """Read both lists and try some of their videos.

    Args:
        root, train, test: as in a config; an empty test list is left out.
        reader: who decodes.
        tolerated, tolerated_test: shares of the lists that may be unreadable.
    """
    lists: dict[str, VideoList] = {}
    shares = {"training": tolerated, "test": tolerated_test}
    for name, path in (("training", train), ("test", test)):
        if not path:
            yield Finding("lists", name, False, "not set", broken=name == "training")
            continue
        try:
            known = lists["training"].classes if "training" in lists else None
            found = read_list(path, root=root, classes=known)
            check_files(found.videos)
        except UserError as error:
            yield Finding("lists", name, False, str(error), broken=True)
            continue
        lists[name] = found
        yield Finding("lists", name, True, _describe(found))
        yield _try(name, found.videos, reader, shares[name])
    if "test" in lists:
        yield from _unlabelled(lists["test"])
    if len(lists) == 2:
        yield from _apart(train, test)


def _unlabelled(test: VideoList) -> Iterator[Finding]:
    count = sum(video.label < 0 for video in test.videos)
    if count:
        words = f"{count} videos have none: fill their class, or leave DATA.TEST_LIST empty"
        yield Finding("lists", "labels of the test list", False, words, broken=True)


def _describe(videos: VideoList) -> str:
    counts = Counter(video.label for video in videos.videos)
    unlabelled = counts.pop(-1, 0)
    words = f"{len(videos)} videos"
    if counts:
        words += f", {len(counts)} classes of {min(counts.values())} to {max(counts.values())}"
    return words + (f", {unlabelled} without a label" if unlabelled else "")


def _try(name: str, videos: Sequence[Video], reader: str, tolerated: float) -> Finding:
    """Read the last frame of some videos, spread over the list."""
    chosen = np.unique(np.linspace(0, len(videos) - 1, TRIED).round().astype(int))
    failures = [error for error in (_failure(videos[k], reader) for k in chosen) if error]
    words = f"{len(chosen) - len(failures)} of {len(chosen)} tried can be read"
    if failures:
        words += f"; first: {failures[0]}"
    broken = len(failures) > tolerated * len(chosen) or len(failures) == len(chosen)
    return Finding("lists", f"videos of the {name} list", not failures, words, broken=broken)


def _failure(video: Video, backend: str) -> UserError | None:
    try:
        with open_reader(video.source(), backend=backend, short_side=64) as reader:
            reader.read(np.array([reader.num_frames - 1]))
    except UserError as error:
        return error
    return None


def _apart(train: str, test: str) -> Iterator[Finding]:
    """No video, and no source of videos of a class, on both sides.

    A source may lend videos to another class there, as films do in the published HMDB51 splits.
    """
    sides = [read_rows(path) for path in (train, test)]
    for name, values in (
        ("videos", [{os.path.normpath(row.video) for row in rows} for rows in sides]),
        ("groups", [{_group_of(row) for row in rows if row.group} for rows in sides]),
    ):
        both = sorted(values[0] & values[1])
        words = f"{len(both)} are in both lists: {shorten(both)}" if both else "none in both lists"
        yield Finding("lists", f"{name} apart", not both, words, broken=bool(both))


def _group_of(row: Row) -> str:
    return f"{row.group} of {row.class_name}" if row.class_name else row.group
