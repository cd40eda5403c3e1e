import os

# One thread a process, also in the processes that tests start: the suite runs several side by side,
# and sums do not depend on the machine's cores. Set before torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from hypothesis import settings

from tests.tiny_job import CONFIG, REPORT, arguments, show_again
from vidcsl.cli import main
from vidcsl.data.synthetic import generate

# A loaded machine must not fail a test: time is for the benchmarks.
settings.register_profile("vidcsl", deadline=None)
settings.load_profile("vidcsl")


@pytest.fixture(autouse=True)
def _same_numbers_whatever_the_order() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Rendered videos of four classes, with lists `train.csv` and `test.csv`.

    The test videos show what training videos show: to be right of them is to recognise what was
    seen before, which even an untrained encoder does.
    """
    root = tmp_path_factory.mktemp("synthetic")
    classes = ("sway", "bob", "rise", "blink")
    generate(root, classes=classes, sources_per_class=4, clips_per_source=2, frames=16, size=32)
    show_again(root)
    return root


@pytest.fixture(scope="session")
def config(tmp_path_factory):
    """The config of `tiny_job`."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="session")
def finished(data, config, tmp_path_factory):
    """A whole run on them; not to be changed, others look at it too."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert main(["train", *arguments(data, config, out, *REPORT)]) == 0
    return out
