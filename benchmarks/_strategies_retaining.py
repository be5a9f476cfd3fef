"""Learning without forgetting: classes that come in turns, and what is left of the first when the last are learnt.

traffic_signs in three steps of classes, and characters of omniglot_a, then of omniglot_b. Every method goes on from the same
first model, with its defaults but for fewer epochs; epochs are chosen on validation images. Plain fine-tuning is EWC with a
strength of nearly nothing; joint training has the images of all steps at once, from the pretrained network.

Two protocols. *Told*: whether an image is of the first, second or third step is known, as in the papers of EWC, SI and LwF, and
the largest logit among that step's classes counts. *Untold*: all classes so far compete. Forgetting is the mean over earlier
steps of the best accuracy ever had less that in the end (Chaudhry et al., 2018); the accuracy on new classes is that of each
later step just after it was learnt. All on test images.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from _report import unpacked

from automl_tl import Candidate, Classifier, Task, checkpoint, heads, load_task, memory, model
from automl_tl.backbones import catalogue
from automl_tl.data import subset
from automl_tl.evaluation.calibration import choose_temperature
from automl_tl.evaluation.forgetting import backward_transfer, forgetting, told_accuracy
from automl_tl.objectives import retain
from automl_tl.pixels import pixels_of
from automl_tl.records import TEST, VALIDATION
from automl_tl.registry import strategies
from automl_tl.space import Value, defaults
from automl_tl.trials import probabilities_on, run_trial

BACKBONE = "resnet10t_24.tiny_imagenet_64"
METHODS: dict[str, tuple[str, dict[str, Value]]] = {
    "finetune": ("ewc", {"strength": 1e-3}),
    "ewc": ("ewc", {}),
    "si": ("synaptic-intelligence", {}),
    "lwf": ("lwf", {}),
    "rehearsal": ("rehearsal", {}),
    "expand": ("expansion", {}),
    "joint": ("fine-tuning", {}),
}
SETS = ("signs", "omniglot")
FIRST_EPOCHS, EPOCHS = 12, 8
EXEMPLARS = 200
"""Images that a model remembers, all classes together."""
CHARACTERS = 40
SEEDS = 1


@dataclass(frozen=True)
class Steps:
    """Tasks of different classes that come one after the other."""

    name: str
    tasks: list[Task]

    def classes(self, step: int, known: tuple[str, ...]) -> np.ndarray:
        """Positions of a step's classes among the `known`."""
        return np.array(sorted(known.index(name) for name in self.tasks[step].classes))


