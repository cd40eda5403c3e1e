#!/usr/bin/env python3
"""Count how far a newcomer walks through the package, and a few figures of its shape.

    python tools/count_walks.py [--files]

The walks follow what runs in one small `vidcsl train`, in its first process: SimCLR with the
`adaptive` detector on rendered videos, linear probe, neighbours, report; no attack, no corruption.
A Python file of the package is on a walk if a function of it ran (what an import runs does not
count):

- one video from list to report: any function, from the first call of `read_list` on;
- one mask from detector through loss to report: a function that held a bool tensor of the shape of
  the batch's pairs, which nothing else has here, or a dict with an entry of `COUNTED`, in which the
  log, the results and the report hold what became of the mask; as a local, as an entry of a dict or
  as an attribute of an object that is a local;
- one option from YAML to its effect: a function that held the value of FALSE_NEGATIVES.CEILING,
  which nothing else has here, as a local, or as an entry of a dict or an attribute of an object
  that is a local; and a file that names the option in full. YAML files do not count.

All but `read_list` is found by running the command, so that two layouts can be compared.
"""

import argparse
import ast
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import tokenize
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vidcsl"
BATCH = 9  # videos of two views each: no other bool tensor of the run has the shape of their pairs
PAIRS = (2 * BATCH, 2 * BATCH)
COUNTED = {"removed", "flagged"}
KEY = "FALSE_NEGATIVES.CEILING"
VALUE = 0.34567  # of the option; no other value of the run is equal to it
TINY = f"""
DEVICE: cpu
PRECISION: float32
DATA: {{FRAMES: 4, STRIDE: 1, SHORT_SIDE: 32, WORKERS: 0}}
MODEL: {{WIDTH: 4, DEPTH: 1, FRAME_SIZE: 24}}
METHOD: {{PROJECTOR_HIDDEN: 16, PROJECTOR_DIM: 8}}
FALSE_NEGATIVES: {{DETECTOR: adaptive, START: 0, RAMP: 0, CEILING: {VALUE}, EXAMPLES: 2}}
TRAIN: {{EPOCHS: 1, BATCH: {BATCH}, LOG_EVERY: 1}}
EVALUATE: {{TRAIN_VIEWS: 1, TEST_VIEWS: 1, KNN_K: 3}}
ATTACK: {{RUNS: []}}
CORRUPT: {{NAMES: []}}
"""
HELP = """
import resource, sys
from contextlib import redirect_stdout
from io import StringIO
from vidcsl.cli import main
try:
    with redirect_stdout(StringIO()):
        main(["--help"])
except SystemExit:
    pass
used = resource.getrusage(resource.RUSAGE_SELF)
print(sum(name.split(".")[0] == "vidcsl" for name in sys.modules), used.ru_utime + used.ru_stime)
"""


