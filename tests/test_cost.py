"""Predicted seconds and memory: formulas without history, calibrated in the median with it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import SPEED, STRATEGIES, Probe, World

from automl_tl import device
from automl_tl.backbones import catalogue
from automl_tl.cost import OVERHEAD, START_SECONDS, CostModel, bf16_gain, calibrate, speed_for
from automl_tl.records import Backbone, Candidate
from automl_tl.registry import PluginWarning
from automl_tl.space import Value, defaults
from automl_tl.strategy import TRAINING, Strategy


class Broken(Strategy):
    name = "broken"

    @classmethod
    def cost(cls, backbone: Backbone, images: int, hyperparameters: Mapping[str, Value]) -> float:
        raise KeyError("epochs")


@pytest.fixture(scope="module")
def world() -> World:
    return World(sources=6)


def test_without_history_seconds_are_multiply_adds_over_speed(world: World) -> None:
    empty = world.experience.take(np.array([], dtype=np.int64))
    model = CostModel.learn(empty, strategies=STRATEGIES, speed=1e9)
    seconds, memory, _ = model.predict([Candidate("net03", "probe", {})], 100, world.backbones)
    assert seconds == pytest.approx([START_SECONDS + OVERHEAD * 100 * world.backbones["net03"].macs / 1e9])
    assert memory[0] > 400


def test_seconds_of_new_tasks_are_within_a_factor_and_scale_with_the_machine(world: World) -> None:
    model = CostModel.learn(world.experience, strategies=STRATEGIES, speed=SPEED)
    trials = World(sources=3, seed=5).experience.trials
    factors = []
    for row in range(len(trials)):
        candidate = Candidate(trials.backbone[row], trials.strategy[row], trials.hyperparameters[row])
        seconds, _, _ = model.predict([candidate], trials.images[row], world.backbones)
        factors.append(seconds[0] * SPEED / trials.speed[row] / trials.seconds[row])
    assert np.exp(np.median(np.abs(np.log(factors)))) < 1.5
    assert 0.7 < np.median(factors) < 1.4
    faster = CostModel.learn(world.experience, strategies=STRATEGIES, speed=10 * SPEED)
    candidates = [Candidate("net05", name, defaults(strategy.space)) for name, strategy in STRATEGIES.items()]
    here, there = (m.predict(candidates, 500, world.backbones)[0] for m in (model, faster))
    assert there == pytest.approx(here / 10)


def test_memory_is_learnt(world: World) -> None:
    model = CostModel.learn(world.experience, strategies=STRATEGIES, speed=SPEED)
    backbone = world.backbones["net11"]
    _, memory, _ = model.predict([Candidate(backbone.name, "tuning", {"rate": 1e-3, "epochs": 5})], 500, world.backbones)
    assert memory[0] == pytest.approx(300 + 16 * backbone.params / 2**20, rel=0.25)


def test_a_strategy_that_is_unknown_or_fails_has_a_cost_all_the_same(world: World) -> None:
    model = CostModel.learn(world.experience, strategies=STRATEGIES | {"broken": Broken}, speed=SPEED)
    candidates = [Candidate("net03", "broken", {}), Candidate("net03", "gone", {}), Candidate("net03", "probe", {})]
    with pytest.warns(PluginWarning, match="cost of strategy 'broken' failed: KeyError"):
        seconds, _, _ = model.predict(candidates, 100, world.backbones)
    assert np.isfinite(seconds).all()
    assert seconds[0] == seconds[1] > seconds[2]


@pytest.mark.parametrize("said", [None, float("nan"), float("inf"), 0.0, -1e9])
def test_a_cost_that_is_no_amount_of_work_is_not_taken_for_free(world: World, said: Any) -> None:
    class Odd(Strategy):
        name = "odd"

        @classmethod
        def cost(cls, backbone: Backbone, images: int, hyperparameters: Mapping[str, Value]) -> float:
            return said  # type: ignore[no-any-return]

    model = CostModel.learn(world.experience, strategies=STRATEGIES | {"odd": Odd}, speed=SPEED)
    candidates = [Candidate("net03", "odd", {}), Candidate("net03", "gone", {})]
    with pytest.warns(PluginWarning, match="cost of strategy 'odd' failed"):
        seconds, _, work = model.predict(candidates, 100, world.backbones)
    assert work[0] == work[1] > 1e6
    assert seconds[0] == seconds[1]


def test_no_images_are_no_work_and_no_fault(world: World) -> None:
    _, _, work = CostModel(1e9, STRATEGIES).predict([Candidate("net03", "probe", {})], 0, world.backbones)
    assert work == [OVERHEAD], "of the least that is taken for work"


@pytest.mark.parametrize("odd", ["all", 10**400], ids=["text", "huge"])
def test_epochs_that_are_no_number_cost_as_the_usual_ones(world: World, odd: Value) -> None:
    """Whoever shared such a trial ends nobody's advice, and other settings of that strategy cost what they did."""
    trials = world.experience.trials
    settings = list(trials.hyperparameters)
    settings[int(np.flatnonzero(trials.strategy == "tuning")[0])] = {"rate": 1e-3, "epochs": odd, "batch_size": odd}
    spoilt = replace(world.experience, trials=replace(trials, hyperparameters=settings))
    with pytest.warns(PluginWarning, match="cost of strategy 'tuning' failed"):
        model = CostModel.learn(spoilt, strategies=STRATEGIES, speed=SPEED)
    five, strange = (Candidate("net03", "tuning", {"rate": 1e-3, "epochs": epochs}) for epochs in (5, odd))
    clean, _, _ = CostModel.learn(world.experience, strategies=STRATEGIES, speed=SPEED).predict([five], 500, world.backbones)
    with pytest.warns(PluginWarning, match="cost of strategy 'tuning' failed"):
        seconds, memory, _ = model.predict([strange, five], 500, world.backbones)
    assert np.isfinite([seconds, memory]).all()
    assert seconds[1] == pytest.approx(clean[0], rel=0.2)
    plain = CostModel(1e9, STRATEGIES)
    usual = Candidate("net03", "gone", {"epochs": TRAINING["epochs"].default})
    with pytest.warns(PluginWarning, match="cost of strategy 'tuning' failed"):
        found, _, _ = plain.predict([strange, usual, five], 500, world.backbones)
    assert found[0] == found[1]
    assert found[2] == plain.predict([five], 500, world.backbones)[0][0]