def evidence(folder: Path, *, quick: bool) -> tuple[list[tuple[str, ...]], dict[str, float]]:
    """Rows of the table, and forgetting and accuracies (0–1), mean over seeds, of each set and of both."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in SETS[:1] if quick else SETS:
        found[name] = {method: {} for method in METHODS}
        for seed in range(1 if quick else SEEDS):
            steps = _steps(folder, name, seed, quick=quick)
            for method in METHODS:
                for figure, value in _summary(_walk(folder, steps, method, seed, quick=quick)).items():
                    found[name][method].setdefault(figure, 0.0)
                    found[name][method][figure] += value / (1 if quick else SEEDS)
    return _rows(found), _figures(found)


def _steps(folder: Path, name: str, seed: int, *, quick: bool) -> Steps:
    rng = np.random.default_rng(seed)
    if name == "signs":
        whole = load_task(unpacked("traffic_signs", folder), seed=seed)
        order = rng.permutation(len(whole.classes))
        parts = [(whole, part) for part in np.array_split(order[:9] if quick else order, 3)]
    else:
        first, second = (load_task(unpacked(f"omniglot_{part}", folder), seed=seed) for part in "ab")
        new = [code for code, label in enumerate(second.classes) if label not in first.classes]
        parts = [(first, rng.permutation(len(first.classes))[:CHARACTERS]), (second, rng.permutation(new)[:CHARACTERS])]
    tasks = [
        subset(task, np.flatnonzero(np.isin(task.labels, own)), name=f"{name} {step}") for step, (task, own) in enumerate(parts)
    ]
    return Steps(name, tasks)


def _walk(folder: Path, steps: Steps, method: str, seed: int, *, quick: bool) -> dict[str, Any]:
    """Learn all steps in turn by one method: matrices of test accuracies, told and untold, a row after each step."""
    place = folder / f"{'quick_' if quick else ''}{steps.name}_{seed}"
    path = place / f"{method}.json"
    if path.exists():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    last, rows, seconds = _first(place, steps, seed, quick=quick), [], 0.0
    rows.append(_judge(last, steps, 0))
    for step in range(1, len(steps.tasks)):
        folder_of_step = place / method / str(step)
        seconds += _learn(folder_of_step, last, steps, step, method, seed, quick=quick)
        last = folder_of_step
        rows.append(_judge(last, steps, step))
    sizes = {kind: checkpoint.beside(place / "first", kind).stat().st_size for kind in memory.KINDS}
    found = {"told": [row[0] for row in rows], "untold": [row[1] for row in rows], "seconds": seconds, "bytes": sizes}
    path.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return found


def _first(place: Path, steps: Steps, seed: int, *, quick: bool) -> Path:
    """The model of the first step, which remembers all that any method asks for."""
    folder = place / "first"
    if not (folder / model.CARD).exists():
        epochs = 3 if quick else FIRST_EPOCHS
        _train(folder, steps.tasks[0], "fine-tuning", {"epochs": epochs}, seed, remember=memory.KINDS)
    return folder


def _learn(folder: Path, last: Path, steps: Steps, step: int, method: str, seed: int, *, quick: bool) -> float:
    strategy, values = METHODS[method]
    epochs = {"epochs": 3 if quick else EPOCHS}
    task = steps.tasks[step]
    if method == "joint":
        return _train(folder, _joint(steps.tasks[: step + 1]), strategy, values | epochs, seed, remember=())
    kinds = {"ewc": ("fisher",), "si": ("importance",), "rehearsal": ("exemplars",)}.get(method, ("fisher",))
    known = model.load(last).classes
    kept = None
    if method == "rehearsal":
        images, names = memory.recall_exemplars(last) or ([], [])
        kept = load_task((images, names), name="remembered", seed=seed)
    return _train(folder, retain(task, last, known, kept), strategy, values | epochs, seed, remember=kinds)


def _joint(tasks: list[Task]) -> Task:
    """All steps as one task."""
    whole = tasks[0]
    for other in tasks[1:]:
        classes = (*whole.classes, *other.classes)
        shift = len(whole.labels)
        whole = replace(
            whole,
            images=[*whole.images, *other.images],
            labels=np.concatenate([whole.labels, other.labels + len(whole.classes)]),
            classes=classes,
            splits={split: np.concatenate([part, other.part(split) + shift]) for split, part in whole.splits.items()},
            where=[*whole.where, *other.where],
            hashes=np.concatenate([whole.hashes, other.hashes]),
            sizes=None,
            modified=None,
            fingerprint=f"{whole.fingerprint[:8]}{other.fingerprint[:8]}",
        )
    return whole


def _train(folder: Path, task: Task, name: str, values: Mapping[str, Value], seed: int, *, remember: tuple[str, ...]) -> float:
    """Train and save; the seconds."""
    backbone = catalogue()[BACKBONE]
    candidate = Candidate(BACKBONE, name, {**defaults(strategies()[name].space), **values})
    with tempfile.TemporaryDirectory() as scratch:
        trial, fitted = run_trial(task, candidate, backbone, seed=seed, folder=Path(scratch), trace="importance" in remember)
    if fitted is None:
        raise SystemExit(f"{task.name}: {trial.error}")
    net, held_out = fitted.model, task.part(VALIDATION)
    assert isinstance(net, Classifier)
    temperature = choose_temperature(probabilities_on(task, backbone, net, held_out), task.labels[held_out], seed=seed)
    heads.cool(net.head, temperature)  # as `fit` does; a network that is too sure has a Fisher information of nearly nothing
    if remember:
        importance = None if fitted.importance is None else memory.cooled(fitted.importance, temperature)
        images = pixels_of(task, backbone).array
        memory.remember(folder, net, task, images, backbone, kinds=remember, importance=importance, most=EXEMPLARS, seed=seed)
    model.save(folder, net, backbone, candidate, task.classes, {"validation": dict(trial.validation)})
    return trial.seconds


def _judge(folder: Path, steps: Steps, step: int, split: str = TEST) -> tuple[list[float], list[float]]:
    """Accuracy on each step's images, told and untold; 0 on those that were not learnt yet."""
    trained = model.load(folder)
    rows: tuple[list[float], list[float]] = ([], [])
    for number, task in enumerate(steps.tasks):
        if number > step:
            rows[0].append(0.0)
            rows[1].append(0.0)
            continue
        index = task.part(split)
        found = probabilities_on(task, trained.backbone, trained.net, index)
        labels = np.array([trained.classes.index(name) for name in task.classes])[task.labels[index]]
        rows[0].append(told_accuracy(found, labels, steps.classes(number, trained.classes)))
        rows[1].append(float((found.argmax(1) == labels).mean()))
    return rows


