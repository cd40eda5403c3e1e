"""Prepare data: the same as `vidcsl prepare`."""

import sys

from vidcsl.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["prepare", *sys.argv[1:]]))
