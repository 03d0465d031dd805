"""The budget file: `budget.toml`, read strictly, so that a limit that is misspelt is no limit that is kept."""

import difflib
import math
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn, get_args

import msgspec
from msgspec import UNSET, Struct, UnsetType, structs

from hyps.errors import HypsError, UsageError, printable
from hyps.formats.plan import Optimization
from hyps.formats.quantities import parse_count, parse_nbytes, parse_seconds
from hyps_compiler.checking.figures import LIMITS
from hyps_compiler.checking.rules import Rule
from hyps_compiler.cli_options import OBJECTIVE_NAMES

_Quantity = str | int | float
_MAX_NBYTES = 2**20
_HINT = 'a budget has the tables [defaults], [limits], [growth] and [models."PATTERN"]; see `hypsc check --help`'
_SIZE = re.compile("[1-9][0-9]{0,17}")
_ZERO = re.compile(r"\s*0+(?:\.0*)?\s*([A-Za-z]*)\s*")
_QUANTIZERS = ("int8", "fp16")


class _Options(Struct, frozen=True, forbid_unknown_fields=True):
    """How models are compiled, as people write it."""

    memory: _Quantity | UnsetType = UNSET
    max_params: _Quantity | UnsetType = UNSET
    cut: str | tuple[str, ...] | UnsetType = UNSET
    partitions: int | UnsetType = UNSET
    optimize: str | UnsetType = UNSET
    quantize: str | UnsetType = UNSET
    calibration: str | UnsetType = UNSET
    cluster: str | UnsetType = UNSET
    profile: str | UnsetType = UNSET
    objective: str | UnsetType = UNSET
    strategy: str | UnsetType = UNSET
    input: dict[str, str | tuple[int, ...]] | UnsetType = UNSET
    inputs: str | UnsetType = UNSET
    max_tensor_bytes: _Quantity | UnsetType = UNSET
    timeout: _Quantity | UnsetType = UNSET


class _Growth(Struct, frozen=True, forbid_unknown_fields=True):
    """By how much figures may grow; the fields are the names in `GROWING`."""

    partition_bytes: _Quantity | UnsetType = UNSET
    partition_params: _Quantity | UnsetType = UNSET
    peak_memory: _Quantity | UnsetType = UNSET
    partitions: _Quantity | UnsetType = UNSET
    latency: _Quantity | UnsetType = UNSET
    border_bytes: _Quantity | UnsetType = UNSET


class _Limits(_Growth, frozen=True, forbid_unknown_fields=True):
    """The most that is allowed; the fields are the names in `LIMITS`."""

    difference: _Quantity | UnsetType = UNSET
    conversion_difference: _Quantity | UnsetType = UNSET
    quantization_loss: _Quantity | UnsetType = UNSET


class _Model(_Options, frozen=True, forbid_unknown_fields=True):
    """What differs for some models."""

    limits: _Limits = _Limits()
    growth: _Growth = _Growth()


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    defaults: _Options = _Options()
    limits: _Limits = _Limits()
    growth: _Growth = _Growth()
    models: dict[str, _Model] = {}


@dataclass(frozen=True, slots=True)
class Budget:
    """What models may cost, and how they are compiled."""

    shown: str = "budget.toml"
    """What messages call the file."""
    folder: Path = Path()
    """To which its paths and patterns are relative."""
    defaults: Rule = field(default_factory=Rule)
    models: tuple[tuple[str, "_Override"], ...] = ()

    def rule(self, name: str) -> Rule:
        """Return what holds for a model: every pattern that fits applies, the later ones over the earlier.

        Args:
            name: the model's path relative to the budget's folder, with forward slashes, or `zoo:NAME`.

        Raises:
            HypsError: what applies together contradicts itself.
        """
        rule = self.defaults
        for pattern, override in self.models:
            if pattern == name or fnmatchcase(name, pattern):
                rule = override.over(rule, pattern)
        problems = list(_contradictions(rule))
        if problems:
            _refuse(self.shown, [f"for `{printable(name)}` {problem}" for problem in problems])
        return rule

    def name_of(self, model: str, path: Path | None) -> str:
        """Return what patterns are matched against: the path from the budget's folder, or `zoo:NAME`."""
        if path is None:
            return model
        name = PurePosixPath(os.path.relpath(path, self.folder))
        if ".." in name.parts:  # perhaps only one of the two was written with a link on the way
            whole, real = Path(os.path.abspath(path)), os.path.realpath
            resolved = PurePosixPath(os.path.relpath(Path(real(whole.parent), whole.name), real(self.folder)))
            name = name if ".." in resolved.parts else resolved
        return name.as_posix()

    def unused(self, names: list[str]) -> list[str]:
        """Return the patterns that fit none of the models."""
        return [p for p, _ in self.models if not any(p == name or fnmatchcase(name, p) for name in names)]


