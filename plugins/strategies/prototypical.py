"""Learning to learn a class from a few images."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from automl_tl import Backbone, Classifier, Fitted, Job, Point, Strategy, checkpoint, hookimpl, loop
from automl_tl.augment import augment, normalise
from automl_tl.device import autocast, channels_last, device, memory_mb, precision
from automl_tl.errors import TrialError
from automl_tl.inference import outputs
from automl_tl.objectives import Validated, validate
from automl_tl.records import SOURCE, TRAIN
from automl_tl.space import Choice, Float, Int, Value

from ._prototypes import distances, nearest_head, prototypes

QUERIES = 5
"""Images a class that an episode asks about."""
NAME = "episodes.safetensors"


class Prototypical(Strategy):
    """The backbone learns, in episodes on the source's classes, to put images near the mean of a few of their class.

    An episode (algorithm 1 of the paper) takes `ways` classes of the source with `shots` images each, whose mean features are
    the prototypes, and descends on the cross-entropy of other images under a softmax of negative squared distances. The task's
    own classes are never trained on: the means of their training images become the head, which is linear. An epoch is
    `episodes` episodes; the best is kept by the task's validation images, the backbone as it came (nearest class mean)
    included.
    """

    name = "prototypical"
    paper = "Snell et al. (2017), Prototypical networks for few-shot learning"
    needs = frozenset({"source"})
    space = {
        "rate": Float(1e-5, 1e-2, 5e-4, log=True),
        "epochs": Int(2, 40, 8),
        "episodes": Int(10, 200, 40),
        "ways": Int(2, 60, 20),
        "shots": Int(1, 10, 5),
        "weight_decay": Float(1e-6, 0.1, 1e-4, log=True),
        "augmentation": Choice(("none", "light", "medium"), "light"),
    }

    def run(self, job: Job) -> Fitted:
        torch.manual_seed(job.seed)
        net = channels_last(job.build_backbone())
        optimiser = torch.optim.AdamW(net.parameters(), lr=self.hp.rate, weight_decay=self.hp.weight_decay)
        classes = enough_images(job, self.hp.shots + 1)
        path: Path = job.folder / NAME
        curve: list[Point] = []
        if path.exists():
            curve, best = restore(path, net, optimiser)
        else:
            model, judged = with_means(net, job)
            curve.append(Point(0, 0.0, None, judged.score, memory_mb(), "as it came"))
            best = weights(net)
        complete = True
        for epoch in range(len(curve) - 1, self.hp.epochs):
            if epoch >= job.stop_after or loop.time_is_up(job, loop.last_epoch(curve)):
                complete = False
                break
            start = time.perf_counter()
            loss = self._episodes(net, optimiser, job, classes, epoch)
            score = with_means(net, job)[1].score
            if score > max(point.score for point in curve):
                best = weights(net)
            curve.append(Point(epoch + 1, curve[-1].seconds + time.perf_counter() - start, loss, score, memory_mb()))
            save(path, net, optimiser, best, curve)
            if job.report(curve[-1]):
                complete = epoch + 1 == self.hp.epochs
                break
        net.load_state_dict(best)
        model, judged = with_means(net, job)
        return Fitted(model, curve, judged.probabilities, complete)

    def _episodes(
        self, net: nn.Module, optimiser: torch.optim.Optimizer, job: Job, classes: list[np.ndarray], epoch: int
    ) -> float:
        """One epoch; the mean loss. It depends on the seed and its number alone."""
        torch.manual_seed(job.seed * 1_000_003 + epoch)
        rng, generator = np.random.default_rng([job.seed, epoch]), torch.Generator().manual_seed(job.seed * 1_000_003 + epoch)
        total, count = 0.0, int(self.hp.episodes)
        # fp16 would need its gradients scaled, by a factor that a checkpoint holds, too
        dtype = torch.bfloat16 if precision(net) == torch.bfloat16 else torch.float32
        net.train()
        for step in range(count):
            for group in optimiser.param_groups:
                group["lr"] = self.hp.rate * loop.schedule((epoch + step / count) / self.hp.epochs)
            index, ways, shots = draw_episode(classes, self.hp.ways, self.hp.shots, rng)
            images = torch.from_numpy(job.pixels.array[index]).to(device()).permute(0, 3, 1, 2)
            views = augment(images, loop.AUGMENTATIONS[self.hp.augmentation], size=job.pixels.size, generator=generator)
            with autocast(dtype):
                features = net(normalise(views, job.backbone.mean, job.backbone.std))
            loss = episode_loss(features.float(), ways, shots)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(net.parameters(), loop.CLIP)
            optimiser.step()
            total += float(loss.detach())
        if not math.isfinite(total):
            raise TrialError(f"the loss became {total} in epoch {epoch + 1}; lower the rate")
        return total / count

    @classmethod
    def cost(cls, backbone: Backbone, images: int, hyperparameters: Mapping[str, Value]) -> float:
        values = {name: float(hyperparameters[name]) for name in ("epochs", "episodes", "ways", "shots")}
        seen = values["episodes"] * values["ways"] * (values["shots"] + QUERIES)
        return float(backbone.macs) * (3.0 * seen + images) * values["epochs"]


def enough_images(job: Job, fewest: int) -> list[np.ndarray]:
    """Positions of the source's images, class by class, of the classes with at least `fewest`.

    Raises:
        TrialError: fewer than two such classes.
    """
    source = job.task.part(SOURCE)
    labels = job.task.labels[source]
    found = [source[labels == label] for label in np.unique(labels)]
    kept = [members for members in found if len(members) >= fewest]
    if len(kept) < 2:
        raise TrialError(f"episodes need two classes with {fewest} images each in --source; take fewer shots")
    return kept


def draw_episode(classes: list[np.ndarray], ways: int, shots: int, rng: np.random.Generator) -> tuple[np.ndarray, int, int]:
    """Positions of an episode's images, ways × (shots + queries) class by class, and how many ways and shots there are."""
    ways = min(ways, len(classes))
    chosen = [classes[number] for number in rng.permutation(len(classes))[:ways]]
    queries = min(QUERIES, *(len(members) - shots for members in chosen))
    return np.concatenate([rng.permutation(members)[: shots + queries] for members in chosen]), ways, shots


