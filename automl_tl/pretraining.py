"""Train a backbone from scratch on a source dataset: how the networks of the embedded zoo came to be.

A recipe (JSON: architecture, source, method, rates, epochs, seed) and a folder of images become a folder with a card and a
safetensors file, in the form that `automl-tl zoo add` reads. Training goes on from its last finished epoch, as long as neither
the recipe nor the images have changed. With the method "supervised" a network learns the labels of its source; the other methods
are those of `pretexts`, which see no label.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast
from zipfile import is_zipfile

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .augment import Augmentation, augment, normalise
from .cards import check_card, write_network
from .data import load_task
from .device import channels_last
from .device import device as this_device
from .errors import AutomlError, InputError
from .home import home, whole
from .loop import schedule
from .networks import count, create
from .pixels import decode
from .pretexts import PRETEXTS, neighbour_accuracy, projector, recolour
from .records import LARGEST_SIDE, TEST, TRAIN
from .space import Choice, Float, Int, Space, check

SUPERVISED = "supervised"
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Recipe:
    """All that decides how a network of the zoo was trained."""

    name: str
    build: dict[str, Any]
    source_dataset: str
    source_domain: str
    input_size: int
    epochs: int
    batch_size: int
    rate: float
    weight_decay: float
    label_smoothing: float
    scale: float
    flip: bool
    rotate: float
    jitter: float
    start_size: int
    """Side in pixels of the first half of the epochs: small images teach coarse features for less."""
    precision: str
    seed: int
    method: str = SUPERVISED
    location: str = ""
    """Where the source's images are, if a reader makes them itself; empty: in a folder that has to be named."""


RANGES: Space = {
    "input_size": Int(1, LARGEST_SIDE, 64),
    "epochs": Int(1, 100_000, 10),
    "batch_size": Int(2, 1_000_000, 64),
    "rate": Float(1e-9, 10.0, 1e-3),
    "weight_decay": Float(0.0, 1.0, 0.05),
    "label_smoothing": Float(0.0, 0.99, 0.1),
    "scale": Float(0.01, 1.0, 0.5),
    "flip": Choice((False, True), False),
    "rotate": Float(0.0, 180.0, 0.0),
    "jitter": Float(0.0, 1.0, 0.0),
    "start_size": Int(1, LARGEST_SIDE, 64),
    "precision": Choice(("fp32", "bf16"), "fp32"),
    "seed": Int(0, 2**31 - 1, 0),
    "method": Choice((SUPERVISED, *PRETEXTS), SUPERVISED),
}
"""What the numbers and words of a recipe may be; the rest of it must do for a card."""


def read_recipe(path: Path) -> Recipe:
    """Raises InputError if `path` is not a recipe, or none that a network can be trained by: training may take hours."""
    try:
        recipe = Recipe(**json.loads(path.read_text(encoding="utf-8")))
        check(RANGES, {name: getattr(recipe, name) for name in RANGES})
        nothing = {"num_classes": 0, "accuracy": 0.0, "images": 0, "seconds": 0}
        check_card({"name": recipe.name, **card(recipe, nothing)}, path)
        if Path(recipe.name).name != recipe.name:
            raise InputError(f"name: {recipe.name!r} cannot be the name of a file")
        for size in {recipe.start_size, recipe.input_size}:
            count(recipe.build["timm"], recipe.build.get("kwargs", {}), num_classes=0, input_size=size)
    except (OSError, ValueError, TypeError, RecursionError, AutomlError) as error:
        raise InputError(f"cannot read the recipe {path}: {str(error).removeprefix(f'{path}: ')}") from None
    return recipe


