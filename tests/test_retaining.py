"""Learning without forgetting: each penalty against its formula, what is remembered, and old answers that stay."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from automl_tl_plugins.strategies._losses import distillation
from automl_tl_plugins.strategies._retaining import Held, NewClasses, widened_head
from automl_tl_plugins.strategies.expansion import _first
from sklearn.datasets import load_digits
from small import QUICK
from torch import Tensor, nn
from torch.nn import functional as F

from automl_tl import Batch, Candidate, Classifier, Task, checkpoint, importance, memory, model
from automl_tl.adapters import Grown, strangeness
from automl_tl.along import Along, read_task
from automl_tl.api import recommend
from automl_tl.backbones import build, catalogue
from automl_tl.data import load_task, subset
from automl_tl.errors import InputError, TrialError
from automl_tl.exports import export_run
from automl_tl.heads import Neighbours, Tasks, cool, describe, rebuild
from automl_tl.importance import DAMPING, PathIntegral, fisher_diagonal, parameters_of
from automl_tl.inference import outputs, predict
from automl_tl.objectives import brings, left_out, retain
from automl_tl.pixels import pixels_of
from automl_tl.profiling import task_features
from automl_tl.records import BORDER, CENTER, EXEMPLARS, FISHER, KEPT, KEPT_VALIDATION, SQUASH, STATISTICS, TRAIN, VALIDATION
from automl_tl.registry import strategies
from automl_tl.space import defaults
from automl_tl.strategy import Job
from automl_tl.testing import smallest_backbone, task_for
from automl_tl.trials import Limits, job_of, run_trial


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory, make_home: Callable[[], Path]) -> Iterator[Task]:
    """Digits 0 to 4 after a model of the digits 7 to 9, which remembers everything; images of those are kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOML_TL_HOME", str(make_home()))
        whole = task_for(frozenset({"earlier model", "kept images"}))
        yield subset(whole, np.arange(0, len(whole.labels), 3), name="small")


def job(task: Task, strategy: str, folder: Path) -> Job:
    backbone = smallest_backbone()
    return job_of(
        task, Candidate(backbone.name, strategy, defaults(strategies()[strategy].space)), backbone, seed=0, folder=folder
    )


def moved(task: Task, folder: Path) -> Classifier:
    """The earlier network with a wider head, some way from where it was."""
    one = job(task, "ewc", folder)
    net = Classifier(one.build_backbone(), widened_head(one))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    return net


# How much a weight matters