def _summary(walk: Mapping[str, Any]) -> dict[str, float]:
    figures = {"seconds": float(walk["seconds"])} | {f"{kind}_bytes": float(size) for kind, size in walk["bytes"].items()}
    for protocol in ("told", "untold"):
        scores = np.array(walk[protocol])
        figures[f"forget_{protocol}"] = forgetting(scores)
        figures[f"backward_{protocol}"] = backward_transfer(scores)
        figures[f"new_{protocol}"] = float(np.diag(scores)[1:].mean())
        figures[f"old_{protocol}"] = float(scores[-1, :-1].mean())
    return figures


def _figures(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, float]:
    """`forget_METHOD`, `new_METHOD` and `old_METHOD`: told, mean of the sets; then untold, and each set."""
    figures: dict[str, float] = {
        "forget_seeds": float(SEEDS),
        "forget_epochs": float(EPOCHS),
        "forget_exemplars": float(EXEMPLARS),
    }
    for method in METHODS:
        for figure in ("forget", "new", "old"):
            each = {name: one[method] for name, one in found.items()}
            figures[f"{figure}_{method}"] = float(np.mean([one[f"{figure}_told"] for one in each.values()]))
            figures[f"{figure}_{method}_untold"] = float(np.mean([one[f"{figure}_untold"] for one in each.values()]))
            for name, one in each.items():
                figures[f"{figure}_{method}_{name}"] = one[f"{figure}_told"]
                figures[f"{figure}_{method}_{name}_untold"] = one[f"{figure}_untold"]
    some = found[SETS[0]]["ewc"]
    return figures | {f"forget_{kind}_bytes": some[f"{kind}_bytes"] for kind in memory.KINDS}


def _rows(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[tuple[str, ...]]:
    rows = []
    for name, methods in found.items():
        plain, joint = methods["finetune"], methods["joint"]
        base = (
            f"{name}, forgotten / new: plain fine-tuning {_points(plain, 'told')} ({_points(plain, 'untold')} untold), "
            f"joint {_points(joint, 'told')} ({_points(joint, 'untold')})"
        )
        for method, (strategy, _) in METHODS.items():
            if method not in ("finetune", "joint"):
                figure = f"{_points(methods[method], 'told')} ({_points(methods[method], 'untold')} untold)"
                rows.append((base, strategy, figure, strategies()[strategy].paper))
    return rows


def _points(figures: Mapping[str, float], protocol: str) -> str:
    return f"{100 * figures[f'forget_{protocol}']:.1f} / {100 * figures[f'new_{protocol}']:.1f}"
