import re
from contextlib import suppress
from pathlib import Path

from vidcsl.cli import main
from vidcsl.config import load_config
from vidcsl.options import OPTIONS


def test_models_by_name_and_of_a_config(capsys):
    assert main(["show", "models", "slow_r50"]) == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header.split() == ["encoder", "clip", "features", "parameters", "FLOPs"]
    assert line.split() == ["slow_r50", "8x224x224", "2048", "31.63", "M", "41.92", "G"]
    demo = Path(__file__).parents[2] / "configs" / "demo.yaml"
    assert main(["show", "models", "--cfg", str(demo)]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("r2plus1d_18")
    assert main(["show", "models", "slow_r50", "--cfg", str(demo)]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == [
        "r2plus1d_18",
        "slow_r50",
    ]


def test_an_unknown_model_is_told_what_there_is(capsys):
    assert main(["show", "models", "slow_r5"]) == 2
    message = capsys.readouterr().err
    assert "no encoder is named 'slow_r5'; choose from " in message
    assert "slow_r50" in message


def test_options_by_a_word_in_name_or_meaning(capsys):
    assert main(["show", "options", "train.epochs"]) == 0
    first, meaning, users = capsys.readouterr().out.splitlines()
    assert first == "TRAIN.EPOCHS  default 200  (int from 1)"
    assert meaning.strip() == "passes over the training list"
    assert "demo" in users
    assert main(["show", "options", "Gaussian", "blur"]) == 0
    assert capsys.readouterr().out.startswith("AUGMENT.BLUR_PROBABILITY")
    assert main(["show", "options"]) == 0
    assert "SEED  default 0" in capsys.readouterr().out
    assert main(["show", "options", "no-such-word"]) == 2
    assert "no config key has no-such-word" in capsys.readouterr().err


def test_a_config_as_a_whole_loads_to_the_same(capsys, tmp_path):
    assert main(["show", "config", "ucf101_10_simclr", "SEED", "3"]) == 0
    (tmp_path / "whole.yaml").write_text(capsys.readouterr().out)
    assert load_config(tmp_path / "whole.yaml") == load_config("ucf101_10_simclr", ["SEED", "3"])
    assert main(["show", "config"]) == 0
    assert "own" in capsys.readouterr().out.split()


def test_help_of_train_names_keys_that_exist(capsys):
    with suppress(SystemExit):
        main(["train", "--help"])
    named = re.findall(r"^  ([A-Z_.]+\w) (?!VALUE)", capsys.readouterr().out, re.M)
    assert len(named) == 10
    assert set(named) <= set(OPTIONS)


def test_what_an_encoder_costs_is_counted_once(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["show", "models", "--cfg", "demo"]) == 0
    first = capsys.readouterr().out

    def refuse(*_):
        raise AssertionError("counted again")

    monkeypatch.setattr("vidcsl.models.encoder.cost_of", refuse)
    assert main(["show", "models", "--cfg", "demo"]) == 0
    assert capsys.readouterr().out == first
    (tmp_path / "vidcsl" / "costs.json").write_text("no JSON")
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["show", "models", "--cfg", "demo"]) == 0
    assert capsys.readouterr().out == first
