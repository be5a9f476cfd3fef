"""Search spaces: what is checked, what is drawn."""

from __future__ import annotations

import json
import math
import random
import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from automl_tl.errors import InputError
from automl_tl.space import Choice, Float, Int, Parameter, Space, check, defaults, draw, placed, scaled

finite = st.floats(-1e6, 1e6, allow_nan=False)


@st.composite
def parameters(strategy_draw: st.DrawFn) -> Parameter:
    kind = strategy_draw(st.sampled_from(["float", "log", "int", "choice"]))
    if kind == "choice":
        options = tuple(strategy_draw(st.lists(st.text(max_size=5), min_size=1, unique=True)))
        return Choice(options, strategy_draw(st.sampled_from(options)))
    if kind == "int":
        low, middle, high = sorted(strategy_draw(st.tuples(*[st.integers(-1000, 1000)] * 3)))
        return Int(low, high, middle)
    values = st.floats(1e-9, 1e6, allow_nan=False) if kind == "log" else finite
    low_, middle_, high_ = sorted(strategy_draw(st.tuples(values, values, values)))
    return Float(low_, high_, middle_, log=kind == "log")


@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), parameters(), max_size=4), st.text())
def test_defaults_and_draws_lie_inside(space: Space, seed: str) -> None:
    assert check(space, defaults(space)) == defaults(space)
    drawn = draw(space, seed)
    for name, parameter in space.items():
        assert parameter.check(drawn[name]) == drawn[name]


def test_a_draw_can_be_checked_at_the_edge_of_a_logarithmic_range() -> None:
    edge = Float(1e-4, 1e-4, 1e-4, log=True)
    assert edge.check(edge.draw(random.Random(0))) == pytest.approx(1e-4)


def test_another_hyperparameter_moves_nothing() -> None:
    rate, decay = Float(1e-4, 1e-1, 1e-3, log=True), Float(0.0, 1.0, 0.5)
    alone = draw({"rate": rate}, "seed/3")
    assert draw({"decay": decay, "rate": rate, "epochs": Int(1, 9, 3)}, "seed/3")["rate"] == alone["rate"]
    assert draw({"rate": rate}, "seed/4") != alone


def test_a_logarithmic_range_is_uniform_in_its_logarithm() -> None:
    parameter = Float(1e-4, 1.0, 1e-2, log=True)
    logs = [math.log10(float(draw({"rate": parameter}, str(seed))["rate"])) for seed in range(2000)]
    shares = [sum(low <= value < low + 1 for value in logs) / 2000 for low in (-4, -3, -2, -1)]
    assert all(abs(share - 0.25) < 0.04 for share in shares)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rate": 2.0}, "'rate': expected a number from 0.0 to 1.0, but got 2.0"),
        ({"rate": True}, "expected a number"),
        ({"rate": "fast"}, "got 'fast'"),
        ({"rate": float("nan")}, "got nan"),
        ({"epochs": 2.5}, "'epochs': expected a whole number from 1 to 9"),
        ({"epochs": True}, "expected a whole number"),
        ({"flip": 1}, r"expected one of \[False, True\], but got 1"),
        ({"depth": 3}, "unknown hyperparameter 'depth'; known: rate, epochs, flip"),
    ],
)
def test_what_is_outside_is_named(values: dict[str, object], message: str) -> None:
    space = {"rate": Float(0.0, 1.0, 0.5), "epochs": Int(1, 9, 3), "flip": Choice((False, True), False)}
    with pytest.raises(InputError, match=message):
        check(space, values)


def test_what_is_missing_has_its_default() -> None:
    space = {"rate": Float(0.0, 1.0, 0.5), "epochs": Int(1, 9, 3)}
    assert check(space, {"epochs": 4}) == {"rate": 0.5, "epochs": 4}


@pytest.mark.parametrize(("low", "high"), [(0, 9), (-4, 5), (1, 10), (3, 40), (0, 0)])
def test_whole_numbers_spread_over_their_range(low: int, high: int) -> None:
    """From 0 to 1 is no longer way than from 1 to 9."""
    places = [scaled(Int(low, high, low), value) for value in range(low, high + 1)]
    assert (places[0], places[-1]) == (0.0, float(high > low))
    steps = [after - before for before, after in pairwise(places)]
    assert all(0 < step < 0.5 for step in steps)
    assert steps == sorted(steps, reverse=True)
    if low >= 1:
        ratios = [math.log(value / low) / math.log(high / low) for value in range(low, high + 1)]
        assert places == pytest.approx(ratios)


def test_what_has_no_place_any_more_is_unknown_and_what_is_missing_is_at_its_default() -> None:
    space: Space = {"rate": Float(0.0, 1.0, 0.5), "layers": Int(0, 3, 0), "kind": Choice(("a", "b"), "b")}
    assert placed(space, {"gone": 1}) == {"rate": 0.5, "layers": 0.0, "kind": 1.0}
    odd = placed(space, {"rate": "fast", "layers": -2, "kind": "c"})
    assert odd == pytest.approx({"rate": math.nan, "layers": 0.0, "kind": math.nan}, nan_ok=True)


def test_impossible_ranges_are_refused_where_they_are_written() -> None:
    with pytest.raises(ValueError, match="low <= default <= high must hold, but got 1, 0, 2"):
        Float(1, 2, 0)
    with pytest.raises(ValueError, match="starts above 0, but got low=0"):
        Float(0, 2, 1, log=True)
    with pytest.raises(ValueError, match="default 'c' is not among"):
        Choice(("a", "b"), "c")
    with pytest.raises(ValueError, match=r"whole numbers, but got 1, 10, 1000\.0"):
        Int(1, 1e3, 10)  # type: ignore[arg-type]
    for odd, kind in (((3, 3), "tuple"), (None, "NoneType"), (math.inf, "float"), (math.nan, "float")):
        words = f"the option {odd!r} is a {kind}; options are texts, finite numbers, True or False"
        with pytest.raises(ValueError, match=re.escape(words)):
            Choice(("a", odd), "a")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"a range has two ends, but got 0 and inf"):
        Float(0, math.inf, 1)


def test_numbers_of_numpy_are_plain_ones() -> None:
    """JSON and the history hold no others: a plugin with NumPy's broke all advice, that on other strategies, too."""
    space: Space = {
        "rate": Float(np.float32(0.5), np.float64(1.0), np.float32(0.5)),  # type: ignore[arg-type]
        "depth": Int(*np.arange(1, 4)[[0, 2, 1]]),
        "batch_size": Choice(tuple(2 ** np.arange(4, 7)), np.int64(32)),  # type: ignore[arg-type]
        "frozen": Choice((np.True_, np.False_), True),  # type: ignore[arg-type]
    }
    for values in (defaults(space), draw(space, "seed")):
        assert check(space, json.loads(json.dumps(values))) == values
    mixed = Choice((0.0, 0.5), 0)
    assert mixed.check(mixed.default) == 0.0
