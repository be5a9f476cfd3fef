"""What a task may ask for besides accuracy on images like its own, and what comes with it then.

- accuracy: perhaps labelled images of other classes come along (few-shot). Score: accuracy on validation images.
- adaptation: trained on labelled images of another domain; unlabelled ones of the domain that counts come along. Score: accuracy
  on held-out images of the labelled domain, and how much the model's words about the unlabelled ones tell.
- retention: an earlier model comes along, perhaps with images of what it knows. Score: mean of the accuracies on new and on kept
  validation images.
- federation: it is known whose image is whose. Score: accuracy on validation images.
- robustness: pixels may be changed by so much. Score: accuracy on validation images that an attacker changed.

Everything that comes along lies in the one `Task`, in splits of its own, so that its images are decoded once like the others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from . import checkpoint, heads
from .attacks import Ball, cross_entropy_of, pgd
from .device import autocast
from .errors import InputError
from .inference import predict, prepare
from .records import (
    FISHER,
    IMPORTANCE,
    KEPT,
    KEPT_TEST,
    KEPT_VALIDATION,
    PUBLIC,
    SOURCE,
    TARGET,
    TEST,
    TRAIN,
    VALIDATION,
    Backbone,
    Task,
)

if TYPE_CHECKING:
    from .strategy import Strategy

ACCURACY, ADAPTATION, RETENTION, FEDERATION, ROBUSTNESS = "accuracy", "adaptation", "retention", "federation", "robustness"
REQUIRED = {
    ACCURACY: frozenset[str](),
    ADAPTATION: frozenset[str](),
    RETENTION: frozenset({"earlier model"}),
    FEDERATION: frozenset({"clients"}),
    ROBUSTNESS: frozenset({"epsilon"}),
}
"""What a strategy must make use of to be worth trying. For adaptation nothing: training on the source alone is the baseline."""
ADVICE = {
    "earlier model": "give one with --after",
    "linear head": "the earlier model must be one whose head is linear: not of neighbours, nor grown",
    "kept images": "give some with --keep, or train the earlier model with --remember exemplars",
    FISHER: "train the earlier model with --remember fisher, or give images of what it knows with --keep",
    IMPORTANCE: "train the earlier model with --remember importance, and by a strategy that is one descent",
    "clients": "give them with --clients",
    "epsilon": "give one with --robust",
}
"""What to do where a strategy's need is not met."""
ATTACKED = 256
"""Validation images that are attacked to score a robust model while it trains."""
ATTACK_STEPS = 10
PUBLIC_SHARE = 0.2


def brings(task: Task) -> frozenset[str]:
    """What comes with `task`, in the words of `Strategy.needs`."""
    found = {
        "target": TARGET in task.splits,
        "source": SOURCE in task.splits,
        "earlier model": bool(task.earlier),
        "linear head": bool(task.earlier) and _head(Path(task.earlier)) == heads.LINEAR,
        "kept images": KEPT in task.splits,
        FISHER: bool(task.earlier) and (checkpoint.beside(task.earlier, FISHER).exists() or KEPT in task.splits),
        IMPORTANCE: bool(task.earlier) and checkpoint.beside(task.earlier, IMPORTANCE).exists(),
        "clients": task.clients is not None,
        "epsilon": task.epsilon > 0,
    }
    return frozenset(name for name, there in found.items() if there)


def _head(folder: Path) -> str:
    """The kind of a saved model's head."""
    card = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    return str(card.get("head", {}).get("kind", heads.LINEAR))


def left_out(strategies: Mapping[str, type[Strategy]], task: Task) -> dict[str, str]:
    """Strategies for the task's objective that miss something, with what to do about it."""
    met, required = brings(task), REQUIRED[task.objective]
    missing = {name: sorted(one.needs - met) for name, one in strategies.items() if required and required <= one.needs}
    return {name: "; ".join(ADVICE.get(need, f"it needs {need}") for need in needs) for name, needs in missing.items() if needs}


# Making such tasks


