"""Load, check and write configs; find those that come with vidcsl."""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from vidcsl import fit
from vidcsl.data.lists import read_rows
from vidcsl.errors import UserError
from vidcsl.io import expanded_path
from vidcsl.options import OPTIONS
from vidcsl.registry import Option

# ----------------------------------------------------------------------
# The configs that come with vidcsl, found by name: `--cfg demo`.

_PACKAGE = Path(__file__).parent
# A wheel carries the configs inside the package; a source tree has them beside it.
CONFIGS = next(
    folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir()
)


def shipped_configs() -> list[str]:
    """What may be named: `demo`, `studies/small`, ... (bases, which start with `_`, left out)."""
    return sorted(
        str(path.relative_to(CONFIGS).with_suffix(""))
        for path in CONFIGS.rglob("*.yaml")
        if not path.name.startswith("_")
    )


def find_config(config: str | Path, *, beside: Path | None = None) -> Path:
    """The file that is meant: a path as it stands or, where no file is there, a shipped name.

    Args:
        config: path or name; the shipped bases, which start with `_`, are found, too.
        beside: the folder that a path is relative to; None: the current one.
    """
    path = (beside or Path()) / config
    shipped = CONFIGS / f"{config}.yaml"
    if (path.exists() and not path.is_dir()) or not shipped.is_file():
        return path
    return shipped


def users_of(keys: Iterable[str]) -> dict[str, list[str]]:
    """By key, the shipped configs that set it, themselves or through their bases; not studies."""
    setting: dict[str, list[str]] = {key: [] for key in keys}
    for name in shipped_configs():
        if "/" not in name:  # studies have keys of their own
            values = {key for _, part in _chain(find_config(name)) for key in part}
            for key in values & setting.keys():
                setting[key].append(name)
    return setting


# ----------------------------------------------------------------------
# Load, check and dump a configuration.
#
# A file may name one `_BASE_`, whose values it overrides, and so may that; the command line
# overrides all of them. Unknown keys, keys that a file gives twice and values of the wrong type are
# errors that name the file.

BASE = "_BASE_"


Layer = tuple[str, Mapping[str, Any]]
"""Where values come from, for messages, and the values by dotted key."""


def load_config(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    layers: Iterable[Layer] = (),
    announce: Callable[[str], None] = lambda _: None,
) -> CfgNode:
    """The effective, frozen configuration.

    Args:
        path: YAML file, or the name of a config that comes with vidcsl (`demo`).
        overrides: `KEY VALUE KEY VALUE ...`, as on the command line.
        layers: values that override the file's, one layer the one before it, and are overridden by
            the command line's.
        announce: is called with sentences on what a person may not expect.

    Raises:
        UserError: the file cannot be read, a key or a value is wrong, or FIT.MINUTES is set and the
            training list cannot be read.
    """
    cfg = default_config()
    for file, own in _chain(find_config(path)):
        _merge(cfg, own, where=str(file))
    later = [*layers, ("command line", _parse_overrides(overrides, announce))]
    for where, values in later:
        _merge(cfg, values, where=where)
    if cfg.FIT.MINUTES and cfg.DATA.TRAIN_LIST and not cfg.SYNTHETIC.ENABLED:
        _fit(cfg, given={key for _, values in later for key in values}, announce=announce)
    cfg.freeze()
    return cfg


def output_dir(cfg: CfgNode) -> Path:
    """Where the run is written."""
    return Path(cfg.OUTPUT_DIR or f"runs/{cfg.NAME}/seed{cfg.SEED}")


