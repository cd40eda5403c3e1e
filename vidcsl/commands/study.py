"""`vidcsl study`: arms x seeds in each setting, and what they say together."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vidcsl.commands.arguments import at_least
from vidcsl.commands.launching import add_launcher, launch, refuse_unlaunched
from vidcsl.config import find_config
from vidcsl.errors import UserError
from vidcsl.studies.analysis import Arms, read_record, summarise
from vidcsl.studies.page import write_study
from vidcsl.studies.plan import Run, Study, read_study
from vidcsl.studies.runner import Runner, check_runs, estimate, state, visible_gpus

HELP = "run a study: arms x seeds, then tables, tests and a page"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The study, and how it is run."""
    parser.add_argument("study", type=Path, help="study file, or a shipped one: studies/small")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY VALUE", help="options of all runs, over the file's"
    )
    parser.add_argument(
        "--jobs", type=at_least(0), default=0, help="runs at a time; 0: one for each GPU"
    )
    parser.add_argument(
        "--part", metavar="I/N", help="only each N-th run from the I-th (from 0): for job arrays"
    )
    parser.add_argument(
        "--arms", metavar="ARM,ARM", help="only runs of these; the tables are of all that is there"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be run")
    parser.add_argument("--budget", action="store_true", help="state the expected hours first")
    parser.add_argument("--table", action="store_true", help="run nothing; tables of what is there")
    add_launcher(parser)


def run(args: argparse.Namespace) -> None:
    """Say, run what is missing, write the tables."""
    if not args.launcher:
        refuse_unlaunched(args, used=["processes"])
    path = find_config(args.study)
    study = read_study(path, args.overrides)
    chosen = _part(_of_arms(study.runs, args.arms), args.part)
    processes = max(1, args.processes or (args.gpus if args.launcher else 1))
    gpus = visible_gpus() if processes == 1 else []
    jobs = args.jobs or max(1, len(gpus))
    if args.budget or args.dry_run:
        print("\n".join(_plan(study, chosen)))
    if args.budget:
        print("\n".join(_budget(chosen, jobs=jobs)))
    if args.dry_run:
        return
    if args.table:
        _write(study)
        return
    check_runs(chosen)
    try:
        if args.launcher:
            _launch(study, chosen, path, args, processes=processes)
        else:
            # A part is a job's: it has ended well only when its runs are finished.
            patient = bool(args.part)
            Runner(jobs=jobs, gpus=gpus, processes=processes, patient=patient).run(chosen)
    finally:  # also where runs failed or were stopped: of what is there
        if args.wait or not (args.part or args.launcher):
            _write(study)


def _launch(
    study: Study, chosen: Sequence[Run], path: Path, args: argparse.Namespace, *, processes: int
) -> None:
    """A job for each chosen run that is not finished, `--jobs` of them at a time; here, one job."""
    if args.nodes > 1:
        raise UserError("--nodes: a run of a study has one node; --jobs says how many at a time")
    count = len(study.runs)
    words = ["study", str(path.resolve()), *args.overrides, "--processes", str(processes)]
    left = [
        index for index, run in enumerate(study.runs) if run in chosen and state(run) != "finished"
    ]
    if not left:
        print(f"study {study.name}: nothing is left to run")
        return
    # The job itself is one process, which starts those of the run.
    args.processes = 1
    parts = [[*words, "--jobs", "1", "--part", f"{index}/{count}"] for index in left]
    if args.launcher == "local":
        asked = {"--arms": args.arms, "--part": args.part}
        chosen_by = [word for pair in asked.items() if pair[1] for word in pair]
        parts = [[*words, "--jobs", str(args.jobs), *chosen_by]]
    launch(parts, args, folder=study.folder / "jobs", name=study.name, at_once=args.jobs)


def _plan(study: Study, runs: Sequence[Run]) -> list[str]:
    lines = [f"study {study.name}: {len(runs)} runs, in {study.folder}"]
    lines += [f"  {run.title}: {state(run)}" for run in runs]
    return lines + [f"  {note}" for note in _differences(study)]


def _differences(study: Study) -> list[str]:
    return [
        f"{arm} differs from {study.baseline} in {key}: {value}, not {plain}"
        for arm, differences in study.differences.items()
        for key, value, plain in differences
    ]


def _budget(runs: Sequence[Run], *, jobs: int) -> list[str]:
    check_runs(runs)
    open_ = [run for run in runs if state(run) != "finished"]
    each = estimate(runs, jobs=jobs)
    lines = [
        f"  {' '.join(filter(None, kind))}: {known.hours:.2f} h a run ({known.source})"
        for kind, known in each.items()
    ]
    total = sum(each[run.setting, run.arm].hours for run in open_)
    return [
        "expected cost, without EVALUATE.SPLITS, TRANSFER and LOW_SHOT; robust models take longer "
        "to attack than the untrained ones of a trial:",
        *lines,
        f"  {len(open_)} runs to go: {total:.2f} h, {total / jobs:.2f} h with {jobs} at a time",
    ]


def _write(study: Study) -> None:
    """`study.json`, `.md` and `.html` of all that is there, other parts' runs too."""
    there = {run: (run.folder / "results.json").exists() for run in study.runs}
    settings: dict[str, dict[str, Any]] = {}
    for setting in dict.fromkeys(run.setting for run in study.runs):
        arms = _arms([run for run, known in there.items() if known and run.setting == setting])
        if study.baseline in arms:
            present = [arm for arm in study.references if arm in arms]
            settings[setting] = summarise(arms, baseline=study.baseline, references=present)
    if not settings:
        print(f"study {study.name}: no run of {study.baseline} has results yet")
        return
    missing = [run.title for run, known in there.items() if not known]
    notes = [f"{len(there) - len(missing)} of {len(there)} runs have results."]
    notes += [f"Without results: {', '.join(missing)}."] if missing else []
    unfinished = [run.title for run, known in there.items() if known and state(run) != "finished"]
    notes += [f"Not brought to their end: {', '.join(unfinished)}."] if unfinished else []
    document = {
        "name": study.name,
        "question": study.question,
        "notes": notes + [f"{note}." for note in _differences(study)],
        "settings": settings,
    }
    print(*write_study(document, study.folder), sep="\n")


def _arms(runs: Sequence[Run]) -> Arms:
    arms: dict[str, list[Any]] = {}
    for run in runs:
        arms.setdefault(run.arm, []).append(read_record(run.folder))
    return arms


def _of_arms(runs: Sequence[Run], names: str | None) -> Sequence[Run]:
    if names is None:
        return runs
    known = list(dict.fromkeys(run.arm for run in runs))
    wanted = names.split(",")
    if unknown := [name for name in wanted if name not in known]:
        raise UserError(f"--arms: no arm is named {unknown[0]!r}; there are {', '.join(known)}")
    return [run for run in runs if run.arm in wanted]


def _part(runs: Sequence[Run], part: str | None) -> Sequence[Run]:
    if part is None:
        return runs
    index, _, count = part.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise UserError(f"--part must be I/N with I from 0 to N - 1, not {part!r}")
    return runs[int(index) :: int(count)]
