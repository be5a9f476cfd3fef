"""The training loop and the seams, on real handwriting with an embedded network."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import QUICK, digits
from torch import Tensor, nn

from automl_tl import Batch, Classifier, Fitted, Job, Point, Strategy, Task, checkpoint, loop
from automl_tl.augment import Augmentation, augment
from automl_tl.backbones import build, catalogue
from automl_tl.errors import TrialError
from automl_tl.importance import PathIntegral
from automl_tl.inference import predict
from automl_tl.loop import AUGMENTATIONS, CHECKPOINT, batches, schedule
from automl_tl.pixels import decode
from automl_tl.profiling import task_features
from automl_tl.space import defaults


class Plain(Strategy):
    """The defaults of the five seams."""

    name = "plain"


def job(task: Task, folder: Path, values: dict[str, Any], *, seed: int = 3, **changed: Any) -> Job:
    backbone = catalogue()[QUICK]
    folder.mkdir(exist_ok=True)
    made = Job(
        task=task,
        backbone=backbone,
        strategy="plain",
        hyperparameters=values,
        seed=seed,
        pixels=decode(task, backbone.input_size, interpolation=backbone.interpolation, crop_pct=backbone.crop_pct),
        build_backbone=lambda: build(backbone),
        features=lambda: task_features(task, backbone),
        folder=folder,
        report=lambda point: False,
    )
    return replace(made, **changed)


def train(folder: Path, strategy: type[Strategy] = Plain, *, changed: dict[str, Any] | None = None, **values: Any) -> Fitted:
    values = {**defaults(strategy.space), "epochs": 3, "rate": 2e-3, **values}
    made = job(**{"task": digits(), "folder": folder, "values": values, **(changed or {})})
    return strategy(values, made.backbone).run(made)


def test_it_learns_and_says_what_it_cost(tmp_path: Path) -> None:
    told: list[Point] = []
    fitted = train(tmp_path, epochs=6, changed={"report": lambda point: bool(told.append(point))})
    assert told == fitted.curve
    assert [point.epoch for point in told] == [1, 2, 3, 4, 5, 6]
    losses = [point.loss or 0.0 for point in told]
    assert losses[-1] < 0.5 * losses[0]
    assert told[-1].score > 0.6
    assert all(after.seconds > before.seconds for before, after in pairwise(told))
    assert all(point.memory_mb > 50 for point in told)


def test_the_best_epoch_is_kept(tmp_path: Path) -> None:
    fitted = train(tmp_path, epochs=5)
    task = digits()
    right = (fitted.probabilities.argmax(1) == task.labels[task.part("validation")]).mean()
    assert right == pytest.approx(max(point.score for point in fitted.curve))


def test_the_end_is_judged_in_the_precision_of_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained in bf16, saved in fp32: what the record says is what the saved model does."""
    monkeypatch.setattr("automl_tl.loop.precision", lambda net: torch.bfloat16)
    fitted, task = train(tmp_path, epochs=1), digits()
    made = job(task, tmp_path, {})
    expected = predict(fitted.model, made.pixels.array, task.part("validation"), made.backbone)
    np.testing.assert_allclose(fitted.probabilities, expected, atol=1e-6)


