"""The linear probe against a plain loop that trains a new head on the frozen network, to the same validation accuracy.

Ours: features of training and validation images, once, and the whole path of penalties, nothing cached before. The peer: each
step passes its batch through the frozen network (no gradients, no augmentation) and trains the head with Adam; it stops after the
first epoch whose validation accuracy is ours, or after `MOST` epochs. Its rate is the one of `RATES` that gets there in fewest
epochs, found beforehand at no cost to it.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from _report import unpacked
from _turns import in_turns, ratio, row
from torch import Tensor, nn
from torch.nn import functional as F

from automl_tl import Backbone, Candidate, Fitted, Task, load_task
from automl_tl.backbones import build, catalogue
from automl_tl.device import autocast, channels_last, precision
from automl_tl.home import cache
from automl_tl.inference import predict, prepare
from automl_tl.pixels import pixels_of
from automl_tl.profiling import task_features
from automl_tl.records import TEST, TRAIN, VALIDATION
from automl_tl.registry import strategies
from automl_tl.trials import job_of, judge_on_test

CASES = (("sign_digits", "resnet10t_24.tiny_imagenet_64"), ("caltech101", "resnet10t_24.tiny_imagenet_64"))
BATCH, MOST, RATES = 32, 60, (1e-3, 3e-3, 1e-2, 3e-2)


def evidence(folder: Path, *, quick: bool) -> tuple[list[tuple[str, ...]], dict[str, float]]:
    rows, figures = [], {}
    for number, (name, network) in enumerate(CASES[:1] if quick else CASES):
        task, backbone = load_task(unpacked(name, folder)), catalogue()[network]
        pixels_of(task, backbone)
        goal = float((_ours(task, backbone).probabilities.argmax(1) == task.labels[task.part(VALIDATION)]).mean())
        rate, epochs = _best_rate(task, backbone, goal)
        peers = {
            "ours": lambda task=task, backbone=backbone: _ours(task, backbone),
            "plain": lambda task=task, backbone=backbone, goal=goal, rate=rate: _plain(task, backbone, goal, rate),
        }
        seconds, last = in_turns(peers, 1 if quick else 3)
        suffix, (head, reached) = f"_{name}" if number else "", last["plain"]
        figures |= ratio(f"probe_speedup{suffix}", seconds["ours"], seconds["plain"])
        part = task.part(TEST)
        plain = predict(nn.Sequential(build(backbone), head), pixels_of(task, backbone).array, part, backbone)
        figures |= {
            f"probe_accuracy{suffix}": judge_on_test(task, backbone, last["ours"].model)["accuracy"],
            f"probe_accuracy_plain{suffix}": float((plain.argmax(1) == task.labels[part]).mean()),
            f"probe_plain_epochs{suffix}": float(epochs),
            f"probe_plain_reached{suffix}": float(reached),
        }
        what = f"probe of {name}, {network}: plain loop of {epochs} epochs to validation accuracy {goal:.3f}"
        rows.append(row(what, seconds["ours"], seconds["plain"], figures, f"probe_speedup{suffix}"))
    return rows, figures


def _ours(task: Task, backbone: Backbone) -> Fitted:
    """A linear probe whose features nobody has computed before."""
    shutil.rmtree(cache() / "features", ignore_errors=True)
    candidate = Candidate(backbone.name, "linear-probe", {"penalty": "chosen"})
    with tempfile.TemporaryDirectory() as scratch:
        job = job_of(task, candidate, backbone, seed=0, folder=Path(scratch))
        return strategies()["linear-probe"](job.hyperparameters, backbone).run(job)


def _best_rate(task: Task, backbone: Backbone, goal: float) -> tuple[float, int]:
    """The rate that reaches the goal first, and after how many epochs: the frozen network gives the same features each time."""
    values = torch.from_numpy(task_features(task, backbone).values)
    found = {rate: _head(task, backbone, goal, rate, lambda index: values[index])[2] for rate in RATES}
    return min(found.items(), key=lambda one: one[1])


def _plain(task: Task, backbone: Backbone, goal: float, rate: float) -> tuple[nn.Module, bool]:
    net = channels_last(build(backbone)).eval().requires_grad_(False)
    array = pixels_of(task, backbone).array

    @torch.inference_mode()
    def features(index: np.ndarray) -> Tensor:
        with autocast(precision(net)):  # as ours
            return net(prepare(array[index], backbone)).float()

    return _head(task, backbone, goal, rate, lambda index: features(index).clone())[:2]


def _head(task: Task, backbone: Backbone, goal: float, rate: float, features: object) -> tuple[nn.Module, bool, int]:
    """A head trained until it is as good as ours; whether it got there, and its epochs."""
    assert callable(features)
    torch.manual_seed(0)
    head = nn.Linear(backbone.num_features, len(task.classes))
    optimiser = torch.optim.Adam(head.parameters(), lr=rate)
    labels, train, validation = torch.from_numpy(task.labels), task.part(TRAIN), task.part(VALIDATION)
    held_out = np.array_split(validation, max(1, len(validation) // 256))
    for epoch in range(1, MOST + 1):
        for index in torch.from_numpy(train)[torch.randperm(len(train))].split(BATCH):
            loss = F.cross_entropy(head(features(index.numpy())), labels[index])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            right = sum(int((head(features(part)).argmax(1) == labels[part]).sum()) for part in held_out)
        if right >= goal * len(validation) - 1e-9:
            return head, True, epoch
    return head, False, MOST
