"""Federated strategies on Flower: what they do is what their papers say, and what leaves a client is what is listed."""

from __future__ import annotations

import json
import math
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from small import QUICK

from automl_tl import Candidate, Fitted, Job, Task, federation, loop, model, registry
from automl_tl.backbones import build, catalogue
from automl_tl.data import picked
from automl_tl.errors import AutomlError, InputError, TrialError
from automl_tl.inference import predict
from automl_tl.norms import norms_of
from automl_tl.objectives import federate, few_shots, offer_public
from automl_tl.records import PUBLIC, TRAIN, VALIDATION, Features
from automl_tl.space import defaults
from automl_tl.testing import small_task
from automl_tl.trials import Limits, job_of, run_trial

flwr = pytest.importorskip("flwr", reason="needs Flower: pip install automl_tl[federated]")
NAMES = ("fedavg", "fedprox", "federated-distillation", "dp-fedavg")


@pytest.fixture(scope="module")
def task() -> Task:
    return federate(small_task(), 3, skew=1.0)


def prepared(task: Task, name: str, folder: Path, **values: Any) -> tuple[Any, Job]:
    """The strategy and its job; two rounds unless told otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    strategy, backbone = registry.strategies()[name], catalogue()[QUICK]
    hyperparameters = {**defaults(strategy.space), "epochs": 2, "local_epochs": 1, **values}
    candidate = Candidate(QUICK, name, hyperparameters)
    return strategy(hyperparameters, backbone), job_of(task, candidate, backbone, seed=0, folder=folder)


def spied(strategy: Any) -> list[Any]:
    """Every message that Flower's server gets from clients from now on."""
    from flwr.common import FitRes

    seen: list[FitRes] = []
    averaging = strategy.averaging

    def listening(settings: dict[str, Any]) -> Any:
        inner = averaging(settings)
        aggregate = inner.aggregate_fit

        def aggregate_fit(number: int, results: list[Any], failures: list[Any]) -> Any:
            seen.extend(result for _, result in results)
            return aggregate(number, results, failures)

        inner.aggregate_fit = aggregate_fit
        return inner

    strategy.averaging = listening
    return seen


# What leaves a client


@pytest.mark.parametrize("name", NAMES)
def test_what_leaves_a_client(name: str, task: Task, tmp_path: Path) -> None:
    """Flower's own messages hold arrays of the listed shapes, a count and the listed numbers; no image in any form."""
    from flwr.common import parameters_to_ndarrays

    strategy, job = prepared(task, name, tmp_path)
    seen = spied(strategy)
    fitted = strategy.run(job)
    assert len(seen) == 3 * 2
    weights = [tuple(t.shape) for t in fitted.model.state_dict().values() if t.is_floating_point()]
    public, classes = len(task.part(PUBLIC)), len(task.classes)
    for answer in seen:
        arrays = parameters_to_ndarrays(answer.parameters)
        shapes = [values.shape for values in arrays]
        if name == "federated-distillation":
            assert shapes == [(public, classes)]
            np.testing.assert_allclose(arrays[0].sum(axis=1), 1, atol=1e-4)
            assert sum(map(len, answer.parameters.tensors)) < 4 * public * classes + 200, "no room for weights"
        elif name == "dp-fedavg":
            assert shapes == [(classes, shapes[0][1]), (classes,)]
        else:
            assert shapes == weights
        assert all(values.dtype == np.float32 for values in arrays)
        assert answer.metrics.keys() == ({"epsilon", "delta"} if name == "dp-fedavg" else {"loss"})
        assert all(isinstance(value, float) for value in answer.metrics.values())
    counted = 3 if name == "federated-distillation" else len(task.part(TRAIN))  # there each client's word counts the same
    assert sum(answer.num_examples for answer in seen) == 2 * counted
    sent = b"".join(b"".join(answer.parameters.tensors) for answer in seen[-3:])
    assert not [name for name, form in forms_of(task, job) if form in sent]


