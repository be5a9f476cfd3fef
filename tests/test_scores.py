"""What metrics say of features is remembered as long as neither the features nor the code change."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib import util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from automl_tl import Features, registry
from automl_tl.home import cache
from automl_tl.records import Norms
from automl_tl.scores import _code, scores

CODE = """
class Spread:
    kind = "transferability"
    asked = 0

    def score(self, target, source=None):
        Spread.asked += 1
        return float(target.values.std()) + {added}
"""


def loaded(folder: Path, added: int) -> ModuleType:
    """A module with a metric, as its file says now."""
    path = folder / "spread.py"
    path.write_text(CODE.format(added=added))
    spec = util.spec_from_file_location("spread", path)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    sys.modules["spread"] = module
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    spec.loader.exec_module(module)
    sys.dont_write_bytecode = before
    _code.cache_clear()  # as in another process
    return module


@pytest.fixture
def metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("AUTOML_TL_HOME", str(tmp_path / "home"))
    module = loaded(tmp_path, 0)
    monkeypatch.setattr(registry, "metrics", lambda kind: {"spread": sys.modules["spread"].Spread()})
    return module


def features(seed: int) -> Features:
    rng = np.random.default_rng(seed)
    return Features(rng.normal(size=(20, 3)), rng.integers(0, 2, 20))


def said(of: Features, source: Features | None = None) -> float:
    return scores("transferability", of, source, [])["spread"]


def test_the_same_features_are_asked_once(metric: ModuleType) -> None:
    assert said(features(0)) == said(features(0))
    assert metric.Spread.asked == 1
    said(features(1))
    said(features(0), features(1))
    assert metric.Spread.asked == 3
    labels = features(0)
    assert labels.labels is not None
    said(Features(labels.values, 1 - labels.labels))
    assert metric.Spread.asked == 4


def test_other_code_is_asked_anew(metric: ModuleType, tmp_path: Path) -> None:
    before = said(features(0))
    assert loaded(tmp_path, 1).Spread.asked == 0
    assert said(features(0)) == before + 1


@pytest.mark.parametrize("text", ["", '{"spread', "5", "[1]", "null"])
def test_what_is_damaged_is_asked_for_anew(metric: ModuleType, text: str) -> None:
    before = said(features(0))
    for path in (cache() / "scores").iterdir():
        path.write_text(text)
    assert said(features(0)) == before
    assert metric.Spread.asked == 2


def test_each_number_counts(metric: ModuleType) -> None:
    """Also of what a network's norms see, whose arrays have names that a source's have, too."""
    plain, four = features(0), np.arange(4.0)
    norms = Norms(four, four, four, four, four)
    cases = [plain, replace(plain, mean=four), replace(plain, norms=norms), replace(plain, mean=four, norms=norms)]
    cases += [replace(plain, mean=four + 1, norms=norms), replace(plain, mean=four, norms=replace(norms, mean=four + 1))]
    for case in cases:
        said(case)
    assert metric.Spread.asked == len(cases)


def test_what_is_no_number_is_not_remembered(metric: ModuleType) -> None:
    notes: list[str] = []
    broken = Features(np.full((20, 3), np.nan), features(0).labels)
    for _ in range(2):
        assert scores("transferability", broken, None, notes) == {}
    assert notes == ["metric 'spread' gave nan"] * 2
    assert metric.Spread.asked == 2