class Mean(nn.Module):
    """A backbone without weights: the mean of each channel."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


def test_fisher_information_of_a_logistic_regression_by_its_closed_form() -> None:
    """∂ log p(y|x)/∂W = (e_y - p) xᵀ, so that its square is (e_y - p)² (x²)ᵀ; labels are drawn as documented."""
    backbone = catalogue()[QUICK]
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    torch.manual_seed(0)
    net, classes = Classifier(Mean(), nn.Linear(3, 4)), np.array([0, 2, 3])
    found = fisher_diagonal(net, images, np.arange(40), classes, backbone, seed=5)
    values = images.astype(np.float64).mean((1, 2)) / 255
    values = (values - np.array(backbone.mean)) / np.array(backbone.std)
    logits = values @ net.head.weight.detach().double().numpy().T + net.head.bias.detach().double().numpy()
    generator, total = torch.Generator().manual_seed(5), np.zeros((4, 3))
    bias = np.zeros(4)
    for value, logit in zip(values, logits, strict=True):
        p = np.exp(logit[classes]) / np.exp(logit[classes]).sum()
        drawn = int(torch.multinomial(torch.from_numpy(p).float()[None], 1, generator=generator))
        error = np.zeros(4)
        error[classes] = np.eye(3)[drawn] - p
        total += np.outer(error**2, value**2) / 40
        bias += error**2 / 40
    np.testing.assert_allclose(found["head.weight"].numpy(), total, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(found["head.bias"].numpy(), bias, rtol=1e-4, atol=1e-8)
    assert found["head.weight"][1].eq(0).all(), "a class that was not asked about matters to nothing"


def test_the_penalty_of_ewc_and_its_gradient_are_the_formula(task: Task, tmp_path: Path) -> None:
    """λ/2 Σ F (w - w*)² has the gradient λ F (w - w*); rows of new classes are free."""
    net, one = moved(task, tmp_path), job(task, "ewc", tmp_path)
    one.path = PathIntegral()
    stored = memory.recall(task.earlier, FISHER)
    assert stored is not None
    fisher, strength = stored[0], 37.0
    start = {name: p.detach().double() for name, p in parameters_of(model.load(Path(task.earlier)).net).items()}
    held = Held(one, fisher, strength / 2)
    penalty = held.penalty(net)
    penalty.backward()
    expected, extra = 0.0, held.gradient()
    for name, parameter in net.named_parameters():
        known = len(start[name])
        away = parameter.detach().double()[:known] - start[name]
        expected += float(strength / 2 * (fisher[name].double() * away**2).sum())
        gradient = torch.zeros_like(parameter, dtype=torch.float64)
        gradient[:known] = strength * fisher[name].double() * away
        for found in (parameter.grad, extra[name]):
            np.testing.assert_allclose(found.numpy(), gradient.numpy(), rtol=1e-4, atol=1e-9, err_msg=name)
    assert penalty.item() == pytest.approx(expected, rel=1e-4)
    assert expected > 0
    assert one.path.extra == held.gradient
    assert net.head.weight.grad is not None
    assert net.head.weight.grad[3:].eq(0).all()
    assert net.head.weight.shape == (8, smallest_backbone().num_features)


def test_the_path_integral_is_its_definition() -> None:
    """Σ -gradient · movement by hand; of small steps it adds up to what the loss lost, and a penalty's part is left out."""
    torch.manual_seed(0)
    net = Classifier(Mean(), nn.Linear(3, 2)).double()
    images = torch.rand(16, 3, 4, 4, dtype=torch.float64)
    labels = torch.arange(16) % 2
    origin = net.head.weight.detach().clone()
    path, by_hand = PathIntegral(), torch.zeros_like(origin)
    path.extra = lambda: {"head.weight": 0.1 * (net.head.weight.detach() - origin)}
    path.begin(net)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.5)
    losses = []
    for _ in range(200):
        loss = F.cross_entropy(net(images), labels)
        losses.append(loss.item())
        gradient = torch.autograd.grad(loss, net.head.weight, retain_graph=True)[0]
        optimiser.zero_grad()
        (loss + 0.05 * (net.head.weight - origin).square().sum()).backward()
        path.before()
        before = net.head.weight.detach().clone()
        optimiser.step()
        path.after()
        by_hand -= gradient * (net.head.weight.detach() - before)
    path.mark()
    path.end()
    torch.testing.assert_close(path.marked["head.weight"], by_hand)
    lost = losses[0] - F.cross_entropy(net(images), labels).item()
    assert float(sum(value.sum() for value in path.gained.values())) == pytest.approx(lost, rel=0.02)
    found = path.importance(net)
    assert found is not None
    expected = by_hand.clamp(min=0) / ((net.head.weight.detach() - origin).square() + DAMPING)
    torch.testing.assert_close(found["head.weight"], expected)
    path.begin(net)
    assert path.importance(net) is None, "two descents are not one path"


def test_a_step_that_is_left_out_adds_nothing_to_the_path_integral() -> None:
    """A GradScaler leaves it out where gradients are beyond fp16."""
    net, path = nn.Linear(3, 2), PathIntegral()
    path.begin(net)
    for parameter, value in ((net.weight, float("inf")), (net.bias, float("nan"))):
        parameter.grad = torch.full_like(parameter, value)
    path.before()
    path.after()
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    path.before()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_().sub_(0.5)
    before = {name: position for name, (_, position, _) in path.moving.items()}
    path.after()
    for name, position in before.items():
        torch.testing.assert_close(path.gained[name], 2.0 * (position + 0.5))


