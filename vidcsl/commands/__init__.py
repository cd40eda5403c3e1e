"""The commands of the command line: a module each, found by name.

A module has `HELP` (one line), `add_arguments(parser)` and `run(args)`.
"""

from vidcsl.commands import (
    attack,
    compare,
    corrupt,
    doctor,
    evaluate,
    export,
    gallery,
    prepare,
    report,
    show,
    study,
    train,
    transfer,
)

COMMANDS = {
    "train": train,
    "evaluate": evaluate,
    "attack": attack,
    "transfer": transfer,
    "corrupt": corrupt,
    "export": export,
    "prepare": prepare,
    "show": show,
    "report": report,
    "compare": compare,
    "study": study,
    "gallery": gallery,
    "doctor": doctor,
}
