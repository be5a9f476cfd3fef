"""Domain adaptation on PACS: what each strategy makes of unlabelled images of another domain, against the source alone.

Target labels are hidden from training and from the choice of the epoch. Each run is kept in the folder as it ends, so a second
call goes on.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from _report import unpacked

from automl_tl import Candidate, Fitted, Task, load_task, registry
from automl_tl.backbones import catalogue
from automl_tl.data import subset
from automl_tl.evaluation.domains import features_of, flattened, gap_of
from automl_tl.objectives import adapt
from automl_tl.pixels import pixels_of
from automl_tl.records import TARGET, TRAIN, Backbone
from automl_tl.space import defaults
from automl_tl.trials import judge_on_test, run_trial

BACKBONE = "resnet10t_24.tiny_imagenet_64"
SHIFTS = (("photo", "art_painting"), ("art_painting", "cartoon"), ("photo", "sketch"))
STRATEGIES = {
    "source_only": "fine-tuning",
    "coral": "deep-coral",
    "dan": "dan",
    "dann": "dann",
    "adabn": "adabn",
    "mcc": "mcc",
}
EPOCHS = 6
SEEDS = 3
SHOWN = 300
"""Images of each domain in a drawing."""


def evidence(folder: Path, *, quick: bool) -> tuple[list[tuple[str, ...]], dict[str, float]]:
    """Rows of the table, and mean target accuracy over shifts and seeds (0–1) with the gaps of the domains."""
    folder.mkdir(parents=True, exist_ok=True)
    shifts, seeds = (SHIFTS[:1], 1) if quick else (SHIFTS, SEEDS)
    runs = []
    for seed in range(seeds):
        for shift in shifts:
            for name in STRATEGIES:
                runs.append(_run(folder, shift, name, seed, quick=quick))
    return _rows(runs), _figures(runs)


def _run(folder: Path, shift: tuple[str, str], name: str, seed: int, *, quick: bool) -> dict[str, Any]:
    """One candidate trained, judged on target test images, and its gap measured; read if it is there already."""
    path = folder / f"{'quick_' if quick else ''}{shift[0]}_{shift[1]}_{name}_{seed}.json"
    if path.exists():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    source, target = (load_task(unpacked("pacs", folder) / domain) for domain in shift)
    if quick:
        source, target = (_thinned(one) for one in (source, target))
    task, backbone = adapt(source, target, labelled=False), catalogue()[BACKBONE]
    strategy = registry.strategies()[STRATEGIES[name]]
    values = {**defaults(strategy.space), "epochs": 3 if quick else EPOCHS}
    with tempfile.TemporaryDirectory() as scratch:
        candidate = Candidate(BACKBONE, strategy.name, values)
        trial, fitted = run_trial(task, candidate, backbone, seed=seed, folder=Path(scratch))
    if fitted is None:
        raise SystemExit(trial.error)
    found = {
        "shift": " to ".join(shift),
        "strategy": name,
        "seed": seed,
        "accuracy": judge_on_test(task, backbone, fitted.model)["accuracy"],
        "source_accuracy": trial.validation["accuracy"],
        "chosen_by": trial.validation["score"],
        "seconds": trial.seconds,
        **_gaps(task, backbone, fitted, drawing=folder / f"{path.stem}.svg" if seed == 0 else None),
    }
    path.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return found


def _gaps(task: Task, backbone: Backbone, fitted: Fitted, *, drawing: Path | None) -> dict[str, float]:
    """Distances of the domains on the features of the network as it came and as it was trained."""
    images = pixels_of(task, backbone).array
    parts = {"source": _some(task.part(TRAIN)), "target": _some(task.part(TARGET))}
    before = registry.zoos()[backbone.zoo].build(backbone)
    nets = {"before": before, "after": fitted.model.get_submodule("backbone")}
    if drawing is not None:
        both = np.concatenate(list(parts.values()))
        first = len(parts["source"])
        seen = {name: features_of(net, images, both, backbone).values for name, net in nets.items()}
        _draw({name: flattened({"source": v[:first], "target": v[first:]}) for name, v in seen.items()}, drawing)
    return {f"{name}_{when}": value for when, net in nets.items() for name, value in gap_of(net, images, parts, backbone).items()}


def _draw(maps: Mapping[str, Mapping[str, np.ndarray]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 4.5))
    for axis, (when, groups) in zip(axes, maps.items(), strict=True):
        for name, points in groups.items():
            axis.scatter(*points.T, s=5, label=name)
        axis.set(title=f"{when} training", xticks=[], yticks=[])
    axes[0].legend()
    figure.savefig(path)
    pyplot.close(figure)


def _some(index: np.ndarray) -> np.ndarray:
    return index[np.linspace(0, len(index) - 1, min(len(index), SHOWN)).astype(int)]


def _thinned(task: Task) -> Task:
    return subset(task, np.arange(0, len(task.labels), 4), name=task.name)


def _rows(runs: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    rows = []
    base = _mean(runs, "source_only", "accuracy")
    for name, strategy in STRATEGIES.items():
        if name != "source_only":
            figure = _mean(runs, name, "accuracy")
            paper = registry.strategies()[strategy].paper
            rows.append((f"PACS, target accuracy: source only {base:.3f}", strategy, f"{figure:.3f}", paper))
    return rows


def _figures(runs: list[dict[str, Any]]) -> dict[str, float]:
    figures = {f"pacs_{name}": _mean(runs, name, "accuracy") for name in STRATEGIES}
    for name in STRATEGIES:
        for distance in ("frechet", "mmd2"):
            for when in ("before", "after"):
                figures[f"pacs_{name}_{distance}_{when}"] = _mean(runs, name, f"{distance}_{when}")
    return figures | {"pacs_seeds": float(len({run["seed"] for run in runs})), "pacs_epochs": float(EPOCHS)}


def _mean(runs: list[dict[str, Any]], name: str, key: str) -> float:
    return float(np.mean([run[key] for run in runs if run["strategy"] == name]))
