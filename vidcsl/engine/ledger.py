"""A record on disk of what a long evaluation has answered, so that it goes on where it stopped."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vidcsl.errors import UserError


class Ledger:
    """What was answered for each video under each condition, kept through a kill at any moment.

    Every process appends to a file of its own and reads those of all, so that a run can go on with
    another number of processes. Answers to other settings lie in other files: nothing is mixed up,
    and going back to earlier settings finds their answers again.

    Args:
        folder: where the files lie; made if need be. All processes must see the same one.
        settings: all that the answers depend on (the weights' digest, budgets, seed, ...), JSON.
        rank: of this process.

    Raises:
        UserError: the folder cannot be written, or a file is damaged.
    """

    def __init__(self, folder: Path, *, settings: Mapping[str, Any], rank: int = 0) -> None:
        self._folder, self._key, self._rank = folder, digest(settings), rank
        self._path = folder / f"{self._key}.rank{rank}.jsonl"
        self._answers: dict[str, dict[int, Any]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _drop_unfinished_line(self._path)
        except OSError as error:
            raise self._unwritable(error) from error
        self.reload()
        if not self._path.exists():
            self._append({"settings": dict(settings)})  # for a person who looks inside

    def reload(self) -> None:
        """Read the files of all processes anew."""
        for path in sorted(self._folder.glob(f"{self._key}.rank*.jsonl")):
            for line in _lines(path):
                if "condition" in line:
                    self._keep(line["condition"], line["videos"], line["answers"])

    def get(self, condition: str, video: int) -> Any | None:
        """The answer for a video (its index in the list); None where there is none yet."""
        return self._answers.get(condition, {}).get(video)

    def answers(self, condition: str) -> Mapping[int, Any]:
        """All answers under a condition, by video."""
        return dict(self._answers.get(condition, {}))

    def record(self, condition: str, videos: Sequence[int], answers: Sequence[Any]) -> None:
        """Write the answers (JSON) for some videos; they are on disk when this returns."""
        if len(videos) != len(answers):
            raise ValueError(f"{len(videos)} videos and {len(answers)} answers")
        if len(videos):
            self._append({"condition": condition, "videos": list(videos), "answers": list(answers)})
            self._keep(condition, videos, answers)

    def _keep(self, condition: str, videos: Sequence[int], answers: Sequence[Any]) -> None:
        self._answers.setdefault(condition, {}).update(zip(videos, answers, strict=True))

    def _append(self, line: Mapping[str, Any]) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"cannot write {self._path}: {error.strerror}; what was answered so far is kept, "
            "run the same command again"
        )


def digest(settings: Mapping[str, Any]) -> str:
    """A short name for settings, the same for equal ones in whatever order."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file; one that another process is just writing is left out."""
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    for number, text in enumerate(whole.split("\n") if whole else [], start=1):
        try:
            yield json.loads(text)
        except ValueError as error:
            raise UserError(
                f"{path}, line {number} is damaged ({error}); remove the file to start this over"
            ) from error


def _drop_unfinished_line(path: Path) -> None:
    """Take off what a kill in the middle of a write, or a full disk, left behind the last line."""
    if path.exists():
        whole = path.read_bytes().rpartition(b"\n")
        os.truncate(path, len(whole[0]) + len(whole[1]))
