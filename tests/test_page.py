"""The page, used as a person uses it: headless Chromium against a real server."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import TOKEN, Running, digits_zip, picture

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome") or ""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, make_home: Callable[[], Path]) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("page") / "state", make_home())
    yield running
    running.end()
    assert "Traceback" not in running.log.read_text()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM:
        pytest.skip("needs Chromium (a Debian package: chromium), which is not here")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


class Watched:
    """A page of which everything it says and asks for is kept."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(400_000)
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.url = url

    def check(self) -> None:
        """Nothing was wrong, and nothing went elsewhere."""
        assert self.said == []
        assert [url for url in self.asked if not url.startswith((self.url, "data:", "blob:"))] == []


@pytest.fixture
def watched(browser: Any, server: Running) -> Iterator[Watched]:
    opened = Watched(browser, server.url)
    yield opened
    opened.check()
    opened.context.close()


def shot(page: Any, name: str) -> None:
    """For a person to look at, where `PAGE_SHOTS` names a folder."""
    if folder := os.environ.get("PAGE_SHOTS"):
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def narrow_to_one_screen(page: Any) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"))


def test_from_a_zip_to_a_prediction(watched: Watched, server: Running, tmp_path: Path) -> None:
    page = watched.page
    (tmp_path / "digits.zip").write_bytes(digits_zip())
    (tmp_path / "two.png").write_bytes(picture(2))
    page.goto(f"{server.url}/#token={TOKEN}")
    page.get_by_role("heading", name="From labelled images to a trained model").wait_for()
    assert TOKEN not in page.url, "the token leaves the address bar"
    page.set_input_files("#archive", tmp_path / "digits.zip")
    page.get_by_text("64 images of 4 classes").wait_for()
    page.get_by_label("Budget for training").fill("2 trials + 6 epochs")
    page.get_by_role("button", name="Train").click()
    page.locator("#state.running").wait_for()
    page.locator("#ranking-table tbody tr").nth(3).wait_for()
    assert "trials over" in page.locator("#basis").inner_text()
    assert "training images" in page.locator("#figures").inner_text()
    assert page.locator("#distances tbody tr").count() >= 2
    page.locator("#state.finished").wait_for()
    page.get_by_text("is recommended: it classifies").wait_for()
    assert page.locator("#trial-table tbody tr").count() >= 1
    assert page.locator("#trial-table tr.best").count() == 1
    page.set_input_files("#pictures", tmp_path / "two.png")
    page.locator("#predictions li strong").wait_for()
    id = server.client.get("/api/models").json()[0]["id"]
    told = server.client.post(f"/api/models/{id}/predictions", files={"images": picture(2)}).json()["predictions"][0]
    assert page.locator("#predictions li strong").inner_text() == told["label"]
    assert f"{100 * told['confidence']:.1f} %" in page.locator("#predictions li").inner_text()
    page.get_by_role("button", name="Read the report").click()
    report = page.frame_locator("#report")
    report.get_by_role("heading", level=1).wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the model").click()
    assert download.value.suggested_filename.startswith("model-")
    shot(page, "trained")
    page.reload()
    page.get_by_text("is recommended: it classifies").wait_for()
    assert page.locator("#job-table tbody tr").count() >= 1


def test_the_history_is_searched(watched: Watched, server: Running) -> None:
    page = watched.page
    page.goto(f"{server.url}/#token={TOKEN}")
    page.locator("#history-table tbody tr").nth(14).wait_for()
    total = server.client.get("/api/history").json()["trials"]
    assert f"of {total:,} trials" in page.locator("#found").inner_text()
    page.get_by_role("button", name="Older").click()
    page.get_by_text("16–30 of").wait_for()
    page.get_by_role("searchbox").fill("linear-probe omniglot")
    page.get_by_text("1–15 of").wait_for()
    rows = page.locator("#history-table tbody tr").all_inner_texts()
    assert rows
    assert all("linear-probe" in row and "omniglot" in row for row in rows)
    page.get_by_role("searchbox").fill("nothing-like-this")
    page.get_by_text("No trial matches.").wait_for()


def test_a_fault_is_said_and_the_page_goes_on(browser: Any, server: Running, tmp_path: Path) -> None:
    watched = Watched(browser, server.url)
    page = watched.page
    (tmp_path / "no.zip").write_bytes(b"no zip")
    page.goto(server.url)
    page.get_by_label("Token").fill("a wrong token, surely")
    page.get_by_role("button", name="Come in").click()
    page.get_by_role("alert").get_by_text("send the token").wait_for()
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Come in").click()
    page.set_input_files("#archive", tmp_path / "no.zip")
    page.get_by_role("alert").get_by_text("cannot be unpacked").wait_for()
    shot(page, "fault")
    page.get_by_text("Images that the server has already").click()
    page.get_by_label("Folder or manifest below").fill("anything")
    page.get_by_role("button", name="Take it").click()
    page.get_by_role("button", name="Advice only").click()
    page.get_by_role("alert").get_by_text("start it with --root").wait_for()
    ours = [line for line in watched.said if "the server responded with a status of 4" not in line]
    assert ours == [], "the browser itself notes each refused request; nothing else is wrong"
    watched.context.close()


def test_a_link_that_is_pasted_into_the_open_page_is_followed(watched: Watched, server: Running) -> None:
    """Only what follows the # changes then, so that the browser loads nothing anew."""
    page = watched.page
    page.goto(server.url)
    page.locator("#entry").wait_for()
    page.goto(f"{server.url}/#token={TOKEN}")
    page.locator("#history-table tbody tr").first.wait_for()
    assert TOKEN not in page.url, "the token leaves the address bar"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_light_and_dark(browser: Any, server: Running, scheme: str) -> None:
    watched = Watched(browser, server.url, viewport={"width": 375, "height": 740}, color_scheme=scheme)
    page = watched.page
    page.goto(f"{server.url}/#token={TOKEN}")
    page.locator("#history-table tbody tr").nth(5).wait_for()
    if page.locator("#job-table button").count():
        page.locator("#job-table button").first.click()
        page.locator("#job").wait_for()
        page.wait_for_timeout(500)
    assert narrow_to_one_screen(page)
    colours = page.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    ink, paper = (sum(int(part) for part in colour[4:-1].split(",")) for colour in colours)
    assert (ink < paper) == (scheme == "light")
    shot(page, f"phone-{scheme}")
    watched.check()
    watched.context.close()


def test_it_is_used_without_a_mouse(watched: Watched, server: Running) -> None:
    page = watched.page
    page.goto(f"{server.url}/#token={TOKEN}")
    page.locator("#history-table tbody tr").first.wait_for()
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
    assert reached[:5] == ["Skip to the content", "Images", "Jobs", "History", "archive"]
    unnamed = page.evaluate(
        """[...document.querySelectorAll('button, input, progress, iframe, [role=region]')].filter((one) => !(
            one.textContent.trim() || one.getAttribute('aria-label') || one.title || one.labels?.length)).map((one) => one.id)"""
    )
    assert unnamed == []
    assert page.evaluate("document.documentElement.lang") == "en"