@pytest.mark.slow
def test_importance_survives_a_stop(task: Task, tmp_path: Path) -> None:
    backbone = smallest_backbone()
    candidate = Candidate(backbone.name, "lwf", {**defaults(strategies()["lwf"].space), "epochs": 3})
    _, whole = run_trial(task, candidate, backbone, seed=0, folder=tmp_path / "a", trace=True)
    for stop in (1.0, float("inf")):
        _, resumed = run_trial(
            task, candidate, backbone, seed=0, folder=tmp_path / "b", trace=True, limits=Limits(stop_after=stop)
        )
    assert whole is not None
    assert resumed is not None
    assert whole.importance is not None
    assert resumed.importance is not None
    assert whole.importance.keys() == resumed.importance.keys()
    for name, value in whole.importance.items():
        assert torch.equal(value, resumed.importance[name]), name
        assert float(value.min()) >= 0
    assert any(float(value.max()) > 0 for value in whole.importance.values())


def test_importance_knows_where_a_head_came_from_that_is_fitted_anew_after_a_stop(task: Task, tmp_path: Path) -> None:
    """Moving norms adopt the task's statistics before the first epoch only; a head that is fitted later is another one."""
    own, backbone = replace(task, objective="accuracy", earlier=""), smallest_backbone()
    values = {**defaults(strategies()["fine-tuning"].space), "norms": "moving", "epochs": 3}
    candidate, found = Candidate(backbone.name, "fine-tuning", values), []
    for name, stops in (("a", [float("inf")]), ("b", [1.0, float("inf")])):
        for stop in stops:
            limits = Limits(stop_after=stop)
            _, fitted = run_trial(own, candidate, backbone, seed=0, folder=tmp_path / name, trace=True, limits=limits)
        assert fitted is not None
        assert fitted.importance is not None
        found.append(fitted.importance)
    assert {name for name in found[0] if not torch.equal(found[0][name], found[1][name])} == set()


def test_importance_is_not_invented(task: Task, tmp_path: Path) -> None:
    own, backbone = replace(task, objective="accuracy", earlier=""), smallest_backbone()
    _, probed = run_trial(own, Candidate(backbone.name, "linear-probe"), backbone, seed=0, folder=tmp_path / "c", trace=True)
    assert probed is not None
    assert probed.importance is None


def test_a_cooled_head_is_as_important_as_before() -> None:
    """The penalty of the same function stays the same when weights are divided by T: importance · T²."""
    before = {"head.weight": torch.tensor([2.0]), "backbone.w": torch.tensor([2.0])}
    found = memory.cooled(before, 3.0)
    assert found["head.weight"].item() * (0.6 / 3) ** 2 == pytest.approx(2.0 * 0.6**2)
    assert found["backbone.w"].item() == 2.0


# New classes


def test_new_images_teach_old_rows_nothing() -> None:
    torch.manual_seed(0)
    head, features, labels = nn.Linear(4, 5), torch.randn(6, 4), torch.tensor([3, 4, 3, 4, 3, 4])
    batch, own = Batch(torch.empty(0), labels), torch.tensor([3, 4])
    NewClasses(own, "all", 0.0).loss(head, features, batch).backward()
    assert head.weight.grad is not None
    assert head.weight.grad[:3].eq(0).all()
    whole = nn.Linear(4, 5)
    whole.load_state_dict(head.state_dict())
    F.cross_entropy(whole(features), labels).backward()
    assert whole.weight.grad is not None
    torch.testing.assert_close(head.weight.grad[3:], whole.weight.grad[3:])
    among = NewClasses(own, "new", 0.0).loss(head, features, batch)
    assert among.item() == pytest.approx(F.cross_entropy(head(features)[:, 3:], labels - 3).item(), rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_distillation_is_its_formula(temperature: float) -> None:
    """Li and Hoiem (2016), equations 2 and 3: probabilities to the power 1/T, made to add up to 1."""
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=(5, 4)), rng.normal(size=(5, 4))
    soft = []
    for logits in (ours, theirs):
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        soft.append(p ** (1 / temperature) / (p ** (1 / temperature)).sum(1, keepdims=True))
    expected = -(soft[1] * np.log(soft[0])).sum(1).mean() * temperature**2
    tensor = torch.tensor(ours, requires_grad=True)
    found = distillation(tensor, torch.tensor(theirs), temperature)
    assert found.item() == pytest.approx(expected)
    found.backward()  # T² / n · (q - p) / T
    assert tensor.grad is not None
    np.testing.assert_allclose(tensor.grad.numpy(), temperature * (soft[0] - soft[1]) / 5, atol=1e-12)


# What is remembered


