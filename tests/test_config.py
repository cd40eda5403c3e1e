from pathlib import Path

import pytest

from vidcsl.config import default_config, differing_keys, dump_config, load_config, overridden
from vidcsl.errors import UserError
from vidcsl.options import OPTIONS


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_defaults_cover_every_option_and_satisfy_their_own_limits(tmp_path):
    dumped = write(tmp_path / "all.yaml", dump_config(default_config()))
    assert load_config(dumped) == default_config()
    assert all(option.meaning for option in OPTIONS.values())


def test_base_then_file_then_command_line(tmp_path):
    write(tmp_path / "base.yaml", "SEED: 1\nTRAIN: {EPOCHS: 3, LR: 1}\n")
    file = write(tmp_path / "run.yaml", "_BASE_: base.yaml\nTRAIN:\n  EPOCHS: 4\n")
    cfg = load_config(file, ["TRAIN.WEIGHT_DECAY", "1e-3", "NAME", "007"])
    assert (cfg.SEED, cfg.TRAIN.EPOCHS, cfg.TRAIN.LR) == (1, 4, 1.0)
    assert (cfg.TRAIN.WEIGHT_DECAY, cfg.NAME) == (1e-3, "007")
    assert isinstance(cfg.TRAIN.LR, float)
    assert load_config(write(tmp_path / "dump.yaml", dump_config(cfg))) == cfg


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TRAIN: {EPOCHS: 2}\nSEED: 1\nSEED: 2\n", "line 3: key SEED is given twice"),
        ("TRAIN: {EPOCHS: 2}\nTRAIN.EPOCHS: 3\n", "TRAIN.EPOCHS is given twice"),
        ("TRIAN: {EPOCHS: 2}\n", "unknown config key TRIAN.EPOCHS; did you mean TRAIN.EPOCHS"),
        ("TRAIN: {EPOCHS: many}\n", "TRAIN.EPOCHS must be int, not 'many'"),
        ("TRAIN: {EPOCHS: true}\n", "TRAIN.EPOCHS must be int"),
        ("TRAIN: {EPOCHS: 0}\n", "TRAIN.EPOCHS must be at least 1"),
        ("TRAIN: {LR: .nan}\n", "TRAIN.LR must be float"),
        ("TRAIN: 3\n", "unknown config key TRAIN"),
        ("METHOD: {NAME: simclrr}\n", "METHOD.NAME must be one of simclr"),
        ("AUGMENT: {JITTER: 0.4}\n", "AUGMENT.JITTER must be list"),
        ("AUGMENT: {JITTER: [a]}\n", "AUGMENT.JITTER must be list"),
        ("- 1\n", "expected keys and values"),
        ("SEED: [1\n", "line 2"),
        ("SEED: !!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
        ("1: 2\n", "key 1 is not text"),
    ],
)
def test_mistakes_in_a_file_are_one_clear_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message.replace("[", r"\[")) as caught:
        load_config(write(tmp_path / "bad.yaml", text))
    assert "\n" not in str(caught.value)


def test_mistakes_on_the_command_line(tmp_path):
    file = write(tmp_path / "empty.yaml", "")
    for words, message in [
        (["SEED"], "SEED has no value"),
        (["SED", "1"], "did you mean SEED"),
        (["SEED", "1.5"], "must be int"),
    ]:
        with pytest.raises(UserError, match=message):
            load_config(file, words)


def test_of_a_key_given_twice_on_the_command_line_the_last_counts_and_that_is_said(tmp_path):
    said = []
    cfg = load_config(
        write(tmp_path / "a.yaml", ""), ["SEED", "1", "SEED", "2"], announce=said.append
    )
    assert cfg.SEED == 2
    assert said == ["command line: SEED is given more than once, the last value counts: 2"]


def test_bases_have_bases_and_may_be_shipped_names(tmp_path):
    with pytest.raises(UserError, match=r"none.yaml: No such file or directory$"):
        load_config(tmp_path / "none.yaml")
    write(tmp_path / "a.yaml", "_BASE_: b.yaml\nSEED: 3\n")
    write(tmp_path / "b.yaml", "_BASE_: ucf101_10_simclr\nSEED: 1\nNAME: b\n")
    cfg = load_config(write(tmp_path / "c.yaml", "_BASE_: a.yaml\n"))
    assert (cfg.SEED, cfg.NAME) == (3, "b")
    assert cfg.TRAIN.BATCH == load_config("ucf101_10_simclr").TRAIN.BATCH
    slim = load_config(write(tmp_path / "d.yaml", "_BASE_: _base_ucf101_10\n"))
    assert slim.MODEL.WIDTH == 16


