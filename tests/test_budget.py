"""Budgets as people write them."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from automl_tl.budget import Budget, parse_budget
from automl_tl.errors import InputError


@pytest.mark.parametrize(
    ("text", "seconds", "trials", "epochs"),
    [
        ("90s", 90, math.inf, math.inf),
        ("10m", 600, math.inf, math.inf),
        ("1.5h", 5400, math.inf, math.inf),
        ("5 trials", math.inf, 5, math.inf),
        ("1 trial", math.inf, 1, math.inf),
        ("60 epochs", math.inf, math.inf, 60),
        ("10m + 5 trials+60 epochs", 600, 5, 60),
        (45, 45, math.inf, math.inf),
        (2.5, 2.5, math.inf, math.inf),
        (np.int64(60), 60, math.inf, math.inf),
        (np.float32(2.5), 2.5, math.inf, math.inf),
    ],
)
def test_forms(text: str | float, seconds: float, trials: float, epochs: float) -> None:
    assert parse_budget(text) == Budget(seconds, trials, epochs)


@pytest.mark.parametrize("text", ["", "ten minutes", "10", "10 parsecs", "-5m", "0s", "m", "10m +", "nan s", "1e400s", "inf s"])
def test_what_is_no_budget_is_said(text: str) -> None:
    with pytest.raises(InputError, match="cannot read the budget"):
        parse_budget(text)


@pytest.mark.parametrize(
    ("text", "what"),
    [("1h + 30m", "a time"), ("90s+90s", "a time"), ("10m+5 trials+8 trials", "trials"), ("1 epoch + 60 epochs", "epochs")],
)
def test_two_limits_of_one_kind_are_refused(text: str, what: str) -> None:
    with pytest.raises(InputError, match=rf"names {what} twice; write one limit of each kind, such as '90m \+ 5 trials'"):
        parse_budget(text)


@pytest.mark.parametrize("text", ["1.5 trials", "10m + 0.5 epochs"])
def test_parts_of_trials_and_epochs_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="trials and epochs are whole numbers"):
        parse_budget(text)


def test_what_is_neither_text_nor_number_is_no_budget() -> None:
    for other in (None, True, [60]):
        with pytest.raises(InputError, match=f"cannot read the budget {re.escape(repr(other))};"):
            parse_budget(other)  # type: ignore[arg-type]


def test_a_budget_stays_a_budget() -> None:
    assert parse_budget(Budget(trials=3)) == Budget(trials=3)
