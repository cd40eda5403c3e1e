"""What a training may be continued with."""

from vidcsl.options import OPTIONS
from vidcsl.pipelines.train import FREE, TRAINING

# Sections that decide nothing that is learned.
AFTERWARDS = {"EVALUATE", "FINETUNE", "ROBUST", "ATTACK", "CORRUPT", "REPORT"}
AROUND = {"NAME", "OUTPUT_DIR", "DEVICE", "LOG", "GUARD"}


def test_every_section_of_the_config_is_held_to_what_it_was_or_known_not_to_matter():
    assert {key.partition(".")[0] for key in OPTIONS} == {*TRAINING} | AFTERWARDS | AROUND
    assert not {*TRAINING} & (AFTERWARDS | AROUND)
    assert {key.partition(".")[0] for key in FREE} <= {*TRAINING}