def pretrain_recipe(path: Path, data: Path | None, out: Path, *, say: Callable[[str], None]) -> Path:
    """Train the network of a recipe on the images in `data` (train/CLASS, test/CLASS); the path of its card in `out`.

    `data` is not needed where the recipe says where its images come from.

    Raises:
        InputError: no recipe, no images to train and judge the network on, or fewer of them than a batch holds.
    """
    recipe = read_recipe(path)
    source = data or recipe.location
    if not source:
        raise InputError(f"{path.name} is trained on the images of {recipe.source_dataset}; say where they are with --data")
    task = load_task(source, name=recipe.source_dataset, validation=0.0)
    if recipe.batch_size > (images := len(task.part(TRAIN))):  # only whole batches are trained on, so that there would be none
        raise InputError(
            f"{path.name}: batch_size {recipe.batch_size} is more than the {images} training images of {source}; "
            "lower it or name more images"
        )
    pixels = decode(task, recipe.input_size, interpolation="bicubic", crop_pct=1.0)
    parts = [(pixels.array[task.part(split)], task.labels[task.part(split)]) for split in (TRAIN, TEST)]
    if not len(parts[1][1]):
        raise InputError(f"{source} has no test images; a card needs a measured accuracy")
    checkpoint = _checkpoint(recipe, task.fingerprint)
    checkpoint.parent.mkdir(exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    net, facts = pretrain(recipe, parts[0], parts[1], checkpoint=checkpoint, say=say)
    written = write_network(out, recipe.name, net, card(recipe, facts))
    checkpoint.unlink(missing_ok=True)  # only now: until the network is on disk, it is all that is left of the training
    return written


def _checkpoint(recipe: Recipe, fingerprint: str) -> Path:
    """Where training is kept between two calls: a place of its own for each recipe, to the last number, and each task.

    Else an edited recipe or other images would go on with the old network, and its card would claim the new.
    """
    text = json.dumps([asdict(recipe), fingerprint], sort_keys=True)
    return home() / "pretraining" / f"{recipe.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.pt"


def card(recipe: Recipe, facts: dict[str, Any]) -> dict[str, Any]:
    """What is told of a pretrained network. Without a source head there is no `source_accuracy`, but still a measured one."""
    top1 = round(facts["accuracy"], 4)
    judged = "" if recipe.method == SUPERVISED else ", named by their 20 nearest training images"
    return {
        "build": recipe.build,
        "num_classes": facts["num_classes"],
        "source_dataset": recipe.source_dataset,
        "source_domain": recipe.source_domain,
        "input_size": [3, recipe.input_size, recipe.input_size],
        "mean": list(MEAN),
        "std": list(STD),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        **({"source_accuracy": top1} if facts["num_classes"] else {}),
        "licence": "MIT",
        "validation": {"what": f"test images of {recipe.source_dataset}{judged}", "top1": top1},
        "training": {"images": facts["images"], "seconds": facts["seconds"]},
        "recipe": asdict(recipe),
    }


def pretrain(
    recipe: Recipe,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    checkpoint: Path,
    say: Callable[[str], None],
) -> tuple[nn.Module, dict[str, Any]]:
    """Train `recipe` on uint8 N×H×W×3 images with integer labels. Returns the network and its measured facts.

    `checkpoint` is written after every epoch and read at the start.

    Raises:
        InputError: it is damaged.
    """
    torch.manual_seed(recipe.seed)
    device = this_device()
    supervised = recipe.method == SUPERVISED
    classes = int(train[1].max()) + 1 if supervised else 0
    made = create(recipe.build["timm"], recipe.build.get("kwargs", {}), num_classes=classes)
    width = cast(int, made.num_features)
    head = (nn.Identity() if supervised else projector(width)).to(device)
    net = channels_last(made)
    learner = nn.ModuleList([net, head])
    optimiser = torch.optim.AdamW(_groups(learner, recipe.weight_decay), lr=recipe.rate, betas=(0.9, 0.98))
    first, seconds = 0, 0.0
    if checkpoint.exists():
        if not is_zipfile(checkpoint):  # asked first: of what is no zip, torch's words advise to load what is not safe
            raise InputError(f"{checkpoint}: is damaged; delete it, and the pretraining begins anew")
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        learner.load_state_dict(state["learner"])
        optimiser.load_state_dict(state["optimiser"])
        first, seconds = state["epoch"], state["seconds"]
    for epoch in range(first, recipe.epochs):
        start = time.perf_counter()
        loss = _epoch(recipe, net, head, optimiser, train, epoch)
        seconds += time.perf_counter() - start
        state = {"learner": learner.state_dict(), "optimiser": optimiser.state_dict(), "epoch": epoch + 1, "seconds": seconds}
        with whole(checkpoint) as partial, partial.open("xb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())  # or a power cut may leave the name without what it stands for
        score = f" test {accuracy(net, *test, device=device):.4f}" if supervised else ""
        say(f"{recipe.name} epoch {epoch + 1}/{recipe.epochs} loss {loss:.3f}{score} {seconds:.0f} s")
    if supervised:
        top1 = accuracy(net, *test, device=device)
    else:
        known, new = ((_outputs(net, part[0], device), torch.from_numpy(part[1]).to(device)) for part in (train, test))
        top1 = neighbour_accuracy(known, new)
    return net.eval(), {"num_classes": classes, "accuracy": top1, "images": len(train[1]), "seconds": round(seconds)}


def _epoch(
    recipe: Recipe,
    net: nn.Module,
    head: nn.Module,
    optimiser: torch.optim.Optimizer,
    train: tuple[np.ndarray, np.ndarray],
    epoch: int,
) -> float:
    """One pass over the training images, in an order of this epoch's own; the mean loss."""
    images, labels = train
    device = this_device()
    torch.manual_seed(recipe.seed * 100_003 + epoch)  # of dropped paths and units: after a restart the same as without one
    generator = torch.Generator().manual_seed(recipe.seed * 100_003 + epoch)
    order = torch.randperm(len(labels), generator=generator).numpy()
    steps = len(labels) // recipe.batch_size
    parameters = [*net.parameters(), *head.parameters()]
    total = 0.0
    net.train()
    head.train()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate * schedule((epoch + step / steps) / recipe.epochs, warm_up=0.15)
        index = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
        batch = torch.from_numpy(images[index]).to(device).permute(0, 3, 1, 2)
        target = torch.from_numpy(labels[index]).to(device)
        loss = _loss(recipe, net, head, batch, target, early=epoch < recipe.epochs / 2, generator=generator)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimiser.step()
        total += loss.item()
    return total / steps


def _loss(
    recipe: Recipe, net: nn.Module, head: nn.Module, batch: Tensor, target: Tensor, *, early: bool, generator: torch.Generator
) -> Tensor:
    """Of one batch of uint8 N×3×H×W images: of the labels, or of two views."""
    how = Augmentation(recipe.scale, recipe.flip, recipe.rotate, recipe.jitter)
    size = recipe.start_size if early else recipe.input_size
    outputs = []
    for _ in range(1 if recipe.method == SUPERVISED else 2):
        view = augment(batch, how, size=size, generator=generator)
        if recipe.method != SUPERVISED:
            view = recolour(view, generator)
        inputs = normalise(view, MEAN, STD).contiguous(memory_format=torch.channels_last)
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            outputs.append(head(net(inputs)).float())
    if recipe.method == SUPERVISED:
        return F.cross_entropy(outputs[0], target, label_smoothing=recipe.label_smoothing)
    return PRETEXTS[recipe.method](*outputs)


def _groups(net: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Norms and biases are not decayed."""
    matrices = [p for p in net.parameters() if p.ndim > 1]
    vectors = [p for p in net.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def accuracy(net: nn.Module, images: np.ndarray, labels: np.ndarray, *, device: torch.device) -> float:
    said = _outputs(net, images, device).argmax(1).cpu().numpy()
    return float((said == labels).mean())


@torch.inference_mode()
def _outputs(net: nn.Module, images: np.ndarray, device: torch.device) -> Tensor:
    """N×outputs, in evaluation mode."""
    net.eval()
    parts = []
    for start in range(0, len(images), 256):
        batch = torch.from_numpy(images[start : start + 256]).to(device).permute(0, 3, 1, 2)
        parts.append(net(normalise(batch, MEAN, STD).contiguous(memory_format=torch.channels_last)))
    return torch.cat(parts)
