"""What the next task needs of this one: kept beside the model only where it was asked for, in safetensors files.

- fisher: the Fisher information of each weight, as large as the model itself;
- importance: the synaptic importance of each weight, as large again; it is added up while training;
- exemplars: images. Whoever has the model then has some of the training images, too; how many is bounded;
- statistics: mean and variance of each channel that enters a batch norm, over some training images.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from . import checkpoint, heads, model, registry
from .adapters import Grown
from .errors import InputError
from .importance import fisher_diagonal
from .inference import outputs
from .norms import MOST, measure, norms_of
from .pixels import decode_images
from .records import EXEMPLARS, FISHER, IMPORTANCE, KEPT, KEPT_VALIDATION, STATISTICS, TRAIN, Backbone, Task
from .strategy import Classifier

KINDS = (FISHER, IMPORTANCE, EXEMPLARS, STATISTICS)
LACKING = {
    FISHER: "counts votes, which have no gradient",
    IMPORTANCE: "was not trained in one descent",
    STATISTICS: "has no batch norms of one task alone",
}
"""Why a model has none, for a person. Exemplars can always be had."""
MOST_EXEMPLARS = 500
"""Images in all, shared by all classes, unless asked otherwise."""


def check_kinds(asked: Collection[str]) -> frozenset[str]:
    """Raises InputError: there is no such memory."""
    kinds = registry.several(asked) or []
    for name in kinds:
        if name not in KINDS:
            known = f"known: {', '.join(KINDS)}; repeat --remember for several"
            raise InputError(f"--remember {name}: there is no such memory; {known}")
    return frozenset(kinds)


def remember(
    folder: Path,
    net: Classifier,
    task: Task,
    images: np.ndarray,
    backbone: Backbone,
    *,
    kinds: Collection[str],
    importance: Mapping[str, Tensor] | None = None,
    temperature: float = 1.0,
    most: int = MOST_EXEMPLARS,
    seed: int = 0,
) -> dict[str, int]:
    """Write what is asked for into the model's `folder`; the bytes of each. What an earlier model remembered goes on in it, and
    like `importance` it is of the head before that was divided by the `temperature`.

    `images` are all images of the task, uint8 N×size×size×3. `importance`, which only training can tell, is left out where it
    is None, and fisher where the network has no gradients.
    """
    if FISHER in kinds and _has_gradients(net):
        own = fisher_diagonal(net, images, task.part(TRAIN), np.unique(task.labels[task.part(TRAIN)]), backbone, seed=seed)
        earlier = earlier_fisher(task, images, backbone, seed=seed)
        _write(folder, FISHER, together(own, None if earlier is None else cooled(earlier, temperature)), {})
    if IMPORTANCE in kinds and importance is not None:
        _write(folder, IMPORTANCE, cooled(together(importance, earlier_importance(task)), temperature), {})
    if EXEMPLARS in kinds:
        chosen = choose_exemplars(net.backbone, task, images, backbone, most)
        pictures = images[chosen] if backbone.crop_pct == 1 else _before_the_crop(task, chosen, backbone)
        tensors = {"images": torch.from_numpy(pictures.copy()), "labels": torch.from_numpy(task.labels[chosen])}
        _write(folder, EXEMPLARS, tensors, {"classes": list(task.classes)})
    if STATISTICS in kinds and norms_of(net.backbone) and not isinstance(net.backbone, Grown):
        _write(folder, STATISTICS, seen_by_norms(net.backbone, images, task.part(TRAIN), backbone, seed=seed), {})
    return {kind: checkpoint.beside(folder, kind).stat().st_size for kind in KINDS if checkpoint.beside(folder, kind).exists()}


def seen_by_norms(
    net: nn.Module,
    images: np.ndarray,
    index: np.ndarray,
    backbone: Backbone,
    *,
    seed: int,
    layers: Sequence[_BatchNorm] | None = None,
) -> dict[str, Tensor]:
    """`mean` and `variance` of each channel that enters a batch norm of `net`, or these `layers`, over some of the images at
    `index`."""
    chosen = np.sort(np.random.default_rng(seed).permutation(index)[:MOST])
    found = measure(net, images, chosen, backbone, layers=layers)
    return {name: found[name] for name in ("mean", "variance")}


def forget(folder: Path) -> None:
    """Delete what lies in `folder`: it is of the model that was there before."""
    for kind in KINDS:
        checkpoint.beside(folder, kind).unlink(missing_ok=True)


def carry(source: Path | None, target: Path) -> None:
    """What lies in `target` becomes what lies in `source`; nothing where that is None, or there no longer."""
    if source is not None and source.exists() and source.samefile(target):
        return
    forget(target)
    if source is None:
        return
    for kind in KINDS:
        with suppress(FileNotFoundError):
            shutil.copyfile(checkpoint.beside(source, kind), checkpoint.beside(target, kind))


def _has_gradients(net: nn.Module) -> bool:
    """Votes are counted: no weight can be moved so little that they move with it."""
    return not any(isinstance(layer, heads.Neighbours) for layer in net.modules())


def recall(folder: Path | str, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What `remember` wrote, or None where it did not.

    Raises:
        InputError: the file is damaged.
    """
    path = checkpoint.beside(folder, kind)
    try:
        return checkpoint.load(path)
    except FileNotFoundError:
        return None
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path}: is damaged: {error}; delete it, or copy it anew") from None


