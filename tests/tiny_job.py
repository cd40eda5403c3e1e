"""A run of seconds on a tiny rendered set, and what tests ask of its folder; see conftest.py."""

import json
import os
import shutil
import signal

import pytest

from vidcsl.cli import main
from vidcsl.data.lists import read_rows
from vidcsl.training.checkpoint import load_newest
from vidcsl.training.train import train_step

CONFIG = """
SYNTHETIC: {ENABLED: false}
DEVICE: cpu
PRECISION: float32
DATA: {FRAMES: 4, STRIDE: 2, SHORT_SIDE: 32, WORKERS: 0}
MODEL: {WIDTH: 4, FRAME_SIZE: 24}
METHOD: {PROJECTOR_HIDDEN: 16, PROJECTOR_DIM: 8}
FALSE_NEGATIVES: {DETECTOR: known_groups, EXAMPLES: 0}
TRAIN: {EPOCHS: 2, BATCH: 8, LOG_EVERY: 1, OPTIMISER: adamw, LR: 1.0e-3, LR_BATCH: 0}
EVALUATE: {TRAIN_VIEWS: 2, TEST_VIEWS: 2, KNN_K: 3}
ATTACK:
  RUNS: [pgd/linf, 'apgd-dlr:steps=2/flicker:eps=16', 'pgd/linf:universal=yes,eps=8']
  EPS_LINF: [1, 8]
  STEPS: 2
CORRUPT: {NAMES: [gaussian_noise, C/contrast], EXAMPLES: 0}
REPORT: {ENABLED: false}
"""

REPORT = ("REPORT.ENABLED", "true", "FALSE_NEGATIVES.EXAMPLES", 2, "CORRUPT.EXAMPLES", 1)


def show_again(root):
    """Replace every test video by a copy of a training video of its class, under its own name.

    A prediction is then right where a video is recognised that was seen before. That even an
    encoder does that learned nothing, so that no test rests on how much it learned.
    """
    seen = {}
    for row in read_rows(root / "train.csv"):
        seen.setdefault(row.class_name, []).append(row.video)
    for row in read_rows(root / "test.csv"):
        shutil.copy(root / seen[row.class_name].pop(0), root / row.video)


def arguments(data, config, out, *overrides):
    where = {
        "DATA.ROOT": data,
        "DATA.TRAIN_LIST": data / "train.csv",
        "DATA.TEST_LIST": data / "test.csv",
        "OUTPUT_DIR": out,
    }
    pairs = [str(word) for pair in where.items() if pair[0] not in overrides for word in pair]
    return ["--cfg", str(config), *pairs, *map(str, overrides)]


def newest(out):
    return sorted((out / "checkpoints").glob("epoch*.pt"))[-1]


def final(out):
    """The checkpoint of the second epoch, the last of the config's."""
    (checkpoint,) = (out / "checkpoints").glob("epoch00002*.pt")
    return checkpoint


def results_of(out):
    return json.loads((out / "results.json").read_text())


def losses(out):
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}


def weights(out):
    return load_newest(out / "checkpoints")["method"]


def fails(capsys, *words):
    """The one line that the command leaves on stderr when it exits with code 2."""
    capsys.readouterr()
    assert main(list(words)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(lines) == 1
    return lines[0]


def stop_after(steps, monkeypatch, words):
    """Train until SIGTERM comes after so many steps, those of all rounds."""
    done = []

    def interrupted(*arguments, **options):
        outputs = train_step(*arguments, **options)
        done.append(outputs)
        if len(done) == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return outputs

    with monkeypatch.context() as patched:
        patched.setattr("vidcsl.training.train.train_step", interrupted)
        with pytest.raises(SystemExit) as stopped:
            main(["train", *words])
    assert stopped.value.code == 128 + signal.SIGTERM
