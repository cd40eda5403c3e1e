from pathlib import Path

from vidcsl.cli import main


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
