import json

import pytest

from tests.data.prepare.test_official import touch
from vidcsl.data.lists import Row, read_rows
from vidcsl.data.prepare import datasets as ssv2
from vidcsl.errors import UserError

HOLDING = "Holding something next to something"
LIFTING = "Lifting something up completely, then letting it drop down"
ENTRIES = [
    {
        "id": "78687",
        "label": "holding potato next to vicks vaporub bottle",
        "template": "Holding [something] next to [something]",
        "placeholders": ["potato", "vicks vaporub bottle"],
    },
    {"id": "9", "template": "Lifting [something] up completely, then letting it drop down"},
]


@pytest.fixture
def small(tmp_path):
    touch(tmp_path / "videos", "78687.webm", "9.webm", "11.webm")
    files = {
        "labels.json": {HOLDING: "0", LIFTING: "1"},
        "something-something-v2-train.json": ENTRIES,
        "test.json": [{"id": "11"}],
    }
    for name, document in files.items():
        (tmp_path / name).write_text(json.dumps(document))
    return {
        "root": tmp_path / "videos",
        "labels": tmp_path / "labels.json",
        "annotations": [tmp_path / "something-something-v2-train.json", tmp_path / "test.json"],
        "out": tmp_path / "lists",
    }


def test_lists_read_back(small):
    report = ssv2.prepare_ssv2(**small)
    assert read_rows(small["out"] / "train.csv") == [
        Row("78687.webm", HOLDING),
        Row("9.webm", LIFTING),
    ]
    assert read_rows(small["out"] / "test.csv") == [Row("11.webm")]
    assert (report.videos, report.groups) == (3, 0)


def test_answers_of_the_test_split(small, tmp_path):
    (tmp_path / "test-answers.csv").write_text(f"11;{HOLDING}\n")
    report = ssv2.prepare_ssv2(**small | {"annotations": [tmp_path / "test-answers.csv"]})
    assert read_rows(next(iter(report.lists))) == [Row("11.webm", HOLDING)]


def test_missing_and_chosen(small):
    (small["root"] / "9.webm").unlink()
    with pytest.raises(UserError, match=r"lacks 1 videos \(Lifting something.*\): 9\.webm"):
        ssv2.prepare_ssv2(**small)
    assert ssv2.prepare_ssv2(**small, allow_missing=True).missing == (Row("9.webm", LIFTING),)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{}", "names no video"),
        ("a.json", '{"a": 1}', "expected a list of"),
        (
            "a.json",
            '[{"id": "9", "template": "Juggling [something]"}]',
            "9 has the class 'Juggling",
        ),
        ("a.csv", "11,x\n", "line 1: expected 'id;class', found '11,x'"),
    ],
)
def test_faulty_annotations(small, tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        ssv2.prepare_ssv2(**small | {"annotations": [tmp_path / name]})


def test_faulty_options(small, tmp_path):
    with pytest.raises(UserError, match=r"ssv2: the annotations have no class 'x'"):
        ssv2.prepare_ssv2(**small, classes=["x"])
    (tmp_path / "labels.json").write_text("[]")
    with pytest.raises(UserError, match="expected an object with a number"):
        ssv2.prepare_ssv2(**small)
