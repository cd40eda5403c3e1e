import os

# One thread a process, also in the processes that tests start: the suite runs several side by side,
# and sums do not depend on the machine's cores. Set before torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from hypothesis import settings

# A loaded machine must not fail a test: time is for the benchmarks.
settings.register_profile("vidcsl", deadline=None)
settings.load_profile("vidcsl")


@pytest.fixture(autouse=True)
def _same_numbers_whatever_the_order() -> None:
    torch.manual_seed(0)