@pytest.mark.slow
def test_what_fp16_cannot_hold_is_trained_in_fp32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on GPUs without bf16, where nothing else would be tried."""

    def large() -> nn.Module:
        net = build(catalogue()[QUICK])
        with torch.no_grad():
            net.layer4[0].bn1.weight.fill_(1e7)
            net.layer4[0].bn2.weight.mul_(1e-3)
        return net

    monkeypatch.setattr("automl_tl.loop.precision", lambda net: torch.float16)
    for name, network, expected in (("usual", None, torch.float16), ("large", large, torch.float32)):
        made = job(digits(), tmp_path / name, defaults(Plain.space) | {"epochs": 1, "rate": 1e-5})
        made = made if network is None else replace(made, build_backbone=network)
        strategy = Plain(made.hyperparameters, made.backbone)
        assert loop.assemble(strategy, made).dtype == expected
        assert math.isfinite(strategy.run(made).curve[0].loss or math.nan)


def test_early_stopping_in_each_cycle(tmp_path: Path) -> None:
    """No epoch beats the first, as the loss teaches nothing. The rate is at half its peak after 11 of 20; then 5 are enough; in a
    second cycle, twice as long, after 22 and 10."""

    class Still(Plain):
        def loss(self, model: Classifier, batch: Batch) -> Tensor:
            return super().loss(model, batch) * 0

    few = {"task": digits(60, classes=3)}
    for cycles in (1, 2):
        fitted = train(tmp_path / str(cycles), Still, epochs=20, rate=1e-5, weight_decay=1e-6, cycles=cycles, changed=few)
        assert (len(fitted.curve), fitted.complete) == (16 if cycles == 1 else 16 + 32, True)
    assert schedule(10 / 20) > 0.5 > schedule(12 / 20)


@pytest.mark.parametrize("optimiser", ["adamw", pytest.param("sgd", marks=pytest.mark.slow)])
def test_stopped_and_taken_up_again_is_bit_for_bit_the_same(tmp_path: Path, optimiser: str) -> None:
    whole = train(tmp_path / "a", epochs=4, optimiser=optimiser)
    part = train(tmp_path / "b", epochs=4, optimiser=optimiser, changed={"stop_after": 2})
    assert not part.complete
    assert (tmp_path / "b" / CHECKPOINT).exists()
    resumed = train(tmp_path / "b", epochs=4, optimiser=optimiser)
    np.testing.assert_array_equal(resumed.probabilities, whole.probabilities)
    assert [point.score for point in resumed.curve] == [point.score for point in whole.curve]


def test_another_cycle_goes_on_from_the_best_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its schedule begins anew, twice as long. From the checkpoint of one cycle, it is bit for bit what both are in one go."""
    begun: list[dict[str, Tensor]] = []
    places: list[float] = []

    class Watched(Plain):
        def start_epoch(self, model: Classifier, epoch: int) -> None:
            begun.append({name: value.clone() for name, value in model.state_dict().items()})

    def watched(done: float) -> float:
        places.append(done)
        return schedule(done)

    once = train(tmp_path / "a", epochs=3)
    monkeypatch.setattr(loop, "schedule", watched)
    whole = train(tmp_path / "b", Watched, epochs=3, cycles=2)
    assert [point.epoch for point in whole.curve] == list(range(1, 10))
    assert [point.score for point in whole.curve[:3]] == [point.score for point in once.curve]
    first, second = places[: len(places) // 3], places[len(places) // 3 :]
    assert first == pytest.approx(second[::2])
    assert second == sorted(second)
    for name, value in once.model.state_dict().items():
        assert torch.equal(begun[3][name], value), name
    assert begun[3].keys() == once.model.state_dict().keys()
    _, facts = checkpoint.load(tmp_path / "a" / CHECKPOINT)
    assert (facts["epoch"], facts["cycle"]) == (3, 2)
    resumed = train(tmp_path / "a", epochs=3, cycles=2)
    np.testing.assert_array_equal(resumed.probabilities, whole.probabilities)
    assert [point.score for point in resumed.curve] == [point.score for point in whole.curve]


class Clock:
    """Stands for the module `time`: an epoch takes a second, all else nothing."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic


class Timed(Plain):
    """Its epochs pass on the clock of the loop."""

    def start_epoch(self, model: Classifier, epoch: int) -> None:
        assert isinstance(loop.time, Clock)
        loop.time.now += 1


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Where in the schedule each step was, by a `Clock`."""
    found: list[float] = []

    def noted(done: float) -> float:
        found.append(done)
        return schedule(done)

    monkeypatch.setattr(loop, "time", Clock())
    monkeypatch.setattr(loop, "schedule", noted)
    return found


def test_the_schedule_ends_with_the_time(tmp_path: Path, places: list[float]) -> None:
    """Of 12 epochs there is time for 5: the rate comes down by then. The others follow in a later call, with another."""
    few = {"task": digits(60, classes=3)}
    hurried = train(tmp_path, Timed, epochs=12, changed={**few, "deadline": 5.0})
    assert (len(hurried.curve), hurried.complete) == (5, False)
    steps = len(places) // 5
    starts = places[::steps]
    assert starts == pytest.approx([0, 1 / 12, *(1 / 12 + 11 / 12 * share for share in (0.25, 0.5, 0.75))])
    assert places == sorted(places)
    assert schedule(places[-1]) < 0.05
    places.clear()
    whole = train(tmp_path, Timed, epochs=12, changed=few)
    assert (len(whole.curve), whole.complete) == (12, True)
    assert places[::steps] == pytest.approx([share / 7 for share in range(7)])


def test_a_pause_is_no_end(tmp_path: Path, places: list[float]) -> None:
    """A call that has the time to reach its pause leaves the schedule as it was; one that time ends before does not."""
    few = {"task": digits(60, classes=3)}
    train(tmp_path / "paused", Timed, epochs=12, changed={**few, "deadline": 5.0, "stop_after": 4})
    assert places[-1] < 4 / 12
    places.clear()
    late = loop.time.monotonic() + 5.0
    for name, changed in (("late", {"deadline": late, "stop_after": 6}), ("final", {"stop_after": 5, "final": True})):
        train(tmp_path / name, Timed, epochs=12, changed={**few, **changed})
        assert schedule(places[-1]) < 0.05


def test_a_cycle_that_led_nowhere_moved_no_weight_that_mattered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the second cycle is never better, the importance of the weights is that of the first alone."""
    validate, told = loop.validate, list[int]()

    def never_better(*arguments: Any, **named: Any) -> Any:
        told.append(len(told))
        found = validate(*arguments, **named)
        return found if len(told) <= 3 else replace(found, score=0.0)

    once, twice = PathIntegral(), PathIntegral()
    train(tmp_path / "a", changed={"path": once})
    monkeypatch.setattr(loop, "validate", never_better)
    train(tmp_path / "b", cycles=2, changed={"path": twice})
    assert len(told) == 3 + 6
    for name, value in once.marked.items():
        torch.testing.assert_close(twice.marked[name], value)
        torch.testing.assert_close(twice.reached[name], once.reached[name])


def test_what_is_remembered_is_laid_out_like_the_weights() -> None:
    """A fused optimiser refuses moments with other strides than its weights: those of a checkpoint are plain, the weights may be
    channels last."""

    def conv_and_optimiser() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        net = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
        return net, torch.optim.AdamW(net.parameters(), fused=True)

    def step(net: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        optimiser.zero_grad()
        net(torch.ones(2, 4, 8, 8)).square().sum().backward()
        optimiser.step()

    net, optimiser = conv_and_optimiser()
    step(net, optimiser)
    plain = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in checkpoint.moments(optimiser).items()}
    again, restored = conv_and_optimiser()
    again.load_state_dict(net.state_dict())
    checkpoint.remember(restored, plain)
    for parameter, values in restored.state.items():
        assert values["exp_avg"].stride() == parameter.stride()
    step(net, optimiser)
    step(again, restored)
    assert torch.equal(net.weight, again.weight)


@pytest.mark.slow
def test_checkpoints_take_a_small_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes long is not written after each epoch, but always where training stops."""
    save, epochs = checkpoint.save, []

    def slow(path: Path, tensors: Any, facts: Any) -> None:
        epochs.append(facts["epoch"])
        time.sleep(0.5)
        save(path, tensors, facts)

    monkeypatch.setattr(checkpoint, "save", slow)
    train(tmp_path, epochs=30, changed={"stop_after": 6})
    assert epochs == [1, 6]
    epochs.clear()
    train(tmp_path, epochs=30, changed={"report": lambda point: point.epoch == 9})
    assert epochs == [7, 9]


def test_a_report_that_says_stop_stops(tmp_path: Path) -> None:
    fitted = train(tmp_path, epochs=5, changed={"report": lambda point: point.epoch == 2})
    assert (len(fitted.curve), fitted.complete) == (2, False)


def test_no_epoch_begins_after_the_deadline(tmp_path: Path) -> None:
    fitted = train(tmp_path, epochs=5, changed={"deadline": -math.inf})
    assert (fitted.curve, fitted.complete) == ([], False)


def test_taken_up_again_it_begins_no_epoch_that_would_end_too_late(tmp_path: Path) -> None:
    """The last epoch, of an earlier call, took an hour; a minute is left."""
    train(tmp_path, changed={"stop_after": 2})
    tensors, facts = checkpoint.load(tmp_path / CHECKPOINT)
    assert facts["last"] == pytest.approx(facts["curve"][1]["seconds"] - facts["curve"][0]["seconds"])
    facts["last"] = 3600.0
    checkpoint.save(tmp_path / CHECKPOINT, tensors, facts)
    late = train(tmp_path, changed={"deadline": time.monotonic() + 60})
    assert (len(late.curve), late.complete) == (2, False)
    in_time = train(tmp_path, changed={"deadline": time.monotonic() + 7200})
    assert (len(in_time.curve), in_time.complete) == (3, True)


def test_a_loss_that_is_no_number_is_named(tmp_path: Path) -> None:
    class Explodes(Plain):
        def start_epoch(self, model: Classifier, epoch: int) -> None:
            self.factor = math.inf if epoch == 1 else 1.0

        def loss(self, model: Classifier, batch: Batch) -> Tensor:
            return super().loss(model, batch) * self.factor

    with pytest.raises(TrialError, match=r"the loss of plain on resnet10t_24\.omniglot_a_64 became (inf|nan) in epoch 2"):
        train(tmp_path, Explodes)


def test_the_schedule_by_hand() -> None:
    assert schedule(0) == 0.01
    assert schedule(0.05) == pytest.approx(0.5)
    assert schedule(0.1) == pytest.approx(1)
    assert schedule(0.55) == pytest.approx(0.5)
    assert schedule(1) == pytest.approx(0)


def test_rates_are_those_of_the_groups(tmp_path: Path) -> None:
    class Layered(Plain):
        def param_groups(self, model: Classifier) -> Iterator[tuple[float, list[nn.Parameter]]]:
            yield 0.0, list(model.backbone.parameters())
            yield 1.0, list(model.head.parameters())

    before = {name: tensor.clone() for name, tensor in build(catalogue()[QUICK]).named_parameters()}
    fitted = train(tmp_path, Layered, epochs=1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in fitted.model.backbone.named_parameters())  # type: ignore[union-attr, operator]
    assert float(fitted.model.head.weight.detach().abs().max()) > 0  # type: ignore[union-attr, arg-type, operator]


def test_what_is_frozen_stays(tmp_path: Path) -> None:
    class Frozen(Plain):
        def build(self, backbone: nn.Module, num_classes: int) -> Classifier:
            return super().build(backbone.requires_grad_(False), num_classes)

        def start_epoch(self, model: Classifier, epoch: int) -> None:
            model.backbone.eval()

    before = build(catalogue()[QUICK]).state_dict()
    fitted = train(tmp_path, Frozen, epochs=2)
    for name, tensor in fitted.model.backbone.state_dict().items():  # type: ignore[union-attr, operator]
        assert torch.equal(tensor, before[name]), name


def test_norms_and_biases_do_not_decay() -> None:
    backbone = catalogue()[QUICK]
    strategy = Plain({"weight_decay": 0.3}, backbone)
    optimiser = loop._optimiser(strategy, strategy.build(build(backbone), 10))
    for group in optimiser.param_groups:
        assert {parameter.ndim > 1 for parameter in group["params"]} == {group["weight_decay"] == 0.3}


def test_parameters_that_are_given_only_once_all_train() -> None:
    class Passing(Plain):
        def param_groups(self, model: Classifier) -> Iterator[tuple[float, list[nn.Parameter]]]:
            yield 1.0, model.parameters()  # type: ignore[misc]

    strategy = Passing({}, catalogue()[QUICK])
    model = strategy.build(build(catalogue()[QUICK]), 10)
    trained = {id(parameter) for group in loop._optimiser(strategy, model).param_groups for parameter in group["params"]}
    assert trained == set(map(id, model.parameters()))


def test_batches_cover_the_training_images_once_in_an_order_of_each_epoch(tmp_path: Path) -> None:
    values = {"batch_size": 32, "augmentation": "none"}
    made = job(digits(), tmp_path, values)
    epochs = [[batch.labels for batch in batches(Plain(values, made.backbone), made, epoch)] for epoch in (0, 0, 1)]
    train_labels = np.sort(made.task.labels[made.task.part("train")])
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(torch.cat(epoch).numpy()), train_labels)
    assert all(torch.equal(one, other) for one, other in zip(epochs[0], epochs[1], strict=True))
    assert not torch.equal(epochs[0][0], epochs[2][0])


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("flip", [False, True])
def test_augmentation_keeps_shape_and_range_and_is_seeded(name: str, flip: bool) -> None:
    images = torch.from_numpy(np.stack([image.repeat(3).reshape(8, 8, 3) for image in digits().images[:16]])).permute(0, 3, 1, 2)
    how = replace(AUGMENTATIONS[name], flip=flip)
    one, same, other = (augment(images, how, size=8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert one.shape == images.shape
    assert 0 <= float(one.min()) <= float(one.max()) <= 255
    assert torch.equal(one, same)
    assert torch.equal(one, other) == (how == Augmentation())
    if how == Augmentation():
        assert torch.equal(one, images.float())
