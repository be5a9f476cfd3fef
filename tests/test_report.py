"""The report is one file that needs nothing, says what the records say, and escapes what strangers wrote."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

import automl_tl
from automl_tl import Backbone, Candidate, Outcome, Task, Trial
from automl_tl.backbones import catalogue
from automl_tl.evaluation.calibration import reliability
from automl_tl.report.draw import Line, learning_curves, reliability_diagram
from automl_tl.report.outcome import report_outcome

HOSTILE = "<script>alert('x')</script>" + "é" * 500
BACKBONE = "mobilenetv4_small_050.tiny_imagenet_64"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")


class Page(HTMLParser):
    """What the tests ask of a page: its text, its tags, what it would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "action", "data", "srcset")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


Run = tuple[Task, Outcome, Mapping[str, Backbone]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A real run on 200 digits whose first class has a hostile name, with a trial that failed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOML_TL_HOME", str(tmp_path_factory.mktemp("home")))
        digits = load_digits()
        images = [np.uint8(image * 15) for image in digits.images[:200]]
        labels = [HOSTILE if digit == 0 else str(digit) for digit in digits.target[:200]]
        task = automl_tl.load_task((images, labels), name="digits & <b>more</b>", test=0.2)
        out = tmp_path_factory.mktemp("run")
        outcome = automl_tl.fit(task, budget="2 trials", out=out, strategies=["linear-probe"], backbones=[BACKBONE])
    failed = Trial("f" * 16, task.fingerprint, Candidate(BACKBONE, "broken"), 0, "failed", error="<img src=x onerror=alert(1)>")
    return task, replace(outcome, trials=(*outcome.trials, failed)), catalogue()


@pytest.fixture
def page(run: Run) -> Page:
    return Page(report_outcome(*run).read_text(encoding="utf-8"))


def test_it_loads_nothing(page: Page) -> None:
    assert page.loads == []
    assert "script" not in page.tags
    assert "link" not in page.tags


def test_what_strangers_wrote_stays_text(run: Run, page: Page) -> None:
    assert not {"img", "script"} & set(page.tags)
    html = report_outcome(*run).read_text(encoding="utf-8")
    assert "<script>alert" not in html
    assert "<b>more" not in html
    assert "<img src=x" not in html
    assert "digits & <b>more</b>" in page.text


def test_the_figures_are_those_of_the_records(run: Run, page: Page) -> None:
    task, outcome, _ = run
    winner = outcome.winner
    assert f"{100 * winner.test['accuracy']:.1f} % of the test images" in page.text
    assert f"{winner.test['macro_f1']:.4f}" in page.text
    assert f"{winner.validation['accuracy']:.3f}" in page.text
    assert f"{len(task.part('train'))} training, {len(task.part('validation'))} validation" in page.text
    for source, scores in outcome.profile.distances.items():
        assert source in page.text
        assert len(scores) >= 3
    for name in ("winner", "failed", winner.candidate.strategy, winner.candidate.backbone, winner.id, task.fingerprint):
        assert name in page.text
    for heading in ("The data", "How far the sources are", "The advice", "The trials", "Confusion matrix", "What it cost"):
        assert heading in page.text


def test_nothing_half_written_is_left(run: Run, page: Page) -> None:
    assert list(run[1].folder.rglob("*.partial")) == []


def test_without_test_images_it_says_so(run: Run) -> None:
    task, outcome, backbones = run
    splits = {split: part for split, part in task.splits.items() if split != "test"}
    page = Page(report_outcome(replace(task, splits=splits), outcome, backbones).read_text(encoding="utf-8"))
    assert "there were no test images, and the winner was chosen on these" in page.text


def test_curves_differ_without_colour() -> None:
    lines = [Line(f"#{n}", [(1, 0.2), (2, 0.4 + n / 10)], n == 2) for n in range(3)]
    svg = str(learning_curves(lines))
    assert svg.count("<polyline") == 3
    assert "curve winner" in svg
    dashes = {part.split('"')[1] for part in svg.split("stroke-dasharray=")[1:]}
    assert len(dashes) == 3 or dashes == {"", "7 4"}
    assert all(f">#{n}<" in svg for n in range(3))


def test_reliability_bars_stand_where_the_confidence_is() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
    svg = str(reliability_diagram(reliability(probabilities, np.array([0, 1, 1]))))
    assert svg.count("<rect") == 2
    assert "2 images, 0.50 right" in svg
    assert "1 images, 1.00 right" in svg


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, which is not installed")
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
def test_a_browser_shows_it_without_sideways_scrolling(run: Run, tmp_path: Path, width: int, scheme: str) -> None:
    """The page measures itself: a probe script is added to a copy."""
    probe = "<script>document.title = JSON.stringify([document.documentElement.scrollWidth, innerWidth])</script>"
    copy = tmp_path / "page.html"
    copy.write_text(report_outcome(*run).read_text(encoding="utf-8").replace("</body>", probe + "</body>"), encoding="utf-8")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        f"--user-data-dir={tmp_path / 'u'}",
    ]
    look = [f"--window-size={width},900", "--dump-dom", *(["--force-dark-mode"] if scheme == "dark" else [])]
    done = subprocess.run([str(CHROMIUM), *flags, *look, copy.as_uri()], capture_output=True, text=True, timeout=60, check=True)
    title = done.stdout.split("<title>")[1].split("</title>")[0]
    scrolled, shown = json.loads(title)
    assert scrolled <= shown + 1