def forms_of(task: Task, job: Job) -> Iterator[tuple[str, bytes]]:
    """The middle row of some of every client's images, as it was given and as the network takes it, as bytes and as floats: a
    message that held the whole image in one of these forms would hold it, too."""
    assert task.clients is not None
    for place in np.concatenate([np.flatnonzero(task.clients == client)[:8] for client in range(3)]).tolist():
        for kind, image in (("given", np.asarray(task.images[place])), ("decoded", job.pixels.array[place])):
            row = image[len(image) // 2]
            for form in (row, (row / np.float32(255)).astype(np.float32), row.astype(np.float32)):
                if row.std() > 0:
                    yield f"{kind} {place}", form.tobytes()


def test_a_simulated_client_sees_its_own_and_public_images_alone(task: Task, tmp_path: Path) -> None:
    _, job = prepared(task, "fedavg", tmp_path)
    assert task.clients is not None
    for number in range(3):
        own = federation.job_of_client(job, number).task
        assert set(own.splits) == {TRAIN, PUBLIC}
        assert (task.clients[own.part(TRAIN)] == number).all()
    seeds = {federation.job_of_client(job, number).seed for number in range(3)}
    assert len(seeds) == 3


# What the papers say


def test_a_round_is_the_weighted_average_of_what_clients_learnt(task: Task, tmp_path: Path) -> None:
    """Flower's average is McMahan's: Σ n_k/n w_k."""
    strategy, job = prepared(task, "fedavg", tmp_path)
    sent = strategy.centre(job).first()
    answers = [strategy.client(federation.job_of_client(job, k)).answer(sent, {"round": 0}) for k in range(3)]
    whole = sum(answer.images for answer in answers)
    assert whole == len(task.part(TRAIN))
    expected = [sum(answer.images / whole * answer.arrays[i].astype(np.float64) for answer in answers) for i in range(len(sent))]
    heard: list[list[np.ndarray]] = []
    centre = strategy.centre(job)
    take = centre.take
    centre.take = lambda arrays, number: (heard.append([a.copy() for a in arrays]), take(arrays, number))
    strategy.centre = lambda job: centre
    strategy.run(replace(job, stop_after=1))
    assert len(heard) == 1
    for ours, theirs in zip(expected, heard[0], strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-5, atol=2e-6)


def test_the_leash_of_fedprox(task: Task, tmp_path: Path) -> None:
    """A larger μ leaves clients nearer to where the round began; with next to none it is federated averaging."""

    def strayed(name: str, folder: str, **values: Any) -> float:
        strategy, job = prepared(task, name, tmp_path / folder, local_epochs=3, **values)
        sent = strategy.centre(job).first()
        client = strategy.client(federation.job_of_client(job, 0))
        arrays = client.answer(sent, {"round": 1, "proximal_mu": values.get("mu", 0.0)}).arrays
        return math.sqrt(sum(float(((a - b).astype(np.float64) ** 2).sum()) for a, b in zip(arrays, sent, strict=True)))

    free, loose, tight = strayed("fedavg", "a"), strayed("fedprox", "b", mu=1e-3), strayed("fedprox", "c", mu=10.0)
    assert loose == pytest.approx(free, rel=0.05)
    assert tight < 0.9 * free


def test_flower_tells_clients_the_leash(task: Task, tmp_path: Path) -> None:
    strategy, job = prepared(task, "fedprox", tmp_path, mu=0.5)
    strategy.run(replace(job, stop_after=1))
    assert strategy.mu == 0.5


def test_distillation_leaves_the_clients_networks_at_home(task: Task, tmp_path: Path) -> None:
    strategy, job = prepared(task, "federated-distillation", tmp_path)
    fitted: Fitted = strategy.run(job)
    kept = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("own-*"))
    assert kept == [f"client-{k}/own-{r}.safetensors" for k in range(3) for r in range(2)]
    first = replace(federation.job_of_client(job, 0), folder=tmp_path / "seeing")
    labels = task.labels.copy()
    labels[task.part(PUBLIC)] = -1
    blind = replace(first, task=replace(first.task, labels=labels), folder=tmp_path / "blind")
    sent = strategy.centre(job).first()
    one, other = (strategy.client(own).answer(sent, {"round": 0}).arrays[0] for own in (first, blind))
    np.testing.assert_array_equal(one, other, "labels of public images are the server's alone")
    assert fitted.curve


def test_the_server_learns_labels_beside_what_clients_say(task: Task, tmp_path: Path) -> None:
    """Where they say nothing, the labels are left; a client has none of them."""
    strategy, job = prepared(task, "federated-distillation", tmp_path, server_epochs=5)
    centre, public = strategy.centre(job), task.part(PUBLIC)
    nothing = np.full((len(public), len(task.classes)), 1 / len(task.classes), np.float32)
    for number in range(2):
        centre.take([nothing], number)
    right = predict(centre.model, job.pixels.array, public, job.backbone).argmax(1) == task.labels[public]
    assert float(right.mean()) > 0.6, "of five classes"
    own, labels = federation.job_of_client(job, 0), task.labels.copy()
    labels[public] = -1
    blind = replace(own, task=replace(own.task, labels=labels), folder=tmp_path / "blind")
    for number in range(2):
        one, other = (strategy.client(each).answer([nothing], {"round": number}).arrays[0] for each in (own, blind))
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "federated-distillation"])
def test_the_server_begins_with_what_its_public_images_teach(name: str, task: Task, tmp_path: Path) -> None:
    """A probe on them, with norms of their statistics, is judged before the first round, and kept where no round is better."""
    strategy, job = prepared(task, name, tmp_path)
    centre, validation = strategy.centre(job), task.part(VALIDATION)
    begun = predict(centre.model, job.pixels.array, validation, job.backbone)
    accuracy = float((begun.argmax(1) == task.labels[validation]).mean())
    assert accuracy > 0.6, "of five classes"
    known, found = (
        [layer.running_mean.clone() for layer in norms_of(net) if layer.running_mean is not None]
        for net in (build(job.backbone), centre.model.backbone)
    )
    assert not any(torch.allclose(one, other, rtol=0.01, atol=0.01) for one, other in zip(known, found, strict=True))
    take = centre.take

    def spoilt(arrays: list[np.ndarray], number: int) -> None:
        take(arrays, number)
        with torch.no_grad():
            centre.model.head.weight.zero_()

    centre.take, strategy.centre = spoilt, lambda job: centre
    fitted: Fitted = strategy.run(job)
    np.testing.assert_allclose(fitted.probabilities, begun, atol=1e-5)
    assert max(point.score for point in fitted.curve) < accuracy


def test_a_private_start_has_seen_no_private_image(task: Task, tmp_path: Path) -> None:
    """It is a probe on public images, the same whatever clients have; the first round sends what of it the directions hold."""
    from automl_tl_plugins.strategies.dp_fedavg import projected

    strategy, job = prepared(task, "dp-fedavg", tmp_path, epsilon=1.0)
    private, validation, labels = task.part(TRAIN), task.part(VALIDATION), task.labels.copy()
    values = job.features().values.copy()
    values[private], labels[private] = math.nan, -1
    blind = replace(with_features(job, values), task=replace(task, labels=labels))
    centre, other = strategy.centre(job), strategy.centre(blind)
    for one, same_one in zip(centre.first(), other.first(), strict=True):
        np.testing.assert_array_equal(one, same_one)
    assert centre.tell() == other.tell()
    known, begun = build(job.backbone).state_dict(), centre.model.backbone.state_dict()
    assert all(torch.equal(known[name], begun[name]) for name in known), "the network that clients have"
    weight, bias = centre.first()
    on_directions = projected(job.features().values[validation], centre.mean, centre.directions).numpy() @ weight.T + bias
    kept = strategy.run(job).probabilities
    for answers in (predict(centre.model, job.pixels.array, validation, job.backbone), on_directions, kept):
        assert float((answers.argmax(1) == task.labels[validation]).mean()) > 0.6, "of five classes"


