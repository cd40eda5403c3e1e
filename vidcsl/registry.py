"""Names that a config may use: each is registered beside its code, together with its options.

From a registry follow the config keys, their allowed values, the arguments that a builder passes,
and the reference in the documentation. Nothing of it is written down a second time.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar, cast

C = TypeVar("C", bound=Callable[..., Any])
T = TypeVar("T", bound=Callable[..., Any])


@dataclass(frozen=True)
class Option:
    """One config key: its default (whose type is the key's type), meaning and allowed values.

    A `path` may begin with `~` and hold `${NAME}`.
    """

    default: Any
    meaning: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    path: bool = False


def allowed_values(option: Option) -> str:
    """The values that an option may take, in words: "a, b or c", "int from 1 to 5"."""
    if option.choices:
        return ", ".join(choice or "''" for choice in option.choices)
    kind, low, high = type(option.default).__name__, option.minimum, option.maximum
    at_least = "" if low is None else f" from {low:g}"
    at_most = "" if high is None else f" to {high:g}"
    return f"{kind}{at_least}{at_most}"


class Registry(dict[str, C], Generic[C]):
    """Classes or functions by the name that a config gives them.

    ```
    DETECTORS = Registry("FALSE_NEGATIVES.DETECTOR", default="none", meaning="which pairs ...")

    @DETECTORS.register("fnc", "the nearest few", NEAREST=Option(10, "at most so many", minimum=1))
    class NearestFew:
        def __init__(self, *, nearest: int) -> None: ...

    DETECTORS.build("fnc", cfg.FALSE_NEGATIVES)  # NearestFew(nearest=cfg.FALSE_NEGATIVES.NEAREST)
    ```

    An argument has the name of its option in lower case. That is the whole rule.

    Args:
        key: the config key that holds the name, "SECTION.KEY".
        default: the key's default.
        meaning: what is chosen; the reference adds each name with a meaning of its own.
        shared: options of the same section that several of the registered take.
    """

    def __init__(
        self, key: str, *, default: str, meaning: str, shared: Mapping[str, Option] | None = None
    ) -> None:
        super().__init__()
        self.key, self.default, self.meaning = key, default, meaning
        self.meanings: dict[str, str] = {}
        self._options = dict(shared or {})

    def register(self, name: str, meaning: str, **options: Option) -> Callable[[T], T]:
        """Decorate a class or function: `name` stands for it, `options` are its own options.

        An option of another section is given with it: `**{"ADVERSARIAL.BETA": Option(...)}`.
        """
        taken = options.keys() & self._options.keys()
        if name in self or taken:
            raise ValueError(f"{self.key}: {name} or {sorted(taken)} is registered already")

        def keep(what: T) -> T:
            self[name] = cast(C, what)
            self.meanings[name] = meaning
            self._options.update(options)
            return what

        return keep

    def options(self) -> dict[str, Option]:
        """The config keys of this registry: the name, then everything that the named take."""
        section = self.key.rpartition(".")[0]
        listed = "; ".join(f"{name}: {meaning}" for name, meaning in self.meanings.items())
        chosen = Option(self.default, f"{self.meaning}: {listed}", tuple(self))
        return {self.key: chosen} | {
            key if "." in key else f"{section}.{key}": each for key, each in self._options.items()
        }

    def takers(self, option: str) -> list[str]:
        """The names whose arguments include this option ("NEAREST")."""
        return [name for name, what in self.items() if option.lower() in arguments_of(what)]

    def build(self, name: str, section: Mapping[str, Any], **given: Any) -> Any:
        """Call what `name` stands for.

        Args:
            name: one of this registry's names.
            section: the config section's values by option name, "NEAREST".
            given: what else may be asked for (`videos`, `seed`); each callable gets the
                arguments that it names. They win over options of the same name.
        """
        return self.bind(name, section, **given)()

    def bind(self, name: str, section: Mapping[str, Any], **given: Any) -> "partial[Any]":
        """As `build`, but without the call: for functions that take more arguments later."""
        values = {key.lower(): value for key, value in section.items()} | given
        # Only what it names: options of the section that belong to others are left out.
        wanted = arguments_of(self[name])
        return partial(self[name], **{key: values[key] for key in values if key in wanted})


def arguments_of(what: Callable[..., Any]) -> set[str]:
    """The names of the arguments that a class or function takes.

    A class whose `**options` go on to its bases takes what these take, too.
    """
    found: set[str] = set()
    makers: list[Any] = [what]
    if inspect.isclass(what):
        makers = [each for each in inspect.getmro(what) if "__init__" in vars(each)]
    for each in makers:
        parameters = inspect.signature(each).parameters.values()
        found |= {parameter.name for parameter in parameters}
        # Without `**options` nothing is handed on, so the bases' arguments are out of reach.
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found