def test_bases_that_go_round_in_a_circle_are_refused(tmp_path):
    write(tmp_path / "a.yaml", "_BASE_: b.yaml\n")
    write(tmp_path / "b.yaml", "_BASE_: a.yaml\n")
    with pytest.raises(UserError, match=r"leads back to itself: a.yaml -> b.yaml -> a.yaml$"):
        load_config(tmp_path / "a.yaml")


def test_an_overridden_copy_is_frozen_checked_and_leaves_the_original():
    cfg = default_config()
    cfg.freeze()
    changed = overridden(cfg, {"TRAIN.BATCH": 7, "EVALUATE.SPLITS": []})
    assert differing_keys(cfg, changed) == ["TRAIN.BATCH"]
    assert changed.is_frozen()
    with pytest.raises(UserError, match=r"TRAIN\.BATCH must be int"):
        overridden(cfg, {"TRAIN.BATCH": "many"})


def test_differing_keys_looks_at_the_named_sections_only(tmp_path):
    file = write(tmp_path / "empty.yaml", "")
    one, other = load_config(file), load_config(file, ["SEED", "3", "ATTACK.STEPS", "7"])
    assert differing_keys(one, other, sections=["SEED", "TRAIN"]) == ["SEED"]


# Paths --------------------------------------------------------------------------------------------


def test_home_and_variables_in_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DISK", "/mnt/disk")
    path = tmp_path / "c.yaml"
    path.write_text(
        "NAME: ~it's\n"
        "OUTPUT_DIR: ~/runs/a\n"
        "DATA: {ROOT: '${DISK}/videos', TRAIN_LIST: $DISK/train.csv, CACHE: 'a~/b$'}\n"
        "MODEL: {WEIGHTS: 'videomae:~/w.pt'}\n"
        "EVALUATE: {SPLITS: ['~/a.csv, ${DISK}/b.csv'], TRANSFER: ['x,~/r,~/t.csv,u.csv']}\n"
    )
    cfg = load_config(path, ["DATA.TEST_LIST", "~/test.csv"])
    assert cfg.NAME == "~it's"
    assert cfg.OUTPUT_DIR == "/home/me/runs/a"
    assert cfg.DATA.ROOT == "/mnt/disk/videos"
    assert cfg.DATA.TRAIN_LIST == "/mnt/disk/train.csv"
    assert cfg.DATA.TEST_LIST == "/home/me/test.csv"
    assert cfg.DATA.CACHE == "a~/b$"
    assert cfg.MODEL.WEIGHTS == "videomae:/home/me/w.pt"
    assert cfg.EVALUATE.SPLITS == ["/home/me/a.csv, /mnt/disk/b.csv"]
    assert cfg.EVALUATE.TRANSFER == ["x,/home/me/r,/home/me/t.csv,u.csv"]


def test_a_variable_that_is_not_set_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    with pytest.raises(UserError, match=r"OUTPUT_DIR.*NOWHERE is not set"):
        load_config("demo", ["OUTPUT_DIR", "${NOWHERE}/runs"])


def test_every_option_that_holds_a_path_is_marked():
    paths = {key for key, option in OPTIONS.items() if option.path}
    words = ("ROOT", "LIST", "DIR", "CACHE", "WEIGHTS", "TEACHER", "TUTOR", "SPLITS", "TRANSFER")
    texts = {
        key
        for key, option in OPTIONS.items()
        if option.default in ("", [], "motion") and key.endswith(words)
    }
    assert paths == texts


@pytest.mark.parametrize("words", [["SEED=1", "A", "B"], ["SEED=1"], ["NAME", "x", "SEED=1", "2"]])
def test_an_equals_sign_is_answered_by_what_to_write(words):
    with pytest.raises(UserError, match=r"SEED=1: give SEED 1"):
        load_config("demo", words)
