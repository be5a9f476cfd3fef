"""What metrics say of features, remembered: the same features ask the same code only once."""

from __future__ import annotations

import json
import os
import sys
import time
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import numpy as np

from . import registry
from .errors import PLUGIN_FAULTS, InputError
from .home import cache, write_text
from .records import Features


def scores(kind: str, target: Features, source: Features | None, notes: list[str]) -> dict[str, float]:
    """Every metric of `kind` that is defined here; a reason is noted for one that is not."""
    path = cache() / "scores" / f"{_digest(target, source)}.json"
    known = _recall(path)
    found, learnt = {}, dict[str, float]()
    for name, metric in registry.metrics(kind).items():
        key = f"{name} {_code(metric.__module__)} {getattr(metric, '__dict__', '')}"
        if key in known:
            found[name] = known[key]
            continue
        try:
            value = float(metric.score(target, source))
        except InputError as error:
            if source is not None or target.probabilities is not None:
                notes.append(f"{name}: {error}")
            continue
        except PLUGIN_FAULTS as error:  # it is named and the profile goes on without it
            notes.append(f"metric {name!r} failed: {type(error).__name__}: {error}")
            continue
        if np.isfinite(value):
            found[name] = learnt[key] = value
        else:
            notes.append(f"metric {name!r} gave {value}")
    if learnt:
        path.parent.mkdir(exist_ok=True)
        write_text(path, json.dumps(known | learnt))
    return found


def _digest(*both: Features | None) -> str:
    """Of all numbers."""
    digest = blake2b(digest_size=16)
    for features in both:
        arrays = {} if features is None else vars(features)
        norms = {} if features is None or features.norms is None else vars(features.norms)
        for name, array in (*arrays.items(), *norms.items()):
            if isinstance(array, np.ndarray):
                digest.update(f"{name} {array.dtype} {array.shape}".encode())
                digest.update(np.ascontiguousarray(array).data)
        digest.update(b"and")
    return digest.hexdigest()


def _recall(path: Path) -> dict[str, float]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # not there, or not whole
        return {}


@lru_cache
def _code(module: str) -> str:
    """Of the folder with the module of a metric, which may use what lies beside it; where there is no file, of this process."""
    file = getattr(sys.modules.get(module), "__file__", None)
    paths = [] if file is None else sorted(Path(file).parent.glob("*.py"))
    if not paths:
        return f"{module} of {os.getpid()} since {time.time()}"
    digest = blake2b(digest_size=8)
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()
