import pytest

from vidcsl.config import CONFIGS, load_config, shipped_configs
from vidcsl.errors import UserError


def test_a_shipped_config_by_its_name_and_a_file_before_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "demo" in shipped_configs()
    assert load_config("demo") == load_config(CONFIGS / "demo.yaml")
    assert load_config("ucf101_10_simclr").TRAIN.EPOCHS  # through its base
    (tmp_path / "demo").mkdir()
    assert load_config("demo").NAME == "demo"
    (tmp_path / "demo").rmdir()
    (tmp_path / "demo").write_text("NAME: mine\n")
    assert load_config("demo").NAME == "mine"


def test_a_name_that_is_not_shipped_says_which_are():
    with pytest.raises(UserError, match=r"cannot read config dmeo: .*; shipped are: demo, "):
        load_config("dmeo")
