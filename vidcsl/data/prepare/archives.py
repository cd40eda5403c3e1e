"""Unpack the archives in which data sets are published: RAR and ZIP, also one inside another.

RAR is read by the `rarfile` package. It parses archives and copies stored members by itself; for
compressed members a program must be installed: unrar, unar, 7z or bsdtar (which knows the fewest
kinds of RAR).
"""

import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from zipfile import BadZipFile, ZipFile

import rarfile

from vidcsl.data.lists import VIDEO_SUFFIXES, shorten
from vidcsl.data.prepare import jobs
from vidcsl.data.prepare.lists import has_size
from vidcsl.errors import UserError
from vidcsl.io import is_hidden

FORMATS = {".rar": rarfile.RarFile, ".zip": ZipFile}
RECORD = ".unpacked.jsonl"


@dataclass(frozen=True)
class Selection:
    """Which members are wanted, and under which names.

    Attributes:
        suffixes: of the wanted files, lower case.
        depth: how many last parts of a member's path are kept: 2 makes `class/name.avi` of
            `UCF-101/class/name.avi`.
    """

    suffixes: tuple[str, ...]
    depth: int

    def place(self, name: str) -> str | None:
        """The path under the target, or None for a member that is not wanted."""
        path = PurePosixPath(name)
        if path.suffix.lower() not in self.suffixes or is_hidden(name):
            return None
        return str(PurePosixPath(*path.parts[-self.depth :]))


VIDEOS = Selection(VIDEO_SUFFIXES, depth=2)
SPLIT_FILES = Selection((".txt",), depth=1)


def unpack(
    archives: Sequence[Path], target: Path, *, selection: Selection, workers: int
) -> dict[str, int]:
    """Unpack the wanted members of archives, and of archives in them, under `target`.

    Files appear whole or not at all. What an earlier call has unpacked, and is still there, is not
    unpacked again.

    Returns:
        The size of each unpacked file by its path under `target`.

    Raises:
        UserError: an archive is missing, damaged, of an unknown kind or protected by a password; a
            member points outside of the target or is a link; two members have one place; or the
            program that is needed is not installed. Nothing is written if a listing has a fault.
    """
    tasks = []
    for archive in archives:
        state = archive.stat() if archive.is_file() else None
        for member in wanted_members(archive, selection):
            tasks.append(
                jobs.Task(
                    name=f"{archive.name}/{member}",
                    state=f"{state and state.st_size}, {state and state.st_mtime_ns}, {selection}",
                    arguments={
                        "archive": archive,
                        "member": member,
                        "target": target,
                        "selection": selection,
                    },
                )
            )
    _refuse_same_places(selection.place(task.arguments["member"]) for task in tasks)
    outcomes = jobs.run(
        unpack_member,
        tasks,
        record=target / RECORD,
        title="unpacking",
        workers=workers,
        intact=lambda result: all(has_size(target / place, size) for place, size in result.items()),
    )
    if outcomes.failures:
        name, reason = next(iter(outcomes.failures.items()))
        raise UserError(f"{len(outcomes.failures)} members could not be unpacked: {name}: {reason}")
    files = [item for result in outcomes.results.values() for item in result.items()]
    _refuse_same_places(place for place, _ in files)
    if not files:
        raise UserError(
            f"{shorten(archives)}: no {' or '.join(selection.suffixes)} file is in these archives"
        )
    return dict(files)


def unpack_member(archive: Path, member: str, target: Path, selection: Selection) -> dict[str, int]:
    """Write one member, or all wanted members of one that is an archive.

    Returns:
        The size of each file by its path under `target`.
    """
    scratch = jobs.scratch_of(target / RECORD)
    if not _is_archive(member):
        place = selection.place(member)
        assert place is not None
        with jobs.replacing(target / place, scratch=scratch) as partial:
            size = _copy(archive, member, partial)
        return {place: size}
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        inner = Path(folder) / PurePosixPath(member).name
        _copy(archive, member, inner)
        names = wanted_members(inner, selection)
        _refuse_same_places(selection.place(name) for name in names)
        sizes: dict[str, int] = {}
        for name in names:
            sizes |= unpack_member(inner, name, target, selection)
        return sizes


def wanted_members(archive: Path, selection: Selection) -> list[str]:
    """The members that are wanted or are archives themselves.

    Raises:
        UserError: any member must be refused, or the archive cannot be unpacked here.
    """
    with _errors(archive, "its listing"):
        opened = _open(archive)
        outside, links, files = [], [], []
        for member in opened.infolist():
            # Absolute, on a drive or upwards, on any system: an archive may be made on another.
            path, windows = PurePosixPath(member.filename), PureWindowsPath(member.filename)
            if ".." in windows.parts or path.is_absolute() or windows.anchor:
                outside.append(member.filename)
            if isinstance(member, rarfile.RarInfo):
                link = member.is_symlink() or bool(getattr(member, "file_redir", None))
            else:
                link = stat.S_ISLNK(member.external_attr >> 16)
            if link:  # a later member could be written through it, outside of the target
                links.append(member.filename)
            if not member.is_dir():
                files.append(member)
        if outside:
            raise UserError(
                f"{archive}: refused, it contains paths outside the target: {shorten(outside)}"
            )
        if links:
            raise UserError(f"{archive}: refused, it contains links: {shorten(links)}")
        if any(member.flag_bits & 1 for member in files if hasattr(member, "flag_bits")) or (
            isinstance(opened, rarfile.RarFile) and opened.needs_password()
        ):
            raise UserError(f"{archive} is protected by a password: unpack it by hand")
        if isinstance(opened, rarfile.RarFile) and any(
            member.compress_type != rarfile.RAR_M0 for member in files
        ):
            rarfile.tool_setup()  # raises if no program is installed
    names = [member.filename for member in files]
    return [name for name in names if selection.place(name) or _is_archive(name)]


def _copy(archive: Path, member: str, path: Path) -> int:
    """Write a member's bytes to `path`, whose checksum the library checks; return its size."""
    with _errors(archive, member):
        opened = _open(archive)
        with opened.open(member) as source, path.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
        expected, size = opened.getinfo(member).file_size, path.stat().st_size
    if size != expected:
        raise UserError(
            f"{archive}: {member} has {size} bytes instead of {expected}: download it again"
        )
    return int(size)


def _is_archive(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in FORMATS


def _refuse_same_places(places: Iterable[str | None]) -> None:
    """Raise UserError for two members with one path; case is ignored, as some disks ignore it."""
    seen: set[str] = set()
    for place in places:
        if place and place.casefold() in seen:
            raise UserError(
                f"two members of the archives would become {place}: unpack them by hand"
            )
        seen.add((place or "").casefold())


@lru_cache(maxsize=2)
def _open(archive: Path) -> Any:
    """The opened archive, kept: listing 13,320 members takes longer than unpacking one."""
    if not archive.is_file():
        raise UserError(f"the archive {archive} does not exist")
    opener = FORMATS.get(archive.suffix.lower())
    if opener is None:
        raise UserError(f"{archive}: unknown kind of archive, not one of {', '.join(FORMATS)}")
    return opener(archive)


@contextmanager
def _errors(archive: Path, what: str) -> Iterator[None]:
    try:
        yield
    except rarfile.RarCannotExec as error:
        raise UserError(
            f"{archive} is compressed: install unrar or unar to unpack it (7z and bsdtar may work)"
        ) from error
    except rarfile.NeedFirstVolume as error:
        raise UserError(f"{archive} is not the first volume: give the first one") from error
    except (rarfile.Error, BadZipFile, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{archive} is damaged, or of an unsupported kind ({what}): {reason}"
        ) from error