def test_too_few_public_images_are_no_start(task: Task, tmp_path: Path) -> None:
    one = replace(task, splits={**task.splits, PUBLIC: task.part(PUBLIC)[:1]})
    strategy, job = prepared(one, "fedavg", tmp_path)
    known, begun = build(job.backbone).state_dict(), strategy.centre(job).model.backbone.state_dict()
    assert all(torch.equal(known[name], begun[name]) for name in known)


def test_privacy_is_accounted_by_opacus(task: Task, tmp_path: Path) -> None:
    """The noise is what Opacus asks for, all rounds together spend the ε that was asked for, and the trial says so."""
    from automl_tl_plugins.strategies.dp_fedavg import DELTA, noise_of, spent_by

    notes = {}
    for epsilon in (1.0, 8.0):
        strategy, job = prepared(task, "dp-fedavg", tmp_path / str(epsilon), epsilon=epsilon, epochs=3)
        notes[epsilon] = [point.note for point in strategy.run(job).curve]
        spent = [float(note.split()[1]) for note in notes[epsilon]]
        assert spent == sorted(spent)
        assert spent[0] < spent[-1] <= epsilon
        assert spent[-1] == pytest.approx(epsilon, abs=0.02)
        assert "at δ 1e-05" in notes[epsilon][-1]
    few, many = (noise_of(1.0, sampled=0.25, steps=steps) for steps in (10, 1000))
    assert many > 3 * few
    assert spent_by(few, sampled=0.25, steps=10) <= 1.0
    assert 1 / len(task.part(TRAIN)) > DELTA


def test_a_draw_that_takes_no_image_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Of four images, each taken with the chance ¼, none is in a third of all draws."""
    from types import SimpleNamespace

    from automl_tl_plugins.strategies.dp_fedavg import _descend

    x, y = torch.randn(4, 8), torch.tensor([0, 1, 0, 1])
    for seed in range(8):
        settings = SimpleNamespace(sampled=0.25, local_epochs=1, epochs=1, epsilon=3.0, rate=1.0)
        head = torch.nn.Linear(8, 2)
        _descend(head, x, y, settings, 0, torch.Generator().manual_seed(seed))
        assert head.weight.isfinite().all()
    assert not caplog.records


def test_one_image_moves_a_private_probe_less_than_its_noise(task: Task, tmp_path: Path) -> None:
    """Without one image the same noise leads nearly to the same weights; other noise does not."""
    strategy, job = prepared(task, "dp-fedavg", tmp_path, epsilon=1.0)
    own = federation.job_of_client(job, 0)
    centre = strategy.centre(job)
    told = {"round": 0, **centre.tell()}
    other = strategy.client(replace(own, seed=own.seed + 1)).answer(centre.first(), told).arrays[0]
    one, again = (strategy.client(own).answer(centre.first(), told).arrays[0] for _ in range(2))
    np.testing.assert_array_equal(one, again)
    labels = own.task.labels.copy()
    labels[own.task.part(TRAIN)[0]] = (labels[own.task.part(TRAIN)[0]] + 1) % len(own.task.classes)
    neighbour = strategy.client(replace(own, task=replace(own.task, labels=labels))).answer(centre.first(), told).arrays[0]
    assert np.linalg.norm(one - neighbour) < 0.3 * np.linalg.norm(one - other)


def sent(
    d: int, direction: np.ndarray | float, *, weight: float = 0.0, mean: float = 0.0
) -> tuple[list[np.ndarray], dict[str, Any]]:
    """What a server that trains privately says in its first round, on one direction and five classes."""
    from automl_tl.checkpoint import pack

    directions = np.broadcast_to(np.asarray(direction, np.float32), d).reshape(d, 1).copy()
    projection = pack({"mean": torch.full((d,), mean), "directions": torch.from_numpy(directions)})
    return [np.full((5, 1), weight, np.float32), np.zeros(5, np.float32)], {"round": 0, "projection": projection}


def with_features(job: Job, values: np.ndarray) -> Job:
    return replace(job, features=lambda: Features(values))


def test_a_direction_aimed_at_an_image_is_refused(task: Task, tmp_path: Path) -> None:
    """One along the image that is asked for, so long that its gradient alone would overflow: not a number, whatever the noise,
    where the image is there, numbers where it is not. Both must look the same."""
    strategy, job = prepared(task, "dp-fedavg", tmp_path, epsilon=1.0)
    own = federation.job_of_client(job, 0)
    mine = own.task.part(TRAIN)
    values = np.random.default_rng(0).normal(size=(len(task.labels), 192)).astype(np.float32)
    asked = values[mine[0]] / np.linalg.norm(values[mine[0]])
    values[mine[0]] = 6 * asked
    without = replace(own, task=replace(own.task, splits={**own.task.splits, TRAIN: mine[1:]}))
    for direction, answered in ((asked * np.float32(3.4e38 / 5), False), (asked * np.float32(1e5), True)):
        arrays, told = sent(192, direction)
        for one in (without, own):
            client = strategy.client(with_features(one, values))
            if answered:
                assert all(np.isfinite(values).all() for values in client.answer(arrays, told).arrays)
            else:
                with pytest.raises(TrialError, match=r"numbers beyond 1e\+06, or none at all; no image was looked at"):
                    client.answer(arrays, told)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (sent(192, 1.0, weight=math.nan), "or none at all"),
        (sent(192, 1.0, weight=-math.inf), "or none at all"),
        (sent(192, 1.0, weight=2e6), r"numbers beyond 1e\+06"),
        (sent(192, math.nan), "or none at all"),
        (sent(192, -2e6), r"numbers beyond 1e\+06"),
        (sent(192, 1.0, mean=math.inf), "or none at all"),
        (sent(191, 1.0), "another form"),
        (([np.zeros((1, 1), np.float32), np.zeros(5, np.float32)], sent(192, 1.0)[1]), "another form"),
        (([np.zeros((5, 1)), np.zeros(5)], sent(192, 1.0)[1]), "another form"),
    ],
    ids=["nan", "inf", "weight", "nan direction", "direction", "inf mean", "features", "classes", "type"],
)
def test_a_probe_that_no_honest_server_sends(asked: Any, words: str, task: Task, tmp_path: Path) -> None:
    strategy, job = prepared(task, "dp-fedavg", tmp_path)
    blind = replace(job, features=lambda: pytest.fail("an image was looked at"))
    with pytest.raises(TrialError, match=f"the probe or the projection that came .*{words}"):
        strategy.client(federation.job_of_client(blind, 0)).answer(*asked)


def test_whatever_is_answered_is_a_number(task: Task, tmp_path: Path) -> None:
    """At the largest numbers that may be sent, and with features that overflowed."""
    strategy, job = prepared(task, "dp-fedavg", tmp_path, rate=30.0, local_epochs=5)
    values = np.random.default_rng(0).normal(size=(len(task.labels), 192)).astype(np.float32)
    values[::4], values[1::4, 0], values[2::4, :2] = 3e38, math.nan, (math.inf, -math.inf)
    for weight in (0.0, 1e6):
        arrays, told = sent(192, 1e6, weight=weight, mean=-1e6)
        answer = strategy.client(federation.job_of_client(with_features(job, values), 0)).answer(arrays, told)
        assert all(np.isfinite(values).all() for values in answer.arrays)


def test_the_bound_moves_no_honest_feature(task: Task, tmp_path: Path) -> None:
    from automl_tl_plugins.strategies.dp_fedavg import LONGEST, principal, projected

    _, job = prepared(task, "dp-fedavg", tmp_path)
    values = job.features().values
    for components in (16, 128):
        mean, directions = principal(values[task.part(PUBLIC)], components)
        found = projected(values[task.part(TRAIN)], mean, directions).numpy()
        np.testing.assert_allclose(found, (values[task.part(TRAIN)] - mean) @ directions, atol=1e-4)
        assert np.linalg.norm(found, axis=1).max() < LONGEST / 10
    long = projected(np.float32([[3, 4], [300, 400]]), np.zeros(2, np.float32), np.eye(2, dtype=np.float32)).numpy()
    np.testing.assert_allclose(long, [[3, 4], [60, 80]])


def test_a_client_with_one_image_and_moving_norms(tmp_path: Path) -> None:
    task = federate(small_task(), 2, skew=1.0)
    assert task.clients is not None
    owners = task.clients.copy()
    owners[task.part(TRAIN)[1:]] = 1
    owners[task.part(TRAIN)[0]] = 0
    strategy, job = prepared(replace(task, clients=owners), "fedavg", tmp_path, norms="moving", epochs=2)
    assert len(strategy.run(replace(job, stop_after=1)).curve) == 1


@pytest.mark.parametrize("name", ["fedavg", "federated-distillation"])
def test_what_weights_do_for_the_loss_is_not_traced(name: str, task: Task, tmp_path: Path) -> None:
    """`--remember importance`: many descend, so that there is none, and the trial is as good as without."""
    strategy = registry.strategies()[name]
    candidate = Candidate(QUICK, name, {**defaults(strategy.space), "epochs": 2, "local_epochs": 1})
    limits = Limits(stop_after=1)
    trial, fitted = run_trial(task, candidate, catalogue()[QUICK], seed=0, folder=tmp_path, limits=limits, trace=True)
    assert fitted is not None, trial.error
    assert fitted.importance is None


def test_an_interrupted_round_ends_at_once(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other clients do not train on behind it."""
    from automl_tl import flower

    asked: list[int] = []

    class Interrupted:
        def answer(self, arrays: list[np.ndarray], told: federation.Told) -> federation.Answer:
            asked.append(int(told["round"]))
            raise KeyboardInterrupt

    strategy, job = prepared(task, "fedavg", tmp_path)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        federation.train(strategy, job, meeting=flower.near([Interrupted() for _ in range(3)]))
    assert asked == [0]
    assert threading.active_count() == before