def main() -> None:
    """Print the figures as a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", action="store_true", help="name the files of each walk, too")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    found = walks()
    rows = [(name, f"{len(files)} files") for name, files in found.items()]
    rows += [*shape(), *start()]
    print("| figure | value |\n|---|---|")
    for name, value in rows:
        print(f"| {name} | {value} |")
    for name, files in found.items() if args.files else ():
        print(
            f"\n{name}:", *sorted(str(Path(file).relative_to(ROOT)) for file in files), sep="\n  "
        )


def walks() -> dict[str, set[str]]:
    """The files on each walk."""
    from vidcsl.cli import main as command

    seen = Seen()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tiny.yaml").write_text(TINY)
        videos = folder / "videos"
        sizes = ["--sources-per-class", "4", "--clips-per-source", "2", "--frames", "8"]
        where = ["DATA.ROOT", videos, "DATA.TRAIN_LIST", videos / "train.csv"]
        where += ["DATA.TEST_LIST", videos / "test.csv", "OUTPUT_DIR", folder / "run"]
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            command(["prepare", "synthetic", "--root", str(videos), *sizes, "--size", "32"])
            sys.setprofile(seen)
            threading.setprofile(seen)
            try:
                status = command(["train", "--cfg", str(folder / "tiny.yaml"), *map(str, where)])
            finally:
                sys.setprofile(None)
                threading.setprofile(None)
        if status or not (folder / "run/report.html").exists():
            raise SystemExit("the training of the walks failed")
        results = json.loads((folder / "run/results.json").read_text())
        if not results["false_negatives"]["removed"]:
            raise SystemExit("the detector flagged no pair: there is no mask to follow")
    named = {str(path) for path in PACKAGE.rglob("*.py") if KEY in path.read_text()}
    return {
        "one video from list to report": {code.co_filename for code in seen.ran},
        "one mask from detector through loss to report": {code.co_filename for code in seen.masked},
        "one option from YAML to its effect": {code.co_filename for code in seen.held} | named,
    }


class Seen:
    """A profiler: the functions that ran, and those that held the option's value or a mask."""

    def __init__(self) -> None:
        self.listed = False
        self.ran: set[CodeType] = set()
        self.held: set[CodeType] = set()
        self.masked: set[CodeType] = set()

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> None:
        """Look at a function as it starts and as it ends."""
        code = frame.f_code
        name = code.co_filename
        if event not in ("call", "return") or not name.startswith(str(PACKAGE)):
            return
        if not name.endswith(".py"):  # a template
            return
        if code.co_name == "<module>" or not code.co_flags & 2:  # a module's or a class's own text
            return
        self.listed = self.listed or code.co_name == "read_list"
        if self.listed:
            self.ran.add(code)
        for kept, wanted in ((self.held, is_option), (self.masked, is_mask)):
            if code not in kept and any(holds(each, wanted) for each in frame.f_locals.values()):
                kept.add(code)


def holds(value: Any, wanted: Callable[[Any], bool]) -> bool:
    """Whether it is what is wanted, or holds it as an entry or an attribute."""
    if wanted(value):
        return True
    inner = value if isinstance(value, dict) else getattr(value, "__dict__", None)
    return isinstance(inner, dict) and any(wanted(entry) for entry in list(inner.values()))


def is_option(value: Any) -> bool:
    """Whether it is the option's value."""
    return isinstance(value, float) and value == VALUE


def is_mask(value: Any) -> bool:
    """Whether it is a mask of pairs, or names what became of one."""
    if type(value) is dict:
        return not COUNTED.isdisjoint(value)
    return (
        type(value).__name__ == "Tensor"
        and tuple(value.shape) == PAIRS
        and str(value.dtype) == "torch.bool"
    )


def shape() -> Iterator[tuple[str, str]]:
    """Figures of the text of the package."""
    texts = {path: path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}
    trees = [ast.parse(text) for text in texts.values()]
    lengths = [len(text.splitlines()) for text in texts.values()]
    yield "files", f"{len(lengths)}"
    yield "lines", f"{sum(lengths):,}"
    yield "median file", f"{statistics.median(lengths):g} lines"
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    functions = [node for tree in trees for node in ast.walk(tree) if isinstance(node, kinds)]
    single = [node for node in functions if len(node.body) - _documented(node) == 1]
    yield "functions", f"{len(functions):,}"
    yield "functions with one statement", f"{len(single) / len(functions):.0%}"
    uses = Counter(
        node.id if isinstance(node, ast.Name) else node.attr
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Name | ast.Attribute)
    )
    private = [node for node in functions if re.match(r"_(?!_)", node.name)]
    once = [node for node in private if uses[node.name] == 1]
    length = sum((node.end_lineno or node.lineno) - node.lineno + 1 for node in once)
    yield (
        "private helpers used exactly once",
        f"{len(once)} of {len(private)}, {length:,} lines",
    )
    comments = sum(
        token.type == tokenize.COMMENT
        for text in texts.values()
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
    )
    yield "lines with a comment", f"{comments / sum(lengths):.1%}"


def _documented(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return int(ast.get_docstring(node) is not None)


def start() -> Iterator[tuple[str, str]]:
    """What `vidcsl --help` costs."""
    done = subprocess.run(
        [sys.executable, "-c", HELP], cwd=ROOT, check=True, capture_output=True, text=True
    )
    modules, seconds = done.stdout.split()
    yield "modules of vidcsl imported by `vidcsl --help`", modules
    yield "processor time of `vidcsl --help`", f"{float(seconds):.1f} s"


if __name__ == "__main__":
    main()
