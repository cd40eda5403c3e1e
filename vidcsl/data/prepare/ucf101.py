"""UCF101 (Soomro, Zamir, Shah 2012, arXiv:1212.0402): 13,320 videos, 101 classes, three splits.

Each class has 25 groups, numbered within the class; a group's clips were cut from one source, and
no group is in both training and test. The split files are the published ones: `classInd.txt`,
`trainlist01.txt` to `trainlist03.txt` and `testlist01.txt` to `testlist03.txt`.
"""

from pathlib import Path

from vidcsl.data.lists import Row, read_rows, shorten
from vidcsl.data.prepare.annotated import read_text
from vidcsl.data.prepare.official import Dataset, SplitFiles
from vidcsl.errors import UserError

TOTALS = {1: (9537, 3783), 2: (9586, 3734), 3: (9624, 3696)}


def read(folder: Path, subset: bool) -> SplitFiles:
    """What `classInd.txt` and the lists of training and test videos say."""
    numbers = _read_classes(folder / "classInd.txt")
    present = [k for k in TOTALS if (folder / f"trainlist0{k}.txt").is_file()] if subset else TOTALS
    if not present:
        raise UserError(f"ucf101: {folder} holds no trainlist01.txt, trainlist02.txt, ...")
    splits = {
        k: (
            _read_split(folder / f"trainlist0{k}.txt", numbers),
            _read_split(folder / f"testlist0{k}.txt", numbers),
        )
        for k in present
    }
    videos = frozenset(row.video for halves in splits.values() for rows in halves for row in rows)
    return SplitFiles(classes=list(numbers), videos=videos, splits=splits)


UCF101 = Dataset(
    name="ucf101",
    read=read,
    classes=101,
    videos=13320,
    totals=TOTALS,
    group=(lambda row: row.group, "groups"),
)


def _read_classes(path: Path) -> dict[str, int]:
    """Class name to its number; lines `1 ApplyEyeMakeup`."""
    if not path.is_file():
        raise UserError(f"ucf101: {path} does not exist; --splits is the folder of classInd.txt")
    pairs = [line.split() for line in read_text(path).splitlines() if line.strip()]
    wrong = [" ".join(pair) for pair in pairs if len(pair) != 2 or not pair[0].isdecimal()]
    if wrong:
        raise UserError(f"{path}: expected lines 'number class', found {wrong[0]!r}")
    return {name: int(number) for number, name in pairs}


def _read_split(path: Path, numbers: dict[str, int]) -> list[Row]:
    """The rows of one split file, with class, class number and group checked."""
    rows = read_rows(path)
    unknown = [row.video for row in rows if row.class_name not in numbers]
    if unknown:
        raise UserError(f"{path}: the class is not in classInd.txt: {shorten(unknown, most=1)}")
    # The folder HandstandPushups holds files v_HandStandPushups_*, hence the folded case.
    odd = [
        row.video
        for row in rows
        if not row.group.casefold().startswith(f"v_{row.class_name}_g".casefold())
    ]
    if odd:
        raise UserError(f"{path}: not named v_<class>_g<group>_c<clip>: {shorten(odd, most=1)}")
    lines = (line.split() for line in path.read_text(encoding="utf-8-sig").splitlines())
    for line in lines:
        if len(line) == 2 and int(line[1]) != numbers[line[0].split("/")[0]]:
            raise UserError(f"{path}: {line[0]} has number {line[1]}, not as in classInd.txt")
    return rows