def _fit(cfg: CfgNode, *, given: set[str], announce: Callable[[str], None]) -> None:
    """Set what FIT.MINUTES leaves open, except for the keys that are `given`.

    A run that has begun keeps its values: elsewhere, or with another list, others would fit.
    """
    minutes, machine = cfg.FIT.MINUTES, fit.this_machine(cfg.DEVICE)
    videos = len(read_rows(cfg.DATA.TRAIN_LIST))
    chosen = fit.fitted(videos=videos, minutes=minutes, machine=machine)
    if "MODEL.NAME" in given:  # the sizes are of the shipped encoder
        given |= {"MODEL.WIDTH", "MODEL.DEPTH"}
    values = {key: value for key, value in chosen.items() if key not in given}
    epochs = values.get("TRAIN.EPOCHS", cfg.TRAIN.EPOCHS)
    if "TRAIN.WARMUP_EPOCHS" not in given:
        values["TRAIN.WARMUP_EPOCHS"] = fit.warmup(epochs)
    folder = output_dir(cfg)
    if (folder / "config.yaml").is_file() and any((folder / "checkpoints").glob("epoch*")):
        before = _read(folder / "config.yaml")
        values |= {key: before[key] for key in values if key in before}
        announce(f"sizes as in {folder / 'config.yaml'}, where this run has begun")
    else:
        announce(fit.sentence(values, videos=videos, minutes=minutes, machine=machine))
    # The numbers are what counts from here on: whoever loads the stored config gets the same run.
    _merge(cfg, {**values, "FIT.MINUTES": 0.0}, where="FIT.MINUTES")


def parse_config(text: str, *, where: str) -> CfgNode:
    """The frozen configuration that `dump_config` made a text of; `where` names it in errors.

    Raises:
        UserError: it is no configuration, or a key or a value is wrong.
    """
    cfg = default_config()
    _merge(cfg, flatten(_parse(text, where=where), where=where), where=where)
    cfg.freeze()
    return cfg


def overridden(cfg: CfgNode, values: Mapping[str, Any]) -> CfgNode:
    """A frozen copy with other values, by dotted key.

    Raises:
        UserError: a key or a value is wrong.
    """
    changed = cfg.clone()
    changed.defrost()
    _merge(changed, values, where="an override")
    changed.freeze()
    return changed


def default_config() -> CfgNode:
    """A fresh configuration with every option at its default."""
    root = CfgNode()
    for key, option in OPTIONS.items():
        node, leaf = _descend(root, key, create=True)
        # A copy of a list: who changes a config must not change the defaults.
        node[leaf] = list(option.default) if isinstance(option.default, list) else option.default
    return root


def dump_config(cfg: CfgNode) -> str:
    """The configuration as YAML that `load_config` reads back to the same values."""
    text: str = cfg.dump(sort_keys=False)
    return text


def flat_values(cfg: CfgNode) -> dict[str, Any]:
    """Every option's value by its dotted key."""
    return {key: value_of(cfg, key) for key in OPTIONS}


def differing_keys(
    one: CfgNode, other: CfgNode, *, sections: Sequence[str] | None = None
) -> list[str]:
    """Keys in `sections` (first part of the key; all where none are given) whose values differ."""
    return [
        key
        for key in OPTIONS
        if (sections is None or key.split(".")[0] in sections)
        and value_of(one, key) != value_of(other, key)
    ]


