#!/usr/bin/env python
"""`vidcsl show`, for use from a checkout: see `tools/visualize.py --help`."""

import sys

from vidcsl.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["show", *sys.argv[1:]]))
