"""The parts of a training run that a config describes."""

import pytest
import torch

from vidcsl.config import load_config
from vidcsl.errors import UserError
from vidcsl.pipelines.training import (
    build_precision,
    build_schedule,
    build_strategy,
    check,
    finetune_recipe,
    output_dir,
    robust_recipe,
)

CPU = torch.device("cpu")


def config(*words):
    return load_config("demo", list(map(str, words)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("LOG.TRACKERS", "[papertrail]"), "LOG.TRACKERS: 'papertrail' is not one of tensorboard"),
        (("TRAIN.FUSED", "true", "TRAIN.OPTIMISER", "lars"), "lars has no fused form"),
        (("ROBUST.PROTOCOLS", "[afl]"), "ROBUST.PROTOCOLS: unknown 'afl'; choose from"),
        (("TRAIN.COMPILE", "reduce-overhead", "TRAIN.CHUNK", 2), "set it to default"),
    ],
)
def test_mistakes_are_found_before_training(words, message):
    with pytest.raises(UserError, match=message):
        check(config(*words))


def test_the_rate_is_scaled_with_the_batch_and_warm_up_fits_a_short_run():
    words = ("TRAIN.LR", 0.1, "TRAIN.LR_BATCH", 256, "TRAIN.BATCH", 64, "TRAIN.EPOCHS", 3)
    schedule = build_schedule(config(*words, "TRAIN.WARMUP_EPOCHS", 10), steps_per_epoch=5)
    assert schedule.peak_lr == pytest.approx(0.025)
    assert (schedule.warmup_epochs, schedule.total_steps) == (3, 15)


def test_a_strategy_is_what_the_config_says():
    strategy = build_strategy(config("TRAIN.PARALLEL", "fsdp", "TRAIN.RECOMPUTE", "true"))
    assert (strategy.parallel, strategy.recompute, strategy.compiled) == ("fsdp", True, "")
    assert build_strategy(config("TRAIN.COMPILE", "max-autotune")).compiled == "max-autotune"


def test_only_float16_has_a_loss_scale():
    for name, scaled in {"float32": False, "bfloat16": False, "float16": True}.items():
        assert build_precision(config("PRECISION", name), CPU).scaler.is_enabled() is scaled
    assert not build_precision(config("PRECISION", "auto"), CPU).scaler.is_enabled()


def test_recipes_have_the_published_rates():
    cfg = config("ROBUST.BATCH", 64, "ROBUST.LR_FACTOR", 2.0, "FINETUNE.EPOCHS", 20)
    assert robust_recipe(cfg, "alf").lr == pytest.approx(2 * 0.01 * 64 / 512)
    assert robust_recipe(cfg, "aff").lr == pytest.approx(2 * 0.1 * 64 / 128)
    recipe = finetune_recipe(cfg)
    assert (recipe.lr, recipe.warmup_epochs) == (cfg.FINETUNE.LR, 2)


def test_the_output_folder_follows_name_and_seed():
    unset = config("OUTPUT_DIR", "", "NAME", "a", "SEED", 3)
    assert str(output_dir(unset)) == "runs/a/seed3"
    assert str(output_dir(config("OUTPUT_DIR", "elsewhere"))) == "elsewhere"
