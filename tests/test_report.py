"""The report is one file that needs nothing, says what the records say, and escapes what strangers wrote."""

from __future__ import annotations

import base64
import io
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import automl_tl
from automl_tl import Backbone, Candidate, Outcome, Task, Trial
from automl_tl.backbones import catalogue
from automl_tl.evaluation.calibration import reliability
from automl_tl.evaluation.domains import flattened
from automl_tl.report.domains import nearest
from automl_tl.report.draw import (
    BOTTOM,
    HEIGHT,
    TOP,
    Dot,
    Line,
    _decade,
    _ticks,
    learning_curves,
    reliability_diagram,
    scatter,
    trade_off,
)
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
        self.pictures: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        targets = [value or "" for name, value in attrs if name in ("src", "href", "action", "data", "srcset")]
        self.pictures += [target for target in targets if target.startswith("data:")]
        self.loads += [target for target in targets if not target.startswith(("#", "data:"))]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


Run = tuple[Task, Outcome, Mapping[str, Backbone]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, make_home: Callable[[], Path]) -> Run:
    """A real run on 200 digits, some of them mislabelled, whose first class has a hostile name, with a trial that failed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOML_TL_HOME", str(make_home()))
        digits = load_digits()
        images = [np.uint8(image * 15) for image in digits.images[:200]]
        labels = [HOSTILE if digit == 0 else str(digit) for digit in digits.target[:200]]
        labels[1:40:4] = ["7"] * 10
        task = automl_tl.load_task((images, labels), name="digits & <b>more</b>", test=0.2)
        out = tmp_path_factory.mktemp("run")
        outcome = automl_tl.fit(task, budget="2 trials", out=out, strategies=["linear-probe"], backbones=[BACKBONE])
    failed = Trial("f" * 16, task.fingerprint, Candidate(BACKBONE, "broken"), 0, "failed", error="<img src=x onerror=alert(1)>")
    return task, replace(outcome, trials=(*outcome.trials, failed)), catalogue()


@pytest.fixture(scope="module")
def written(run: Run) -> Path:
    """The page of the run, written once."""
    return report_outcome(*run).resolve()


@pytest.fixture(scope="module")
def page(written: Path) -> Page:
    return Page(written.read_text(encoding="utf-8"))


def test_it_loads_nothing(page: Page) -> None:
    assert page.loads == []
    assert "script" not in page.tags
    assert "link" not in page.tags


def test_what_strangers_wrote_stays_text(written: Path, page: Page) -> None:
    assert "script" not in page.tags
    assert page.tags.count("img") == len(page.pictures)  # each is one of ours
    html = written.read_text(encoding="utf-8")
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
    for heading in ("Learning curves", "What else there is to choose", "Labels to look at", "The most confident mistakes"):
        assert heading in page.text
    assert "tiny_imagenet (60)" in page.text  # the map's legend


def test_the_table_of_trade_offs_is_that_of_the_comparison(run: Run, page: Page) -> None:
    _, outcome, _ = run
    known = [trial for trial in outcome.trials if trial.validation]
    assert page.text.count(f"{known[0].validation['accuracy']:.3f}") >= 2
    assert "On the Pareto front" in page.text
    assert "not measurable" in page.text or " mJ" in page.text


def test_pictures_are_small_and_whole(page: Page) -> None:
    """Ten doubtful labels at most, ten mistakes at most; of 8×8 digits, in PNG."""
    assert 2 <= len(page.pictures) <= 20
    for address in page.pictures:
        kind, data = address.split(",", 1)
        assert kind == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            assert image.size == (8, 8)


def test_the_page_is_small(written: Path) -> None:
    assert written.stat().st_size < 400_000


def test_nothing_half_written_is_left(run: Run, page: Page) -> None:
    assert list(run[1].folder.rglob("*.partial")) == []


def test_where_nothing_is_odd_nothing_is_noted(run: Run, page: Page) -> None:
    assert run[1].notes == ()
    assert "recognised less often" not in page.text


def test_without_test_images_it_says_so(run: Run, tmp_path: Path) -> None:
    task, outcome, backbones = run
    splits = {split: part for split, part in task.splits.items() if split != "test"}
    elsewhere = replace(outcome, folder=tmp_path / "a run's")
    shutil.copytree(outcome.folder / "model", elsewhere.folder / "model")
    text = report_outcome(replace(task, splits=splits), elsewhere, backbones).read_text(encoding="utf-8")
    page = Page(text)
    assert "there were no test images, and the winner was chosen on these" in page.text
    assert text.count("<dt>validation accuracy</dt>") == 1
    assert f"automl-tl compare {shlex.quote(str(elsewhere.folder))} --weight latency=5" in page.text, "from anywhere, as typed"


def test_what_is_no_accuracy_is_not_called_so(run: Run, tmp_path: Path) -> None:
    """Trials of an adaptation are chosen by a score, which the pictures and the comparison show; their accuracy is another."""
    task, outcome, backbones = run
    trials = tuple(replace(t, validation={**t.validation, "score": 0.123} if t.validation else {}) for t in outcome.trials)
    elsewhere = replace(outcome, folder=tmp_path / "run", trials=trials, winner=trials[outcome.trials.index(outcome.winner)])
    shutil.copytree(outcome.folder / "model", elsewhere.folder / "model")
    text = report_outcome(replace(task, objective="adaptation"), elsewhere, backbones).read_text(encoding="utf-8")
    scored, accuracy = '<td class="n" data-is="validation score">0.123</td>', elsewhere.winner.validation["accuracy"]
    assert text.count(scored) == len([trial for trial in trials if trial.validation])
    assert f'<td class="n" data-is="validation accuracy">{accuracy:.3f}</td>' in text
    for title in ("score by epoch", "score by milliseconds for one image", "score by seconds of training"):
        assert f"alidation {title}" in text
    assert "alidation accuracy by" not in text
    assert "how different, predictions on the target are" in Page(text).text


def test_a_test_split_of_another_kind_is_told(tmp_path: Path) -> None:
    """Digits in negative: the validation images cannot tell how hard they are."""
    digits = load_digits()
    for number, (image, digit) in enumerate(zip(digits.images[:400], digits.target[:400], strict=True)):
        split = "test" if number >= 300 else "train"
        path = tmp_path / "images" / split / str(digit) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(240 - image * 15 if split == "test" else image * 15)).save(path)
    chosen = {"strategies": ["linear-probe"], "backbones": [BACKBONE]}
    outcome = automl_tl.fit(tmp_path / "images", budget="1 trials", out=tmp_path / "run", **chosen)  # type: ignore[arg-type]
    (note,) = outcome.notes
    scores = f"{outcome.winner.test['accuracy']:.3f} against {outcome.winner.validation['accuracy']:.3f}"
    assert scores in note
    assert note[1:] in Page((outcome.folder / "report.html").read_text(encoding="utf-8")).text


def test_curves_differ_without_colour() -> None:
    lines = [Line(f"#{n}", [(1, 0.2), (2, 0.4 + n / 10)], n == 2) for n in range(3)]
    svg = str(learning_curves(lines))
    assert svg.count("<polyline") == 3
    assert "curve winner" in svg
    dashes = {part.split('"')[1] for part in svg.split("stroke-dasharray=")[1:]}
    assert len(dashes) == 3 or dashes == {"", "7 4"}
    assert all(f">#{n}<" in svg for n in range(3))


def test_names_of_many_curves_stay_inside_the_picture() -> None:
    """Sixty probes end at the same epoch: the winner and the best others are named."""
    lines = [Line(f"#{n}", [(1, 0.3 + n / 100)], n == 30) for n in range(60)]
    svg = str(learning_curves(lines))
    names = re.findall(r'y="([\d.]+)">#(\d+)<', svg)
    assert all(TOP <= float(y) - 4 <= HEIGHT - BOTTOM for y, _ in names)
    assert {int(name) for _, name in names} == {30, *range(60 - len(names) + 1, 60)}
    assert len(names) > 15
    assert svg.count("<circle") == 60


def test_reliability_bars_stand_where_the_confidence_is() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
    svg = str(reliability_diagram(reliability(probabilities, np.array([0, 1, 1]))))
    assert svg.count("<rect") == 2
    assert "2 images, 0.50 right" in svg
    assert "1 images, 1.00 right" in svg


def test_trade_offs_tell_the_front_without_colour() -> None:
    dots = [Dot("#1", 3.0, 0.9, front=True, winner=True), Dot("#2", 3.1, 0.8, front=False), Dot("#3", 3.0, 0.9, front=True)]
    svg = str(trade_off(dots, "milliseconds"))
    assert svg.count('class="dot"') == 2
    assert svg.count('class="dot beaten"') == 1
    assert svg.count('class="ring"') == 1
    spots = re.findall(r'<text class="middle[^"]*" x="([\d.]+)" y="([\d.]+)">#', svg)
    assert len(set(spots)) == 3  # labels of equal dots stand beside each other


def test_each_group_of_a_map_has_a_mark_of_its_own() -> None:
    rng = np.random.default_rng(0)
    groups = {name: rng.random((4, 2)) for name in ("this task", "a", "<b>")}
    svg = str(scatter(groups))
    assert "<b>" not in svg
    assert "&lt;b&gt; (4)" in svg
    assert svg.count("<path") == 6
    first = [path.split("M", 2)[1].split(" ", 1)[1][-12:] for path in svg.split(' d="')[1:]]
    assert len(set(first)) >= 3


@pytest.mark.parametrize("values", [[1.0], [20.0, 26.0], [0.5, 800.0], [1e-3, 1e5], [0.0, 3.0]])
def test_ticks_of_a_logarithmic_axis_can_be_read(values: list[float]) -> None:
    low, high = _decade(values)
    ticks = _ticks(low, high)
    assert 2 <= len(ticks) <= 8
    assert all(low <= tick * 1.01 and tick <= high * 1.01 for tick in ticks)
    assert ticks == sorted(set(ticks))


def test_a_map_puts_what_is_alike_together() -> None:
    """Two far clouds: the nearest neighbour of each point is of its own cloud; the same seed draws the same."""
    rng = np.random.default_rng(0)
    groups = {"this task": rng.normal(0, 1, (30, 8)), "far": rng.normal(20, 1, (30, 8))}
    flat = flattened(groups)
    points = np.concatenate(list(flat.values()))
    assert points.min() >= 0
    assert points.max() <= 1
    apart = np.linalg.norm(points[:, None] - points[None], axis=2) + np.eye(60) * 9
    assert ((apart.argmin(axis=1) < 30) == (np.arange(60) < 30)).all()
    again = flattened(groups)
    np.testing.assert_array_equal(points, np.concatenate(list(again.values())))
    alike = flattened({"this task": np.ones((8, 4)), "far": np.ones((8, 4))})
    assert np.isfinite(np.concatenate(list(alike.values()))).all()


def test_the_nearest_sources_by_hand() -> None:
    """Places by metric: a 0, 2; b 1, 0; c 2, 1."""
    distances = {"a": {"x": 1.0, "y": 30.0}, "b": {"x": 2.0, "y": 10.0}, "c": {"x": 3.0, "y": 20.0}}
    assert nearest(distances) == ["b", "a", "c"]


# In a browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless browser."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright's Python client, which is not installed")
    if CHROMIUM is None:
        pytest.skip("needs chromium, which is not installed")
    with playwright.sync_playwright() as client:
        browser = client.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


Opened = tuple[Any, list[str]]


def open_page(chromium: Any, path: Path, *, width: int, scheme: str) -> Opened:
    """The page, and what its console said or it asked for."""
    context = chromium.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page, wrong = context.new_page(), []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: None if request.url.startswith("data:") else wrong.append(request.url))
    page.goto(path.as_uri())
    return page, [said for said in wrong if said != path.as_uri()]


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (375, "dark"), (320, "light")])
def test_a_browser_shows_it_without_a_word_or_a_sideways_scroll(written: Path, chromium: Any, width: int, scheme: str) -> None:
    page, wrong = open_page(chromium, written, width=width, scheme=scheme)
    assert wrong == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    ink, paper = page.evaluate("(style => [style.color, style.backgroundColor])(getComputedStyle(document.body))")
    light = [sum(map(int, re.findall(r"\d+", colour)[:3])) / 765 for colour in (ink, paper)]
    assert (light[0] < 0.3 and light[1] > 0.9) if scheme == "light" else (light[0] > 0.8 and light[1] < 0.2)
    page.context.close()


def test_links_lead_to_parts_of_the_page(written: Path, chromium: Any) -> None:
    page, _ = open_page(chromium, written, width=375, scheme="light")
    targets = page.evaluate("[...document.querySelectorAll('a')].map(a => a.getAttribute('href'))")
    assert len(targets) >= 8
    assert page.evaluate("[...document.querySelectorAll('a')].every(a => document.querySelector(a.getAttribute('href')))")
    page.context.close()


def test_printed_it_is_whole(written: Path, chromium: Any) -> None:
    """Dark on white whatever the screen, what is folded is open, nothing is cut at the side."""
    page, _ = open_page(chromium, written, width=718, scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert page.evaluate("document.documentElement.scrollWidth") <= 718
    heights = "[...document.querySelectorAll('details table')].map(table => table.getBoundingClientRect().height)"
    assert min(page.evaluate(heights)) > 20
    assert len(page.pdf()) > 10_000
    page.context.close()
