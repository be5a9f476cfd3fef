"""Published transfer results, each target left out in turn: the order of networks from metadata alone, beside the publications'.

    python benchmarks/published.py [--json FILE] [--quick]

The ranker is the product's (`automl_tl.ranker.learn` and `rank`): the published tables become its history. Of a target that is
left out nothing measured on it is known (nor on a twin: the same images with other labels); the second stage sees its
transferability scores, which are known before any fine-tuning. Needs ../shared/tables.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from _report import SHARED, arguments, table, write

from automl_tl.cost import CostModel
from automl_tl.experience import Experience, Trials
from automl_tl.ranker import learn, rank
from automl_tl.records import Backbone, Candidate, Profile

STRATEGY = "full-finetuning"
TARGETS = ("stanfordcars", "svhn", "caltech101", "pets", "cifar100", "flowers", "smallnorb_label_elevation", "dtd")
"""Of TransferGraph's published figures."""
METRICS = ("pearson", "w-kendall", "rel@1")
_SCORES = {"TransferabilityMethod.LOG_ME": "logme", "TransferabilityMethod.REG_H_SCORE": "h-score"}
_SETS = {
    "caltech101": (102, 3060),
    "cifar10": (10, 50000),
    "cifar100": (100, 50000),
    "cub200": (200, 5994),
    "diabetic_retinopathy_detection": (5, 35126),
    "dtd": (47, 1880),
    "eurosat": (10, 27000),
    "flowers": (102, 1020),
    "food101": (101, 75750),
    "kitti": (4, 6347),
    "nabird": (555, 23929),
    "oxford_pets": (37, 3680),
    "pets": (37, 3680),
    "smallnorb_label_azimuth": (18, 24300),
    "smallnorb_label_elevation": (9, 24300),
    "stanford_dogs": (120, 12000),
    "stanfordcars": (196, 8144),
    "svhn": (10, 73257),
    "voc2007": (20, 2501),
}
"""Classes and training images of the image sets, by their own publications (as the catalogue of TensorFlow Datasets has them)."""


@dataclass(frozen=True, eq=False)
class Published:
    """A published table as a history, and what its figures are computed on."""

    experience: Experience
    targets: tuple[str, ...]
    scores: Mapping[str, Sequence[tuple[str, str, float]]]
    """target → (metric, network, value), as often as the table has it."""


def transfergraph(folder: Path) -> Published:
    """Li et al., 2024. Their figures are without the one network whose type is unknown."""
    configs = {row["model"]: row for row in _read(folder / "model_config_dataset.csv") if row["model_type"]}
    records = [row for row in _read(folder / "records.csv") if row["model"] in configs and row["eval_accuracy"]]
    backbones = {
        name: _backbone(
            name,
            family=row["model_type"],
            source=row["dataset"],
            input_size=int(float(row["input_shape"])),
            params=int(float(row["number_of_parameters"] or 0)),
            num_features=int(float(row["output_shape"])),
            num_classes=int(float(row["#labels"])),
            source_accuracy=float(row["accuracy"]) if row["accuracy"] else None,
        )
        for name, row in configs.items()
    }
    scores: dict[str, list[tuple[str, str, float]]] = {}
    for row in _read(folder / "transferability_score_records.csv"):
        if row["score"] and row["model"] in configs:
            scores.setdefault(row["target_dataset"], []).append((_SCORES[row["metric"]], row["model"], float(row["score"])))
    tried = [(row["model"], row["finetuned_dataset"], float(row["eval_accuracy"]), float(row["elapsed_time"])) for row in records]
    return Published(_experience(tried, backbones, scores), TARGETS, scores)


def parc(file: Path) -> Published:
    """Bolya et al., 2021: architectures × source datasets."""
    rows = _read(file)
    backbones = {
        (name := f"{row['Architecture']}.{row['Source Dataset']}"): _backbone(
            name,
            family=row["Architecture"],
            source=row["Source Dataset"],
            num_classes=_SETS.get(row["Source Dataset"], (0, 0))[0],
        )
        for row in rows
    }
    tried = [
        (f"{row['Architecture']}.{row['Source Dataset']}", row["Target Dataset"], float(row["Oracle"]) / 100, 0.0) for row in rows
    ]
    return Published(_experience(tried, backbones, {}), tuple(sorted({row["Target Dataset"] for row in rows})), {})


