"""What comes along with a task lands in the right split, test labels stay where they are, and scores mean what they say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from small import QUICK
from torch import nn

from automl_tl import Candidate, Classifier, Task, load_task
from automl_tl.backbones import build, catalogue
from automl_tl.data import subset
from automl_tl.errors import InputError
from automl_tl.model import save
from automl_tl.objectives import (
    ADAPTATION,
    FEDERATION,
    RETENTION,
    ROBUSTNESS,
    adapt,
    brings,
    federate,
    few_shots,
    harden,
    information,
    learn_to_learn,
    retain,
    validate,
)
from automl_tl.pixels import pixels_of
from automl_tl.records import (
    KEPT,
    KEPT_TEST,
    KEPT_VALIDATION,
    PUBLIC,
    SOURCE,
    TARGET,
    TEST,
    TRAIN,
    VALIDATION,
)


def some(first: int, last: int, *, start: int = 0, count: int = 100, name: str = "digits", negative: bool = False) -> Task:
    """Digits of the classes `first` to `last`, every fourth for the test."""
    digits = load_digits()
    chosen = np.flatnonzero((digits.target >= first) & (digits.target <= last))[start : start + count]
    images = [np.uint8(240 - image * 15 if negative else image * 15) for image in digits.images[chosen]]
    return load_task((images, digits.target[chosen].tolist()), name=name, test=0.25)


@pytest.fixture(scope="module")
def source() -> Task:
    return some(0, 3, name="ink")


@pytest.fixture(scope="module")
def target() -> Task:
    return some(0, 2, start=200, count=60, name="negative", negative=True)


def hashes(task: Task, split: str) -> set[int]:
    return set(task.hashes[task.part(split)].tolist())


# Adaptation


def test_a_target_whose_labels_are_hidden(source: Task, target: Task) -> None:
    task = adapt(source, target, labelled=False)
    assert task.objective == ADAPTATION
    assert task.classes == source.classes
    assert hashes(task, TRAIN) == hashes(source, TRAIN)
    assert hashes(task, VALIDATION) == hashes(source, VALIDATION)
    assert hashes(task, TARGET) == hashes(target, TRAIN) | hashes(target, VALIDATION)
    assert hashes(task, TEST) == hashes(target, TEST)
    assert (task.labels[task.part(TARGET)] == -1).all()
    np.testing.assert_array_equal(task.labels[task.part(TEST)], target.labels[target.part(TEST)])
    assert brings(task) == {"target"}
    assert len(task.images) == len(task.where) == len(task.hashes) == len(task.labels)


def test_labels_that_a_target_has_are_used(source: Task, target: Task) -> None:
    task = adapt(source, target)
    assert hashes(task, TRAIN) == hashes(source, TRAIN) | hashes(target, TRAIN)
    assert hashes(task, VALIDATION) == hashes(source, VALIDATION) | hashes(target, VALIDATION)
    assert hashes(task, TARGET) == hashes(target, TRAIN)
    assert (task.labels[task.part(TRAIN)] >= 0).all()
    assert not hashes(task, TRAIN) & hashes(task, TEST)


def test_classes_are_matched_by_name(source: Task) -> None:
    """The target lacks the source's first class: its class 0 is the source's class 1."""
    later = some(1, 3, start=150, count=60, name="later")
    task = adapt(source, later)
    own = later.part(TEST)
    names = [later.classes[label] for label in later.labels[own]]
    assert [task.classes[label] for label in task.labels[task.part(TEST)]] == names


def test_a_class_that_the_source_has_not(target: Task) -> None:
    with pytest.raises(InputError, match="negative has classes that the source few has not: 2"):
        adapt(some(0, 1, name="few"), target)


def test_one_image_a_class_cannot_be_validated_on(source: Task, target: Task) -> None:
    alone = replace(source, splits={TRAIN: source.part(TRAIN)})
    with pytest.raises(InputError, match="ink has no labelled image to validate on; give at least two of each class"):
        adapt(alone, target, labelled=False)
    assert len(adapt(alone, target).part(VALIDATION)) == len(target.part(VALIDATION))


def test_hidden_labels_change_nothing(source: Task, target: Task) -> None:
    """Two targets that differ in training labels alone are the same task."""
    labels = target.labels.copy()
    labels[target.part(TRAIN)] = (labels[target.part(TRAIN)] + 1) % 3
    one, other = (adapt(source, each, labelled=False) for each in (target, replace(target, labels=labels)))
    assert one.fingerprint == other.fingerprint
    labels[target.part(TEST)] = (labels[target.part(TEST)] + 1) % 3
    assert adapt(source, replace(target, labels=labels), labelled=False).fingerprint != one.fingerprint


# Others


def test_classes_to_learn_to_learn_from(target: Task) -> None:
    others = some(5, 9, name="others")
    task = learn_to_learn(few_shots(target, 2), others)
    assert brings(task) == {"source"}
    assert task.classes == target.classes
    assert hashes(task, SOURCE) == hashes(others, TRAIN) | hashes(others, VALIDATION), "its test images stay out"
    assert np.bincount(task.labels[task.part(TRAIN)]).tolist() == [2, 2, 2]
    assert hashes(task, VALIDATION) == hashes(target, VALIDATION)


def test_few_shots_are_drawn_by_the_seed(target: Task) -> None:
    assert few_shots(target, 2).fingerprint == few_shots(target, 2).fingerprint
    assert few_shots(target, 2).fingerprint != few_shots(target, 2, seed=1).fingerprint
    assert hashes(few_shots(target, 1000), TRAIN) == hashes(target, TRAIN)
    with pytest.raises(InputError, match="at least one image"):
        few_shots(target, 0)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the classes 0 to 2, untrained."""
    folder, backbone = tmp_path_factory.mktemp("earlier"), catalogue()[QUICK]
    net = Classifier(build(backbone), nn.Linear(backbone.num_features, 3))
    save(folder, net, backbone, Candidate(QUICK, "linear-probe"), ("0", "1", "2"), {})
    return folder


