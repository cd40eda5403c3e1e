import pytest

from vidcsl.registry import Option, Registry, arguments_of


class Base:
    def __init__(self, *, videos=0, ceiling=0.1):
        self.given = {"videos": videos, "ceiling": ceiling}


class Passing(Base):
    def __init__(self, *, nearest, **options):
        super().__init__(**options)
        self.given["nearest"] = nearest


class Closed(Base):
    def __init__(self, *, nearest):
        super().__init__()
        self.given["nearest"] = nearest


def weighed(value, *, weight):
    return value * weight


@pytest.fixture
def registry():
    shared = {"CEILING": Option(0.1, "largest fraction")}
    made = Registry("FIND.NAME", default="passing", meaning="which is found", shared=shared)
    made.register("passing", "the nearest", NEAREST=Option(10, "at most"))(Passing)
    made.register("closed", "the same", **{"OTHER.KEY": Option("", "elsewhere")})(Closed)
    return made


def test_config_keys_follow_from_what_is_registered(registry):
    options = registry.options()
    assert list(options) == ["FIND.NAME", "FIND.CEILING", "FIND.NEAREST", "OTHER.KEY"]
    assert options["FIND.NAME"].choices == ("passing", "closed")
    assert options["FIND.NAME"].meaning == "which is found: passing: the nearest; closed: the same"


def test_a_class_gets_the_arguments_that_it_and_its_bases_name(registry):
    section = {"CEILING": 0.3, "NEAREST": 4, "UNUSED": 1}
    assert arguments_of(Passing) >= {"nearest", "videos", "ceiling"}
    assert registry.build("passing", section, videos=9).given == {
        "videos": 9,
        "ceiling": 0.3,
        "nearest": 4,
    }
    assert registry.build("closed", section, videos=9).given["videos"] == 0
    assert registry.build("closed", section, nearest=7).given["nearest"] == 7  # it wins
    assert registry.takers("NEAREST") == ["passing", "closed"]


def test_a_function_is_bound_to_its_options():
    registry = Registry("TREAT.NAME", default="weighed", meaning="how")
    registry.register("weighed", "by a weight", WEIGHT=Option(0.5, "the weight"))(weighed)
    assert registry.bind("weighed", {"WEIGHT": 3, "OTHER": 1})(5) == 15


def test_a_name_or_an_option_is_registered_once(registry):
    with pytest.raises(ValueError, match="passing"):
        registry.register("passing", "again")
    with pytest.raises(ValueError, match="CEILING"):
        registry.register("new", "new", CEILING=Option(1, "again"))
