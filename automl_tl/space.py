"""Search spaces: what a hyperparameter may be, its default, and a draw from it."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import InputError

Value = bool | int | float | str


@dataclass(frozen=True)
class Float:
    """A number between `low` and `high`, uniform or (with `log`) uniform in its logarithm."""

    low: float
    high: float
    default: float
    log: bool = False

    def __post_init__(self) -> None:
        _make_plain(self, "low", "high", "default")
        if not self.low <= self.default <= self.high:
            raise ValueError(f"low <= default <= high must hold, but got {self.low}, {self.default}, {self.high}")
        if not math.isfinite(self.high - self.low):
            raise ValueError(f"a range has two ends, but got {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range starts above 0, but got low={self.low}")

    def draw(self, rng: random.Random) -> float:
        if self.log:
            drawn = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
            return min(max(drawn, self.low), self.high)  # the exponential may land a rounding outside
        return rng.uniform(self.low, self.high)

    def check(self, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not self.low <= value <= self.high:
            raise InputError(f"expected a number from {self.low} to {self.high}, but got {value!r}")
        return float(value)


@dataclass(frozen=True)
class Int:
    """A whole number from `low` to `high`, both included."""

    low: int
    high: int
    default: int

    def __post_init__(self) -> None:
        _make_plain(self, "low", "high", "default")
        if not all(isinstance(number, int) for number in (self.low, self.high, self.default)):
            raise ValueError(f"low, default and high are whole numbers, but got {self.low}, {self.default}, {self.high}")
        if not self.low <= self.default <= self.high:
            raise ValueError(f"low <= default <= high must hold, but got {self.low}, {self.default}, {self.high}")

    def draw(self, rng: random.Random) -> int:
        return rng.randint(self.low, self.high)

    def check(self, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not self.low <= value <= self.high:
            raise InputError(f"expected a whole number from {self.low} to {self.high}, but got {value!r}")
        return value


@dataclass(frozen=True)
class Choice:
    """One of `options`."""

    options: tuple[Value, ...]
    default: Value
    usual: float = 0.0
    """Share of draws that take the default without a look at the other options: of what is worth trying now and then."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", tuple(_plain(option) for option in self.options))
        _make_plain(self, "default")
        for option in self.options:
            if not isinstance(option, (bool, int, float, str)) or (isinstance(option, float) and not math.isfinite(option)):
                kind = type(option).__name__
                raise ValueError(f"the option {option!r} is a {kind}; options are texts, finite numbers, True or False")
        same = [option for option in self.options if option == self.default]
        if not same:
            raise ValueError(f"the default {self.default!r} is not among {self.options}")
        if not any(type(option) is type(self.default) for option in same):
            object.__setattr__(self, "default", same[0])  # 0 where the option is 0.0, which `check` would refuse
        if not 0 <= self.usual < 1:
            raise ValueError(f"usual is a share below 1, but got {self.usual}")

    def draw(self, rng: random.Random) -> Value:
        if self.usual and rng.random() < self.usual:
            return self.default
        return rng.choice(self.options)

    def check(self, value: object) -> Value:
        for option in self.options:
            if value == option and type(value) is type(option):
                return option
        raise InputError(f"expected one of {list(self.options)}, but got {value!r}")


def _plain(value: Any) -> Any:
    """A number of NumPy's as Python's own, which JSON and the history can hold."""
    return value.item() if hasattr(value, "item") else value


def _make_plain(parameter: Parameter, *fields: str) -> None:
    for name in fields:
        object.__setattr__(parameter, name, _plain(getattr(parameter, name)))  # it is frozen for everybody else


Parameter = Float | Int | Choice
Space = Mapping[str, Parameter]


def defaults(space: Space) -> dict[str, Value]:
    """The default of every hyperparameter."""
    return {name: parameter.default for name, parameter in space.items()}


def draw(space: Space, seed: str, *, kept: float = 0.0) -> dict[str, Value]:
    """One random point. Each hyperparameter has a stream of its own, so that a new one does not move the others'.

    A hyperparameter keeps its default with probability `kept`: of many that are drawn at once, one is bad more often than not.

    >>> draw({"rate": Float(1e-4, 1e-1, 1e-2, log=True)}, "seed")["rate"] == \\
    ...     draw({"alpha": Int(0, 9, 0), "rate": Float(1e-4, 1e-1, 1e-2, log=True)}, "seed")["rate"]
    True
    """
    values = {}
    for name, parameter in space.items():
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        rng = random.Random(int.from_bytes(digest[:8], "big"))
        values[name] = parameter.default if kept and rng.random() < kept else parameter.draw(rng)
    return values


def scaled(parameter: Parameter, value: Value) -> float:
    """The place of a value in its range, 0–1, by ratios where those count; options stand in the order that they are listed in.

    Whole numbers of a range that starts below 1 have ratios only once they are counted from 1.

    >>> [round(scaled(Int(low, low + 9, low), low + step), 2) for low in (0, 1) for step in (0, 1, 9)]
    [0.0, 0.3, 1.0, 0.0, 0.3, 1.0]
    """
    if isinstance(parameter, Choice):
        return parameter.options.index(value) / max(len(parameter.options) - 1, 1)
    low, high, here = float(parameter.low), float(parameter.high), float(value)
    if isinstance(parameter, Int) and low < 1:
        low, high, here = 0.0, math.log1p(high - low), math.log1p(max(here - low, 0.0))
    elif isinstance(parameter, Int) or parameter.log:
        low, high, here = math.log(max(low, 1e-12)), math.log(max(high, 1e-12)), math.log(max(here, 1e-12))
    return (here - low) / (high - low) if high > low else 0.0


def placed(space: Space, values: Mapping[str, Value]) -> dict[str, float]:
    """`scaled` of every hyperparameter; of one that `values` lack its default's. They may be of an earlier version, or of another
    plugin of that name: NaN is what no longer has a place, such as an option that is gone."""
    return {name: _place(parameter, values.get(name, parameter.default)) for name, parameter in space.items()}


def _place(parameter: Parameter, value: Value) -> float:
    try:
        return scaled(parameter, value)
    except (ValueError, TypeError, OverflowError):
        return math.nan


def check(space: Space, values: Mapping[str, object]) -> dict[str, Value]:
    """`values` within `space`, completed by the defaults.

    Raises:
        InputError: an unknown name or a value outside its range.
    """
    for name in values:
        if name not in space:
            raise InputError(f"unknown hyperparameter {name!r}; known: {', '.join(space) or 'none'}")
    complete = defaults(space)
    for name, value in values.items():
        try:
            complete[name] = space[name].check(value)
        except InputError as error:
            raise InputError(f"hyperparameter {name!r}: {error}") from None
    return complete
