"""Does a process that opens video after video grow? Resident memory over many opens and reads.

python benchmarks/reader_memory.py --videos FOLDER [--opens 20000] [--reader auto] [--json FILE]
"""

import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from common import Report, arguments

from vidcsl.data.readers import open_reader

STEPS = 10
ALLOWED_MIB = 16.0  # what allocators keep back and forth


def main() -> None:
    parser = arguments(__doc__.partition("\n")[0])
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--opens", type=int, default=20_000)
    parser.add_argument("--reader", default="auto")
    args = parser.parse_args()
    report = Report("reader_memory", ("av",))
    files = sorted(p for p in args.videos.rglob("*") if p.suffix in (".avi", ".mp4"))
    paths = itertools.cycle(files)
    resident = []
    for step in range(STEPS):
        for path in itertools.islice(paths, args.opens // STEPS):
            with open_reader(path, backend=args.reader, short_side=64) as reader:
                reader.read(np.array([0, min(5, reader.num_frames - 1)]))
        resident.append(resident_mib())
        report.row(opens=(step + 1) * (args.opens // STEPS), mib=resident[-1])
    # The first step fills caches and pools.
    growth = max(resident[1:]) - resident[0]
    met = growth < ALLOWED_MIB
    report.target(
        f"growth over {args.opens} opens, MiB", measured=growth, wanted=f"< {ALLOWED_MIB}", met=met
    )
    report.finish(args.json)


def resident_mib() -> float:
    """Of this process, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


if __name__ == "__main__":
    main()
