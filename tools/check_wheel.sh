#!/usr/bin/env bash
# What `pip install vidcsl` gives: the wheel, in an empty environment, runs the demo far from the source tree.
#   tools/check_wheel.sh [PYTHON]     # takes about 6 GB in the folder for temporary files, and leaves nothing
set -euo pipefail
python=${1:-python3}
source=$(cd "$(dirname "$0")/.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
unset PYTHONPATH

cd "$scratch"
"$python" -m venv empty
empty/bin/python -m pip wheel --quiet --no-deps --wheel-dir dist "$source"
empty/bin/python -m pip install --quiet dist/*.whl
empty/bin/python -m pip check
empty/bin/vidcsl --version
# The demo at its smallest: every stage runs, none of them for long.
OMP_NUM_THREADS=1 empty/bin/vidcsl train --cfg demo SYNTHETIC.CLASSES 3 SYNTHETIC.SOURCES 9 \
    TRAIN.EPOCHS 2 TRAIN.BATCH 8 MODEL.WIDTH 4 EVALUATE.KNN_K 3 ATTACK.STEPS 2 \
    ATTACK.EPS_LINF '[1, 8]' ATTACK.MAX_CLIPS 4 CORRUPT.NAMES '[gaussian_noise]' CORRUPT.MAX_CLIPS 4
grep -q '</html>' runs/demo/report.html
empty/bin/python -c 'import vidcsl; print("the demo ran from", vidcsl.__file__)' | grep "$scratch"