def recall_exemplars(folder: Path | str) -> tuple[list[np.ndarray], list[str]] | None:
    """The images that a model remembers, with the names of their classes.

    Raises:
        InputError: the file is damaged.
    """
    found = recall(folder, EXEMPLARS)
    if found is None:
        return None
    tensors, facts = found
    try:
        names = [str(facts["classes"][label]) for label in tensors["labels"].tolist()]
        return list(tensors["images"].numpy()), names
    except (KeyError, IndexError, TypeError) as error:
        raise InputError(f"{checkpoint.beside(folder, EXEMPLARS)}: is damaged: {type(error).__name__}: {error}") from None


def cooled(importance: Mapping[str, Tensor], temperature: float) -> dict[str, Tensor]:
    """Importance of a head whose weights were divided by `temperature` after training: the same change is a smaller step now."""
    return {name: value * temperature**2 if name.startswith("head.") else value for name, value in importance.items()}


def earlier_fisher(task: Task, images: np.ndarray, backbone: Backbone, *, seed: int = 0) -> dict[str, Tensor] | None:
    """Of the task's earlier model: as it is remembered, or else by the kept images; None where there is neither."""
    if not task.earlier:
        return None
    found = recall(task.earlier, FISHER)
    if found is not None:
        return found[0]
    kept = task.part(KEPT)
    if not len(kept):
        return None
    earlier = model.load(Path(task.earlier))
    if not _has_gradients(earlier.net):
        return None
    return fisher_diagonal(earlier.net, images, kept, np.arange(len(earlier.classes)), backbone, seed=seed)


def earlier_importance(task: Task) -> dict[str, Tensor] | None:
    """Of the task's earlier model, where it is remembered."""
    found = recall(task.earlier, IMPORTANCE) if task.earlier else None
    return None if found is None else found[0]


def together(own: Mapping[str, Tensor], earlier: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """The sum of what weights matter to this task and to those before; rows of new classes mattered to none before.

    One penalty about the newest weights then stands for one about each task's: Huszár (2018), Note on the quadratic penalties in
    elastic weight consolidation.
    """
    return {name: value + _widened(earlier[name], value) if earlier and name in earlier else value for name, value in own.items()}


def _widened(value: Tensor, like: Tensor) -> Tensor:
    if value.shape == like.shape:
        return value
    wide = torch.zeros_like(like)
    wide[: len(value)] = value
    return wide


def choose_exemplars(network: nn.Module, task: Task, images: np.ndarray, backbone: Backbone, most: int) -> np.ndarray:
    """Positions of at most `most` images, as many of each class, herded; of old classes from what was kept of them.

    Rebuffi et al. (2017), iCaRL, algorithm 2: m = K/t images of each of the t classes; algorithm 4 chooses them.

    Raises:
        InputError: there are more classes than images are allowed.
    """
    pool = np.sort(np.concatenate([task.part(name) for name in (TRAIN, KEPT, KEPT_VALIDATION)]))
    each = each_of(most, task)
    features = unit_features(network, images, pool, backbone)
    chosen = []
    for label in np.unique(task.labels[pool]):  # of an old class nothing may have been kept
        members = np.flatnonzero(task.labels[pool] == label)
        chosen.append(pool[members[herd(features[members], each)]])
    return np.concatenate(chosen)


def _before_the_crop(task: Task, index: np.ndarray, backbone: Backbone) -> np.ndarray:
    """The images at `index` as large as the backbone has them before it crops: read as images again, they are cropped once, and
    not once more with each task that remembers them."""
    return decode_images(
        [task.images[place] for place in index],
        [task.where[place] for place in index],
        math.floor(backbone.input_size / backbone.crop_pct),
        interpolation=backbone.interpolation,
        crop_pct=1.0,
        crop_mode=backbone.crop_mode,
        fill=backbone.fill,
    )


def each_of(most: int, task: Task) -> int:
    """How many of `most` images each class may keep.

    Raises:
        InputError: there are more classes than images are allowed.
    """
    if most < len(task.classes):
        raise InputError(f"{most} exemplars are too few for {len(task.classes)} classes; allow at least one for each")
    return most // len(task.classes)


def herd(features: np.ndarray, count: int) -> np.ndarray:
    """Positions of at most `count` rows of a class's n×d `features`: the mean of the first k is as near to that of all as can be.

    Rebuffi et al. (2017), iCaRL: Incremental classifier and representation learning, algorithm 4, without taking any twice.
    """
    values = features.astype(np.float64)
    mean, total = values.mean(axis=0), np.zeros(values.shape[1])
    left = np.ones(len(values), dtype=bool)
    chosen: list[int] = []
    for k in range(1, min(count, len(values)) + 1):
        apart = np.linalg.norm(mean - (total + values) / k, axis=1)
        best = int(np.where(left, apart, np.inf).argmin())
        chosen.append(best)
        left[best] = False
        total += values[best]
    return np.array(chosen, dtype=np.int64)


def unit_features(network: nn.Module, images: np.ndarray, index: np.ndarray, backbone: Backbone) -> np.ndarray:
    """n×d float32 features of length one, of the images at `index`."""
    found: np.ndarray = nn.functional.normalize(outputs(network, images, index, backbone)).numpy()
    return found


def _write(folder: Path, kind: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.save(checkpoint.beside(folder, kind), tensors, facts)
