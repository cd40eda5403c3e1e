"""`vidcsl study`: arms x seeds in each setting, and what they say together."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidcsl.commands.arguments import add_launcher, at_least, launch, refuse_job_options
from vidcsl.errors import UserError

if TYPE_CHECKING:  # importing these takes seconds, and `--help` answers at once
    from vidcsl.studies.plan import Study, StudyRun


def study(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vidcsl study`."""
    parser.add_argument("study", type=Path, help="a study file, or a shipped one: studies/small")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY VALUE",
        help="options of all runs; they override the file",
    )
    parser.add_argument(
        "--jobs", type=at_least(0), default=0, help="runs at a time; 0: one for each GPU"
    )
    parser.add_argument(
        "--part",
        metavar="I/N",
        help="run every N-th run, starting with the I-th (from 0); for job arrays",
    )
    parser.add_argument(
        "--arms", metavar="ARM,ARM", help="run these arms only; the tables hold all finished runs"
    )
    parser.add_argument("--dry-run", action="store_true", help="list the runs and stop")
    parser.add_argument("--budget", action="store_true", help="estimate the hours first")
    parser.add_argument("--table", action="store_true", help="only write the tables")
    add_launcher(parser)
    parser.set_defaults(run=_study)


def _study(args: argparse.Namespace) -> None:
    """Print the plan, run what is missing, write the tables."""
    from vidcsl.config import find_config
    from vidcsl.studies.plan import read_study
    from vidcsl.studies.runner import Runner, check_runs, state, visible_gpus

    if not args.launcher:
        refuse_job_options(args, used=["processes"])
    path = find_config(args.study)
    study = read_study(path, args.overrides)
    runs = _chosen(study.runs, arms=args.arms, part=args.part)
    processes = max(1, args.processes or (args.gpus if args.launcher else 1))
    gpus = visible_gpus() if processes == 1 else []
    jobs = args.jobs or max(1, len(gpus))
    if args.budget or args.dry_run:
        print(f"study {study.name}: {len(runs)} runs, in {study.folder}")
        for run in runs:
            print(f"  {run.title}: {state(run)}")
        for note in _differences(study):
            print(f"  {note}")
    if args.budget:
        _print_budget(runs, jobs=jobs)
    if args.dry_run:
        return
    if args.table:
        _write_tables(study)
        return
    check_runs(runs)
    try:
        if args.launcher:
            _launch(study, runs, path, args, processes=processes)
        else:
            # A job that runs one part has succeeded only when its runs have finished, so it waits
            # for runs that another process is working on.
            Runner(jobs=jobs, gpus=gpus, processes=processes, patient=bool(args.part)).run(runs)
    finally:  # after a failure or a stop, too: the tables show the runs that have ended
        if args.wait or not (args.part or args.launcher):
            _write_tables(study)


def _chosen(
    runs: "Sequence[StudyRun]", *, arms: str | None, part: str | None
) -> "Sequence[StudyRun]":
    """The runs that --arms and --part leave."""
    if arms is not None:
        known = list(dict.fromkeys(run.arm for run in runs))
        if unknown := [name for name in arms.split(",") if name not in known]:
            raise UserError(
                f"--arms: no arm is named {unknown[0]!r}; choose from {', '.join(known)}"
            )
        runs = [run for run in runs if run.arm in arms.split(",")]
    if part is not None:
        index, _, count = part.partition("/")
        if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
            raise UserError(f"--part must be I/N with I from 0 to N - 1, not {part!r}")
        runs = runs[int(index) :: int(count)]
    return runs


def _launch(
    study: "Study",
    runs: "Sequence[StudyRun]",
    path: Path,
    args: argparse.Namespace,
    *,
    processes: int,
) -> None:
    """Start one Slurm job for each run that is not finished, or one local job for all of them."""
    from vidcsl.studies.runner import state

    if args.nodes > 1:
        raise UserError("--nodes: a run of a study uses one node; --jobs sets how many run at once")
    unfinished = [
        index for index, run in enumerate(study.runs) if run in runs and state(run) != "finished"
    ]
    if not unfinished:
        print(f"study {study.name}: nothing is left to run")
        return
    words = ["study", str(path.resolve()), *args.overrides, "--processes", str(processes)]
    args.processes = 1  # the job is one process, which starts the processes of each run
    if args.launcher == "local":
        chosen_by = {"--arms": args.arms, "--part": args.part}
        given = [word for pair in chosen_by.items() if pair[1] for word in pair]
        commands = [[*words, "--jobs", str(args.jobs), *given]]
    else:
        count = len(study.runs)
        commands = [[*words, "--jobs", "1", "--part", f"{index}/{count}"] for index in unfinished]
    launch(commands, args, folder=study.folder / "jobs", name=study.name, at_once=args.jobs)


def _differences(study: "Study") -> list[str]:
    """How each arm differs from the baseline, a line an option."""
    return [
        f"{arm} differs from {study.baseline} in {key}: {value}, not {plain}"
        for arm, differences in study.differences.items()
        for key, value, plain in differences
    ]


def _print_budget(runs: "Sequence[StudyRun]", *, jobs: int) -> None:
    from vidcsl.studies.runner import check_runs, estimate, state

    check_runs(runs)
    estimates = estimate(runs, jobs=jobs)
    unfinished = [run for run in runs if state(run) != "finished"]
    total = sum(estimates[run.setting, run.arm].hours for run in unfinished)
    print(
        "expected cost, without EVALUATE.SPLITS, TRANSFER and LOW_SHOT; attacks on robust models "
        "take longer than on the untrained models of this trial:"
    )
    for kind, known in estimates.items():
        print(f"  {' '.join(filter(None, kind))}: {known.hours:.2f} h a run ({known.source})")
    print(
        f"  {len(unfinished)} runs to go: {total:.2f} h, {total / jobs:.2f} h with {jobs} at a time"
    )


def _write_tables(study: "Study") -> None:
    """Write `study.json`, `.md` and `.html` of every run that has results, whoever ran it."""
    from vidcsl.run_folder import RunFolder
    from vidcsl.studies.analysis import read_record, summarise
    from vidcsl.studies.page import write_study
    from vidcsl.studies.runner import state

    # A run that was stopped before its first result has a file, but only of what it read.
    has_results = {run: "seed" in RunFolder(run.folder).read_results() for run in study.runs}
    settings: dict[str, dict[str, Any]] = {}
    for setting in dict.fromkeys(run.setting for run in study.runs):
        arms: dict[str, list[Any]] = {}
        for run, known in has_results.items():
            if known and run.setting == setting:
                arms.setdefault(run.arm, []).append(read_record(run.folder))
        if study.baseline in arms:
            present = [arm for arm in study.references if arm in arms]
            settings[setting] = summarise(arms, baseline=study.baseline, references=present)
    if not settings:
        print(f"study {study.name}: no run of {study.baseline} has results yet")
        return
    missing = [run.title for run, known in has_results.items() if not known]
    started = [run for run, known in has_results.items() if known]
    partial = [run.title for run in started if state(run) != "finished"]
    notes = [f"{len(study.runs) - len(missing)} of {len(study.runs)} runs have results."]
    notes += [f"Without results: {', '.join(missing)}."] if missing else []
    notes += [f"Not finished: {', '.join(partial)}."] if partial else []
    document = {
        "name": study.name,
        "question": study.question,
        "notes": notes + [f"{note}." for note in _differences(study)],
        "settings": settings,
    }
    print(*write_study(document, study.folder), sep="\n")
