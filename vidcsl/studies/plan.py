"""A study file, read and checked: arms x seeds in each setting, equal in everything else."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from vidcsl.config import (
    BASE,
    Layer,
    differing_keys,
    find_config,
    flatten,
    load_config,
    read_document,
    value_of,
)
from vidcsl.errors import UserError

_KEYS = (
    *(BASE, "NAME", "OUTPUT_DIR", "ALL", "SETTINGS", "SEEDS", "BY_SEED", "ARMS", "BASELINE"),
    *("REFERENCES", "MAY_DIFFER", "QUESTION"),
)
GRID = "GRID"
# Sections that define an arm. Clips, encoder and schedule are the same for all, or a difference
# between arms could come from them.
ARM_SECTIONS = ("METHOD", "LOSS", "FALSE_NEGATIVES", "ADVERSARIAL")
# The encoder and schedule of foreign weights cannot be chosen.
EXTERNAL_ARM_SECTIONS = ("MODEL", "TRAIN")
_RUN_KEYS = ("NAME", "SEED", "OUTPUT_DIR")


@dataclass(frozen=True, eq=False)
class StudyRun:
    """One arm with one seed in one setting."""

    setting: str
    arm: str
    seed: int
    cfg: CfgNode
    folder: Path

    @property
    def title(self) -> str:
        """Setting, arm and seed, for messages."""
        return " ".join(filter(None, (self.setting, self.arm, f"seed {self.seed}")))

    @property
    def external(self) -> bool:
        """Whether foreign weights are evaluated as they are."""
        return bool(self.cfg.MODEL.WEIGHTS) and not self.cfg.TRAIN.ENABLED


@dataclass(frozen=True)
class Study:
    """All runs, and the arms that they are compared with.

    Attributes:
        name, question: for the report.
        folder: of the runs and the report.
        runs: seed by seed, so that a study that is stopped early holds whole comparisons.
        baseline: the arm whose gap is to be closed.
        references: the arms to close it to, the main one first.
        differences: by arm, outside of the sections of an arm: (key, its value, the baseline's).
    """

    name: str
    question: str
    folder: Path
    runs: tuple[StudyRun, ...]
    baseline: str
    references: tuple[str, ...]
    differences: Mapping[str, list[tuple[str, Any, Any]]]


def read_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """The study that a file describes, see docs/studies.md.

    Args:
        path: YAML.
        overrides: `KEY VALUE ...`, options of all runs.

    Raises:
        UserError: a key is unknown or missing, a config is wrong, or arms differ in other options
            than they may.
    """
    document = read_document(path)
    unknown = [key for key in document if key not in _KEYS]
    if unknown:
        raise UserError(f"{path}: unknown key {unknown[0]}; a study has {', '.join(_KEYS)}")
    missing = [key for key in (BASE, "ARMS", "BASELINE") if not document.get(key)]
    if missing:
        raise UserError(f"{path}: {missing[0]} is missing")
    name = str(document.get("NAME", path.stem))
    folder = Path(str(document.get("OUTPUT_DIR") or f"runs/studies/{name}"))
    arms = dict(_arms(document["ARMS"], path))
    baseline, references = document["BASELINE"], _names(document, "REFERENCES", path)
    for arm in (baseline, *references):
        if not isinstance(arm, str) or arm not in arms:
            raise UserError(f"{path}: no arm is named {arm}; there are {', '.join(arms)}")
    _refuse_run_keys(overrides[::2], "the command line")
    runs = tuple(_runs(document, path, arms, overrides=overrides, folder=folder))
    return Study(
        name=name,
        question=str(document.get("QUESTION", "")),
        folder=folder,
        runs=runs,
        baseline=baseline,
        references=references,
        differences=_differences(runs, baseline, _names(document, "MAY_DIFFER", path), path),
    )


def _names(document: Mapping[str, Any], key: str, path: Path) -> tuple[str, ...]:
    """The list of names under a key, empty if absent."""
    names = document.get(key) or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: {key} must be a list of names, not {names!r}")
    return tuple(names)


def _refuse_run_keys(keys: Iterable[str], where: str) -> None:
    """Raise a UserError for keys that distinguish the runs: several would share one folder."""
    for key in keys:
        if key in _RUN_KEYS:
            raise UserError(
                f"{where}: {key} differs from run to run: name arms, SEEDS and OUTPUT_DIR of the "
                "study in its file"
            )


def _arms(arms: Any, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The options of each arm; one with a GRID stands for all combinations of its values."""
    for name, options in _mapping(arms, path, "ARMS").items():
        options = dict(_mapping(options, path, f"ARMS.{name}"))
        grid = flatten(_mapping(options.pop(GRID, None), path, GRID), where=path)
        flat = flatten(options, where=path)
        for key, values in grid.items():
            if not isinstance(values, list) or not values:
                raise UserError(f"{path}: ARMS.{name}: GRID.{key} must be a list of values")
        for values in product(*grid.values()):
            chosen = dict(zip(grid, values, strict=True))
            suffix = [f"{key.split('.')[-1].lower()}={value}" for key, value in chosen.items()]
            _refuse_run_keys(flat | chosen, f"{path}: ARMS.{name}")
            yield ",".join([name, *suffix]), flat | chosen


def _runs(
    document: Mapping[str, Any],
    path: Path,
    arms: Mapping[str, Mapping[str, Any]],
    *,
    overrides: Sequence[str],
    folder: Path,
) -> Iterator[StudyRun]:
    base = find_config(str(document[BASE]), beside=path.parent)
    shared = _layer(document.get("ALL"), path, "ALL")
    settings = _mapping(document.get("SETTINGS"), path, "SETTINGS") or {"": {}}
    seeds = document.get("SEEDS", [0, 1, 2])
    # By `type`: True is an int as well.
    whole = isinstance(seeds, list) and all(type(seed) is int for seed in seeds)
    if not whole or len({*seeds}) < len(seeds):
        raise UserError(f"{path}: SEEDS must be a list of whole numbers, each once, not {seeds!r}")
    given_by_seed = document.get("BY_SEED", [None] * len(seeds))
    if not isinstance(given_by_seed, list) or len(given_by_seed) != len(seeds):
        raise UserError(f"{path}: BY_SEED must be a list with options for each of {seeds}")
    by_seed = dict(zip(seeds, given_by_seed, strict=True))
    # Seeds outermost: a study that is stopped early has all arms, with fewer seeds.
    for seed, (setting, given), (arm, options) in product(seeds, settings.items(), arms.items()):
        place = folder / setting / arm / f"seed{seed}"
        layers = [
            shared,
            _layer(given, path, f"SETTINGS.{setting}"),
            _layer(by_seed[seed], path, f"BY_SEED of seed {seed}"),
            (f"{path}: ARMS.{arm}", options),
            (str(path), {"NAME": f"{setting}/{arm}".strip("/"), "SEED": seed}),
            (str(path), {"OUTPUT_DIR": str(place)}),
        ]
        yield StudyRun(setting, arm, seed, load_config(base, overrides, layers=layers), place)


def _layer(options: Any, path: Path, where: str) -> Layer:
    flat = flatten(_mapping(options, path, where), where=path)
    _refuse_run_keys(flat, f"{path}: {where}")
    return f"{path}: {where}", flat


def _mapping(value: Any, path: Path, where: str) -> dict[str, Any]:
    """`value` as a mapping; empty for None."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{path}: {where} must be keys and values, not {value!r}")
    return value


def _differences(
    runs: Sequence[StudyRun], baseline: str, allowed: Iterable[str], path: Path
) -> dict[str, list[tuple[str, Any, Any]]]:
    """Options in which arms differ from the baseline; a UserError where they must not."""
    compared_with = {(run.setting, run.seed): run.cfg for run in runs if run.arm == baseline}
    found: dict[str, list[tuple[str, Any, Any]]] = {}
    for run in runs:
        plain = compared_with[run.setting, run.seed]
        free = ARM_SECTIONS + _RUN_KEYS
        keys = [key for key in differing_keys(run.cfg, plain) if key.split(".")[0] not in free]
        shown = (*allowed, *(EXTERNAL_ARM_SECTIONS if run.external else ()))
        unfair = [key for key in keys if not {key, key.split(".")[0]} & set(shown)]
        if unfair:
            key = unfair[0]
            raise UserError(
                f"{path}: ARMS.{run.arm} has {key} {value_of(run.cfg, key)}, {baseline} "
                f"{value_of(plain, key)}: arms may differ in {', '.join(ARM_SECTIONS)} only; "
                f"set it under ALL, or name {key} under MAY_DIFFER to have it shown"
            )
        for key in keys:
            difference = (key, value_of(run.cfg, key), value_of(plain, key))
            if difference not in found.setdefault(run.arm, []):
                found[run.arm].append(difference)
    return found
