"""Attacks stay within their ball, leave the model as it was, and find what a linear model's algebra says is the worst."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from small import QUICK, TINY
from torch import Tensor, nn

from automl_tl import Candidate, Classifier, cli, evaluate
from automl_tl.attacks import Ball, cross_entropy_of, held, pgd
from automl_tl.backbones import build, catalogue
from automl_tl.evaluation.adversaries import judge_robust
from automl_tl.inference import prepare
from automl_tl.model import save
from automl_tl.records import Backbone

EPSILON = 8 / 255


@pytest.fixture
def backbone() -> Backbone:
    return catalogue()[QUICK]


@pytest.fixture
def images(backbone: Backbone) -> Tensor:
    """Noise, and so many pixels that are black or white."""
    drawn = torch.randint(-60, 316, (6, 8, 8, 3), generator=torch.Generator().manual_seed(0)).clamp(0, 255).to(torch.uint8)
    return prepare(drawn.numpy(), backbone)


def pixels(images: Tensor, backbone: Backbone) -> Tensor:
    """Normalised images as values of 0 to 1."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (backbone.mean, backbone.std))
    return images * std + mean


def linear(classes: int = 3) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, classes))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("steps", [1, 5])
def test_what_comes_out_is_an_image_within_epsilon(steps: int, images: Tensor, backbone: Backbone) -> None:
    ball, labels = Ball.of(EPSILON, backbone, images), torch.zeros(6, dtype=torch.int64)
    changed = pgd(linear(), images, cross_entropy_of(labels), ball, steps=steps, generator=generator())
    apart = (pixels(changed, backbone) - pixels(images, backbone)).abs().amax()
    assert 0.9 * EPSILON < apart <= EPSILON + 1e-6
    values = pixels(changed, backbone)
    assert values.min() >= -1e-6
    assert values.max() <= 1 + 1e-6


def test_random_starts_fill_the_ball(images: Tensor, backbone: Backbone) -> None:
    ball = Ball.of(EPSILON, backbone, images)
    start = ball.start(images, generator())
    assert torch.equal(start, ball.start(images, generator()))
    moved = (pixels(start, backbone) - pixels(images, backbone)) / EPSILON
    assert moved.abs().max() <= 1 + 1e-4
    assert 0.3 < moved.abs().mean() < 0.55


def test_descent_finds_the_worst_image_of_a_linear_model(backbone: Backbone) -> None:
    """Of two classes, the loss is monotone in the difference of logits: each pixel goes epsilon against its weight's sign."""
    net, images = linear(2), prepare(torch.full((4, 8, 8, 3), 128, dtype=torch.uint8).numpy(), backbone)
    labels, ball = torch.tensor([0, 1, 0, 1]), Ball.of(EPSILON, backbone, images)
    changed = pgd(net, images, cross_entropy_of(labels), ball, steps=5, generator=generator())
    weight = (net[1].weight[1] - net[1].weight[0]).detach().view(1, 3, 8, 8)
    worst = images + ball.radius * weight.sign() * torch.where(labels == 0, 1.0, -1.0).view(4, 1, 1, 1)
    torch.testing.assert_close(changed, worst)


def test_images_that_are_recognised_for_sure_are_attacked_where_training_is_in_fp16(images: Tensor, backbone: Backbone) -> None:
    """Their gradients are below what fp16 has: an attack in it would leave them where it began."""
    net = linear()
    with torch.no_grad():
        labels = net(images).argmax(1)
        net[1].weight *= 12 / net(images).sort(1).values.diff(dim=1)[:, -1].min()
    with held(net), torch.autocast("cpu", torch.float16):
        asked = images.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(cross_entropy_of(labels)(net(asked)).sum(), asked)
    assert gradient.flatten(1).eq(0).all(1).any()
    ball = Ball.of(EPSILON, backbone, images)
    expected = pgd(net, images, cross_entropy_of(labels), ball, steps=3, generator=generator())
    with torch.autocast("cpu", torch.float16):
        found = pgd(net, images, cross_entropy_of(labels), ball, steps=3, generator=generator())
        assert net(images).dtype == torch.float16, "outside it is as it was"
    assert torch.equal(found, expected)


def test_a_held_model_is_given_back_as_it_was(images: Tensor, backbone: Backbone) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 3))
    net.train()
    net[1].eval()
    net[0].weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with held(net):
        assert not any(module.training for module in net.modules())
        assert not any(parameter.requires_grad for parameter in net.parameters())
    ball, labels = Ball.of(EPSILON, backbone, images), torch.zeros(6, dtype=torch.int64)
    pgd(net, images, cross_entropy_of(labels), ball, steps=2, generator=generator())
    assert [module.training for module in net] == [True, False, True, True, True]
    assert [parameter.requires_grad for parameter in net.parameters()] == [False] + [True] * 5
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in before.items()), "no statistic moved"


