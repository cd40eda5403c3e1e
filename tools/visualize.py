#!/usr/bin/env python
"""`vidcsl show clips`, for use from a checkout: see `tools/visualize.py --help`."""

import sys

from vidcsl.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["show", "clips", *sys.argv[1:]]))