def _chain(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The file's bases, the furthest first, and the file itself, each flattened to dotted keys."""
    chain: list[tuple[Path, dict[str, Any]]] = []
    seen: list[Path] = []
    while True:
        if path.resolve() in seen:
            names = " -> ".join(each.name for each in (*reversed([p for p, _ in chain]), path))
            raise UserError(f"{path}: {BASE} leads back to itself: {names}")
        seen.append(path.resolve())
        values = _read(path)
        base = values.pop(BASE, None)
        chain.insert(0, (path, values))
        if base is None:
            return chain
        path = find_config(str(base), beside=path.parent)


def _read(path: Path) -> dict[str, Any]:
    return flatten(read_document(path), where=path)


def read_document(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file, nested as they are; empty for an empty file.

    Raises:
        UserError: it cannot be read, is no mapping, or gives a key twice.
    """
    try:
        return _parse(path.read_text(encoding="utf-8"), where=path)
    except OSError as error:
        hint = "" if path.suffix else f"; shipped are: {', '.join(shipped_configs())}"
        raise UserError(f"cannot read config {path}: {error.strerror}{hint}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read config {path}: it is not a text file") from error


def _parse(text: str, *, where: object) -> dict[str, Any]:
    try:
        document = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise UserError(f"{where}: {_one_line(error)}") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise UserError(f"{where}: expected keys and values, found a {type(document).__name__}")
    return document


class _UniqueKeyLoader(yaml.SafeLoader):
    """Plain data only; a key given twice is an error (PyYAML silently takes the last)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    problem=f"key {key!r} is not text", problem_mark=key_node.start_mark
                )
            if key in keys:
                raise yaml.constructor.ConstructorError(
                    problem=f"key {key} is given twice", problem_mark=key_node.start_mark
                )
            keys.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    line = f"line {mark.line + 1}: " if mark else ""
    return line + str(getattr(error, "problem", None) or error).replace("\n", " ")


def flatten(tree: Mapping[str, Any], *, where: object, prefix: str = "") -> dict[str, Any]:
    """`{"TRAIN": {"EPOCHS": 1}}` as `{"TRAIN.EPOCHS": 1}`.

    Raises:
        UserError: a key is given in both forms; `where` names the file.
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = prefix + str(key)
        nested = {name: value}
        if isinstance(value, dict):
            nested = flatten(value, where=where, prefix=f"{name}.")
        for inner in nested:
            if inner in flat:
                raise UserError(f"{where}: key {inner} is given twice")
        flat.update(nested)
    return flat


def _parse_overrides(overrides: Sequence[str], announce: Callable[[str], None]) -> dict[str, Any]:
    for word in overrides:  # `SEED=1` shifts keys and values; what a value holds does not matter
        key, equals, value = word.partition("=")
        if equals and key in OPTIONS:
            raise UserError(f"command line: {word}: give {key} {value} (KEY VALUE pairs)")
    if len(overrides) % 2:
        raise UserError(f"command line: {overrides[-1]} has no value (give KEY VALUE pairs)")
    values: dict[str, Any] = {}
    for key, text in zip(overrides[::2], overrides[1::2], strict=True):
        if key in values:
            announce(f"command line: {key} is given more than once, the last value counts: {text}")
        option = OPTIONS.get(key)
        # A text option takes the words as they stand: a run may be called 007.
        is_text = option is not None and isinstance(option.default, str)
        try:
            values[key] = text if is_text else yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"command line: {key}: {_one_line(error)}") from error
    return values


def _merge(cfg: CfgNode, values: Mapping[str, Any], *, where: str) -> None:
    for key, value in values.items():
        if key not in OPTIONS:
            close = difflib.get_close_matches(key.upper(), OPTIONS, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UserError(f"{where}: unknown config key {key}{hint}")
        node, leaf = _descend(cfg, key)
        node[leaf] = _checked(key, value, OPTIONS[key], where)


def _descend(root: CfgNode, key: str, *, create: bool = False) -> tuple[CfgNode, str]:
    *parents, leaf = key.split(".")
    for parent in parents:
        if create and parent not in root:
            root[parent] = CfgNode()
        root = root[parent]
    return root, leaf


def value_of(cfg: CfgNode, key: str) -> Any:
    """The value of a dotted key."""
    node, leaf = _descend(cfg, key)
    return node[leaf]


def _checked(key: str, value: Any, option: Option, where: str) -> Any:
    try:
        value = _coerce(value, option.default)
    except (TypeError, ValueError):
        wanted = _kind(option.default)
        raise UserError(f"{where}: {key} must be {wanted}, not {value!r}") from None
    if option.choices and value not in option.choices:
        raise UserError(f"{where}: {key} must be one of {', '.join(option.choices)}, not {value!r}")
    if option.path:
        try:
            value = (
                [*map(expanded_path, value)] if isinstance(value, list) else expanded_path(value)
            )
        except UserError as error:
            raise UserError(f"{where}: {key}: {error}") from None
    low, high = option.minimum, option.maximum
    if (low is not None and value < low) or (high is not None and value > high):
        limits = f"at least {low}" if high is None else f"from {low} to {high}"
        raise UserError(f"{where}: {key} must be {limits}, not {value}")
    return value


def _kind(default: Any) -> str:
    """The type of an option in words: "int", "list of float"."""
    if isinstance(default, list):
        return f"list of {_kind(default[0] if default else '')}"
    return type(default).__name__


def _coerce(value: Any, default: Any) -> Any:
    """`value` in the type of `default`; whole numbers become floats, nothing else is bent."""
    if isinstance(default, list):
        if not isinstance(value, list | tuple):
            raise TypeError
        return [_coerce(item, default[0] if default else "") for item in value]
    # Python counts True as 1, and takes it for a number.
    if isinstance(default, float) and not isinstance(value, bool):
        number = float(value)  # also text: YAML 1.1 reads 1e-3 as a word
        if number != number or number in (float("inf"), float("-inf")):
            raise ValueError
        return number
    if type(value) is not type(default):
        raise TypeError
    return value
