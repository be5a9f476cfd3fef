"""Mixing, RandAugment, L1 and averaged weights do what their papers say, and leave what was there before as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small import arrays, digits
from test_loop import job, train
from torch.nn import functional as F

from automl_tl import Batch, Strategy, loop
from automl_tl.averaging import average_into
from automl_tl.batches import batches
from automl_tl.mixing import mix
from automl_tl.randaugment import OPERATIONS, randaugment
from automl_tl.registry import strategies
from automl_tl.space import Choice, defaults, draw
from automl_tl.strategy import REGULARISERS, TRAINING, cross_entropy


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(count: int = 16) -> torch.Tensor:
    """Real digits, N×3×8×8, 0–255."""
    images, _ = arrays(count)
    return torch.from_numpy(np.stack(images)).float()[:, None].expand(-1, 3, -1, -1).clone()


def batch(count: int = 16) -> Batch:
    return Batch(picture(count), torch.tensor(arrays(count)[1]))


# Mixing


def test_without_mixing_a_batch_stays_the_same_object() -> None:
    whole = batch()
    assert mix(whole, mixup=0.0, cutmix=0.0, generator=generator()) is whole


def test_mixup_by_hand() -> None:
    whole = batch()
    mixed = mix(whole, mixup=1.0, cutmix=0.0, generator=generator())
    assert mixed.mixed is not None
    assert mixed.own is not None
    share = float(mixed.own[0])
    assert 0 < share < 1
    other = (mixed.images - share * whole.images) / (1 - share)
    for image, label in zip(other, mixed.mixed, strict=True):
        close = [torch.allclose(image, candidate, atol=0.05) for candidate in whole.images]
        assert any(close), "the other part is an image of the batch"
        assert whole.labels[close.index(True)] == label, "and the label goes with it"


def test_cutmix_counts_pixels() -> None:
    whole = Batch(torch.arange(8.0)[:, None, None, None].expand(8, 3, 20, 20).clone(), torch.arange(8))
    for seed in range(10):
        mixed = mix(whole, mixup=0.0, cutmix=1.0, generator=generator(seed))
        assert mixed.mixed is not None
        assert mixed.own is not None
        for image, label, other, own in zip(mixed.images, mixed.labels, mixed.mixed, mixed.own, strict=True):
            stayed = (image[0] == label).float().mean() if other != label else torch.tensor(float(own))
            assert float(stayed) == pytest.approx(float(own), abs=1e-6)


def test_the_share_is_drawn_from_a_beta_distribution() -> None:
    """Its variance is 1 / (4 (2α + 1))."""
    chance, pair = generator(), batch(2)
    for alpha in (0.2, 1.0):
        drawn = [float(mix(pair, mixup=alpha, cutmix=0.0, generator=chance).own[0]) for _ in range(1000)]  # type: ignore[index]
        assert np.mean(drawn) == pytest.approx(0.5, abs=0.05)
        assert np.var(drawn) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.12)


def test_the_loss_of_mixed_images_by_hand() -> None:
    logits = torch.randn(4, 3, generator=generator())
    labels, other = torch.tensor([0, 1, 2, 0]), torch.tensor([2, 2, 1, 0])
    mixed = Batch(torch.zeros(4), labels, mixed=other, own=torch.full((4,), 0.7))
    target = 0.7 * F.one_hot(labels, 3) + 0.3 * F.one_hot(other, 3)
    assert float(cross_entropy(logits, mixed)) == pytest.approx(float(F.cross_entropy(logits, target)), abs=1e-6)
    smoothed = float(F.cross_entropy(logits, target, label_smoothing=0.1))
    assert float(cross_entropy(logits, mixed, 0.1)) == pytest.approx(smoothed, abs=1e-6)


# RandAugment


@pytest.mark.parametrize("magnitude", [3, 9])
def test_randaugment_is_seeded_and_keeps_shape_and_range(magnitude: int) -> None:
    images = picture(64)
    one, same, other = (randaugment(images, magnitude, generator=generator(seed)) for seed in (0, 0, 1))
    assert one.shape == images.shape
    assert 0 <= float(one.min()) <= float(one.max()) <= 255
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_there_are_fourteen_operations_and_each_changes_more_at_a_larger_magnitude() -> None:
    assert len(OPERATIONS) == 14
    images = picture(32)
    for number, operation in enumerate(OPERATIONS):
        nothing, weak, strong = (
            float((operation(images, torch.full((32,), amount)).clamp(0, 255) - images).abs().mean())
            for amount in (0.0, 0.3, 0.9)
        )
        if number > 2:  # identity, autocontrast and equalise have no magnitude
            assert nothing < 1e-2 or number == 4, number  # eight bits round fractions away
            assert strong > weak, number


def test_equalise_spreads_grey_values_evenly() -> None:
    ramp = torch.arange(64.0).reshape(1, 1, 8, 8).expand(1, 3, 8, 8)
    spread = OPERATIONS[2](ramp, torch.zeros(1))
    assert float(spread.min()) == 0
    assert float(spread.max()) == 255
    assert torch.allclose(spread[0, 0].flatten().diff(), torch.tensor(255 / 63), atol=1e-3)


# L1 and averaged weights


def test_the_step_of_l1_by_hand() -> None:
    weight = torch.nn.Parameter(torch.tensor([[0.3, -0.05, 0.1, -0.4]]))
    weight.grad = torch.zeros_like(weight)
    optimiser = torch.optim.SGD([{"params": [weight], "l1": 1.0}], lr=0.1)
    loop._shrink(optimiser)
    torch.testing.assert_close(weight.detach(), torch.tensor([[0.2, 0.0, 0.0, -0.3]]))


def test_an_average_by_hand() -> None:
    average, model = (torch.nn.Linear(1, 1, bias=False) for _ in range(2))
    torch.nn.init.constant_(average.weight, 0.0)
    torch.nn.init.constant_(model.weight, 1.0)
    average_into(average, model, decay=0.9, step=0)
    assert float(average.weight.detach()) == pytest.approx(0.9), "d = min(0.9, 1/10): the start is forgotten at once"
    average_into(average, model, decay=0.9, step=1000)
    assert float(average.weight.detach()) == pytest.approx(0.91)


def test_averaged_weights_are_judged_and_kept(tmp_path: Path) -> None:
    plain = train(tmp_path / "a", epochs=2)
    averaged = train(tmp_path / "b", epochs=2, ema=0.9)
    task = digits()
    right = (averaged.probabilities.argmax(1) == task.labels[task.part("validation")]).mean()
    assert right == pytest.approx(max(point.score for point in averaged.curve))
    assert [point.loss for point in averaged.curve] == [point.loss for point in plain.curve], "the way itself is the same"
    assert not np.array_equal(averaged.probabilities, plain.probabilities)


def test_all_of_it_survives_a_stop_bit_for_bit(tmp_path: Path) -> None:
    values = {"epochs": 3, "ema": 0.9, "mixup": 0.2, "cutmix": 1.0, "randaugment": 6, "l1": 0.01}
    whole = train(tmp_path / "a", **values)
    assert not train(tmp_path / "b", changed={"stop_after": 1}, **values).complete
    resumed = train(tmp_path / "b", **values)
    np.testing.assert_array_equal(resumed.probabilities, whole.probabilities)
    assert [point.score for point in resumed.curve] == [point.score for point in whole.curve]


# What was there before


def test_an_option_draws_from_numbers_of_its_own(tmp_path: Path) -> None:
    """Asking for RandAugment or mixing moves neither the order of the images nor their views."""

    def first(**values: object) -> Batch:
        made = job(digits(), tmp_path, {"augmentation": "medium", **values})
        return next(batches(Strategy({"augmentation": "medium", **values}, made.backbone), made, 1))  # type: ignore[dict-item]

    plain, mixed = first(), first(mixup=1.0)
    assert torch.equal(plain.labels, mixed.labels)
    assert plain.mixed is None
    assert mixed.own is not None
    other = (mixed.images - mixed.own[0] * plain.images) / (1 - mixed.own[0])
    assert min(float((other[0] - image).abs().max()) for image in plain.images) < 1e-3
    assert torch.equal(first(randaugment=9).labels, plain.labels)
    assert not torch.equal(first(randaugment=9).images, plain.images)


def test_the_options_are_off_by_default_and_in_most_draws() -> None:
    assert not any(defaults(REGULARISERS).values())
    assert set(REGULARISERS) < set(TRAINING)
    drawn = [draw(REGULARISERS, str(number)) for number in range(400)]
    for name in REGULARISERS:
        assert 0.7 < np.mean([not values[name] for values in drawn]) < 0.9


def test_a_share_of_draws_is_below_one() -> None:
    with pytest.raises(ValueError, match="share below 1"):
        Choice((0, 1), 0, usual=1.0)


@pytest.mark.parametrize("name", ["fine-tuning", "from-scratch", "gradual-unfreezing", "last-blocks", "layerwise-decay"])
def test_strategies_let_them_vary(name: str) -> None:
    assert set(REGULARISERS) <= set(strategies()[name].space)
