#!/usr/bin/env python
"""`vidcsl evaluate`, for use from a checkout: see `tools/evaluate.py --help`."""

import sys

from vidcsl.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["evaluate", *sys.argv[1:]]))