def test_an_attack_within_no_gradient_finds_its_own(images: Tensor, backbone: Backbone) -> None:
    ball, labels = Ball.of(EPSILON, backbone, images), linear()(images).argmax(1)
    with torch.no_grad():
        changed = pgd(linear(), images, cross_entropy_of(labels), ball, steps=3, generator=generator())
        clean, attacked = (torch.nn.functional.cross_entropy(linear()(one), labels) for one in (images, changed))
    assert attacked > clean


# The judges


def test_the_judges_find_what_algebra_says_a_linear_model_stands(backbone: Backbone) -> None:
    """An image of a two-class linear model stands epsilon if its margin is above epsilon · Σ|weight| (no pixel at its bounds)."""
    generator_ = torch.Generator().manual_seed(5)
    drawn = torch.randint(60, 190, (24, 8, 8, 3), generator=generator_).to(torch.uint8).numpy()
    net = linear(2)
    with torch.no_grad():
        logits = net(prepare(drawn, backbone))
    labels = logits.argmax(1)
    weight = (net[1].weight[1] - net[1].weight[0]).detach().view(3, 64).abs().sum(1)
    reach = EPSILON * (weight / torch.tensor(backbone.std)).sum()
    stands = (logits[:, 1] - logits[:, 0]).abs() > reach
    assert 0 < stands.sum() < 24, "some stand and some fall"
    scores = judge_robust(net, drawn, labels.numpy(), backbone, epsilon=EPSILON)
    assert scores["attacked_images"] == 24
    assert scores["attacked_clean_accuracy"] == 1
    assert scores["robust_accuracy"] == pytest.approx(float(stands.float().mean()))
    assert scores["pgd_accuracy"] >= scores["robust_accuracy"]
    assert judge_robust(net, drawn, labels.numpy(), backbone, epsilon=EPSILON) == scores, "the same seed, the same verdict"
    assert judge_robust(net, drawn, labels.numpy(), backbone, epsilon=1e-6, most=5)["robust_accuracy"] == 1


class Hides(nn.Module):
    """Rounds its input, so that gradients are 0 almost everywhere."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(torch.round(images * 64) / 64)
        return logits


def test_hidden_gradients_do_not_pass_for_robustness(backbone: Backbone) -> None:
    drawn = torch.randint(60, 190, (16, 8, 8, 3), generator=torch.Generator().manual_seed(5)).to(torch.uint8).numpy()
    net = Hides(linear(2))
    with torch.no_grad():
        logits = net(prepare(drawn, backbone))
    near = (logits[:, 1] - logits[:, 0]).abs().argsort()[:4].numpy()
    scores = judge_robust(net, drawn[near], logits.argmax(1).numpy()[near], backbone, epsilon=32 / 255)
    assert scores["robust_accuracy"] < 1


def test_a_model_of_a_run_is_judged_under_attack(tmp_path: Path) -> None:
    backbone, digits = catalogue()[QUICK], load_digits()
    torch.manual_seed(0)
    save(tmp_path / "model", Classifier(build(backbone), nn.Linear(192, 2)), backbone, Candidate(QUICK, "x"), ("0", "1"), {})
    chosen = np.flatnonzero(digits.target < 2)[:6]
    location = [np.uint8(image * 15) for image in digits.images[chosen]], digits.target[chosen].tolist()
    plain, attacked = evaluate(tmp_path, location), evaluate(tmp_path, location, robust=EPSILON)
    assert "robust_accuracy" not in plain
    assert attacked["accuracy"] == plain["accuracy"]
    assert attacked["robust_accuracy"] <= attacked["pgd_accuracy"] <= attacked["attacked_clean_accuracy"]


@pytest.mark.slow
def test_what_a_robust_search_says(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The score that chose is told apart from plain accuracy, and what stands under attack is said and reported."""
    words = ["--strategy", "fast-adversarial", "--backbone", TINY, "--robust", "2/255", "--trials", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["automl-tl", "fit", "digits", "--shots", "10", *words])
    with contextlib.suppress(SystemExit):
        cli.main()
    out, err = capsys.readouterr()
    trial = json.loads(next((tmp_path / "trials").glob("*/trial.json")).read_text(encoding="utf-8"))
    validation, test = trial["validation"], trial["test"]
    assert f"done: score {validation['score']:.3f}, accuracy {validation['accuracy']:.3f}" in err
    stands = f"{test['pgd_accuracy']:.3f} after PGD, {test['robust_accuracy']:.3f} after all attacks"
    assert f"Under attack, of 128 test images: {test['attacked_clean_accuracy']:.3f} as they are, {stands}" in out
    assert "accuracy after all attacks" in (tmp_path / "report.html").read_text(encoding="utf-8")
