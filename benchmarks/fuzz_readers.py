"""Damaged video files through every reader: does any hang, crash, or give frames that are none?

Each mutant is decoded in a process of its own. What comes back is held against two walks from the
file's start by FFmpeg: through the undamaged file, and through the mutant by a decoder that reports
every fault it notices. Beside the files that are given, files are made that were cut without
re-encoding or whose edit lists leave frames out.

    same         the frames of the undamaged file: the damage did not reach them
    as coded     other frames, and no decoder notices a fault: the mutant is a valid video of these
    error        reported, in one line
    substituted  frames although a strict decoder reports a fault: painted over or invented
    crash, hang  the process died, or did not answer in time
    exception    any other error: a fault of ours

No bit of a coded video is a checksum, so "as coded" cannot be told from an undamaged file by anyone
who has not seen that file; `vidcsl prepare` stores checksums for this.
"""

import multiprocessing
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import av
import numpy as np
from common import Report, arguments

from tests.data.cut_videos import cut_family
from tests.data.mutants import mutant
from vidcsl.data.readers import READERS, open_reader
from vidcsl.data.readers.frame_index import is_idr
from vidcsl.errors import UserError, VideoError

OUTCOMES = ("same", "as coded", "error", "substituted", "crash", "hang", "exception")
SHORT_SIDE, FRAMES, SECONDS = 64, 12, 20.0
# Other code for colours and scaling: mean difference in grey levels that still counts as same.
TOLERANCE = 4.0


def main() -> None:
    parser = arguments(__doc__.partition("\n")[0])
    parser.add_argument("--videos", type=Path, nargs="*", default=[], help="files or folders")
    parser.add_argument("--mutants", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first mutant")
    parser.add_argument("--readers", nargs="+", default=["pyav", "decord", "torchcodec"])
    args = parser.parse_args()
    report = Report("fuzz_readers", ("av", "decord", "torchcodec"))
    files = sorted(
        f for path in args.videos for f in ([path] if path.is_file() else path.rglob("*"))
    )
    files = [path for path in files if path.suffix in (".avi", ".mp4", ".mkv", ".webm")]
    counts = {name: Counter() for name in installed(args.readers)}
    kinds: dict[str, Counter] = {name: Counter() for name in counts}
    workers = {name: Worker(name) for name in counts}
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made"
        made.mkdir()
        files += cut_family(made).values()
        for seed in range(args.first, args.first + args.mutants):
            original = files[seed % len(files)]
            kind, data = mutant(original.read_bytes(), seed=seed)
            suffix = ".webm" if kind == "wrong_extension" else original.suffix
            path = Path(folder) / f"mutant{suffix}"
            path.write_bytes(data)
            for name, worker in workers.items():
                outcome = worker.ask((str(path), str(original)))
                counts[name][outcome] += 1
                if outcome in ("substituted", "crash", "hang", "exception"):
                    kinds[name][f"{outcome}: {kind}"] += 1
                    print(f"  {name} seed {seed} {kind} of {original.name}: {outcome}", flush=True)
    for name, count in counts.items():
        report.row(reader=name, mutants=args.mutants, **{key: count[key] for key in OUTCOMES})
        bad = sum(count[key] for key in OUTCOMES[3:])
        report.target(f"no silent or fatal outcome, {name}", measured=bad, wanted="0", met=bad == 0)
    report.finish(args.json)


def installed(names: list[str]) -> list[str]:
    found = []
    for name in names:
        try:
            READERS[name].check_installed()
            found.append(name)
        except UserError as error:
            print(f"skipped {name}: {error}")
    return found


class Worker:
    """A process that reads mutants, replaced whenever one of them costs its life."""

    def __init__(self, reader: str) -> None:
        self.reader = reader
        self.process: Any = None

    def ask(self, context: tuple[str, str]) -> str:
        """What came of (mutant, original)."""
        if self.process is None:
            self.pipe, theirs = multiprocessing.Pipe()
            self.process = multiprocessing.get_context("fork").Process(
                target=serve, args=(theirs, self.reader), daemon=True
            )
            self.process.start()
            theirs.close()
        self.pipe.send(context)
        try:
            if self.pipe.poll(SECONDS):
                return self.pipe.recv()
            outcome = "hang"
        except EOFError:
            outcome = "crash"
        self.process.kill()
        self.process.join()
        self.process = None
        return outcome


def serve(pipe: Connection, reader: str) -> None:
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 2)  # native libraries write there whatever they meet
    while True:
        pipe.send(outcome_of(reader, *pipe.recv()))


