"""The classifier as one graph, and the JSON that lies beside a graph: what the ONNX and the torch.export form share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from automl_tl.augment import channels
from automl_tl.errors import AutomlError, InputError
from automl_tl.facts import crop_fits
from automl_tl.home import write_text
from automl_tl.model import Model
from automl_tl.records import BLACK, CENTER, CROP_MODES, INTERPOLATIONS, LARGEST_SIDE

from .predictor import Predictor, batched

TOLERANCE = 1e-4
"""Of a probability: an exported graph that differs more from the run's network, both in fp32, is not written."""
INPUT, OUTPUT = "images", "probabilities"
PROBES = 6


class Graph(nn.Module):
    """uint8 N×S×S×3 RGB images to N×classes probabilities: normalisation and softmax are inside, so nobody can forget them.

    Mean and std are the graph's own, and go where it goes: those that `normalise` keeps are shared by the whole process.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, trained: Model) -> None:
        super().__init__()
        self.net = trained.net
        for name, values in (("mean", trained.backbone.mean), ("std", trained.backbone.std)):
            self.register_buffer(name, channels(values, torch.device("cpu")))

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.permute(0, 3, 1, 2).float()
        return F.softmax(self.net((pixels - self.mean) / self.std), dim=1)


def graph_of(trained: Model) -> Graph:
    """On the CPU, in fp32, for evaluation: a graph that every machine can run. `trained` goes to the CPU with it."""
    return Graph(trained).cpu().float().eval()


def probes(size: int, count: int = PROBES) -> np.ndarray:
    """uint8 count×size×size×3: coloured patches of different coarseness and contrast, the same at every call."""
    random = np.random.default_rng(0)
    images = []
    for number in range(count):
        patches = torch.from_numpy(random.uniform(0, 255, (1, 3, 2 + 2 * number, 2 + 2 * number)).astype(np.float32))
        image = F.interpolate(patches, size=(size, size), mode="bilinear")[0].permute(1, 2, 0)
        images.append(((image - 128) * (0.4 + 0.1 * number) + 128).clamp(0, 255).to(torch.uint8).numpy())
    return np.stack(images)


def largest_difference(graph: Graph, answer: Callable[[np.ndarray], np.ndarray], size: int, form: str) -> float:
    """Between the probabilities of `graph` and of `answer` on probe images, one at a time and in a batch.

    Raises:
        AutomlError: it is above `TOLERANCE`.
    """
    images = probes(size)
    with torch.inference_mode():
        expected = graph(torch.from_numpy(images)).numpy()
    found = max(float(np.abs(answer(batch) - want).max()) for batch, want in ((images, expected), (images[:1], expected[:1])))
    if not found <= TOLERANCE:
        raise AutomlError(f"the {form} form answers differently: by {found:.2g} ({TOLERANCE:g} is allowed); nothing is written")
    return found


def facts_of(trained: Model, form: str) -> dict[str, Any]:
    """What a user of the graph must know, as JSON."""
    b = trained.backbone
    return {
        "form": form,
        "classes": list(trained.classes),
        "input": {"name": INPUT, "type": "uint8", "shape": ["n", b.input_size, b.input_size, 3], "channels": "RGB, 0-255"},
        "output": {"name": OUTPUT, "type": "float32", "shape": ["n", len(trained.classes)]},
        "preparation": {
            "orientation": "upright, as EXIF says",
            "resize": f"{CROP_MODES[b.crop_mode]} to floor(input_size / crop_pct)",
            "crop": "centre",
            "input_size": b.input_size,
            "interpolation": b.interpolation,
            "crop_pct": b.crop_pct,
            "crop_mode": b.crop_mode,
            "fill": list(b.fill),
        },
        "normalisation": {"where": "inside the graph", "mean": list(b.mean), "std": list(b.std)},
        "tolerance": TOLERANCE,
        "precision": "float32",
        "backbone": b.name,
        "licence": b.licence,
        "strategy": trained.candidate.strategy,
        "trial": trained.facts.get("trial", ""),
        "versions": {name: version(name) for name in ("automl_tl", "torch", "timm")},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def beside(file: Path) -> Path:
    return file.with_name(f"{file.name}.json")


def write_facts(file: Path, facts: Mapping[str, Any]) -> None:
    write_text(beside(file), json.dumps(facts, indent=1, ensure_ascii=False))


def predictor(file: Path, answer: Callable[[np.ndarray], np.ndarray]) -> Predictor:
    """From the JSON beside `file`.

    Raises:
        InputError: it is missing or damaged.
    """
    path = beside(file)
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        classes, preparation = tuple(map(str, facts["classes"])), facts["preparation"]
        size, interpolation = int(preparation["input_size"]), str(preparation["interpolation"])
        crop_pct, crop_mode = float(preparation["crop_pct"]), str(preparation.get("crop_mode", CENTER))  # older exports say none
        red, green, blue = map(int, preparation.get("fill", BLACK))
    except FileNotFoundError:
        raise InputError(f"{file}: {path.name}, which says how images are prepared, is not beside it; copy both") from None
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(f"{path}: is damaged: {type(error).__name__}: {error}; export the run again") from None
    known = interpolation in INTERPOLATIONS and crop_mode in CROP_MODES and all(0 <= part < 256 for part in (red, green, blue))
    if not known or not crop_fits(crop_pct) or not 0 < size <= LARGEST_SIDE or not classes:
        raise InputError(f"{path}: says how images are prepared, but not in a way that can be followed; export the run again")
    fill = red, green, blue
    return Predictor(
        classes, size, interpolation, crop_pct, crop_mode, fill, lambda images: batched(answer, images, len(classes))
    )