@dataclass(frozen=True, slots=True)
class _Override:
    """What a table of the budget sets."""

    options: dict[str, Any]
    limits: dict[str, float]
    growth: dict[str, float]

    def over(self, rule: Rule, pattern: str = "") -> Rule:
        """Return a rule with what this sets in its place."""
        return Rule(
            options=structs.replace(rule.options, **self.options),
            limits={**rule.limits, **self.limits},
            growth={**rule.growth, **self.growth},
            patterns=(*rule.patterns, pattern) if pattern else rule.patterns,
        )


def read_budget(path: Path) -> Budget:
    """Return the budget in a file.

    Raises:
        HypsError: it cannot be read, is no TOML, has an unknown key, or a value that cannot be.
    """
    shown = printable(str(path))
    try:
        text = path.read_bytes().decode("utf-8", "replace")
    except FileNotFoundError as error:
        raise HypsError(f"the budget `{shown}` does not exist", _HINT, "E_NOT_FOUND") from error
    except OSError as error:
        raise HypsError(f"the budget `{shown}` cannot be read: {error.strerror}", _HINT, "E_BUDGET") from error
    return decode_budget(text, path.name, path.parent)


def decode_budget(text: str, shown: str = "budget.toml", folder: Path = Path()) -> Budget:
    """Return the budget that a TOML file holds.

    Args:
        text: the file.
        shown: what messages call it.
        folder: to which its paths are relative.

    Raises:
        HypsError: no TOML, an unknown key, or a value that cannot be; says the first problem and how many more.
    """
    if len(text) > _MAX_NBYTES:
        _refuse(shown, [f"it has {len(text)} characters, more than the {_MAX_NBYTES} allowed"])
    try:
        told = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        _refuse(shown, [printable(str(error), 200)], error)
    unknown = list(_unknown_keys(told))
    if unknown:
        _refuse(shown, unknown)
    try:
        file = msgspec.convert(told, _File)
    except msgspec.ValidationError as error:
        _refuse(shown, [_wrong_type(str(error))], error)
    reader = _Reader(folder)
    defaults = reader.override(file.defaults, file.limits, file.growth, "")
    models = tuple(
        (pattern, reader.override(model, model.limits, model.growth, f'models."{printable(pattern)}".'))
        for pattern, model in file.models.items()
    )
    if reader.problems:
        _refuse(shown, reader.problems)
    return Budget(shown, folder, defaults.over(Rule()), models)