def episode_loss(features: Tensor, ways: int, shots: int) -> Tensor:
    """Cross-entropy of the images after the first `shots` of each class, under distances to the means of those."""
    each = features.view(ways, -1, features.shape[1])
    logits = -distances(each[:, shots:].flatten(0, 1), each[:, :shots].mean(1))
    labels = torch.arange(ways, device=features.device).repeat_interleave(each.shape[1] - shots)
    return F.cross_entropy(logits, labels)


def with_means(net: nn.Module, job: Job) -> tuple[Classifier, Validated]:
    """The classifier by nearest means of the task's training images, and what it does on the validation images."""
    train = job.task.part(TRAIN)
    labels = torch.from_numpy(job.task.labels[train])
    centres = prototypes(outputs(net, job.pixels.array, train, job.backbone), labels, len(job.task.classes))
    model = Classifier(net, nearest_head(centres).to(device()))
    return model, validate(model, job.pixels.array, job.task, job.backbone, dtype=torch.float32)


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in net.state_dict().items()}


def save(path: Path, net: nn.Module, optimiser: torch.optim.Optimizer, best: dict[str, Tensor], curve: list[Point]) -> None:
    parts = {"net": net.state_dict(), "best": best, "moment": checkpoint.moments(optimiser)}
    tensors = {name: tensor for prefix, part in parts.items() for name, tensor in checkpoint.prefixed(part, prefix).items()}
    checkpoint.save(path, tensors, {"curve": [asdict(point) for point in curve]})


def restore(path: Path, net: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[list[Point], dict[str, Tensor]]:
    tensors, facts = checkpoint.load(path)
    net.load_state_dict(checkpoint.nested(tensors, "net"))
    checkpoint.remember(optimiser, checkpoint.nested(tensors, "moment"))
    return [Point(**point) for point in facts["curve"]], checkpoint.nested(tensors, "best")


@hookimpl
def register_strategies() -> list[type[Strategy]]:
    return [Prototypical]
