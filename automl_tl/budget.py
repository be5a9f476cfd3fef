"""How much a search may spend."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from .errors import InputError

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_FORM = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(s|m|h|trials?|epochs?)\s*")


@dataclass(frozen=True)
class Budget:
    """Limits of a search; infinite where nothing was said."""

    seconds: float = math.inf
    trials: float = math.inf
    epochs: float = math.inf

    def __str__(self) -> str:
        """As `parse_budget` reads it."""
        parts = {"s": self.seconds, " trials": self.trials, " epochs": self.epochs}
        return " + ".join(f"{amount:.15g}{unit}" for unit, amount in parts.items() if math.isfinite(amount))


def parse_budget(text: str | float | Budget) -> Budget:
    """ "90s", "10m", "1h", "5 trials", "60 epochs", several joined by "+", or a number of seconds.

    >>> parse_budget("10m + 5 trials")
    Budget(seconds=600.0, trials=5.0, epochs=inf)

    Raises:
        InputError: another form, nothing left to spend, or two limits of one kind, of which one would be lost.
    """
    if isinstance(text, Budget):
        return text
    given = text
    if not isinstance(text, str):  # a number of any kind, such as NumPy's
        text = f"{text}s"
    limits = {"seconds": math.inf, "trials": math.inf, "epochs": math.inf}
    for part in text.split("+"):
        match = _FORM.fullmatch(part)
        if match is None or float(match[1]) <= 0:
            raise InputError(f"cannot read the budget {given!r}; write it like 90s, 10m, 1h, '5 trials' or '60 epochs'")
        amount, unit = float(match[1]), match[2]
        if unit not in _UNITS and not amount.is_integer():
            raise InputError(f"the budget {text!r} asks for {match[1]} {unit}; trials and epochs are whole numbers")
        kind = "seconds" if unit in _UNITS else "trials" if unit.startswith("trial") else "epochs"
        if math.isfinite(limits[kind]):
            what = "a time" if kind == "seconds" else kind
            raise InputError(f"the budget {text!r} names {what} twice; write one limit of each kind, such as '90m + 5 trials'")
        limits[kind] = amount * _UNITS.get(unit, 1.0)
    return Budget(**limits)