@pytest.mark.parametrize("name", NAMES)
def test_a_server_without_images_for_training_begins_on_a_card_of_fp16(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it can hold what the network computes is tried on the public images."""
    monkeypatch.setattr(loop, "precision", lambda net: torch.float16)
    strategy, job = prepared(offer_public(small_task()), name, tmp_path)
    assert strategy.centre(job).first()


def test_two_images_a_class_leave_one_to_be_public() -> None:
    few = few_shots(small_task(), 2)
    assert len(federate(few, 2).part(PUBLIC)) == len(few.classes)
    with pytest.raises(InputError, match="no class has two training images, of which one could be public"):
        federate(few_shots(few, 1), 2)


@pytest.mark.parametrize(("name", "words"), [("dp-fedavg", "0 alike"), ("federated-distillation", "there are none")])
def test_a_server_without_public_images_says_so(name: str, words: str, task: Task, tmp_path: Path) -> None:
    alone = replace(task, splits={split: part for split, part in task.splits.items() if split != PUBLIC})
    strategy, job = prepared(alone, name, tmp_path)
    with pytest.raises(TrialError, match=words):
        strategy.centre(job)


def test_images_of_two_clients_are_told_of() -> None:
    """Each of them spends privacy of its own on such an image."""
    whole = small_task()
    parts = np.array_split(whole.part(TRAIN), 2)
    one, other = (
        replace(picked(whole, part), splits={TRAIN: np.arange(len(part))})
        for part in (parts[0], np.concatenate([parts[0][:2], parts[1]]))
    )
    told = federate(replace(whole, splits={VALIDATION: whole.part(VALIDATION)}), [one, other]).warnings
    assert [text for text in told if "clients" in text] == [
        "2 images belong to several clients: what one of them promises for its privacy adds up with the others'"
    ]


def test_a_client_whose_images_are_all_held_out_is_named() -> None:
    whole = small_task()
    other, held = (
        replace(picked(whole, part), name=name, splits={TRAIN: np.arange(len(part))})
        for name, part in (("ward 4", whole.part(TRAIN)), ("ward 3", whole.part(VALIDATION)))
    )
    with pytest.raises(InputError, match="client ward 3 has no image that is not held out by"):
        federate(replace(whole, splits={VALIDATION: whole.part(VALIDATION)}), [other, held])


def test_a_random_start_knows_nothing(task: Task, tmp_path: Path) -> None:
    strategy, job = prepared(task, "fedavg", tmp_path, start="random")
    torch.manual_seed(0)
    random = strategy.centre(job).model.backbone.state_dict()
    pretrained = prepared(task, "fedavg", tmp_path)[0].centre(job).model.backbone.state_dict()
    weights = [name for name, tensor in pretrained.items() if tensor.ndim == 4]
    assert not any(torch.equal(random[name], pretrained[name]) for name in weights)


# Real clients


def lay(folder: Path, start: int, count: int = 12) -> Path:
    digits = load_digits()
    for label in range(3):
        for number, index in enumerate(np.flatnonzero(digits.target == label)[start : start + count]):
            place = folder / f"digit {label}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.uint8(digits.images[index] * 15)).save(place / f"{number}.png")
    return folder


class Wire:
    """Passes what clients and server say to each other on, and keeps what clients said."""

    def __init__(self, port: int) -> None:
        self.port, self.said = port, bytearray()
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.own = self.listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listening.accept()
            except OSError:  # closed
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.port))
            except OSError:  # the server is not there yet: the client tries again
                client.close()
                continue
            for source, sink, keep in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pass, args=(source, sink, keep), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, keep: bool) -> None:
        try:
            while data := source.recv(1 << 16):
                if keep:
                    self.said += data
                sink.sendall(data)
        except OSError:
            pass
        sink.close()

    def close(self) -> None:
        self.listening.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `automl-tl federate` with the words it is given; none of them outlives the test."""
    running: list[subprocess.Popen[str]] = []

    def start(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "automl_tl.cli", "federate", *words]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


Started = Callable[..., subprocess.Popen[str]]


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "left.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedavg", "federated-distillation"])
def test_real_clients_over_grpc(name: str, tmp_path: Path, started: Started) -> None:
    """A server and two clients, each a process of its own with a folder of its own; the wire between them is listened to."""
    public = lay(tmp_path / "public", 0)
    folders = [lay(tmp_path / f"hospital {k}", 20 + 20 * k) for k in range(2)]
    wire = Wire(port := free_port())
    epochs = ["--set", "epochs=2", "--set", "local_epochs=1"]
    common = ["--strategy", name]
    server = started(
        *("serve", str(public), *common, "--backbone", QUICK, "--clients", "2", "--address", f"127.0.0.1:{port}"),
        *("--out", str(tmp_path / "served"), *epochs, "--json"),
    )
    shown = ["--public", str(public)] if name == "federated-distillation" else []
    clients = [
        started("join", f"127.0.0.1:{wire.own}", str(folder), *common, *shown, "--out", str(tmp_path / f"joined {k}"))
        for k, folder in enumerate(folders)
    ]
    for process in (server, *clients):
        out, err = process.communicate(timeout=1200)
        assert process.returncode == 0, (out, err)
        if process is server:
            assert len(json.loads(out)["scores"]) == 2
    wire.close()
    assert (tmp_path / "served" / "model" / "model.safetensors").exists()
    lines = [lines_of(tmp_path / f"joined {k}") for k in range(2)]
    for own in lines:
        assert [line["round"] for line in own] == [1, 2]
        count = 1 if name == "federated-distillation" else 36
        assert all(line["images"] == count and line["facts"].keys() == {"loss"} for line in own)
    listed = sum(line["bytes"] for own in lines for line in own)
    assert listed <= len(wire.said) < 1.1 * listed + 40_000, "nothing else of any size left"
    said = bytes(wire.said)
    assert b"loss" in said, "the wire was listened to"
    for folder in folders:
        for path in folder.rglob("*.png"):
            image = np.asarray(Image.open(path))
            assert path.read_bytes()[60:] not in said
            assert image.tobytes() not in said
            assert (image / np.float32(255)).astype(np.float32)[4].tobytes() not in said