def _read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        raise SystemExit(f"{path} is not here: this program needs the tables of ../shared/tables")
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _backbone(
    name: str,
    *,
    family: str,
    source: str,
    input_size: int = 224,
    params: int = 0,
    num_features: int = 0,
    num_classes: int = 0,
    source_accuracy: float | None = None,
) -> Backbone:
    grey = (0.5, 0.5, 0.5)
    facts = (name, "published", "", family, source, "", input_size, grey, grey, "bicubic", 1.0, params, 0, num_features)
    return Backbone(*facts, num_classes=num_classes, source_accuracy=source_accuracy)


def _experience(
    tried: Sequence[tuple[str, str, float, float]],
    backbones: Mapping[str, Backbone],
    scores: Mapping[str, Sequence[tuple[str, str, float]]],
) -> Experience:
    """`tried`: network, target, accuracy, seconds."""
    names, targets, accuracy, seconds = (list(column) for column in zip(*tried, strict=True))
    profiles = {}
    for target in dict.fromkeys(targets):
        classes, images = _SETS[target]
        looked: dict[str, dict[str, float]] = {}
        for metric, name, value in scores.get(target, ()):
            looked.setdefault(name, {})[metric] = value
        meta = {"classes": float(classes), "images": float(images), "images_per_class": images / classes}
        profiles[target] = Profile(target, target, meta, {}, looked)
    texts = {"task": targets, "source_dataset": [_images_of(target) for target in targets], "backbone": names}
    trials = Trials(
        **{column: np.array(values, dtype=object) for column, values in texts.items()},
        strategy=np.full(len(names), STRATEGY, dtype=object),
        hyperparameters=[{}] * len(names),
        score=np.array(accuracy),
        seconds=np.array(seconds),
        memory_mb=np.zeros(len(names)),
        images=np.array([float(_SETS[target][1]) for target in targets]),
        speed=np.full(len(names), np.nan),
    )
    return Experience(trials, profiles, backbones, "published")


def _images_of(target: str) -> str:
    """What leaves together: twins are the same images with other labels."""
    return target.split("_label_")[0]


