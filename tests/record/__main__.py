"""`python -m tests.record --write`: write record.json anew."""

import argparse
import tempfile
from pathlib import Path

from tests.record.collect import RECORD, collect, write

parser = argparse.ArgumentParser(prog="python -m tests.record")
parser.add_argument("--write", action="store_true", required=True, help=f"write {RECORD.name}")
parser.parse_args()
with tempfile.TemporaryDirectory() as folder:
    write(collect(Path(folder)))
