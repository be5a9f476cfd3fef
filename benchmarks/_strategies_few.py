"""Few-shot on omniglot_b: 5-way episodes, by networks meta-trained on omniglot_a or as they came.

The best epoch is chosen on a fifth of omniglot_a's classes, which are kept out of the episodes of training; nothing of omniglot_b
is seen before the end.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from _report import unpacked
from torch import nn

from automl_tl import Candidate, load_task
from automl_tl.backbones import build, catalogue
from automl_tl.data import subset
from automl_tl.inference import prepare
from automl_tl.objectives import few_shots, learn_to_learn
from automl_tl.pixels import pixels_of
from automl_tl.registry import strategies
from automl_tl.space import defaults
from automl_tl.trials import run_trial

BACKBONES = {"": "resnet10t_24.tiny_imagenet_64", "_seen": "resnet10t_24.omniglot_a_64"}
"""The second was pretrained on omniglot_a itself, as a classifier: what its nearest means know, others have to meta-train for."""
WAYS, QUERIES, EPISODES = 5, 10, 600


def evidence(folder: Path, *, quick: bool) -> tuple[list[tuple[str, ...]], dict[str, float]]:
    """Rows of the table, and mean accuracies (0–1) over the episodes with half the width of their 95 % intervals."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, figures = [], {}
    for suffix, name in BACKBONES.items():
        path = folder / f"omniglot{suffix}{'_quick' if quick else ''}.json"
        if not path.exists():
            path.write_text(json.dumps(_measure(folder, name, quick=quick), indent=1), encoding="utf-8")
        found = json.loads(path.read_text(encoding="utf-8"))
        figures |= {f"omniglot_{key}{suffix}": value for key, value in found.items()}
        for shots in (1, 5):
            means, probe, proto = (found[f"5w{shots}s_{how}"] for how in ("ncm", "probe", "protonet"))
            interval = found[f"5w{shots}s_protonet_interval"]
            base = f"omniglot_b, 5-way {shots}-shot, {name}: nearest mean {means:.3f}, linear probe {probe:.3f}"
            rows.append((base, "prototypical", f"{proto:.3f} ± {interval:.3f}", strategies()["prototypical"].paper))
    return rows, figures


def _measure(folder: Path, name: str, *, quick: bool) -> dict[str, float]:
    novel, known = (load_task(unpacked(one, folder)) for one in ("omniglot_b", "omniglot_a"))
    held_out = np.random.default_rng(0).permutation(len(known.classes))[: len(known.classes) // 5]
    held = np.isin(known.labels, held_out)
    parts = [subset(known, np.flatnonzero(chosen), name="omniglot_a") for chosen in (held, ~held)]
    task, backbone = learn_to_learn(few_shots(parts[0], 5), parts[1]), catalogue()[name]
    space = strategies()["prototypical"].space
    short = {"epochs": 2, "episodes": 10} if quick else {"epochs": 8, "episodes": 40}
    with tempfile.TemporaryDirectory() as scratch:
        candidate = Candidate(name, "prototypical", {**defaults(space), **short})
        trial, fitted = run_trial(task, candidate, backbone, seed=0, folder=Path(scratch))
    if fitted is None:
        raise SystemExit(trial.error)
    images = pixels_of(novel, backbone).array
    nets = {"ncm": build(backbone), "protonet": fitted.model.get_submodule("backbone")}
    features = {how: _features(net, images, backbone) for how, net in nets.items()}
    figures: dict[str, float] = {"train_seconds": trial.seconds, "episodes": float(60 if quick else EPISODES)}
    for shots in (1, 5):
        right: dict[str, list[float]] = {"ncm": [], "probe": [], "protonet": []}
        rng = np.random.default_rng(shots)
        for _ in range(int(figures["episodes"])):
            index, labels = _episode(novel.labels, shots, rng)
            known = np.tile(np.arange(shots + QUERIES) < shots, WAYS)
            for how, values in features.items():
                right[how].append(_nearest(values[index], labels, known))
            right["probe"].append(_probe(features["ncm"][index], labels, known))
        for how, values in right.items():
            figures[f"5w{shots}s_{how}"] = float(np.mean(values))
            figures[f"5w{shots}s_{how}_interval"] = float(1.96 * np.std(values, ddof=1) / np.sqrt(len(values)))
    return figures


@torch.no_grad()
def _features(net: nn.Module, images: np.ndarray, backbone: object) -> np.ndarray:
    net.eval()
    parts = np.array_split(np.arange(len(images)), max(1, len(images) // 256))
    return np.concatenate([net(prepare(images[part], backbone)).float().numpy() for part in parts])  # type: ignore[arg-type]


def _episode(labels: np.ndarray, shots: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Images of five classes, shots and then queries of each, and which class of the five each is of."""
    classes = rng.permutation(np.unique(labels))[:WAYS]
    index = [rng.permutation(np.flatnonzero(labels == label))[: shots + QUERIES] for label in classes]
    return np.concatenate(index), np.repeat(np.arange(WAYS), shots + QUERIES)


def _nearest(values: np.ndarray, labels: np.ndarray, known: np.ndarray) -> float:
    means = np.stack([values[known & (labels == label)].mean(0) for label in range(WAYS)])
    apart = ((values[~known][:, None] - means) ** 2).sum(2)
    return float((apart.argmin(1) == labels[~known]).mean())


def _probe(values: np.ndarray, labels: np.ndarray, known: np.ndarray) -> float:
    from sklearn.linear_model import LogisticRegression

    scale = np.sqrt((values[known] ** 2).mean())
    probe = LogisticRegression(max_iter=200).fit(values[known] / scale, labels[known])
    return float((probe.predict(values[~known] / scale) == labels[~known]).mean())
