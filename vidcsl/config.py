"""Load, check and write configs; find those that come with vidcsl."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from vidcsl.errors import UserError
from vidcsl.options import OPTIONS
from vidcsl.registry import Option
from vidcsl.io import expanded_path

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


def find_config(config: str | Path) -> Path:
    """The file that is meant: a path as it stands or, where no file is there, a shipped name."""
    path = Path(config)
    if (path.exists() and not path.is_dir()) or str(config) not in shipped_configs():
        return path
    return CONFIGS / f"{config}.yaml"


# ----------------------------------------------------------------------
# Load, check and dump a configuration.
#
# A file may name one `_BASE_`, whose values it overrides, and the command line overrides both.
# Unknown keys, keys given twice and values of the wrong type are errors that name the file.

BASE = "_BASE_"


Layer = tuple[str, Mapping[str, Any]]
"""Where values come from, for messages, and the values by dotted key."""


def load_config(
    path: str | Path, overrides: Sequence[str] = (), *, layers: Iterable[Layer] = ()
) -> CfgNode:
    """The effective, frozen configuration.

    Args:
        path: YAML file, or the name of a config that comes with vidcsl (`demo`).
        overrides: `KEY VALUE KEY VALUE ...`, as on the command line.
        layers: values that override the file's, one layer the one before it, and are overridden by
            the command line's.

    Raises:
        UserError: the file cannot be read, or a key or a value is wrong.
    """
    cfg = default_config()
    files = ((str(file), values) for file, values in _chain(find_config(path)))
    for where, values in (*files, *layers):
        _merge(cfg, values, where=where)
    _merge(cfg, _parse_overrides(overrides), where="command line")
    cfg.freeze()
    return cfg


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
    """The file's base, if any, and the file itself, each flattened to dotted keys."""
    values = _read(path)
    if BASE not in values:
        return [(path, values)]
    base = path.parent / str(values.pop(BASE))
    base_values = _read(base)
    if BASE in base_values:
        raise UserError(f"{base}: a base may not name a {BASE} of its own; use one level")
    return [(base, base_values), (path, values)]


def _read(path: Path) -> dict[str, Any]:
    return flatten(read_document(path), where=path)


def read_document(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file, nested as they are; empty for an empty file.

    Raises:
        UserError: it cannot be read, is no mapping, or gives a key twice.
    """
    try:
        return _parse(path.read_text(), where=path)
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


def _parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    if len(overrides) % 2:
        raise UserError(f"command line: {overrides[-1]} has no value (give KEY VALUE pairs)")
    values: dict[str, Any] = {}
    for key, text in zip(overrides[::2], overrides[1::2], strict=True):
        if key in values:
            raise UserError(f"command line: key {key} is given twice")
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
    if isinstance(default, float) and not isinstance(value, bool):
        number = float(value)  # also text: YAML 1.1 reads 1e-3 as a word
        if number != number or number in (float("inf"), float("-inf")):
            raise ValueError
        return number
    if type(value) is not type(default):
        raise TypeError
    return value
    if option.path:
        try:
            value = (
                [*map(expanded_path, value)] if isinstance(value, list) else expanded_path(value)
            )
        except UserError as error:
            raise UserError(f"{where}: {key}: {error}") from None
