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
