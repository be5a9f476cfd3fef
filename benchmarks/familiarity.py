"""How well a network's own batch norms stand in for its source's images.

For every network at hand that has batch norms and whose source has statistics, and every set of ../shared/data that is no
source: the distance by the batch norms (from the network's file alone), and two true Fréchet distances, which need the source's
images or statistics of them: on the features of the zoo's reference encoder, as profiles have them, and on the network's own
features. Spearman's correlations:

- *encoder*, *own*: over the sets, of the stand-in with either true distance; one row a network;
- *networks*: over the networks, of the stand-in with the reference encoder's distances of their sources; mean over the sets.

`frechet` and `divergence` are the two ways of comparing statistics in `plugins/metrics/batch_norm.py`.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from _report import arguments, table, unpacked, write
from automl_tl_plugins.metrics.batch_norm import divergence, frechet
from scipy.stats import spearmanr

from automl_tl import Backbone, Features, Task, registry
from automl_tl.backbones import build, catalogue
from automl_tl.data import load_task, read_listing
from automl_tl.features import source_statistics
from automl_tl.norms import norm_statistics
from automl_tl.pixels import pixels_of
from automl_tl.profiling import task_features

SETS = (
    *("brain_tumor", "caltech101", "cifar10", "covid_ct", "imagenet_samples", "magnetic_tile", "omniglot_b", "rsscn7"),
    *("sign_digits", "smiles", "traffic_signs", "pacs/art_painting", "pacs/cartoon", "pacs/photo", "pacs/sketch"),
)
WAYS = {"frechet": frechet, "divergence": divergence}
SOURCE_IMAGES, SET_IMAGES = 1000, 160


@dataclass(frozen=True)
class Row:
    """Distances of every set to the source of one network."""

    encoder: np.ndarray
    own: np.ndarray
    ways: dict[str, np.ndarray]


def sample(location: Path | str, name: str, most: int) -> Task:
    """At most `most` of the training images of a set; no others are read."""
    listing = read_listing(location)
    train = [i for i in range(len(listing.images)) if listing.splits is None or listing.splits[i] == "train"]
    chosen = np.sort(np.random.default_rng(0).permutation(train)[:most])
    return load_task(([listing.images[i] for i in chosen], [listing.labels[i] for i in chosen]), name=name, validation=0.0)


def source_task(backbone: Backbone, folder: Path) -> Task:
    """Images that a network was trained on."""
    name = backbone.source_dataset
    formula = backbone.source_domain.endswith("made by formula")
    return sample(f"formula:{name}" if formula else unpacked_source(name, folder), name, SOURCE_IMAGES)


def unpacked_source(name: str, folder: Path) -> Path:
    """tiny_imagenet lies in several archives."""
    if not (folder / name).exists() and name == "tiny_imagenet":
        for part in ("tiny_imagenet_train_0", "tiny_imagenet_train_1", "tiny_imagenet_test"):
            unpacked(part, folder)
        return folder / name
    return unpacked(name, folder)


def measure(backbone: Backbone, encoder: Backbone, tasks: dict[str, Task], source: Task, statistics: Features) -> Row:
    """One network."""
    metric = registry.metrics("distance")["frechet"]
    own_source = source_statistics(whole_features(source, backbone).values)
    encoded, own, ways = [], [], {way: [] for way in WAYS}
    for task in tasks.values():
        pixels = pixels_of(task, backbone)
        norms = norm_statistics(task, backbone, pixels, partial(build, backbone), index=task.part("train"))
        assert norms is not None
        encoded.append(metric.score(whole_features(task, encoder), statistics))
        own.append(metric.score(whole_features(task, backbone), own_source))
        for way, function in WAYS.items():
            ways[way].append(function(norms))
    return Row(np.array(encoded), np.array(own), {way: np.array(values) for way, values in ways.items()})


def whole_features(task: Task, backbone: Backbone) -> Features:
    return task_features(task, backbone, index=np.arange(len(task.labels)))


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(spearmanr(one, other).statistic)


def main() -> None:
    parser = arguments(__doc__, "four sets, two networks")
    parser.add_argument("--data", type=Path, help="where the sets of ../shared/data lie unpacked already")
    options = parser.parse_args()
    embedded = registry.zoos()["embedded"]
    encoder = catalogue()[embedded.reference]
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.data or Path(scratch)
        names = ("cifar10", "omniglot_b", "brain_tumor", "smiles") if options.quick else SETS
        for name in names:
            unpacked(name.partition("/")[0], folder)
        tasks = {name: sample(folder / name, name, SET_IMAGES) for name in names}
        sources: dict[str, Task] = {}
        rows: dict[str, Row] = {}
        known = embedded.sources()
        with_norms = [b for b in catalogue().values() if b.source_dataset in known and b.family in ("resnet", "mobilenet")]
        for backbone in with_norms[: 2 if options.quick else None]:
            name = backbone.source_dataset
            sources[name] = sources.get(name) or source_task(backbone, folder)
            rows[backbone.name] = measure(backbone, encoder, tasks, sources[name], known[name])
            print(backbone.name, flush=True)
    figures = {}
    for way in WAYS:
        for truth in ("encoder", "own"):
            figures[f"{way}_{truth}"] = float(np.mean([correlation(r.ways[way], getattr(r, truth)) for r in rows.values()]))
        columns = [(np.array([(r.ways[way][i], r.encoder[i]) for r in rows.values()])) for i in range(len(names))]
        figures[f"{way}_networks"] = float(np.mean([correlation(*pairs.T) for pairs in columns]))
    shown = [
        (name, *(f"{correlation(row.ways[way], getattr(row, truth)):.2f}" for way in WAYS for truth in ("encoder", "own")))
        for name, row in rows.items()
    ]
    table(
        f"Spearman's correlation over {len(names)} sets",
        ("network", *(f"{w} {t}" for w in WAYS for t in ("encoder", "own"))),
        shown,
    )
    print({name: round(value, 3) for name, value in figures.items()})
    write(options.json, figures | {"sets": len(names), "networks": len(rows)})


if __name__ == "__main__":
    main()
