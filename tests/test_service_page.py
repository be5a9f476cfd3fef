"""The page, where it needs a fit or an answer that comes late."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import serving
import test_page
from serving import TOKEN, Running, picture, wait_until

home, root, server, dataset, fitted = serving.home, serving.root, serving.server, serving.dataset, serving.fitted
browser, watched = test_page.browser, test_page.watched


@pytest.fixture(scope="module")
def other(server: Running, dataset: str, fitted: tuple[str, Any]) -> str:
    """A finished profile, later than the fit."""
    return str(server.ended(server.submit(kind="profile", images={"dataset": dataset}))["id"])


def open_job(watched: test_page.Watched, id: str) -> Any:
    """The page once it shows all of a job."""
    watched.page.goto(f"{watched.url}/#token={TOKEN}&job={id}")
    watched.page.get_by_text("is recommended: it classifies").wait_for()
    return watched.page


def held(page: Any, ending: str, action: Callable[[], Any]) -> Any:
    """What the action asks of the server, kept from it until it is let go."""
    routes: list[Any] = []
    page.route(lambda url: url.endswith(ending), lambda route: route.fallback() if routes else routes.append(route))
    action()
    wait_until(lambda: bool(page.wait_for_timeout(20) or routes))
    return routes[0]


def let_go(page: Any, *routes: Any) -> None:
    for route in routes:
        with page.expect_event("requestfinished", lambda request, route=route: request == route.request):
            route.continue_()
    page.wait_for_timeout(500)  # for what the page makes of the answers


def show(page: Any, kind: str, id: str) -> None:
    page.get_by_role("button", name=f"Show {kind} {id}").click()
    page.wait_for_url(f"**/#job={id}")


def test_the_links_of_a_report_lead_to_its_parts(watched: test_page.Watched, fitted: tuple[str, Any]) -> None:
    from playwright.sync_api import expect

    page = open_job(watched, fitted[0])
    page.get_by_role("button", name="Read the report").click()
    report = page.frame_locator("#report")
    part = report.locator("#reproduce").get_by_role("heading").first
    expect(part).not_to_be_in_viewport(timeout=60_000)
    report.get_by_role("navigation").get_by_role("link", name="again", exact=True).click(timeout=60_000)
    expect(part).to_be_in_viewport(timeout=60_000)
    assert report.get_by_role("heading", level=1).count() == 1, "the report is still there"
    assert page.url.endswith(f"#job={fitted[0]}"), "only the frame moved"


@pytest.mark.slow
def test_a_late_answer_is_not_shown_below_another_job(
    watched: test_page.Watched, fitted: tuple[str, Any], other: str, tmp_path: Path
) -> None:
    (tmp_path / "two.png").write_bytes(picture(2))
    page = open_job(watched, fitted[0])
    report = held(page, f"{fitted[0]}/report", page.get_by_role("button", name="Read the report").click)
    predictions = held(page, f"{fitted[0]}/predictions", lambda: page.set_input_files("#pictures", tmp_path / "two.png"))
    model = held(page, f"{fitted[0]}/archive", page.get_by_role("button", name="Download the model").click)
    show(page, "profile", other)
    with page.expect_download() as download:
        let_go(page, report, predictions, model)
    assert download.value.suggested_filename == f"model-{fitted[0]}.zip"
    assert page.locator("#predictions li").count() == 0
    assert page.locator("#report").get_attribute("hidden") is not None
    assert page.locator("#read").get_attribute("aria-expanded") == "false"
    show(page, "fit", fitted[0])
    page.set_input_files("#pictures", tmp_path / "two.png")
    page.locator("#predictions li strong").wait_for()


def test_what_was_asked_for_last_is_shown(watched: test_page.Watched, fitted: tuple[str, Any], other: str) -> None:
    page = open_job(watched, fitted[0])
    late = held(page, f"/api/jobs/{other}", page.get_by_role("button", name=f"Show profile {other}").click)
    page.get_by_role("button", name=f"Show fit {fitted[0]}").click()
    page.locator("#outcome").wait_for()
    let_go(page, late)
    assert page.url.endswith(f"#job={fitted[0]}")
    assert page.locator("#job-title").inner_text().startswith("Training")
    late = held(page, "search=omniglot&limit=15&offset=0", lambda: page.get_by_role("searchbox").fill("omniglot"))
    page.get_by_role("searchbox").fill("nothing-like-this")
    page.get_by_text("No trial matches.").wait_for()
    let_go(page, late)
    assert page.locator("#history-table tbody tr").count() == 0


def test_the_focus_outlives_what_is_drawn_anew(watched: test_page.Watched, fitted: tuple[str, Any], other: str) -> None:
    """A new state draws the table of jobs anew, under the hands of who goes through it by keyboard."""
    page = open_job(watched, fitted[0])
    focused = "document.activeElement.getAttribute('aria-label') || document.activeElement.id"

    def by_keyboard() -> None:
        page.get_by_role("button", name=f"Show profile {other}").focus()
        page.keyboard.press("Enter")

    states = held(page, f"{other}/events", by_keyboard)
    assert page.evaluate(focused) == "job-title"
    page.get_by_role("button", name=f"Show fit {fitted[0]}").focus()
    page.evaluate("window.before = document.activeElement")
    let_go(page, states)
    page.wait_for_function("!before.isConnected")
    assert page.evaluate(focused) == f"Show fit {fitted[0]}"
    states = held(page, f"{other}/events", by_keyboard)
    page.get_by_role("button", name=f"Show fit {fitted[0]}").focus()
    page.route(lambda url: url.endswith("/api/jobs?limit=10"), lambda route: route.fulfill(json={"items": [], "total": 0}))
    let_go(page, states)
    page.get_by_text("None yet.").wait_for()
    assert page.evaluate("document.activeElement.id") == "job-table", "no longer among the newest: near to where it was"