def test_herding_picks_what_the_definition_picks() -> None:
    values = np.random.default_rng(0).normal(size=(30, 6))
    chosen: list[int] = []
    for k in range(1, 11):
        left = [i for i in range(30) if i not in chosen]
        apart = [np.linalg.norm(values.mean(0) - values[[*chosen, i]].sum(0) / k) for i in left]
        chosen.append(left[int(np.argmin(apart))])
    assert memory.herd(values, 10).tolist() == chosen
    assert memory.herd(values, 3).tolist() == chosen[:3], "a smaller memory is the beginning of a larger one"
    assert sorted(memory.herd(values, 99).tolist()) == list(range(30))
    error = [np.linalg.norm(values[part].mean(0) - values.mean(0)) for part in (chosen, np.arange(10))]
    assert error[0] < error[1] / 2


def test_memory_is_bounded_and_comes_back_as_kept_images(task: Task, tmp_path: Path) -> None:
    backbone = smallest_backbone()
    net = Classifier(build(backbone), nn.Linear(backbone.num_features, len(task.classes)))
    images = pixels_of(task, backbone).array
    sizes = memory.remember(tmp_path, net, task, images, backbone, kinds=(EXEMPLARS,), most=35)
    assert sizes == {EXEMPLARS: checkpoint.beside(tmp_path, EXEMPLARS).stat().st_size}
    found = memory.recall_exemplars(tmp_path)
    assert found is not None
    pictures, names = found
    assert {names.count(name) for name in task.classes} == {35 // 8}
    trained = {images[i].tobytes() for split in (TRAIN, KEPT, KEPT_VALIDATION) for i in task.part(split)}
    assert all(picture.tobytes() in trained for picture in pictures), "no validation or test image of the new task is kept"
    model.save(tmp_path, net, backbone, Candidate(backbone.name, "lwf"), task.classes, {})
    lines = [np.uint8(np.roll(np.eye(8), by, axis=1) * 200) for by in range(5)]
    digits = [picture for line in lines for picture in (line, line[::-1])]
    later = read_task((digits, ["x", "y"] * 5), Along(after=tmp_path))
    assert brings(later) == {"earlier model", "linear head", "kept images", FISHER}
    assert len(later.part(KEPT)) + len(later.part(KEPT_VALIDATION)) == len(pictures)
    assert len(later.part(KEPT_VALIDATION)) == 8
    alone = replace(task, splits={name: part for name, part in task.splits.items() if name not in (KEPT, KEPT_VALIDATION)})
    chosen = memory.choose_exemplars(net.backbone, alone, images, backbone, 35)
    assert len(np.unique(task.labels[chosen])) == 5, "of old classes there is nothing to keep"
    with pytest.raises(InputError, match="7 exemplars are too few for 8 classes"):
        memory.remember(tmp_path, net, task, images, backbone, kinds=(EXEMPLARS,), most=7)
    checkpoint.beside(tmp_path, EXEMPLARS).write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"exemplars\.safetensors: is damaged"):
        read_task((digits, ["x", "y"] * 5), Along(after=tmp_path))
    known = "known: fisher, importance, exemplars, statistics"
    with pytest.raises(InputError, match=f"--remember weights: there is no such memory; {known}"):
        memory.check_kinds(["weights"])


@pytest.mark.parametrize("mode", [CENTER, SQUASH, BORDER])
def test_what_is_remembered_is_cropped_once_however_often_it_is_remembered(task: Task, tmp_path: Path, mode: str) -> None:
    """Most networks crop the middle of what they resize; the embedded ones do not."""
    backbone = replace(smallest_backbone(), crop_pct=0.75, crop_mode=mode)
    net = Classifier(build(backbone), nn.Linear(backbone.num_features, len(task.classes)))
    images = pixels_of(task, backbone).array
    chosen = memory.choose_exemplars(net.backbone, task, images, backbone, 35)
    memory.remember(tmp_path, net, task, images, backbone, kinds=(EXEMPLARS,), most=35)
    for generation in range(2):
        found = memory.recall_exemplars(tmp_path)
        assert found is not None
        again = load_task(found, name="again", validation=0.0)
        assert np.array_equal(pixels_of(again, backbone).array, images[chosen])
        if not generation:
            whole = pixels_of(again, backbone).array
            memory.remember(tmp_path, net, again, whole, backbone, kinds=(EXEMPLARS,), most=35)
            chosen = chosen[memory.choose_exemplars(net.backbone, again, whole, backbone, 35)]


