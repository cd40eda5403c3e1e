"""Kill a training again and again, also inside the write of a checkpoint: does it learn the same?

`python benchmarks/kills.py --kills 50 [KEY VALUE ...]`. A process trains a small encoder on
rendered videos through the command line, with options of the config as they follow (METHOD.NAME
acl, ...); a checkpoint is written in the background after every step. It gets SIGKILL at a random
moment, every other time as soon as a checkpoint is half written, and is started anew with
`--resume`. In the end every logged loss and every weight must be those of a training left alone.
"""

import json
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import Report, arguments

import vidcsl.commands
import vidcsl.pipelines.train  # so that processes that are forked have imported everything
from vidcsl.cli import main as vidcsl
from vidcsl.data.synthetic import generate
from vidcsl.training.checkpoint import load_newest

CONFIG = """
SYNTHETIC: {ENABLED: false}
PRECISION: float32
DATA: {FRAMES: 4, STRIDE: 2, SHORT_SIDE: 32, WORKERS: 0}
MODEL: {WIDTH: 4, FRAME_SIZE: 24}
METHOD: {NAME: moco_v2, QUEUE: 20000, PROJECTOR_HIDDEN: 64, PROJECTOR_DIM: 64}
FALSE_NEGATIVES: {DETECTOR: glofnd}
TRAIN: {EPOCHS: 60, BATCH: 8, LOG_EVERY: 1, CHECKPOINT_STEPS: 1}
REPORT: {ENABLED: false}
"""


def in_process(function: Callable[[], object]) -> int:
    """Run it in a process of its own; the process's number."""
    child = os.fork()
    if child:
        return child
    torch.set_num_threads(1)
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    os._exit(int(function() or 0))


def ended(child: int) -> int | None:
    """Its exit code; None: it still runs."""
    found, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def lines(run: Path) -> int:
    log = run / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def half_written(run: Path) -> bool:
    return any((run / "checkpoints").glob("*.partial"))


def kill_once(run: Path, words: list[str], *, inside: bool, draw: random.Random) -> bool:
    """Train until it is killed; whether a checkpoint was half written just then.

    Raises:
        RuntimeError: the training ended or failed before.
    """
    child = in_process(lambda: vidcsl(words))
    first, wanted = lines(run), draw.randint(1, 3)
    pause = draw.uniform(0, 0.3)
    while True:
        if (code := ended(child)) is not None:
            raise RuntimeError(f"the training ended with exit code {code} before it was killed")
        if lines(run) - first >= wanted and (not inside or half_written(run)):
            break
        time.sleep(0 if inside else 0.01)
    if not inside:
        time.sleep(pause)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return half_written(run)


def losses(run: Path) -> dict[int, float]:
    """Of repeated steps the last line counts; a line that a kill cut off counts for nothing."""
    found = {}
    for text in (run / "log.jsonl").read_text().splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if line["kind"] == "train":
            found[line["step"]] = line["loss"]
    return found


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("words", nargs="*", metavar="KEY VALUE", help="METHOD.NAME acl, ...")
    options = parser.parse_args()
    report, draw = Report("kills"), random.Random(options.seed)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        (root / "tiny.yaml").write_text(CONFIG)
        classes = ("sway", "bob", "rise", "blink")
        made = in_process(
            lambda: (
                generate(
                    root,
                    classes=classes,
                    sources_per_class=4,
                    clips_per_source=2,
                    frames=16,
                    size=32,
                )
                and 0
            )
        )
        os.waitpid(made, 0)
        data = ["DATA.ROOT", str(root), "DATA.TRAIN_LIST", str(root / "train.csv")]
        command = ["train", "--cfg", str(root / "tiny.yaml"), *data, *options.words, "OUTPUT_DIR"]
        alone, killed = root / "alone", root / "killed"
        os.waitpid(in_process(lambda: vidcsl([*command, str(alone)])), 0)
        words = [*command, str(killed), "--resume"]
        inside = 0
        for number in range(options.kills):
            was = kill_once(killed, words, inside=number % 2 == 1, draw=draw)
            inside += was
            report.row(kill=number + 1, steps=max(losses(killed), default=0), inside_a_write=was)
        _, status = os.waitpid(in_process(lambda: vidcsl(words)), 0)
        wanted, found = losses(alone), losses(killed)
        same = sum(found.get(step) == loss for step, loss in wanted.items())
        weights = [load_newest(run / "checkpoints")["method"] for run in (alone, killed)]  # type: ignore[index]
        equal = all(torch.equal(weights[1][name], each) for name, each in weights[0].items())
    share = same / max(1, len(wanted))
    report.row(kills=options.kills, inside_a_write=inside, exit_code=status, steps=len(wanted))
    report.target("losses as without a kill", measured=share, wanted="1", met=share == 1)
    report.target("weights as without a kill", measured=float(equal), wanted="1", met=equal)
    report.finish(options.json)


if __name__ == "__main__":
    main()