def test_what_must_not_be_forgotten(earlier: Path, target: Task) -> None:
    new = some(2, 4, start=200, name="new")
    task = retain(new, earlier, ("0", "1", "2"), target)
    assert task.objective == RETENTION
    assert task.classes == ("0", "1", "2", "3", "4"), "one class that both know is one class"
    assert brings(task) == {"earlier model", "linear head", "kept images", "fisher"}, "which kept images can tell"
    for split, kept in ((TRAIN, KEPT), (VALIDATION, KEPT_VALIDATION), (TEST, KEPT_TEST)):
        assert hashes(task, split) == hashes(new, split)
        assert hashes(task, kept) == hashes(target, split)
    names = [new.classes[label] for label in new.labels[new.part(TRAIN)]]
    assert [task.classes[label] for label in task.labels[task.part(TRAIN)]] == names
    assert brings(retain(new, earlier, ("0", "1", "2"))) == {"earlier model", "linear head"}
    with pytest.raises(InputError, match="does not know 2"):
        retain(new, earlier, ("0", "1"), target)


def test_simulated_clients_share_all_images_but_the_public_ones(source: Task) -> None:
    task = federate(source, 3, skew=1.0, seed=1)
    assert task.objective == FEDERATION
    assert hashes(task, TRAIN) | hashes(task, PUBLIC) == hashes(source, TRAIN)
    assert len(task.part(PUBLIC)) == pytest.approx(0.2 * len(source.part(TRAIN)), abs=3)
    assert task.clients is not None
    assert set(task.clients[task.part(TRAIN)].tolist()) == {0, 1, 2}
    assert (np.delete(task.clients, task.part(TRAIN)) == -1).all()
    assert federate(source, 3, skew=1.0, seed=1).fingerprint == task.fingerprint


def test_small_skews_give_clients_few_classes() -> None:
    """The share of a client's largest class, over its images, grows as the concentration falls."""
    whole = some(0, 3, count=600)

    def purity(skew: float) -> float:
        task = federate(whole, 4, skew=skew, seed=2)
        assert task.clients is not None
        counts = [np.bincount(task.labels[task.clients == client]) for client in range(4)]
        return float(sum(count.max() for count in counts) / sum(count.sum() for count in counts))

    assert purity(0.3) > purity(100.0) + 0.15


def test_what_is_held_out_is_not_learnt_from(earlier: Path, source: Task) -> None:
    """What comes along may have images of the task itself: it was read apart."""
    task, larger = some(0, 2, start=40, count=60, name="ink too"), some(0, 3, start=0, count=100, name="all")
    tested, judged = hashes(task, TEST), hashes(task, TEST) | hashes(task, VALIDATION)
    assert hashes(larger, TRAIN) & tested
    adapted = adapt(larger, task)
    assert not hashes(adapted, TRAIN) & (hashes(adapted, TEST) | hashes(adapted, VALIDATION))
    assert not hashes(adapted, VALIDATION) & tested
    assert hashes(adapted, TEST) == tested
    count = len(hashes(larger, TRAIN) & tested)
    assert f"{count} train images are test images, too; they were left out" in adapted.warnings
    assert not hashes(learn_to_learn(task, larger), SOURCE) & judged
    retained = retain(larger, earlier, ("0", "1", "2"), task)
    held = hashes(retained, TEST) | hashes(retained, VALIDATION) | hashes(retained, KEPT_TEST) | hashes(retained, KEPT_VALIDATION)
    assert not (hashes(retained, TRAIN) | hashes(retained, KEPT)) & held
    assert hashes(retained, KEPT_TEST) == tested
    shared = federate(task, [some(0, 2, count=80, name="one"), some(0, 2, start=80, count=80, name="other")])
    assert not hashes(shared, TRAIN) & judged
    alone = replace(larger, splits={TRAIN: np.flatnonzero(np.isin(larger.hashes, list(tested)))})
    with pytest.raises(InputError, match=r"all: all training images of '.' are held out, too; give others"):
        adapt(alone, task, labelled=False)