def test_what_matters_to_several_tasks_adds_up(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance, "FISHER_IMAGES", 10)
    backbone = smallest_backbone()
    net, images = moved(task, tmp_path), pixels_of(task, backbone).array
    memory.remember(tmp_path, net, task, images, backbone, kinds=(FISHER,))
    both, earlier = memory.recall(tmp_path, FISHER), memory.recall(task.earlier, FISHER)
    assert both is not None
    assert earlier is not None
    train = task.part(TRAIN)
    own = fisher_diagonal(net, images, train, np.unique(task.labels[train]), backbone)
    torch.testing.assert_close(both[0]["head.weight"][:3], own["head.weight"][:3] + earlier[0]["head.weight"])
    torch.testing.assert_close(both[0]["head.weight"][3:], own["head.weight"][3:])
    memory.remember(tmp_path, net, task, images, backbone, kinds=(FISHER,), temperature=2.0)
    half = memory.recall(tmp_path, FISHER)
    assert half is not None
    torch.testing.assert_close(half[0]["head.weight"][:3], own["head.weight"][:3] + 4 * earlier[0]["head.weight"])


def test_votes_have_no_fisher_information(task: Task, tmp_path: Path) -> None:
    backbone = smallest_backbone()
    stored, classes = torch.zeros(3, backbone.num_features), len(task.classes)
    head = Neighbours(stored, torch.arange(3), classes, k=1, cosine=False)
    net, images = Classifier(build(backbone), head), pixels_of(task, backbone).array
    assert memory.remember(tmp_path, net, task, images, backbone, kinds=(FISHER,)) == {}
    model.save(tmp_path, net, backbone, Candidate(backbone.name, "knn"), task.classes, {})
    assert len(task.part(KEPT))
    assert memory.earlier_fisher(replace(task, earlier=str(tmp_path)), images, backbone) is None


def test_a_grown_network_knows_what_the_first_task_s_norms_saw(task: Task, tmp_path: Path) -> None:
    """Remembered, or else by kept images; what belongs to another network is refused."""
    shutil.copytree(task.earlier, tmp_path / "earlier")
    backbone, earlier = smallest_backbone(), model.load(tmp_path / "earlier")
    file = checkpoint.beside(tmp_path / "earlier", STATISTICS)
    images, kept = pixels_of(task, backbone).array, task.part(KEPT)
    seen = memory.seen_by_norms(earlier.net.backbone, images, kept, backbone, seed=0)
    torch.testing.assert_close(checkpoint.load(file)[0], seen, atol=0.5, rtol=0.5)  # of all of its images, and of the kept ones

    def first(statistics: dict[str, Tensor] | None) -> Tensor:
        file.unlink(missing_ok=True)
        if statistics is not None:
            checkpoint.save(file, statistics, {})
        after = replace(task, earlier=str(tmp_path / "earlier"))
        grown = _first(job(after, "expansion", tmp_path), earlier.net.backbone)
        return torch.cat([buffer[0] for name, buffer in grown.named_buffers() if name.endswith("seen_mean")])

    other = {name: value + 1 for name, value in seen.items()}
    torch.testing.assert_close(first(other), other["mean"])
    earlier = model.load(tmp_path / "earlier")
    torch.testing.assert_close(first(None), seen["mean"])
    for wrong in ({"mean": torch.ones(3), "variance": torch.ones(3)}, {"mean": seen["mean"]}):
        earlier = model.load(tmp_path / "earlier")
        with pytest.raises(TrialError, match="the statistics that the earlier model remembers are not its own"):
            first(wrong)


# What can be tried


