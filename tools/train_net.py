#!/usr/bin/env python
"""`vidcsl train`, for use from a checkout: see `tools/train_net.py --help`."""

import sys

from vidcsl.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", *sys.argv[1:]]))
