"""The combined score and the Pareto front, by hand and by their promises."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small import QUICK, TINY

from automl_tl.backbones import catalogue
from automl_tl.comparison import compare
from automl_tl.errors import InputError, InputWarning
from automl_tl.evaluation.combined import WEIGHTS, Standing, combined_scores, pareto_front
from automl_tl.records import Candidate, Trial

GOOD = Standing(0.9, 0.010, 4e6, 100)
CHEAP = Standing(0.8, 0.005, 1e6, 50)

standing = st.builds(Standing, st.floats(0, 1), st.floats(1e-4, 10), st.floats(1e3, 1e10), st.floats(1e-2, 1e6))


def test_by_hand() -> None:
    """Relations of GOOD to the best: 1, 1/2, 1/4, 1/2; of CHEAP: 8/9, 1, 1, 1."""
    good, cheap = combined_scores([GOOD, CHEAP], {"score": 2, "latency": 1, "size": 1, "training": 0})
    assert good == pytest.approx((1 / 2 * 1 / 4) ** (1 / 4))
    assert cheap == pytest.approx((8 / 9) ** (2 / 4))
    assert combined_scores([GOOD, CHEAP], {"score": 1}) == pytest.approx([1.0, 8 / 9])
    assert combined_scores([GOOD, CHEAP], {"size": 3}) == pytest.approx([1 / 4, 1.0])


def test_half_the_latency_is_worth_one_and_a_half_percent() -> None:
    better = replace(GOOD, score=GOOD.score * 2 ** (1 / WEIGHTS["score"]))
    faster = replace(GOOD, latency=GOOD.latency / 2)
    first, second = combined_scores([better, faster])
    assert first == pytest.approx(second)
    assert better.score / GOOD.score == pytest.approx(1.014, abs=0.0005)


def test_the_front_by_hand() -> None:
    worse_in_all = Standing(0.7, 0.02, 8e6, 200)
    slower = replace(GOOD, latency=0.02)
    assert pareto_front([GOOD, CHEAP, worse_in_all, slower]) == [True, True, False, False]
    assert pareto_front([GOOD, GOOD]) == [True, True]  # equals beat nobody
    assert pareto_front([]) == []
    assert combined_scores([]) == []


def test_a_score_of_nothing_and_a_cost_of_nothing() -> None:
    assert combined_scores([Standing(0.0, 1, 1, 1), Standing(0.5, 2, 1, 1)])[0] == 0.0
    assert combined_scores([Standing(0.0, 1, 1, 1)], {"size": 1}) == [1.0]
    assert combined_scores([Standing(0.5, 0.0, 1, 1), Standing(0.5, 0.0, 1, 1)]) == pytest.approx([1.0, 1.0])


@given(st.lists(standing, min_size=1, max_size=8))
def test_somebody_is_on_the_front_and_the_best_combined_is_one_of_them(standings: list[Standing]) -> None:
    front, scores = pareto_front(standings), combined_scores(standings)
    assert any(front)
    assert all(0 <= score <= 1 + 1e-9 for score in scores)
    if max(one.score for one in standings) > 1e-3:
        assert max(s for s, on in zip(scores, front, strict=True) if on) == pytest.approx(max(scores), rel=1e-6)


@given(st.lists(standing, min_size=1, max_size=5), st.floats(0.01, 100))
def test_units_do_not_matter(standings: list[Standing], unit: float) -> None:
    other = [replace(one, latency=one.latency * unit) for one in standings]
    assert combined_scores(other) == pytest.approx(combined_scores(standings), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(
    ("weights", "word"),
    [({"speed": 1.0}, "'speed'"), ({"score": -1.0}, "negative"), ({"score": 0.0}, "above zero"), ({}, "above")],
)
def test_bad_weights_are_named(weights: dict[str, float], word: str) -> None:
    with pytest.raises(InputError, match=word):
        combined_scores([GOOD], weights)


def test_a_trial_whose_backbone_is_not_known_is_left_out() -> None:
    """As of a run that an earlier version went on with: its second advice had other networks."""
    trials = [
        Trial(name, "f", Candidate(name, "lda"), 0, "finished", validation={"accuracy": 0.9, "score": 0.9})
        for name in (QUICK, TINY)
    ]
    known = {QUICK: catalogue()[QUICK]}
    assert [one.trial.id for one in compare(trials, known, 10)] == [QUICK]
    assert compare(trials, {}, 10) == []
    moved = {**known, TINY: replace(catalogue()[TINY], weights="nowhere/tiny.safetensors")}
    said = f"^trials on {TINY} are left out of the comparison: nowhere/tiny.safetensors: cannot be read: No such"
    with pytest.warns(InputWarning, match=said):
        assert [one.trial.id for one in compare(trials, moved, 10)] == [QUICK]
