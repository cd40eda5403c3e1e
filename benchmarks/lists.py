#!/usr/bin/env python3
"""A long list: time to read it, its memory, and that of worker processes that look at its videos.

    python benchmarks/lists.py [--videos 300000] [--starts fork spawn forkserver] [--json FILE]

Four videos are of one source, 400 classes. Memory is that of /proc/self/smaps_rollup, so this runs
on Linux: private is what a process shares with no other, PSS its own part of what it shares.
"""

import multiprocessing
import re
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from vidcsl.data.lists import read_list

WORKERS = 2
STEP = 16  # a worker looks at so many-th videos: at each page of the columns


def memory() -> dict[str, float]:
    """MiB of this process."""
    found = dict(re.findall(r"(\w+): +(\d+) kB", Path("/proc/self/smaps_rollup").read_text()))
    private = int(found["Private_Clean"]) + int(found["Private_Dirty"])
    return {
        "private": private / 1024,
        "pss": int(found["Pss"]) / 1024,
        "resident": int(found["Rss"]) / 1024,
    }


IMPORTED = memory()  # of a spawned process, before it gets the list


def main() -> None:
    # In here: a worker that imports this script needs no torch.
    from common import Report, arguments

    parser = arguments((__doc__ or "").partition("\n")[0])
    parser.add_argument("--videos", type=int, default=300_000)
    parser.add_argument("--starts", nargs="+", default=["fork", "spawn", "forkserver"])
    args = parser.parse_args()
    report = Report("lists", ("numpy",))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.csv"
        with path.open("w") as file:
            file.write("video,class,group\n")
            for k in range(args.videos):
                name = f"class{k % 400}/v_class{k % 400}_g{k // 4:07d}_c{k % 4:02d}.mp4"
                file.write(f"{name},class{k % 400},source{k // 4}\n")
        before, started = memory(), time.process_time()
        videos = read_list(path, root=folder)
        seconds = time.process_time() - started
        held = memory()["private"] - before["private"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before["resident"]
    paths = sum(map(len, videos.videos.names)) / args.videos
    report.row(
        what="read",
        videos=args.videos,
        cpu_seconds=seconds,
        held_mib=held,
        peak_mib=peak,
        bytes_of_a_path=paths,
    )
    report.target(
        "bytes a video beside its path",
        measured=held * 2**20 / args.videos - paths,
        wanted="< 100",
        met=held * 2**20 / args.videos - paths < 100,
    )
    for start in args.starts:
        processes = multiprocessing.get_context(start)
        results, done = processes.SimpleQueue(), processes.Event()
        workers = [
            processes.Process(target=look, args=(videos, results, done, start))
            for _ in range(WORKERS)
        ]
        for worker in workers:
            worker.start()
        for _ in workers:
            private, pss = results.get()
            report.row(what="worker", start=start, private_mib=private, pss_mib=pss)
        done.set()
        for worker in workers:
            worker.join()
    report.finish(args.json)


def look(videos, results, done, start) -> None:
    """Put what this process has of its own, beside its imports, after it has touched the list."""
    before = memory() if start == "fork" else IMPORTED
    for k in range(0, len(videos), STEP):
        videos.videos[k].path.name  # noqa: B018
    after = memory()
    results.put((after["private"] - before["private"], after["pss"] - before["pss"]))
    done.wait()  # or the other's share would grow


if __name__ == "__main__":
    main()