def test_what_is_missing_is_said_with_what_to_do(task: Task, tmp_path: Path) -> None:
    known, backbone = strategies(), smallest_backbone()
    assert left_out(known, task) == {}
    forgetful = model.load(Path(task.earlier))
    model.save(tmp_path, forgetful.net, backbone, forgetful.candidate, forgetful.classes, {})
    plain = retain(
        replace(task, earlier="", splits={name: task.part(name) for name in (TRAIN, VALIDATION)}), tmp_path, task.classes
    )
    found = left_out(known, plain)
    assert set(found) == {"ewc", "synaptic-intelligence", "rehearsal"}
    assert "--remember fisher, or give images of what it knows with --keep" in found["ewc"]
    assert "--remember importance" in found["synaptic-intelligence"]
    with pytest.raises(InputError, match=r"ewc is left out: train the earlier model with --remember fisher"):
        recommend(plain, strategies=["ewc"])
    with pytest.raises(InputError, match=f"--backbone {QUICK}: the model of --after is a {backbone.name}"):
        recommend(plain, backbones=[QUICK])


def test_what_follows_a_model_does_not_need_the_network_that_it_began_from(task: Task, tmp_path: Path) -> None:
    """A model of a colleague's: its weights are its own, and the pretrained ones lie elsewhere, or nowhere any more."""
    shutil.copytree(task.earlier, tmp_path / "theirs")
    file = tmp_path / "theirs" / model.CARD
    card = json.loads(file.read_text())
    assert card["backbone"]["weights"] == "", "a model says nothing of the folders of whoever trained it"
    theirs = replace(task, earlier=str(tmp_path / "theirs"))
    card["backbone"]["weights"] = "/gone/weights.safetensors"  # an earlier version did
    file.write_text(json.dumps(card))
    ours = smallest_backbone()
    assert recommend(theirs, strategies=["lwf"]).backbones == {ours.name: ours}, "the same network is here, too"
    card["backbone"] |= {"name": "unheard-of", "zoo": "folder", "digest": "0" * 64}
    file.write_text(json.dumps(card))
    advice = recommend(theirs, strategies=["lwf"])
    (backbone,) = advice.backbones.values()
    assert (backbone.name, backbone.digest) == ("unheard-of", theirs.fingerprint)
    assert np.isfinite(advice.profile.transferability["unheard-of"]["logme"])
    index = task.part(VALIDATION)[:5]
    pixels = pixels_of(theirs, backbone).array
    with torch.inference_mode():
        seen = outputs(model.load(tmp_path / "theirs").net.backbone, pixels, index, backbone)
    np.testing.assert_allclose(task_features(theirs, backbone, index=index).values, seen, atol=1e-5)
    values = {**defaults(strategies()["lwf"].space), "epochs": 3}
    trial, fitted = run_trial(theirs, Candidate(backbone.name, "lwf", values), backbone, seed=0, folder=tmp_path / "run")
    assert fitted is not None, trial.error


# Growing


@pytest.mark.parametrize("name", ["mobilenetv4_small_050.tiny_imagenet_64", QUICK, "convnext_24.fractals_64"])
def test_old_answers_do_not_change_by_a_bit(name: str) -> None:
    backbone = catalogue()[name]
    torch.manual_seed(0)
    images = torch.randn(4, 3, backbone.input_size, backbone.input_size)
    plain = build(backbone).eval()
    with torch.inference_mode():
        before = plain(images)
    grown = Grown(plain, [])
    own = list(nn.ModuleList(grown.grow(4)).parameters())
    with torch.inference_mode():
        torch.testing.assert_close(grown.eval()(images)[:, :-2], torch.cat([before, before], 1))
    optimiser = torch.optim.SGD(own, lr=0.1)
    for _ in range(2):
        grown.train()
        optimiser.zero_grad()
        grown.features(images, 1).square().mean().backward()
        optimiser.step()
    with torch.inference_mode():
        trained = grown.eval()(images)
    d = backbone.num_features
    assert torch.equal(trained[:, :d], before)
    assert (trained[:, d:-2] - before).abs().max() > 1e-3
    assert sum(p.numel() for p in own) < 0.5 * backbone.params