def outcome_of(reader: str, path: str, original: str) -> str:
    try:
        with open_reader(path, backend=reader, short_side=SHORT_SIDE) as opened:
            rng = np.random.default_rng(0)
            wanted = np.unique(rng.integers(0, opened.num_frames, FRAMES))
            frames = opened.read(wanted)
    except VideoError:
        return "error"
    except Exception as error:
        print(reader, path, repr(error))
        return "exception"
    if alike(frames, walked(original, wanted, strict=False)):
        return "same"
    return "as coded" if alike(frames, walked(path, wanted, strict=True)) else "substituted"


def walked(path: str, wanted: np.ndarray, *, strict: bool) -> np.ndarray | None:
    """Frames by a walk from the start; None where the decoder fails or there are too few."""
    found: dict[int, np.ndarray] = {}
    try:
        times = packet_times(path)
        with av.open(path, metadata_errors="ignore") as container:
            stream = container.streams.best("video")
            stream.thread_type = "NONE"
            if strict:
                stream.codec_context.options = {"err_detect": "explode"}
            for number, frame in strict_frames(stream, times):
                if number in wanted:
                    found[number] = pixels(frame)
                if number >= wanted[-1]:
                    break
    except (av.error.FFmpegError, ValueError, MemoryError):
        return None
    return np.stack([found[k] for k in sorted(found)]) if len(found) == len(wanted) else None


def packet_times(path: str) -> list[int]:
    """When the packets are shown, in order."""
    with av.open(path, metadata_errors="ignore") as container:
        packets = container.demux(container.streams.best("video"))
        shown = (packet for packet in packets if packet.size and not packet.is_discard)
        return sorted(packet.pts for packet in shown if packet.pts is not None)


def strict_frames(stream: Any, times: list[int]) -> Iterator[tuple[int, Any]]:
    """Numbered frames; after a fault, where a packet is a frame, from the next keyframe on.

    A fault in a picture to which no other refers costs that picture alone. What a cut has left
    before the first keyframe is not shown, and the pictures right after it may still name it.
    """
    number, broken, ahead = 0, False, None
    lost: set[int] = set()
    for packet in stream.container.demux(stream):
        if broken and packet.is_keyframe:
            broken = False
            stream.codec_context.flush_buffers()
        if ahead is None and packet.is_keyframe:
            ahead = 16 if stream.codec_context.name == "h264" and not is_idr(packet, stream) else 0
        forgiven, ahead = ahead != 0, ahead and ahead - 1
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            if forgiven:
                continue
            if is_referred_to(packet) and stream.codec_context.has_b_frames:
                raise
            broken = broken or is_referred_to(packet)
            lost.add(times.index(packet.pts) if packet.pts in times else number)
            frames = []
        while number in lost:
            number += 1
        for frame in frames:
            if not broken:
                yield number, frame
            number += 1
            while number in lost:
                number += 1


def is_referred_to(packet: Any) -> bool:
    """Of an H.264 packet of an MP4 file what its slices' `nal_ref_idc` say, of others True."""
    data, at, slices = bytes(packet), 0, []
    if packet.stream.codec_context.name != "h264" or data[:3] == b"\x00\x00\x01":
        return True
    while at + 4 < len(data):
        slices += [data[at + 4]] if data[at + 4] & 31 in (1, 5) else []
        at += 4 + int.from_bytes(data[at : at + 4], "big")
    return not slices or any(head & 0x60 for head in slices)


def pixels(frame: Any) -> np.ndarray:
    scale = SHORT_SIDE / min(frame.height, frame.width)
    width, height = (int(side * scale + 0.5) for side in (frame.width, frame.height))
    small = frame.reformat(width, height, "gbrp", interpolation="BILINEAR")
    return np.rot90(small.to_ndarray(), frame.rotation // 90)


def alike(frames: np.ndarray, others: np.ndarray | None) -> bool:
    if others is None or frames.shape != others.shape:
        return False
    return bool(np.abs(frames.astype(int) - others).mean(axis=(1, 2, 3)).max() < TOLERANCE)


if __name__ == "__main__":
    main()
