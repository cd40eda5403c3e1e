"""What users rely on, written down: commands, config keys, checkpoints, result files, losses.

`record.json` says how these were when it was written. What it names must stay as it is; what is new
may be added. Write it anew, after a change that is meant, by

    python -m tests.record --write

`moved.json` holds public names that have a new place: "vidcsl.old.name": "vidcsl.new.name". An
entry for a module holds for all names in it.
"""