def test_a_grown_model_is_saved_read_back_and_grows_again(task: Task, tmp_path: Path) -> None:
    backbone, earlier = smallest_backbone(), model.load(Path(task.earlier))
    values = {**defaults(strategies()["expansion"].space), "epochs": 3, "rank": 2}
    trial, fitted = run_trial(task, Candidate(backbone.name, "expansion", values), backbone, seed=0, folder=tmp_path / "run")
    assert fitted is not None, trial.error
    model.save(tmp_path / "two", fitted.model, backbone, trial.candidate, task.classes, {})
    loaded = model.load(tmp_path / "two")
    images = pixels_of(task, backbone).array[task.part(VALIDATION)[:6]]
    with torch.inference_mode():
        inputs = torch.rand(4, 3, 64, 64)
        grown = loaded.net.backbone(inputs)
        assert torch.equal(grown[:, : backbone.num_features], earlier.net.backbone(inputs)), "what it saw for the old classes"
        told = loaded.net(inputs)[:, :3].softmax(1), earlier.net(inputs).softmax(1)
    torch.testing.assert_close(*told, atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(loaded.probabilities(images), fitted.probabilities[:6], atol=1e-6)
    head = json.loads((tmp_path / "two" / model.CARD).read_text())["head"]
    assert (head["kind"], head["classes"], head["ranks"]) == ("tasks", [[0, 1, 2], [3, 4, 5, 6, 7]], [2])
    again = retain(
        replace(task, earlier="", splits={n: task.part(n) for n in (TRAIN, VALIDATION)}), tmp_path / "two", task.classes
    )
    trial, third = run_trial(again, Candidate(backbone.name, "expansion", values), backbone, seed=0, folder=tmp_path / "run 3")
    assert third is not None, trial.error
    assert third.model.head.classes == [[0, 1, 2], [3, 4, 5, 6, 7], [3, 4, 5, 6, 7]]  # type: ignore[union-attr]
    assert "linear head" not in brings(again)
    assert "not of neighbours, nor grown" in left_out(strategies(), again)["lwf"]


def test_strangeness_is_the_distance_of_an_image_s_means_from_those_of_the_norms() -> None:
    mean, variance = torch.tensor([1.0, 0, -1]), torch.tensor([4.0, 1, 0.25])
    images = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    away = (images.mean((2, 3)) - mean) ** 2 / variance
    torch.testing.assert_close(strangeness(images, mean, variance, images=len(images)), away.mean(1).log(), atol=1e-4, rtol=1e-4)
    tokens = images.flatten(2).transpose(1, 2).flatten(0, 1)
    expected = strangeness(images, mean, variance, images=5)
    torch.testing.assert_close(strangeness(tokens, mean, variance, images=5), expected, msg="tokens of all images in a row")
    levit = Grown(timm.create_model("levit_128s", img_size=64, depth=[1, 1, 1], num_classes=0).eval(), [2])
    with torch.inference_mode():
        assert levit(torch.rand(3, 3, 64, 64)).shape == (3, 2 * 384 + 2)
    grown = Grown(build(smallest_backbone()).eval(), [2])
    inputs = torch.rand(4, 3, 64, 64)
    with torch.inference_mode():
        before = grown(inputs)
        assert torch.equal(before[:, -2], before[:, -1]), "norms of its own begin as those of the task before"
        assert (grown(inputs + 3)[:, -2:] > before[:, -2:]).all()
        channels = sum(place.shape[1] for name, place in grown.named_buffers() if name.endswith("seen_mean"))
        grown.saw(0, torch.full((channels,), 50.0), torch.ones(channels))
        after = grown(inputs)
    assert (after[:, -2] > before[:, -2] + 1).all(), "the first task's images were far from these"
    assert torch.equal(after[:, -1], before[:, -1])
    assert torch.equal(after[:, :-2], before[:, :-2]), "what is seen does not depend on it"
    with pytest.raises(ValueError, match=f"3 means and 3 variances do not fit {channels} channels"):
        grown.saw(1, torch.ones(3), torch.ones(3))


@pytest.mark.parametrize(
    "keep", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["kept images", "remembered statistics"]
)
def test_a_grown_network_tells_whose_an_image_is(task: Task, tmp_path: Path, keep: bool) -> None:
    """Digits as the earlier model knows them are old, negatives of other digits are new."""
    place = Path(shutil.copytree(task.earlier, tmp_path / "earlier"))
    digits, backbone, earlier = load_digits(), smallest_backbone(), model.load(place)
    if keep:
        checkpoint.beside(place, STATISTICS).unlink()
    chosen = np.flatnonzero(digits.target < 5)[:160]
    negatives = [np.uint8(240 - 15 * image) for image in digits.images[chosen]]
    new = load_task((negatives, [f"negative {digits.target[place]}" for place in chosen]), name="negatives")
    index = np.concatenate([task.part(KEPT), task.part(KEPT_VALIDATION)])
    names = [task.classes[label] for label in task.labels[index]]
    old = load_task(([task.images[place] for place in index], names), name="old")
    both = retain(new, place, earlier.classes, old if keep else None)
    values = {**defaults(strategies()["expansion"].space), "epochs": 3}
    trial, fitted = run_trial(both, Candidate(backbone.name, "expansion", values), backbone, seed=0, folder=tmp_path / "run")
    assert fitted is not None, trial.error
    known = len(earlier.classes)
    said = predict(fitted.model, pixels_of(both, backbone).array, both.part(VALIDATION), backbone)
    assert (said[:, known:].sum(1) > 0.5).mean() > 0.9, "new images"
    said = predict(fitted.model, pixels_of(old, backbone).array, np.arange(len(index)), backbone)
    assert (said[:, :known].sum(1) > 0.5).mean() > 0.9, "old images"


@pytest.mark.slow
def test_a_grown_model_is_exported_where_it_can_be(task: Task, tmp_path: Path) -> None:
    backbone = smallest_backbone()
    head = Tasks([[0, 1], [2, 3, 4]], backbone.num_features)
    net = Classifier(Grown(build(backbone), [2]), head)
    model.save(tmp_path, net, backbone, Candidate(backbone.name, "expansion"), ("a", "b", "c", "d", "e"), {})
    for form in ("onnx", "torch"):
        assert export_run(tmp_path, to=form, out=tmp_path / form).largest_difference < 1e-4
    with pytest.raises(InputError, match="expansion left a head of the kind 'tasks', which timm has not"):
        export_run(tmp_path, to="timm", out=tmp_path / "timm")


def test_classes_of_all_tasks_compete_by_whose_norms_find_an_image_less_strange() -> None:
    head = Tasks([[0, 1], [1, 2]], 2, trust=2.0, bias=[0.0, 1.0])
    with torch.no_grad():
        for layer, weight in zip(head.layers, ([[1.0, 0], [0, 1]], [[2.0, 0], [0, 3]]), strict=True):
            layer.weight.copy_(torch.tensor(weight))  # type: ignore[operator]
            layer.bias.zero_()  # type: ignore[operator]
    seen = torch.tensor([[5.0, 7, 1, 2, 0.5, 0.25], [5, 7, 1, 2, 0.5, 4]])
    found = head(seen).exp()
    first, second = torch.tensor([5.0, 7]).softmax(0), torch.tensor([2.0, 6]).softmax(0)
    for row, strange in zip(found, ([0.5, 0.25], [0.5, 4]), strict=True):
        whose = torch.tensor([-2 * strange[0], 1 - 2 * strange[1]]).softmax(0)
        expected = [whose[0] * first[0], whose[0] * first[1] + whose[1] * second[0], whose[1] * second[1]]
        torch.testing.assert_close(row, torch.stack(expected))
    assert found.argmax(1).tolist() == [2, 1], "however large the logits are of a task that the image is strange to"
    before = head(seen)
    cool(head, 2.0)
    torch.testing.assert_close(head(seen), before / 2)
    told = {"kind": "tasks", "classes": [[0, 1], [1, 2]], "temperature": 2.0, "trust": 2.0, "bias": [0.0, 1.0]}
    assert describe(head) == told
    again = rebuild(told, 2, 3)
    again.load_state_dict(head.state_dict())
    assert torch.equal(again(seen), head(seen))
    for wrong in ({"trust": "much"}, {"trust": float("nan")}, {"bias": [0.0]}, {"bias": 0.0}, {"bias": [0.0, None]}):
        with pytest.raises(InputError, match="its head tells 2 tasks apart by"):
            rebuild(told | wrong, 2, 3)
    with pytest.raises(InputError, match="its head divides logits by 0"):
        rebuild(told | {"temperature": 0}, 2, 3)
    for classes in ([[0], [2]], [[0, 1], []], "all", [[0, 1], ["2"]], None):
        with pytest.raises(InputError, match="do not have the 3 classes"):
            rebuild({"kind": "tasks", "classes": classes}, 2, 3)
