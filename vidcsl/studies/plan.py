"""A study file, read and checked: arms x seeds in each setting, all else alike."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from vidcsl.config import BASE, Layer, differing_keys, flatten, load_config, read_document, value_of
from vidcsl.errors import UserError

_KEYS = (
    *(BASE, "NAME", "OUTPUT_DIR", "ALL", "SETTINGS", "SEEDS", "BY_SEED", "ARMS", "BASELINE"),
    *("REFERENCES", "MAY_DIFFER", "QUESTION"),
)
GRID = "GRID"
# What an arm is: what is learned from the same clips by the same encoder on the same schedule.
OF_AN_ARM = ("METHOD", "LOSS", "FALSE_NEGATIVES", "ADVERSARIAL")
# An encoder that was trained elsewhere is what it is.
OF_AN_EXTERNAL_ARM = ("MODEL", "TRAIN")
_OF_A_RUN = ("NAME", "SEED", "OUTPUT_DIR")


@dataclass(frozen=True, eq=False)
class Run:
    """One arm with one seed in one setting."""

    setting: str
    arm: str
    seed: int
    cfg: CfgNode
    folder: Path

    @property
    def title(self) -> str:
        """For messages."""
        return " ".join(filter(None, (self.setting, self.arm, f"seed {self.seed}")))

    @property
    def external(self) -> bool:
        """Whether foreign weights are evaluated as they are."""
        return bool(self.cfg.MODEL.WEIGHTS) and not self.cfg.TRAIN.ENABLED


@dataclass(frozen=True)
class Study:
    """All runs, and what they are held against.

    Args:
        name, question: for the report.
        folder: of the runs and of what is made of them.
        runs: seed by seed, so that a study that is stopped early holds whole comparisons.
        baseline: the arm whose gap is to be closed.
        references: the arms that it is to be closed towards, the main one first.
        differences: by arm, beyond what makes an arm: (key, its value, the baseline's).
    """

    name: str
    question: str
    folder: Path
    runs: tuple[Run, ...]
    baseline: str
    references: tuple[str, ...]
    differences: Mapping[str, list[tuple[str, Any, Any]]]


def read_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """The study that a file describes, see docs/studies.md.

    Args:
        path: YAML.
        overrides: `KEY VALUE ...`, options of all runs.

    Raises:
        UserError: a key is unknown or missing, a config is wrong, or arms differ in more than arms
            may.
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
    baseline, references = document["BASELINE"], _words(document, "REFERENCES", path)
    for arm in (baseline, *references):
        if not isinstance(arm, str) or arm not in arms:
            raise UserError(f"{path}: no arm is named {arm}; there are {', '.join(arms)}")
    _spare(overrides[::2], "the command line")
    runs = tuple(_runs(document, path, arms, overrides=overrides, folder=folder))
    return Study(
        name=name,
        question=str(document.get("QUESTION", "")),
        folder=folder,
        runs=runs,
        baseline=baseline,
        references=references,
        differences=_differences(runs, baseline, _words(document, "MAY_DIFFER", path), path),
    )


def _words(document: Mapping[str, Any], key: str, path: Path) -> tuple[str, ...]:
    """The list of words under a key, empty where it is not there."""
    words = document.get(key) or []
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UserError(f"{path}: {key} must be a list of names, not {words!r}")
    return tuple(words)


def _spare(keys: Iterable[str], where: str) -> None:
    """Raise a UserError where options that tell the runs apart would be the same for several."""
    for key in keys:
        if key in _OF_A_RUN:
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
            words = [f"{key.split('.')[-1].lower()}={value}" for key, value in chosen.items()]
            _spare(flat | chosen, f"{path}: ARMS.{name}")
            yield ",".join([name, *words]), flat | chosen


def _runs(
    document: Mapping[str, Any],
    path: Path,
    arms: Mapping[str, Mapping[str, Any]],
    *,
    overrides: Sequence[str],
    folder: Path,
) -> Iterator[Run]:
    base = path.parent / str(document[BASE])
    everyones = _layer(document.get("ALL"), path, "ALL")
    settings = _mapping(document.get("SETTINGS"), path, "SETTINGS") or {"": {}}
    seeds = document.get("SEEDS", [0, 1, 2])
    whole = isinstance(seeds, list) and all(type(seed) is int for seed in seeds)
    if not whole or len({*seeds}) < len(seeds):
        raise UserError(f"{path}: SEEDS must be a list of whole numbers, each once, not {seeds!r}")
    given_by_seed = document.get("BY_SEED", [None] * len(seeds))
    if not isinstance(given_by_seed, list) or len(given_by_seed) != len(seeds):
        raise UserError(f"{path}: BY_SEED must be a list with options for each of {seeds}")
    by_seed = dict(zip(seeds, given_by_seed, strict=True))
    for seed, (setting, given), (arm, options) in product(seeds, settings.items(), arms.items()):
        place = folder / setting / arm / f"seed{seed}"
        layers = [
            everyones,
            _layer(given, path, f"SETTINGS.{setting}"),
            _layer(by_seed[seed], path, f"BY_SEED of seed {seed}"),
            (f"{path}: ARMS.{arm}", options),
            (str(path), {"NAME": f"{setting}/{arm}".strip("/"), "SEED": seed}),
            (str(path), {"OUTPUT_DIR": str(place)}),
        ]
        yield Run(setting, arm, seed, load_config(base, overrides, layers=layers), place)


def _layer(options: Any, path: Path, where: str) -> Layer:
    flat = flatten(_mapping(options, path, where), where=path)
    _spare(flat, f"{path}: {where}")
    return f"{path}: {where}", flat


def _mapping(value: Any, path: Path, where: str) -> dict[str, Any]:
    """`value` where it is a mapping; empty for none."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{path}: {where} must be keys and values, not {value!r}")
    return value


def _differences(
    runs: Sequence[Run], baseline: str, allowed: Iterable[str], path: Path
) -> dict[str, list[tuple[str, Any, Any]]]:
    """What arms have otherwise than the baseline. Raises a UserError where they may not."""
    held_against = {(run.setting, run.seed): run.cfg for run in runs if run.arm == baseline}
    found: dict[str, list[tuple[str, Any, Any]]] = {}
    for run in runs:
        plain = held_against[run.setting, run.seed]
        free = OF_AN_ARM + _OF_A_RUN
        keys = [key for key in differing_keys(run.cfg, plain) if key.split(".")[0] not in free]
        shown = (*allowed, *(OF_AN_EXTERNAL_ARM if run.external else ()))
        unfair = [key for key in keys if not {key, key.split(".")[0]} & set(shown)]
        if unfair:
            key = unfair[0]
            raise UserError(
                f"{path}: ARMS.{run.arm} has {key} {value_of(run.cfg, key)}, {baseline} "
                f"{value_of(plain, key)}: arms must be alike in all but {', '.join(OF_AN_ARM)}; "
                f"set it under ALL, or name {key} under MAY_DIFFER to have it shown"
            )
        for key in keys:
            difference = (key, value_of(run.cfg, key), value_of(plain, key))
            if difference not in found.setdefault(run.arm, []):
                found[run.arm].append(difference)
    return found