def adapt(source: Task, target: Task, *, labelled: bool = True) -> Task:
    """Learn `target` from the labels of `source`.

    Labels of the target's training and validation images are used where they are there (a partly labelled target): those images
    are trained and validated on, beside the source's. Without `labelled` they are hidden, as if nobody had given them. All
    training images of the target come along without labels, too. Its test images, if it has any, are for the last evaluation.
    `target` may be a task without labels (`data.load_unlabelled`).

    Raises:
        InputError: the target has classes that the source has not, or no image to adapt to; or there is none to validate on.
    """
    strange = _strangers(target, source.classes)
    if strange:
        raise InputError(
            f"{target.name} has classes that the source {source.name} has not: {', '.join(strange[:5])}; give both the same"
        )
    known = _renumbered(target, source.classes)
    splits = {TARGET: np.union1d(target.part(TRAIN), target.part(TARGET))}
    if labelled:
        labels = known
        splits |= {TRAIN: target.part(TRAIN), VALIDATION: target.part(VALIDATION)}
    else:
        splits[TARGET] = np.union1d(splits[TARGET], target.part(VALIDATION))
        labels = np.full(len(known), -1, dtype=np.int64)
        labels[target.part(TEST)] = known[target.part(TEST)]
    if not len(splits[TARGET]):
        raise InputError(f"{target.name} has no training image to adapt to; put some without labels into its folder unlabelled/")
    splits[TEST] = target.part(TEST)
    brought = replace(target, splits={name: part for name, part in splits.items() if len(part)})
    both = _joined(_only(source, {TRAIN: TRAIN, VALIDATION: VALIDATION}), brought, labels)
    if not len(both.part(VALIDATION)):  # of a model that remembers one image a class
        raise InputError(f"{source.name} has no labelled image to validate on; give at least two of each class")
    return _sealed(replace(both, name=f"{source.name} to {target.name}", objective=ADAPTATION))


def learn_to_learn(task: Task, source: Task) -> Task:
    """`task` with the labelled images of other classes beside it, for strategies that learn how to learn a few images."""
    labelled = np.sort(np.concatenate([source.part(name) for name in (TRAIN, VALIDATION)]))
    return _sealed(_joined(task, replace(source, splits={SOURCE: labelled}), source.labels))


def retain(task: Task, earlier: Path, known: Sequence[str], kept: Task | None = None) -> Task:
    """Learn `task` without forgetting what the model in `earlier` knows: the classes `known`, in its order.

    `kept`: labelled images of what it knows. Their classes come first in the new task; a class that is in both is one class.

    Raises:
        InputError: `kept` has a class that the earlier model does not know.
    """
    classes = (*known, *(name for name in task.classes if name not in known))
    labels = _renumbered(task, classes)
    whole = replace(task, labels=labels, classes=classes, objective=RETENTION, earlier=str(earlier.resolve()))
    if kept is not None:
        strange = _strangers(kept, known)
        if strange:
            raise InputError(f"{kept.name}: the earlier model does not know {', '.join(strange[:5])}; keep only what it knows")
        parts = _only(kept, {TRAIN: KEPT, VALIDATION: KEPT_VALIDATION, TEST: KEPT_TEST})
        whole = _joined(whole, parts, _renumbered(kept, classes))
    return _sealed(whole)


def federate(task: Task, clients: Sequence[Task] | int, *, skew: float = 1.0, seed: int = 0) -> Task:
    """Whose training image is whose: folders of real clients, or `clients` simulated ones.

    Simulated clients share each class by a draw from a Dirichlet distribution with concentration `skew` (Hsu et al., 2019):
    small values give each client few classes. Before that, a fifth of the training images become public: those that
    federated distillation speaks about. With real clients, the task's own training images are the public ones.

    Raises:
        InputError: fewer than two clients, a client without images, or with a class that the task has not.
    """
    count = clients if isinstance(clients, int) else len(clients)
    if count < 2:
        raise InputError(f"federated training takes at least two clients, but there is {count}")
    if isinstance(clients, int):
        return _simulated(task, clients, skew, np.random.default_rng([seed, clients]))
    whole = replace(task, splits={PUBLIC if name == TRAIN else name: part for name, part in task.splits.items()})
    owners = [np.full(len(task.labels), -1)]
    for number, client in enumerate(clients):
        strange = _strangers(client, task.classes)
        if strange:
            raise InputError(f"client {client.name} has classes that {task.name} has not: {', '.join(strange[:5])}")
        own = np.sort(np.concatenate([client.part(name) for name in (TRAIN, VALIDATION)]))
        owner = np.full(len(client.labels), -1)
        owner[own] = number
        owners.append(owner)
        whole = _joined(whole, replace(client, splits={TRAIN: own}), _renumbered(client, task.classes))
    owner = np.concatenate(owners)
    empty = np.setdiff1d(np.arange(count), owner[whole.part(TRAIN)])
    if len(empty):
        raise InputError(f"client {clients[empty[0]].name} has no image that is not held out by {task.name}, too; leave it out")
    train = whole.part(TRAIN)
    owned = np.unique(np.stack([whole.hashes[train], owner[train].astype(np.uint64)]), axis=1)
    shared = int((np.unique(owned[0], return_counts=True)[1] > 1).sum())
    if shared:
        said = f"{shared} images belong to several clients: what one of them promises for its privacy adds up with the others'"
        whole = replace(whole, warnings=(*whole.warnings, said))
    return _sealed(replace(whole, clients=owner, objective=FEDERATION))


