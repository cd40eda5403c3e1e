#!/usr/bin/env python
"""`vidcsl study`, for use from a checkout: see `tools/study.py --help`."""

import sys

from vidcsl.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["study", *sys.argv[1:]]))