def certified(folder: Path) -> Path:
    """ca.pem, server.pem and server.key of an authority made for this test, for 127.0.0.1."""
    from datetime import UTC, datetime, timedelta
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    def signed(name: str, key: Any, issuer: str, by: Any, extension: Any) -> x509.Certificate:
        who, whose = (x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)]) for text in (name, issuer))
        made = x509.CertificateBuilder(whose, who, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        return made.add_extension(extension, critical=False).sign(by, hashes.SHA256())

    now = datetime.now(UTC) - timedelta(hours=1)
    folder.mkdir()
    authority, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = signed(folder.name, authority, folder.name, authority, x509.BasicConstraints(ca=True, path_length=None))
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    server = signed("server", own, folder.name, authority, address)
    (folder / "ca.pem").write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    (folder / "server.pem").write_bytes(server.public_bytes(serialization.Encoding.PEM))
    pem = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "server.key").write_bytes(own.private_bytes(*pem))
    return folder


@pytest.mark.slow
def test_real_clients_under_tls(tmp_path: Path, started: Started) -> None:
    """Private averaging between processes that encrypt: the wire tells nothing, and who cannot check the server does not join."""
    public, tls = lay(tmp_path / "public", 0), certified(tmp_path / "ours")
    folders = [lay(tmp_path / f"hospital {k}", 20 + 20 * k) for k in range(2)]
    wire = Wire(port := free_port())
    settings = ["--set", "epochs=2", "--set", "epsilon=3.0"]
    server = started(
        *("serve", str(public), "--strategy", "dp-fedavg", "--backbone", QUICK, "--clients", "2", *settings, "--json"),
        *("--address", f"127.0.0.1:{port}", "--tls", str(tls), "--out", str(tmp_path / "served")),
    )
    agreed = ["--strategy", "dp-fedavg", "--epsilon", "3", "--authority"]
    first = started(
        "join", f"127.0.0.1:{wire.own}", str(folders[0]), *agreed, str(tls / "ca.pem"), "--out", str(tmp_path / "joined 0")
    )
    other = certified(tmp_path / "others") / "ca.pem"
    stranger = started("join", f"127.0.0.1:{port}", str(folders[1]), *agreed, str(other), "--out", str(tmp_path / "no"))
    out, err = stranger.communicate(timeout=600)
    assert stranger.returncode == 2, (out, err)
    assert f"--authority does not vouch for the server at 127.0.0.1:{port}" in " ".join(err.split())
    second = started(
        "join", f"127.0.0.1:{wire.own}", str(folders[1]), *agreed, str(tls / "ca.pem"), "--out", str(tmp_path / "joined 1")
    )
    for process in (server, first, second):
        out, err = process.communicate(timeout=1200)
        assert process.returncode == 0, (out, err)
        if process is server:
            assert all(note.startswith("ε ") for note in json.loads(out)["notes"])
    wire.close()
    for k in range(2):
        lines = lines_of(tmp_path / f"joined {k}")
        assert [line["facts"].keys() for line in lines] == [{"epsilon", "delta"}] * 2
        assert sum(line["bytes"] for line in lines) <= len(wire.said)
    assert b"epsilon" not in wire.said, "what is listed went over the wire, but in no words"


