"""What is expected of a candidate by its like: closed forms against the long way."""

from __future__ import annotations

import json

import numpy as np
from synthetic import World, make_backbone

from automl_tl.experience import rows_of
from automl_tl.kriging import SETTINGS, Kriging, Pairs, _solve
from automl_tl.learning import _effect, _lessons, _place_in_task
from automl_tl.record import Record, _trust


def test_leaving_a_group_out_is_learning_without_it() -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(12, 12))
    covariance, noise, values = root @ root.T, np.full(12, 0.5), rng.normal(size=(2, 12))
    members = [np.arange(0, 4), np.arange(4, 12)]
    weights, error = _solve(covariance, noise, values, members, np.ones(12))
    missed = []
    for code, own in enumerate(members):
        others = np.setdiff1d(np.arange(12), own)
        direct = values[:, others] @ np.linalg.inv(covariance[np.ix_(others, others)] + 0.5 * np.eye(len(others)))
        np.testing.assert_allclose(weights[code + 1][:, others], direct, atol=1e-9)
        assert not weights[code + 1][:, own].any()
        missed.append(values[:, own] - direct @ covariance[np.ix_(others, own)])
    np.testing.assert_allclose(error, sum((part**2).sum() for part in missed))


def test_the_like_are_expected_to_do_alike() -> None:
    """One backbone did well on one task: so should it, and less so its family and others, there and elsewhere."""
    backbones = [make_backbone(i) for i in (0, 3, 1)]  # two of one family, one of another
    pairs = Pairs.of(backbones, ["probe"] * 3)
    near = np.array([[1.0, 0.1], [0.1, 1.0]])
    cells = np.array([0, 1, 2]), np.array([0, 0, 0])
    fitted = Kriging.of(pairs, cells, np.array([[1.0, 0.0, -1.0]]), np.ones(3), near, np.ones(2), ["a", "b"], seed=0)
    (said,) = fitted.expected(pairs, np.tile(np.arange(3), 2), np.repeat([0, 1], 3), near)
    assert said[0] > said[1] > said[2]
    assert said[3] > said[4] > said[5]
    assert abs(said[3]) < abs(said[0])
    (nothing,) = fitted.expected(pairs, np.arange(3), np.zeros(3, dtype=np.int64), near, ["a", "b"])
    np.testing.assert_allclose(nothing, 0)  # without the only source there is nothing left


def test_a_record_read_again_says_the_same() -> None:
    world = World(sources=4, tasks_each=1, trials=10)
    rows, lessons = rows_of(world.experience), _lessons(world.experience)
    record = Record.of(rows, lessons.measured, lessons.task_groups)
    again = Record.read(json.loads(json.dumps(record.facts())))
    np.testing.assert_array_equal(record.standings(rows), again.standings(rows))
    assert 0 <= record.kriging.setting < len(SETTINGS)


def test_a_task_that_agrees_with_no_other_is_not_trusted() -> None:
    shared = np.linspace(-1, 1, 40)
    rng = np.random.default_rng(1)
    sums = np.array([shared, shared + 0.1 * rng.normal(size=40), shared, rng.permutation(shared)])
    trust = _trust(sums, np.ones_like(sums), np.array(["a", "b", "c", "d"]))
    assert trust[:3].min() > 0.75
    assert trust[3] < 0.4


def test_the_scale_of_effects_by_hand() -> None:
    """Median 0.5, best 0.9: half the way up is ½; a failure lies as many standard deviations below."""
    scores = np.array([0.1, 0.5, 0.7, 0.9, 0.5])
    effect = _effect(scores)
    np.testing.assert_allclose(np.diff(effect[[1, 2, 3]]), [0.5, 0.5])
    np.testing.assert_allclose(effect[1] - effect[0], 0.4 / scores.std())
    np.testing.assert_allclose(effect.mean(), 0, atol=1e-12)


def test_places_within_tasks_by_hand() -> None:
    values, task = np.array([3.0, 1.0, 2.0, 2.0, 5.0]), np.array([0, 0, 0, 0, 1])
    np.testing.assert_allclose(_place_in_task(values, task), [3.5 / 4 - 0.5, 0.5 / 4 - 0.5, 0.0, 0.0, 0.0])
