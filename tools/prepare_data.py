#!/usr/bin/env python
"""`vidcsl prepare`, for use from a checkout: see `tools/prepare_data.py --help`."""

import sys

from vidcsl.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["prepare", *sys.argv[1:]]))
