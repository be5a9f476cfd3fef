"""What could be done is complete, deterministic, and quickly said."""

from __future__ import annotations

import time
from collections.abc import Mapping

import pytest
from automl_tl_plugins.strategies.fine_tuning import FineTuning
from synthetic import STRATEGIES, Tuning, make_backbone

from automl_tl.candidates import propose
from automl_tl.registry import PluginWarning
from automl_tl.space import Choice, Int, Value, check, defaults
from automl_tl.strategy import Strategy

BACKBONES = {backbone.name: backbone for backbone in map(make_backbone, range(4))}


class NeedsSource(Strategy):
    name = "needs-source"
    needs = frozenset({"source"})


class NeedsSourceInAll(Strategy):
    """Says so for each of its settings, not for itself."""

    name = "needs-source-in-all"
    space = {"depth": Int(1, 9, 1)}

    @classmethod
    def requires(cls, hyperparameters: Mapping[str, Value]) -> frozenset[str]:
        return frozenset({"source"})


class CannotSay(Strategy):
    name = "cannot-say"

    @classmethod
    def requires(cls, hyperparameters: Mapping[str, Value]) -> frozenset[str]:
        return frozenset({"source"}) if hyperparameters["depth"] else frozenset()


class Narrow(Strategy):
    name = "narrow"
    space = {"depth": Int(1, 2, 1), "wide": Choice((False, True), False)}


def test_every_pair_comes_with_its_defaults_first() -> None:
    found = propose(BACKBONES, STRATEGIES, seed=0)
    pairs = {
        (c.backbone, c.strategy): [other for other in found if other.backbone == c.backbone and other.strategy == c.strategy]
        for c in found
    }
    assert set(pairs) == {(backbone, strategy) for backbone in BACKBONES for strategy in STRATEGIES}
    for (_, strategy), candidates in pairs.items():
        assert candidates[0].hyperparameters == defaults(STRATEGIES[strategy].space)
        assert len({candidate.id for candidate in candidates}) == len(candidates) == (1 if strategy == "probe" else 8)
        for candidate in candidates:
            check(STRATEGIES[strategy].space, candidate.hyperparameters)


def test_draws_near_the_defaults_change_few_values() -> None:
    plain = defaults(FineTuning.space)

    def changed(near: bool) -> float:
        drawn = propose(BACKBONES, {"fine-tuning": FineTuning}, seed=0, per_pair=100, near=near)
        return sum(c.hyperparameters[name] != plain[name] for c in drawn for name in plain) / len(drawn) / len(plain)

    assert 0.1 < changed(True) < 0.35 < 0.5 < changed(False)


def test_a_small_space_gives_no_candidate_twice() -> None:
    assert len(propose({"net00": BACKBONES["net00"]}, {"narrow": Narrow}, seed=0)) == 4


def test_unmet_needs_drop_a_strategy() -> None:
    strategies = {"needs-source": NeedsSource, "tuning": Tuning}
    assert {c.strategy for c in propose(BACKBONES, strategies, seed=0)} == {"tuning"}
    met = propose(BACKBONES, strategies, seed=0, met=frozenset({"source"}))
    assert {c.strategy for c in met} == {"tuning", "needs-source"}


def test_a_strategy_that_allows_no_setting_is_left_out() -> None:
    strategies = {"needs-source-in-all": NeedsSourceInAll, "tuning": Tuning}
    assert {c.strategy for c in propose(BACKBONES, strategies, seed=0)} == {"tuning"}
    assert {c.strategy for c in propose(BACKBONES, strategies, seed=0, met=frozenset({"source"}))} == set(strategies)


def test_a_strategy_that_cannot_say_what_it_needs_costs_only_itself() -> None:
    words = "strategy 'cannot-say' is left out, as its `requires` failed: KeyError: 'depth'"
    for proven in (None, {"cannot-say": [{}]}):
        with pytest.warns(PluginWarning, match=words):
            found = propose(BACKBONES, {"cannot-say": CannotSay, "tuning": Tuning}, seed=0, proven=proven)
        assert {c.strategy for c in found} == {"tuning"}


def test_only_what_was_asked_for() -> None:
    found = propose(BACKBONES, STRATEGIES, seed=0, only_strategies=["tuning"], only_backbones=["net01"])
    assert {(c.backbone, c.strategy) for c in found} == {("net01", "tuning")}


def test_the_same_seed_gives_the_same_and_others_move_nothing() -> None:
    few = propose({"net01": BACKBONES["net01"]}, {"tuning": Tuning}, seed=3)
    assert few == propose({"net01": BACKBONES["net01"]}, {"tuning": Tuning}, seed=3)
    assert {c.id for c in few} <= {c.id for c in propose(BACKBONES, STRATEGIES, seed=3)}
    assert {c.id for c in few} != {c.id for c in propose({"net01": BACKBONES["net01"]}, {"tuning": Tuning}, seed=4)}
    assert {c.id for c in few} != {c.id for c in propose({"net02": BACKBONES["net02"]}, {"tuning": Tuning}, seed=3)}


def test_a_hundred_thousand_take_seconds() -> None:
    many = {(b := make_backbone(i)).name: b for i in range(2300)}
    start = time.perf_counter()
    found = propose(many, STRATEGIES, seed=0, per_pair=22)
    print(f"{len(found)} candidates in {time.perf_counter() - start:.2f} s")
    assert len(found) > 100_000


def test_what_is_proven_comes_beside_the_draws() -> None:
    proven = {"tuning": [{"rate": 0.03, "epochs": 19}], "elsewhere": [{"rate": 0.5}]}
    plain, more = (propose(BACKBONES, STRATEGIES, seed=0, proven=known) for known in (None, proven))
    assert [c for c in more if c in plain] == plain
    assert {(c.strategy, c.hyperparameters["rate"]) for c in more if c not in plain} == {("tuning", 0.03)}
    assert len(more) == len(plain) + len(BACKBONES)