def test_real_clients(source: Task) -> None:
    clients = [some(0, 3, start=100 + 60 * number, count=60, name=f"client {number}") for number in range(2)]
    task = federate(source, clients)
    assert hashes(task, PUBLIC) == hashes(source, TRAIN)
    for number, client in enumerate(clients):
        assert task.clients is not None
        assert set(task.hashes[task.clients == number].tolist()) == hashes(client, TRAIN) | hashes(client, VALIDATION)
    with pytest.raises(InputError, match="has classes that ink has not: 4"):
        federate(source, [clients[0], some(3, 4, name="odd")])


@pytest.mark.parametrize(("clients", "skew", "words"), [(1, 1.0, "at least two"), (2, 0.0, "above 0"), (60, 0.01, "no image")])
def test_clients_that_cannot_be(source: Task, clients: int, skew: float, words: str) -> None:
    with pytest.raises(InputError, match=words):
        federate(source, clients, skew=skew)


def test_a_robust_task(target: Task, source: Task) -> None:
    task = harden(target, 8 / 255)
    assert task.objective == ROBUSTNESS
    assert brings(task) == {"epsilon"}
    assert harden(target, 4 / 255).fingerprint != task.fingerprint
    assert brings(harden(adapt(source, target), 8 / 255)) == {"epsilon", "target"}
    for epsilon in (0.0, 0.6, -1.0, float("nan")):
        with pytest.raises(InputError, match="of a pixel must be above 0"):
            harden(target, epsilon)


# Scores


def test_information_of_predictions_by_hand() -> None:
    sure_and_different, sure_and_same = np.eye(4), np.eye(4)[[0, 0, 0, 0]]
    assert information(sure_and_different) == pytest.approx(1)
    assert information(sure_and_same) == 0
    assert information(np.full((5, 4), 0.25)) == 0
    halves = np.array([[0.8, 0.2], [0.2, 0.8]])
    expected = 1 + (0.8 * np.log(0.8) + 0.2 * np.log(0.2)) / np.log(2)
    assert information(halves) == pytest.approx(expected)


def test_adaptation_is_scored_without_target_labels(source: Task, target: Task) -> None:
    backbone = catalogue()[QUICK]
    net = Classifier(build(backbone), nn.Linear(backbone.num_features, 4))
    task = adapt(source, target, labelled=False)
    images = pixels_of(task, backbone).array
    found = validate(net, images, task, backbone)
    assert found.score == pytest.approx((found.parts["labelled"] + found.parts["information"]) / 2)
    labels = task.labels.copy()
    labels[task.part(TARGET)], labels[task.part(TEST)] = 2, 0
    again = validate(net, images, replace(task, labels=labels), backbone)
    assert again.score == found.score


def test_retention_is_scored_on_old_and_new(earlier: Path, target: Task) -> None:
    backbone, new = catalogue()[QUICK], some(3, 4, start=200, name="new")
    task = retain(new, earlier, ("0", "1", "2"), target)
    net = Classifier(build(backbone), nn.Linear(backbone.num_features, 5))
    with torch.no_grad():
        net.head.weight.zero_()
        net.head.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 9.0, 0.0]))
    found = validate(net, pixels_of(task, backbone).array, task, backbone)
    share = float((task.labels[task.part(VALIDATION)] == 3).mean())
    assert found.parts == {"new": pytest.approx(share), "kept": 0.0}
    assert found.score == pytest.approx(share / 2)


def test_robust_tasks_are_scored_under_attack(target: Task) -> None:
    backbone = catalogue()[QUICK]
    torch.manual_seed(0)
    net = Classifier(build(backbone), nn.Linear(backbone.num_features, 3))
    few = subset(target, np.sort(np.concatenate([target.part(TRAIN), target.part(VALIDATION)])), name="few")
    images = pixels_of(few, backbone).array
    plain = validate(net, images, few, backbone)
    nothing, much = (validate(net, images, harden(few, epsilon), backbone) for epsilon in (1e-7, 64 / 255))
    assert nothing.score == pytest.approx(plain.score, abs=0.02)
    assert much.parts["clean"] == plain.score
    assert much.score < plain.score
