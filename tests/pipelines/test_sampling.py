import pickle

import numpy as np
import pytest

from vidcsl.config import default_config
from vidcsl.errors import UserError
from vidcsl.pipelines.data import build_test_sampler, build_train_sampler


def config(**options):
    cfg = default_config()
    cfg.DATA.FRAMES, cfg.DATA.STRIDE = 4, 2
    for key, value in options.items():
        section, _, name = key.partition("_")
        setattr(cfg[section], name, value)
    return cfg


def starts(sampler, length=200, fps=30.0):
    return sampler(length, fps, np.random.default_rng(0))


@pytest.mark.parametrize("name", ["random", "spaced", "decreasing_interval", "segment"])
def test_every_training_sampler_is_reached_from_a_config(name):
    sampler = build_train_sampler(config(DATA_SAMPLING=name))
    clips = starts(sampler)
    assert clips.shape == (2, 4)
    assert (np.diff(clips)[0] == 2).all() == (name != "segment")
    np.testing.assert_array_equal(starts(pickle.loads(pickle.dumps(sampler))), clips)


def test_gaps_rates_and_windows():
    spaced = config(DATA_SAMPLING="spaced", DATA_CLIPS=3, DATA_MIN_GAP=20, DATA_MAX_GAP=24)
    distances = np.diff(np.sort(starts(build_train_sampler(spaced))[:, 0]))
    assert ((distances >= 20) & (distances <= 24)).all()
    slow = starts(build_train_sampler(config(DATA_FPS=10.0)))
    assert (np.diff(slow) == 6).all()  # every second frame at 10 a second, in a file of 30
    dense = starts(build_train_sampler(config(DATA_WINDOW=64)))
    assert (np.diff(dense) == 16).all()


@pytest.mark.parametrize(("name", "first"), [("uniform", [0, 96]), ("segment", [12, 37])])
def test_test_samplers(name, first):
    clips = starts(build_test_sampler(config(EVALUATE_SAMPLING=name), clips=3), length=199)
    assert clips.shape == (3, 4)
    assert clips[:2, 0].tolist() == first or name == "segment"
    np.testing.assert_array_equal(
        clips, starts(build_test_sampler(config(EVALUATE_SAMPLING=name), clips=3), length=199)
    )


def test_impossible_options_are_refused():
    with pytest.raises(UserError, match=r"set DATA\.CLIPS to 2"):
        build_train_sampler(config(DATA_SAMPLING="decreasing_interval", DATA_CLIPS=3))
    with pytest.raises(UserError, match=r"DATA\.MAX_GAP 3 is below"):
        build_train_sampler(config(DATA_SAMPLING="spaced", DATA_MIN_GAP=4, DATA_MAX_GAP=3))