def test_a_batch_size_may_be_a_text(world: World) -> None:
    model = CostModel.learn(world.experience, strategies=STRATEGIES, speed=SPEED)
    full, none = (Candidate("net03", "probe", values) for values in ({"batch_size": "full"}, {}))
    seconds, memory, _ = model.predict([full, none], 100, world.backbones)
    assert seconds[0] == seconds[1] > 0
    assert memory[0] == memory[1] > 0


def test_learning_is_deterministic(world: World) -> None:
    candidates = [Candidate(name, "probe", {}) for name in world.backbones]
    first, second = (CostModel.learn(world.experience, strategies={"probe": Probe}, speed=SPEED) for _ in range(2))
    assert np.array_equal(first.predict(candidates, 50, world.backbones), second.predict(candidates, 50, world.backbones))


def test_only_networks_that_train_in_bf16_gain_by_it(world: World) -> None:
    plain, gains = (CostModel(1e9, STRATEGIES, gain=gain) for gain in (1.0, 2.0))
    backbones = {
        family: replace(world.backbones["net03"], family=family) for family in ("resnet", "vit", "mobilenetv2", "convnext")
    }
    candidates = [Candidate(family, "probe", {}) for family in backbones]
    before, after = (model.predict(candidates, 100, backbones)[0] - START_SECONDS for model in (plain, gains))
    assert after / before == pytest.approx([0.5, 0.5, 1.0, 1.0])


def test_a_trial_says_the_speed_of_the_precision_that_it_had(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the processor multiplies bf16: for networks that train so what fp32 reaches, times a gain that is kept beside it."""
    net = catalogue()["resnet10t_24.tiny_imagenet_64"]
    monkeypatch.setattr(device, "multiplies_bf16", lambda: False)
    assert speed_for(net) == calibrate()
    monkeypatch.setattr(device, "multiplies_bf16", lambda: True)
    assert 0.05 < bf16_gain(seconds=0.02) < 50
    assert speed_for(net) == calibrate() * bf16_gain()
    assert speed_for(replace(net, family="mobilenet")) == calibrate()
    known = json.loads((own_home / "speed.json").read_text())
    assert sorted(key.endswith("gain of bf16") for key in known) == [False, True]


def test_the_machine_is_measured_once_a_process(own_home: Path) -> None:
    speed = calibrate(seconds=0.02)
    assert 1e7 < speed < 1e15
    assert list(json.loads((own_home / "speed.json").read_text()).values()) == [[speed]]
    assert calibrate(seconds=0.02) == speed


@pytest.mark.parametrize("damaged", ["", "{", "[]", '{"key": 1}', '{"key": ["fast"]}'])
def test_measurements_that_are_damaged_are_taken_anew(own_home: Path, damaged: str) -> None:
    (own_home / "speed.json").write_text(damaged)
    assert calibrate(seconds=0.02) > 1e7
    (found,) = json.loads((own_home / "speed.json").read_text()).values()
    assert found == [calibrate()]


def test_the_fastest_measurement_counts(own_home: Path) -> None:
    """A machine that was busy at its first measurement is not slow for ever."""
    script = "from automl_tl.cost import calibrate; print(calibrate(seconds=0.02))"
    calibrate(seconds=0.02)
    path = own_home / "speed.json"
    (key,) = json.loads(path.read_text())
    path.write_text(json.dumps({key: [1e6]}))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 1e7
    assert len(json.loads(path.read_text())[key]) == 2