def judge(accuracy: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """The publications' figures of one target: Pearson, weighted Kendall's tau, accuracy of the first over the best."""
    from scipy.stats import pearsonr, weightedtau

    return {
        "pearson": float(pearsonr(predicted, accuracy).statistic),
        "w-kendall": float(weightedtau(predicted, accuracy).statistic),
        "rel@1": float(accuracy[np.argmax(predicted)] / accuracy.max()),
    }


def score_alone(published: Published, metric: str, target: str) -> dict[str, float]:
    """What the published figures say of a transferability score: on the networks that have one, repeated ones repeated."""
    trials = published.experience.trials
    truth = {trials.backbone[row]: trials.score[row] for row in np.flatnonzero(trials.task == target)}
    found = [(truth[name], value) for kind, name, value in published.scores[target] if kind == metric and name in truth]
    accuracy, predicted = (np.array(column) for column in zip(*found, strict=True))
    return judge(accuracy, predicted)


def leave_target_out(published: Published, target: str, *, seed: int) -> dict[int, np.ndarray]:
    """stage → what is predicted of each trial of `target`, learnt from all targets of other images."""
    experience = published.experience
    trials = experience.trials
    known = experience.take(np.flatnonzero(trials.source_dataset != _images_of(target)))
    ranker = learn(known, seed=seed)
    own = trials.take(np.flatnonzero(trials.task == target))
    candidates = [Candidate(name, STRATEGY) for name in own.backbone]
    place = {candidate.backbone: row for row, candidate in enumerate(candidates)}
    profile = experience.profiles[target]
    predicted = {}
    for stage, seen in ((1, replace(profile, transferability={})), (2, profile)):
        ranking = rank(ranker, candidates, seen, experience.backbones, CostModel(1.0, {}), strategies={}, stage=stage)
        predicted[stage] = np.empty(len(candidates))
        for item in ranking.items:
            predicted[stage][place[item.candidate.backbone]] = item.score
    return predicted


def ours(published: Published, *, seeds: Sequence[int], stages: Sequence[int]) -> dict[int, dict[str, dict[str, float]]]:
    """stage → target → figures, each the mean over the seeds."""
    trials = published.experience.trials
    found: dict[int, dict[str, dict[str, float]]] = {stage: {} for stage in stages}
    for target in published.targets:
        start = time.perf_counter()
        accuracy = trials.score[trials.task == target]
        runs = [leave_target_out(published, target, seed=seed) for seed in seeds]
        for stage in stages:
            judged = [judge(accuracy, run[stage]) for run in runs]
            found[stage][target] = {metric: float(np.mean([one[metric] for one in judged])) for metric in METRICS}
        print(f"without {target}: {time.perf_counter() - start:.1f} s", flush=True)
    return found


def _mean(figures: Mapping[str, Mapping[str, float]], metric: str) -> float:
    return float(np.mean([found[metric] for found in figures.values()]))


def main() -> None:
    options = arguments(__doc__, "one seed instead of three").parse_args()
    seeds = (0,) if options.quick else (0, 1, 2)
    folder = SHARED / "tables"
    graph, controlled = transfergraph(folder / "transfergraph"), parc(folder / "parc" / "controlled.csv")
    scores = {metric: {target: score_alone(graph, metric, target) for target in graph.targets} for metric in ("logme", "h-score")}
    by_stage = ours(graph, seeds=seeds, stages=(1, 2))
    ways = {"ours, metadata alone": by_stage[1], "ours, with LogME and H-score": by_stage[2]}
    ways |= {f"{metric}, recomputed": found for metric, found in scores.items()}
    ways |= _published(folder / "transfergraph", graph.targets)
    for metric in METRICS:
        rows = [
            (way, *(f"{figures[target][metric]:.3f}" for target in graph.targets), f"{_mean(figures, metric):.3f}")
            for way, figures in ways.items()
            if all(metric in found for found in figures.values())
        ]
        heads = ("way", *(target.replace("smallnorb_label_", "norb ") for target in graph.targets), "mean")
        table(f"TransferGraph, target left out: {metric}", heads, rows)
    bank = ours(controlled, seeds=seeds, stages=(1,))[1]
    shown = [(target, f"{100 * found['pearson']:.1f}") for target, found in bank.items()]
    mean = ("mean", f"{100 * _mean(bank, 'pearson'):.1f}")
    published = ("published best mean (PARC with the capacity heuristic)", "70.3")
    table("PARC, controlled: Pearson × 100, target left out", ("target", "ours, metadata alone"), [*shown, mean, published])
    figures = {
        "transfergraph_pearson": _mean(by_stage[1], "pearson"),
        "transfergraph_wkendall": _mean(by_stage[1], "w-kendall"),
        "transfergraph_rel1": _mean(by_stage[1], "rel@1"),
        "transfergraph_looked_pearson": _mean(by_stage[2], "pearson"),
        "transfergraph_looked_wkendall": _mean(by_stage[2], "w-kendall"),
        "transfergraph_looked_rel1": _mean(by_stage[2], "rel@1"),
        "parc_pearson": 100 * _mean(bank, "pearson"),
        "seeds": len(seeds),
    }
    for metric, found in scores.items():
        name = metric.replace("-", "_")
        figures |= {f"{name}_pearson": _mean(found, "pearson"), f"{name}_wkendall": _mean(found, "w-kendall")}
        figures |= {f"{name}_rel1": _mean(found, "rel@1")}
    write(options.json, figures)


def _published(folder: Path, targets: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    """way → target → metric, as published. Their last column is no mean of these targets, so the mean is taken here."""
    ways: dict[str, dict[str, dict[str, float]]] = {}
    for metric in METRICS:
        for row in _read(folder / f"published_{metric}.csv"):
            way = ways.setdefault("published: " + row[""].replace("_all_normalize_without_transfer", ""), {})
            for target in targets:
                way.setdefault(target, {})[metric] = float(row[target])
    return ways


if __name__ == "__main__":
    main()
