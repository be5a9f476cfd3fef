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


def parse_budget(text: str | float | Budget) -> Budget:
    """ "90s", "10m", "1h", "5 trials", "60 epochs", several joined by "+", or a number of seconds.

    >>> parse_budget("10m + 5 trials")
    Budget(seconds=600.0, trials=5.0, epochs=inf)

    Raises:
        InputError: another form, or nothing left to spend.
    """
    if isinstance(text, Budget):
        return text
    if not isinstance(text, str):  # a number of any kind, such as NumPy's
        text = f"{text}s"
    limits = {"seconds": math.inf, "trials": math.inf, "epochs": math.inf}
    for part in text.split("+"):
        match = _FORM.fullmatch(part)
        if match is None or float(match[1]) <= 0:
            raise InputError(f"cannot read the budget {text!r}; write it like 90s, 10m, 1h, '5 trials' or '60 epochs'")
        amount, unit = float(match[1]), match[2]
        if unit in _UNITS:
            limits["seconds"] = amount * _UNITS[unit]
        else:
            limits["trials" if unit.startswith("trial") else "epochs"] = amount
    return Budget(**limits)