def offer_public(task: Task) -> Task:
    """What a server of real clients has: validation and test images of its own; its training images are the public ones, which
    all sides put in the order of their hashes."""
    public = task.part(TRAIN)[np.argsort(task.hashes[task.part(TRAIN)], kind="stable")]
    splits = {name: part for name, part in task.splits.items() if name != TRAIN}
    return _sealed(replace(task, splits={**splits, PUBLIC: public}, objective=FEDERATION))


def take_part(own: Task, classes: Sequence[str], public: Task | None = None, wanted: Sequence[int] = ()) -> Task:
    """What a real client has: all its own images but test images, named as the server's `classes`; and from `public` the images
    with the hashes `wanted`, in that order.

    Raises:
        InputError: it has a class that the server has not, or lacks a public image.
    """
    strange = _strangers(own, classes)
    if strange:
        raise InputError(f"{own.name} has classes that the server has not: {', '.join(strange[:5])}; it has {', '.join(classes)}")
    train = np.sort(np.concatenate([own.part(name) for name in (TRAIN, VALIDATION)]))
    labels, splits = _renumbered(own, classes), {TRAIN: train}
    task = replace(own, labels=labels, classes=tuple(classes), splits=splits, objective=FEDERATION)
    if public is None:
        return _sealed(task)
    places = {int(value): place for place, value in enumerate(public.hashes)}
    missing = [value for value in wanted if value not in places]
    if missing:
        raise InputError(f"{public.name} lacks {len(missing)} of the server's {len(wanted)} public images; take its own folder")
    shown = np.array([places[value] for value in wanted], dtype=np.int64)
    nobody = np.full(len(public.labels), -1, dtype=np.int64)
    return _sealed(_joined(task, replace(public, splits={PUBLIC: shown}), nobody))


def harden(task: Task, epsilon: float) -> Task:
    """Ask for accuracy on images of which every pixel may be changed by up to `epsilon` (of 0–1).

    Raises:
        InputError: not above 0 and at most ½.
    """
    if not 0 < epsilon <= 0.5:
        raise InputError(f"the change of a pixel must be above 0 and at most 0.5 (of 0–1), such as 8/255, but is {epsilon}")
    return _sealed(replace(task, objective=ROBUSTNESS, epsilon=epsilon))


def few_shots(task: Task, shots: int, *, seed: int = 0) -> Task:
    """`task` with at most `shots` training images a class; validation images stay as they are.

    Raises:
        InputError: less than one.
    """
    if shots < 1:
        raise InputError(f"a class needs at least one image, but --shots is {shots}")
    rng = np.random.default_rng(seed)
    train = rng.permutation(task.part(TRAIN))
    kept = np.concatenate([train[task.labels[train] == label][:shots] for label in range(len(task.classes))])
    return _sealed(replace(task, splits={**task.splits, TRAIN: np.sort(kept)}))