class _Reader:
    """Turns what people write into figures, and collects what it cannot read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.problems: list[str] = []

    def override(self, options: _Options, limits: _Limits, growth: _Growth, where: str) -> _Override:
        return _Override(
            options=self._options(options, where if where else "defaults."),
            limits={name: self._limit(name, value, f"{where}limits.{name}") for name, value in _given(limits)},
            growth={name: self._read(_share, value, f"{where}growth.{name}") for name, value in _given(growth)},
        )

    def _options(self, told: _Options, where: str) -> dict[str, Any]:
        read = {name: self._option(name, value, f"{where}{name}") for name, value in _given(told) if name in _READERS}
        return {_FIELD_OF.get(name, name): value for name, value in read.items()}

    def _option(self, name: str, value: Any, where: str) -> Any:
        if name in _PATHS:
            return str(self._folder / value)
        return self._read(_READERS[name], value, where)

    def _limit(self, name: str, value: _Quantity, where: str) -> float:
        parse = _LIMIT_READERS.get(LIMITS[name].unit, _number)
        number: float = self._read(_or_none(parse) if name == "border_bytes" else parse, value, where)
        return number

    def _read(self, parse: Callable[[Any], Any], value: Any, where: str) -> Any:
        try:
            return parse(value)
        except UsageError as error:
            hint = f"; {error.hint}" if error.hint else ""
            self.problems.append(f"`{where}`: {printable(error.message)}{hint}")
            return None


def _given(told: Struct) -> Iterator[tuple[str, Any]]:
    for name in told.__struct_fields__:
        value = getattr(told, name)
        if value is not UNSET:
            yield name, value


def _unknown_keys(told: Mapping[str, Any]) -> Iterator[str]:
    """Yield a phrase for each key that means nothing, with the nearest that does."""
    yield from _unknown_in(told, _File, "")
    tables: dict[str, type[Struct]] = {"defaults": _Options, "limits": _Limits, "growth": _Growth}
    for name, kind in tables.items():
        yield from _unknown_in(told.get(name), kind, f"{name}.")
    models = told.get("models")
    for pattern, model in models.items() if isinstance(models, dict) else ():
        where = f'models."{printable(pattern)}".'
        yield from _unknown_in(model, _Model, where)
        for name in ("limits", "growth"):
            yield from _unknown_in(
                model.get(name) if isinstance(model, dict) else None, tables[name], f"{where}{name}."
            )


def _unknown_in(told: object, kind: type[Struct], where: str) -> Iterator[str]:
    known = kind.__struct_fields__
    for key in told if isinstance(told, dict) else ():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            other = f"did you mean `{near[0]}`?" if near else f"it may hold {', '.join(known)}"
            yield f"unknown key `{where}{printable(key)}`: {other}"


_EXPECTED = re.compile(r"Expected `([^`]*)`, got `([^`]*)`(?: - at `\$\.?(.*)`)?")
_WORDS = {"int": "a number", "float": "a number", "str": "text", "bool": "true or false", "array": "a list"}


def _wrong_type(text: str) -> str:
    """Return in words what msgspec says of a value of the wrong type."""
    match = _EXPECTED.fullmatch(text)
    if match is None:
        return printable(text, 200)
    wanted = dict.fromkeys(_WORDS.get(word, "a table") for word in match[1].split(" | "))
    where = f"`{printable(match[3])}`" if match[3] else "it"
    return f"{where} is {_WORDS.get(match[2], 'a table')} and is to be {' or '.join(wanted)}"


def _refuse(shown: str, problems: list[str], cause: Exception | None = None) -> NoReturn:
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    raise HypsError(f"`{printable(shown)}` is no budget: {problems[0]}{more}", _HINT, "E_BUDGET") from cause


def _contradictions(rule: Rule) -> Iterator[str]:
    """Yield what cannot be asked for together, as the end of a sentence."""
    options = rule.options
    if options.cluster is not None:
        own = {
            "memory": options.memory_bytes is not None,
            "cut": options.cut != ("mandatory",),
            "partitions": options.partitions is not None,
            "optimize": options.optimize != "portable",
        }
        for name in (name for name, is_given in own.items() if is_given):
            yield f"`{name}` cannot be given with `cluster`, whose search decides"
        if options.quantize is not None:
            yield "`quantize` cannot be given with `cluster`, whose profile is of the layers as they are"
        return
    if options.profile is not None:
        yield "`profile` is about a cluster and there is no `cluster`"
    for table, names in (("limits", rule.limits), ("growth", rule.growth)):
        if "latency" in names:
            yield f"`{table}.latency` needs a `cluster`, without which no latency is predicted"
    if options.calibration is not None and options.quantize is None:
        yield "`calibration` is about `quantize`, which is not given"


def _number(value: _Quantity) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise UsageError(f"`{value}` is no number from zero on", "write it like 1e-5")
    return number


def _or_none(parse: Callable[[Any], float]) -> Callable[[Any], float]:
    """Return a reader of sizes that takes zero as well: nothing may cross."""

    def read(value: Any) -> float:
        zero = _ZERO.fullmatch(str(value))
        return parse(f"1{zero[1]}") * 0.0 if zero else parse(value)

    return read


def _share(value: _Quantity) -> float:
    text = str(value).strip()
    if not text.endswith("%"):
        raise UsageError(f"`{value}` is no share", 'write it like "5%"')
    return _number(text[:-1]) / 100


def _one_of(words: tuple[str, ...]) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in words:
            raise UsageError(f"`{value}` is none of {', '.join(words)}")
        return value

    return parse


def _whole(value: int) -> int:
    if value < 1:
        raise UsageError(f"`{value}` is not above zero")
    return value


def _cut(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return tuple(word.strip() for word in value.split(",")) if isinstance(value, str) else value


def _shapes(value: dict[str, str | tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {name: _shape(name, shape) for name, shape in value.items()}


def _shape(name: str, value: str | tuple[int, ...]) -> tuple[int, ...]:
    words = value.split("x") if isinstance(value, str) else [str(size) for size in value]
    if not all(_SIZE.fullmatch(word) for word in words):
        raise UsageError(f"`{value}` is no shape for `{name}`", "write it like 1x3x224x224")
    return tuple(int(word) for word in words)


def _text(value: str) -> str:
    return value


_READERS: dict[str, Callable[[Any], Any]] = {
    "memory": lambda value: parse_nbytes(str(value)),
    "max_params": lambda value: parse_count(str(value)),
    "cut": _cut,
    "partitions": _whole,
    "optimize": _one_of(get_args(Optimization)),
    "quantize": _one_of(_QUANTIZERS),
    "calibration": _text,
    "cluster": _text,
    "profile": _text,
    "objective": _one_of(OBJECTIVE_NAMES),
    "strategy": _text,
    "input": _shapes,
    "inputs": _text,
    "max_tensor_bytes": lambda value: parse_nbytes(str(value)),
    "timeout": lambda value: parse_seconds(str(value)),
}
"""How each option is read; all those of `_Options`."""

_PATHS = ("calibration", "cluster", "profile", "inputs")
"""Options that name a file."""

_FIELD_OF = {"memory": "memory_bytes", "timeout": "timeout_s"}
"""Fields of `CompileOptions` that are called otherwise, with their unit."""

_LIMIT_READERS: dict[str, Callable[[Any], float]] = {
    "bytes": lambda value: parse_nbytes(str(value)),
    "count": lambda value: parse_count(str(value)),
    "s": lambda value: parse_seconds(str(value)),
}
"""How a limit is read, by its unit; the others are plain numbers."""
