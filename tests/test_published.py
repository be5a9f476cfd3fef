"""The published tables are read as published: their own figures for a transferability score come out again."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
import published


@pytest.fixture(scope="module")
def tables(shared: Path) -> Path:
    if not (shared / "tables").exists():
        pytest.skip("needs the published tables of ../shared/tables")
    return shared / "tables"


@pytest.fixture(scope="module")
def graph(tables: Path) -> published.Published:
    return published.transfergraph(tables / "transfergraph")


@pytest.mark.parametrize(("metric", "row"), [("logme", "LogME"), ("h-score", "Reg-H-Score")])
def test_figures_of_a_transferability_score_are_those_published(
    tables: Path, graph: published.Published, metric: str, row: str
) -> None:
    for figure in published.METRICS:
        with (tables / "transfergraph" / f"published_{figure}.csv").open(encoding="utf-8", newline="") as file:
            (theirs,) = (line for line in csv.DictReader(file) if line[""] == row)
        for target in graph.targets:
            assert published.score_alone(graph, metric, target)[figure] == pytest.approx(float(theirs[target]), abs=1e-6)


def test_networks_are_those_of_the_published_figures(tables: Path, graph: published.Published) -> None:
    """Choosing at random has the published accuracy only on the same networks."""
    trials = graph.experience.trials
    with (tables / "transfergraph" / "published_top@1.csv").open(encoding="utf-8", newline="") as file:
        (random,) = (line for line in csv.DictReader(file) if line[""] == "random")
    for target in graph.targets:
        assert trials.score[trials.task == target].mean() == pytest.approx(float(random[target]), abs=1e-9)


def test_twins_leave_together(graph: published.Published) -> None:
    trials = graph.experience.trials
    known = set(trials.task[trials.source_dataset != published._images_of("smallnorb_label_elevation")])
    assert "smallnorb_label_azimuth" not in known
    assert len(known) == 11


def test_the_controlled_bank_is_seven_targets_by_28_networks(tables: Path) -> None:
    bank = published.parc(tables / "parc" / "controlled.csv")
    trials = bank.experience.trials
    assert len(bank.targets) == 7
    assert {int((trials.task == target).sum()) for target in bank.targets} == {28}
    assert not any(name.endswith(f".{task}") for name, task in zip(trials.backbone, trials.task, strict=True))


def test_judged_by_hand() -> None:
    found = published.judge(np.array([0.5, 1.0, 0.75]), np.array([1.0, 2.0, 3.0]))
    assert found["rel@1"] == 0.75
    assert found["pearson"] == pytest.approx(0.5)