def _simulated(task: Task, clients: int, skew: float, rng: np.random.Generator) -> Task:
    if not skew > 0:
        raise InputError(f"the skew of the clients must be above 0 (1: mild, 0.1: each has few classes), but is {skew}")
    train = rng.permutation(task.part(TRAIN))
    owners = np.full(len(task.labels), -1)
    public = []
    for label in range(len(task.classes)):
        members = train[task.labels[train] == label]
        first = max(round(PUBLIC_SHARE * len(members)), int(len(members) > 1))
        public.append(members[:first])
        shares = rng.dirichlet(np.full(clients, skew))
        bounds = np.rint(np.cumsum(shares)[:-1] * (len(members) - first)).astype(int)
        for number, own in enumerate(np.split(members[first:], bounds)):
            owners[own] = number
    empty = np.setdiff1d(np.arange(clients), owners)
    if len(empty):
        raise InputError(f"client {empty[0]} of {clients} would have no image; take fewer clients or a larger --skew")
    if not sum(map(len, public)):
        raise InputError(f"{task.name}: no class has two training images, of which one could be public; give more")
    splits = {**task.splits, TRAIN: np.flatnonzero(owners >= 0), PUBLIC: np.sort(np.concatenate(public))}
    return _sealed(replace(task, splits=splits, clients=owners, objective=FEDERATION))


def _strangers(task: Task, classes: Sequence[str]) -> list[str]:
    """Classes of `task` that are not among `classes`."""
    known = set(classes)
    return [name for name in task.classes if name not in known]


def _renumbered(task: Task, classes: Sequence[str]) -> np.ndarray:
    """The labels of `task` as positions in `classes`, which have all of its own; -1 stays."""
    codes = {name: code for code, name in enumerate(classes)}
    labels: np.ndarray = np.array([codes[name] for name in task.classes] + [-1], dtype=np.int64)[task.labels]  # -1 is the last
    return labels


def _only(task: Task, names: dict[str, str]) -> Task:
    """The splits in `names`, called otherwise."""
    return replace(task, splits={new: task.part(old) for old, new in names.items() if len(task.part(old))})


def _joined(first: Task, second: Task, labels: np.ndarray) -> Task:
    """The images of both, those of `second` last and with other `labels`; splits of one name become one."""
    shift = len(first.labels)
    splits = dict(first.splits)
    for name, part in second.splits.items():
        splits[name] = np.concatenate([splits.get(name, np.empty(0, dtype=np.int64)), part + shift])
    sizes, modified = (
        None if one is None or other is None else np.concatenate([one, other])
        for one, other in ((first.sizes, second.sizes), (first.modified, second.modified))
    )
    both = replace(
        first,
        images=[*first.images, *second.images],
        labels=np.concatenate([first.labels, labels]),
        splits=splits,
        where=[*first.where, *second.where],
        hashes=np.concatenate([first.hashes, second.hashes]),
        sizes=sizes,
        modified=modified,
        warnings=tuple(dict.fromkeys((*first.warnings, *second.warnings))),
    )
    return _apart(both)


def _apart(task: Task) -> Task:
    """Without images to learn from that are held out, too: when they were read, each set was compared only with itself.

    Raises:
        InputError: none of a class is left to train on.
    """
    splits, warnings = dict(task.splits), list(task.warnings)
    learnt = (TRAIN, SOURCE, KEPT)
    for held, others in (
        ((TEST, KEPT_TEST), (*learnt, TARGET, VALIDATION, KEPT_VALIDATION)),
        ((VALIDATION, KEPT_VALIDATION), learnt),
    ):
        judged = task.hashes[np.concatenate([task.part(split) for split in held])]
        for split in others:
            part = splits.get(split, np.empty(0, dtype=np.int64))
            twins = np.isin(task.hashes[part], judged)
            if twins.any():
                splits[split] = part[~twins]
                warnings.append(f"{twins.sum()} {split} images are {held[0]} images, too; they were left out")
    left = replace(task, splits={name: part for name, part in splits.items() if len(part)}, warnings=tuple(warnings))
    lost = np.setdiff1d(task.labels[task.part(TRAIN)], task.labels[left.part(TRAIN)])
    if len(lost):
        raise InputError(f"{task.name}: all training images of {task.classes[lost[0]]!r} are held out, too; give others")
    return left


