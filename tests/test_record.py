"""What users rely on is as it was recorded; see tests/record."""

import json

import pytest

from tests.record import collect

RECORD = json.loads(collect.RECORD.read_text())
MOVED = json.loads(collect.MOVED.read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return collect.runs(tmp_path_factory.mktemp("runs"))


def test_every_command_has_its_options():
    found = collect.commands()
    lacking = {
        name: sorted(set(options) - set(found.get(name, ())))
        for name, options in RECORD["commands"].items()
    }
    assert {name: options for name, options in lacking.items() if options} == {}
    assert set(RECORD["commands"]) <= set(found)


def test_every_config_key_has_its_default_and_allowed_values():
    found = collect.options()
    for key, recorded in RECORD["options"].items():
        now = found[key]
        assert set(recorded.get("choices", ())) <= set(now.get("choices", ())), key
        assert {**now, "choices": ()} == {**recorded, "choices": ()}, key


def test_every_shipped_config_says_the_same():
    found = collect.configs()
    for name, recorded in RECORD["configs"].items():
        assert found[name] == recorded, name


def test_every_name_that_docs_and_benchmarks_import_is_there():
    names = {*RECORD["names"], *collect.public_names()}
    lost = []
    for name in sorted(names):
        try:
            collect.find(collect.moved(name, MOVED))
        except KeyError:
            lost.append(name)
    assert lost == []


def test_every_state_dict_has_its_names_and_shapes(tmp_path):
    found = collect.states(tmp_path)
    for name, recorded in RECORD["states"].items():
        assert found[name] == recorded, name


def test_losses_are_what_they_were(runs):
    for name, recorded in RECORD["losses"].items():
        # Processors sum in different orders, and what follows from a step adds to that.
        assert runs["losses"][name] == pytest.approx(recorded, rel=1e-2), name


def test_files_of_a_run_hold_what_they_held(runs):
    for name, recorded in RECORD["files"].items():
        assert set(recorded) <= set(runs["files"][name]), name