@pytest.mark.parametrize(
    ("authority", "words"),
    [("theirs", "does not encrypt"), (b"no certificate", "is no certificate in PEM")],
    ids=["plain server", "not PEM"],
)
def test_a_server_that_cannot_be_checked(authority: bytes | str, words: str, tmp_path: Path) -> None:
    from automl_tl.flower import _wait_for

    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            with suppress(OSError):  # nobody came
                plain, _ = listening.accept()
                plain.recv(1024)
                plain.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                plain.close()

        threading.Thread(target=answer, daemon=True).start()
        pem = authority if isinstance(authority, bytes) else (certified(tmp_path / authority) / "ca.pem").read_bytes()
        with pytest.raises(AutomlError, match=words):
            _wait_for(f"127.0.0.1:{listening.getsockname()[1]}", pem)


@pytest.mark.parametrize("address", ["somewhere", ":8080", "host:", "host:http", "host:99999"])
def test_what_is_no_address_is_refused_at_once(address: str, tmp_path: Path) -> None:
    from automl_tl import remote

    own, out = lay(tmp_path / "own", 0), tmp_path / "out"
    with pytest.raises(InputError, match="is no address of a server; write HOST:PORT"):
        remote.join(address, own, strategy="fedavg", out=out)
    with pytest.raises(InputError, match="is no address of a server; write HOST:PORT"):
        remote.serve(own, strategy="fedavg", backbone=QUICK, clients=2, address=address, out=out)
    assert not out.exists()


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "192.0.2.1"], ids=["busy", "busy, IPv6", "not of this machine"])
def test_where_nobody_can_listen_is_said_before_the_work(host: str, tmp_path: Path) -> None:
    """192.0.2.1 is nobody's: it is for documentation (RFC 5737)."""
    from automl_tl import remote

    with ExitStack() as open_:
        port = 8080
        if not host.startswith("192"):
            family = socket.AF_INET6 if "::" in host else socket.AF_INET
            if family == socket.AF_INET6 and not socket.has_dualstack_ipv6():
                pytest.skip("this machine has no IPv6")
            port = open_.enter_context(socket.create_server((host.strip("[]"), 0), family=family)).getsockname()[1]
        own, address = lay(tmp_path / "own", 0), f"{host}:{port}"
        with pytest.raises(InputError, match=rf"--address {re.escape(address)}: cannot be listened on: .*; choose another"):
            remote.serve(own, strategy="fedavg", backbone=QUICK, clients=2, address=address, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damaged", ["ca.pem", "server.pem", "server.key", "another's key"])
def test_certificates_that_are_none_are_refused_before_the_work(damaged: str, tmp_path: Path) -> None:
    from automl_tl import remote

    tls = certified(tmp_path / "tls")
    if damaged == "another's key":
        shutil.copy(certified(tmp_path / "others") / "server.key", tls / "server.key")
    else:
        (tls / damaged).write_text("no certificate")
    own, address = lay(tmp_path / "own", 0), f"127.0.0.1:{free_port()}"
    with pytest.raises(InputError, match=r"--tls .*tls: ca\.pem and server\.pem must be certificates in PEM, and server\.key"):
        remote.serve(own, strategy="fedavg", backbone=QUICK, clients=2, address=address, out=tmp_path / "out", tls=tls)
    assert not (tmp_path / "out").exists()


def test_a_client_says_that_it_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from automl_tl import flower, remote

    monkeypatch.setattr(flower, "WAIT_SECONDS", 0.1)
    said: list[str] = []
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(TrialError, match="no server answered"):
        remote.join(address, lay(tmp_path / "own", 0), strategy="fedavg", out=tmp_path / "out", say=said.append)
    assert said == [f"waiting for a server at {address} (up to 0 min)"]


def joined(tmp_path: Path, strategy: str, epsilon: float | None = None) -> Any:
    from automl_tl.data import load_task
    from automl_tl.remote import _Joined

    return _Joined(load_task(lay(tmp_path / "own", 20)), strategy, epsilon, None, tmp_path)


@pytest.fixture
def serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`federate serve` without a wire: two clients in this process are there at once. What is given differs from the defaults."""
    from automl_tl import flower, remote

    clients = [joined(tmp_path / f"hospital {number}", "fedavg") for number in range(2)]
    monkeypatch.setattr(flower, "far", lambda address, count, certificates: flower.near(clients))
    public = lay(tmp_path / "public", 0)

    def serve(**given: Any) -> Any:
        values = {"epochs": 2, "local_epochs": 1, **given.pop("values", {})}
        asked = {"location": public, "strategy": "fedavg", "backbone": QUICK, "out": tmp_path / "served", **given}
        return remote.serve(clients=2, address="", hyperparameters=values, **asked)

    return serve


def test_a_server_goes_on_with_its_own_training_alone(
    tmp_path: Path, serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a finished one leaves are the rounds before the last: who asks for another training must not get them."""
    from automl_tl.remote import _Joined

    asked: list[Any] = []
    answer = _Joined.answer

    def counted(client: _Joined, arrays: list[np.ndarray], told: federation.Told) -> federation.Answer:
        asked.append(told["round"])
        return answer(client, arrays, told)

    monkeypatch.setattr(_Joined, "answer", counted)
    first = serving()
    other = lay(tmp_path / "other public", 60)
    for given, words in (
        ({"seed": 1}, "images, seed"),  # which of them are public, and which judge, hangs on the seed
        ({"values": {"epochs": 3}}, "hyperparameters"),
        ({"location": other}, "images"),
    ):
        with pytest.raises(InputError, match=rf"served holds another training \(its {words} differs?\); choose another --out"):
            serving(**given)
    asked.clear()
    assert serving().scores == first.scores
    assert asked == [1, 1], "both clients once more, for the last round alone"
    (tmp_path / "served" / "run.json").unlink()  # whose rounds these are nobody knows
    with pytest.raises(InputError, match="holds another training"):
        serving()


def test_the_card_of_a_served_model_says_how_good_it_is(tmp_path: Path, serving: Callable[..., Any]) -> None:
    from automl_tl.exports.card import write_card

    served = serving()
    trained = model.load(served.folder)
    told = write_card(tmp_path / "served", trained)
    assert "No scores were kept" not in told
    assert "validation images" in told
    assert trained.facts["validation"]["accuracy"] >= max(served.scores)
    assert f"{trained.facts['validation']['accuracy']:.3f}" in told
    assert "Trial ``" not in told
    assert f"torch {torch.__version__.partition('+')[0]}" in told


def test_a_server_takes_no_folder_that_is_somebody_elses(tmp_path: Path, serving: Callable[..., Any]) -> None:
    from automl_tl.progress import alone_in

    with alone_in(tmp_path / "served"), pytest.raises(InputError, match=r"another process is working in .*served"):
        serving()
    (tmp_path / "fitted").mkdir()
    (tmp_path / "fitted" / "run.json").write_text(json.dumps({"fingerprint": "abc", "seed": 0, "zoo": None}))
    with pytest.raises(InputError, match="fitted holds another training"):
        serving(out=tmp_path / "fitted")


def test_a_server_that_was_left_before_a_round_ended_leaves_its_folder_to_any(
    tmp_path: Path, serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(federation, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            serving(seed=1)
    assert len(serving().scores) == 2
    with pytest.raises(InputError, match="another training"):
        serving(seed=1)


def plan(strategy: str, **values: Any) -> dict[str, Any]:
    classes = [f"digit {label}" for label in range(3)]
    complete = {**defaults(registry.strategies()[strategy].space), **values}
    return {"strategy": strategy, "backbone": QUICK, "hyperparameters": complete, "classes": classes, "public": []}


@pytest.mark.parametrize(
    ("agreed", "epsilon", "asked", "words"),
    [
        ("federated-distillation", None, plan, "trains by fedavg, but --strategy federated-distillation was agreed to"),
        ("dp-fedavg", None, plan, "agree to it with --epsilon 3.0"),
        ("dp-fedavg", 1.0, plan, "would spend ε = 3.0"),
        ("fedavg", 3.0, plan, "--epsilon 3.0: fedavg keeps no account of ε"),
        (
            "fedavg",
            None,
            lambda name: plan(name) | {"classes": ["digit 0", "digit 1"]},
            "classes that the server has not: digit 2",
        ),
        (
            "fedavg",
            None,
            lambda name: plan(name) | {"backbone": "hf-hub:somebody/net"},
            "the server trains 'hf-hub:somebody/net', which no zoo here has",
        ),
    ],
    ids=["strategy", "no epsilon", "epsilon", "no privacy", "classes", "network"],
)
def test_what_a_client_refuses(tmp_path: Path, agreed: str, epsilon: float | None, asked: Any, words: str) -> None:
    name = "fedavg" if agreed == "federated-distillation" else agreed
    with pytest.raises(InputError, match=words):
        joined(tmp_path, agreed, epsilon).answer([], {"round": 0, "plan": json.dumps(asked(name))})


def question(number: int = 0, start: float = 0.0, **values: Any) -> tuple[list[np.ndarray], dict[str, Any]]:
    """What a server that trains privately asks for in a round."""
    from automl_tl.checkpoint import pack

    d = catalogue()[QUICK].num_features
    projection = pack({"mean": torch.zeros(d), "directions": torch.eye(d)[:, :16].contiguous()})
    told = {"round": number, "plan": json.dumps(plan("dp-fedavg", epochs=2, **values)), "projection": projection}
    return [np.full((3, 16), start, np.float32), np.zeros(3, np.float32)], told


def same(one: federation.Answer, other: federation.Answer) -> bool:
    equal = all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(one.arrays, other.arrays, strict=True))
    return equal and (one.images, one.facts) == (other.images, other.facts)


def test_a_client_spends_privacy_once(tmp_path: Path) -> None:
    client = joined(tmp_path, "dp-fedavg", 3.0)
    arrays, told = question()
    first = client.answer(arrays, told)
    assert first.images == 36
    assert same(client.answer(arrays, told), first)
    moved = {**told, "projection": told["projection"].replace(b"\x00\x00\x80?", b"\x00\x00\x00?", 1)}
    for asked in (question(start=1.0), (arrays, moved)):
        with pytest.raises(InputError, match=r"round 1 again, .* would spend privacy twice\. A new training needs another --out"):
            client.answer(*asked)


def test_a_client_that_starts_again_spends_no_more(tmp_path: Path) -> None:
    first = joined(tmp_path, "dp-fedavg", 3.0).answer(*question())
    again = joined(tmp_path, "dp-fedavg", 3.0)
    assert same(again.answer(*question()), first)
    with pytest.raises(InputError, match="round 1 again"):
        again.answer(*question(start=1.0))
    for values in ({"rate": 1.0}, {"epsilon": 1.0}):
        with pytest.raises(InputError, match="holds the answers of another training"):
            joined(tmp_path, "dp-fedavg", 3.0).answer(*question(1, **values))
    second = again.answer(*question(1))
    assert first.facts["epsilon"] < second.facts["epsilon"] <= 3.0
    assert same(joined(tmp_path, "dp-fedavg", 3.0).answer(*question(1)), second)


def test_answers_are_of_the_images_that_they_were_given_for(tmp_path: Path) -> None:
    joined(tmp_path, "dp-fedavg", 3.0).answer(*question())
    Image.fromarray(np.full((8, 8), 90, np.uint8)).save(tmp_path / "own" / "digit 0" / "another.png")
    with pytest.raises(InputError, match=r"another training: by another plan, or of other images\. A new training needs"):
        joined(tmp_path, "dp-fedavg", 3.0).answer(*question(1))


@pytest.mark.parametrize("number", [-1, 2, 499])
@pytest.mark.parametrize(("strategy", "epsilon"), [("dp-fedavg", 3.0), ("fedavg", None)])
def test_rounds_that_were_not_agreed_to(strategy: str, epsilon: float | None, number: int, tmp_path: Path) -> None:
    told = {"round": number, "plan": json.dumps(plan(strategy, epochs=2))}
    with pytest.raises(InputError, match=rf"asks for round {number + 1}, but its plan has 2; it must plan all"):
        joined(tmp_path, strategy, epsilon).answer([], told)


@pytest.mark.parametrize("facts", [{"epsilon": 3.5, "delta": 1e-5}, {"epsilon": math.nan}, {}], ids=["more", "nan", "untold"])
def test_an_answer_that_spends_too_much_stays_here(facts: dict[str, float], tmp_path: Path) -> None:
    """By a strategy of somebody who miscounts."""

    class Spending:
        def answer(self, arrays: list[np.ndarray], told: federation.Told) -> federation.Answer:
            return federation.Answer(arrays, 36, facts)

    client = joined(tmp_path, "dp-fedavg", 3.0)
    client.agreed = replace(client._agree(question()[1]["plan"]), side=Spending())
    with pytest.raises(InputError, match=r"would have spent ε = .*, more than --epsilon 3\.0; nothing of it was sent"):
        client.answer(*question())
    assert not list(tmp_path.glob("answer-*"))


def without_chance(monkeypatch: pytest.MonkeyPatch, *, seed: int) -> list[int]:
    """The operating system's bytes are always the same, and seeds are `seed`. Gives how many bytes were asked for each time."""
    asked: list[int] = []

    def token_bytes(count: int) -> bytes:
        asked.append(count)
        return np.random.default_rng(len(asked)).bytes(count)

    monkeypatch.setattr("automl_tl.remote.secrets.token_bytes", token_bytes)
    monkeypatch.setattr("automl_tl.remote.secrets.randbits", lambda bits: seed)
    return asked


def test_a_real_clients_noise_comes_from_no_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who guessed its seed, and knows its images, repeats nothing; who knew what the operating system gave, all: so sampling
    and noise come from there, in every round anew."""
    arrays, told = question(epsilon=1.0)
    later = {**told, "round": 1}
    client = joined(tmp_path, "dp-fedavg", 1.0)
    monkeypatch.setattr("automl_tl.remote.secrets.randbits", lambda bits: 5)
    answers = [client.answer(arrays, told), client.answer(arrays, later)]
    guessed = client._agree(told["plan"]).side
    guessed.strategy.chance = None  # as in a simulation
    assert same(guessed.answer(arrays, told), guessed.answer(arrays, told))
    assert not np.array_equal(guessed.answer(arrays, told).arrays[0], answers[0].arrays[0])
    assert not np.array_equal(answers[0].arrays[0], answers[1].arrays[0])
    repeated = []
    for folder, seed in (("one", 1), ("other", 2)):
        with monkeypatch.context() as patched:
            asked = without_chance(patched, seed=seed)
            client = joined(tmp_path / folder, "dp-fedavg", 1.0)
            repeated.append([client.answer(arrays, told), client.answer(arrays, later)])
            assert asked == [624 * 4] * 2
    assert all(same(one, other) for one, other in zip(*repeated, strict=True))


def test_the_whole_state_of_secret_chance_is_the_operating_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy's Mersenne twister in the same state gives the same numbers."""
    from automl_tl import remote

    one, other = (torch.randint(2**16, (2000,), generator=remote.secret_chance()) for _ in range(2))
    assert not torch.equal(one, other)
    normal = torch.normal(0.0, 1.0, (100_000,), generator=remote.secret_chance())
    assert abs(float(normal.mean())) < 0.02
    assert float(normal.std()) == pytest.approx(1, abs=0.02)
    known = np.random.default_rng(0).bytes(624 * 4)
    monkeypatch.setattr("automl_tl.remote.secrets.token_bytes", lambda count: known[:count])
    theirs = np.random.RandomState(0)
    theirs.set_state(("MT19937", np.frombuffer(known, np.uint32), 624))
    expected = theirs.randint(0, 2**32, 2000, dtype=np.uint32) % 2**16
    np.testing.assert_array_equal(torch.randint(2**16, (2000,), generator=remote.secret_chance()).numpy(), expected)
    monkeypatch.setattr(remote, "_WORDS", slice(4, 628))
    with pytest.raises(TrialError, match=r"torch .* cannot provide secret noise"):
        remote.secret_chance()


def test_a_server_that_starts_again_asks_the_same(task: Task, tmp_path: Path) -> None:
    """Else clients that answered before it went away would refuse."""
    asked = []
    for folder in ("before", "after"):
        strategy, job = prepared(task, "dp-fedavg", tmp_path / folder)
        asked.append(strategy.centre(job).tell())
    assert asked[0] == asked[1]


def test_what_left_earlier_stays_written_down(tmp_path: Path) -> None:
    from automl_tl.remote import join

    (tmp_path / "left.jsonl").write_text('{"round": 1}\n', encoding="utf-8")
    (tmp_path / "ca.pem").write_text("no certificate", encoding="utf-8")
    own = lay(tmp_path / "own", 20)
    with pytest.raises(InputError, match="no certificate in PEM"):
        join("127.0.0.1:9", own, strategy="fedavg", out=tmp_path, authority=tmp_path / "ca.pem")
    assert lines_of(tmp_path) == [{"round": 1}]