def _sealed(task: Task) -> Task:
    """With the fingerprint of all that it now is."""
    digest = hashlib.sha256(json.dumps([task.classes, task.objective, task.epsilon]).encode())
    for values in (task.hashes.astype("<u8"), task.labels.astype("<i8")):
        digest.update(values.tobytes())
    for name in sorted(task.splits):
        digest.update(name.encode() + task.splits[name].astype("<i8").tobytes())
    if task.clients is not None:
        digest.update(task.clients.astype("<i8").tobytes())
    if task.earlier:
        digest.update(_content(Path(task.earlier)))
    return replace(task, fingerprint=digest.hexdigest()[:16])


def _content(folder: Path) -> bytes:
    """A hash of the weights of a saved model, wherever it lies."""
    with (folder / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


# Scoring a model


@dataclass(frozen=True, eq=False)
class Validated:
    """What a model does on the validation images."""

    probabilities: np.ndarray
    """Of the split `VALIDATION`, n×classes."""
    score: float
    """What the objective makes of it, 0–1; higher is better."""
    loss: float
    """Breaks ties; lower is better."""
    parts: dict[str, float]
    """What `score` is made of, where that is more than accuracy."""


def validate(
    model: nn.Module, images: np.ndarray, task: Task, backbone: Backbone, *, dtype: torch.dtype = torch.float32
) -> Validated:
    """Score `model` by the task's objective, without a look at test images.

    For adaptation the score is the mean of the accuracy on held-out labelled images and of the mutual information of
    unlabelled images and their predictions, as a share of its largest value, log(classes): predictions that are sure and
    differ from image to image (Krause et al., 2010; a validator in Musgrave et al., 2022). No target label is used.
    """
    index = task.part(VALIDATION)
    probabilities = predict(model, images, index, backbone, dtype=dtype)
    right, loss = _judged(probabilities, task.labels[index])
    parts: dict[str, float] = {}
    if task.objective == ADAPTATION:
        sure = information(predict(model, images, task.part(TARGET), backbone, dtype=dtype))
        parts = {"labelled": right, "information": sure}
    elif task.objective == RETENTION and len(task.part(KEPT_VALIDATION)):
        old = task.part(KEPT_VALIDATION)
        parts = {"new": right, "kept": _judged(predict(model, images, old, backbone, dtype=dtype), task.labels[old])[0]}
    elif task.objective == ROBUSTNESS:
        attacked = index[np.linspace(0, len(index) - 1, min(ATTACKED, len(index))).astype(int)]
        return Validated(
            probabilities, robust_accuracy(model, images, attacked, task, backbone, dtype=dtype), loss, {"clean": right}
        )
    return Validated(probabilities, float(np.mean(list(parts.values()))) if parts else right, loss, parts)


def information(probabilities: np.ndarray) -> float:
    """Mutual information of images and predictions (n×classes), as a share of log(classes): 0–1."""
    mean = probabilities.mean(axis=0, dtype=np.float64)
    unsure = float(-(probabilities * np.log(np.clip(probabilities, 1e-12, None))).sum(axis=1).mean())
    spread = float(-(mean * np.log(np.clip(mean, 1e-12, None))).sum())
    return float(np.clip((spread - unsure) / np.log(max(len(mean), 2)), 0.0, 1.0))


def robust_accuracy(
    model: nn.Module, images: np.ndarray, index: np.ndarray, task: Task, backbone: Backbone, *, dtype: torch.dtype = torch.float32
) -> float:
    """Share of the images at `index` that are still told right after ten steps of PGD: for choosing, not for judging."""
    model.eval()
    generator = torch.Generator().manual_seed(0)
    right = 0
    for start in range(0, len(index), 128):
        part = index[start : start + 128]
        batch = prepare(images[part], backbone)
        labels = torch.from_numpy(task.labels[part]).to(batch.device)
        with autocast(dtype):
            ball = Ball.of(task.epsilon, backbone, batch)
            changed = pgd(model, batch, cross_entropy_of(labels), ball, steps=ATTACK_STEPS, generator=generator)
            with torch.inference_mode():
                right += int((model(changed).argmax(1) == labels).sum())
    return right / max(len(index), 1)


def _judged(probabilities: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Accuracy and log-loss."""
    right = float((probabilities.argmax(1) == labels).mean())
    chosen = probabilities[np.arange(len(labels)), labels]
    return right, float(-np.log(np.clip(chosen, 1e-12, None)).mean())
