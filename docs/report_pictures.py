"""Pictures of the parts of a report, for the documents:  python docs/report_pictures.py RUN [OUT]

RUN is the folder of a run of `automl-tl fit`; the pictures go to docs/images/report-*.png. They are taken by the Chromium of the
system through Playwright, which must find nothing wrong with the page: no message on its console, no request that leaves it.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

HERE = Path(__file__).resolve().parent
PARTS = ("data", "distances", "advice", "choice", "judgement")
LARGEST, TALLEST = 300_000, 1500
"""Bytes and pixels of a picture."""
MARGIN = 24
"""Pixels of the page around a part."""


@contextmanager
def browser_page(width: int, height: int, *, scheme: str = "light", scale: float = 1.0) -> Iterator[tuple[Any, list[str]]]:
    """A page of headless Chromium, and a list that what goes wrong in it is added to.

    Raises:
        SystemExit: there is no Chromium.
    """
    from playwright.sync_api import sync_playwright

    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        raise SystemExit("chromium is not installed: `apt-get install chromium`, or any Chrome on the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, device_scale_factor=scale, reduced_motion="reduce"
        )
        page = context.new_page()
        wrong: list[str] = []
        page.on("console", lambda message: wrong.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("request", lambda request: None if request.url.startswith(("file:", "data:")) else wrong.append(request.url))
        yield page, wrong
        browser.close()


def take(run: Path, out: Path) -> list[Path]:
    """All pictures of a run's report."""
    address = (run / "report.html").resolve().as_uri()
    out.mkdir(parents=True, exist_ok=True)
    taken = []
    with browser_page(1100, 800) as (page, wrong):
        page.goto(address)
        page.screenshot(path=out / "report-top.png")
        taken.append(out / "report-top.png")
        for part in PARTS:
            found = page.locator(f"#{part}")
            if found.count():
                page.screenshot(path=out / f"report-{part}.png", full_page=True, clip=_around(found.bounding_box()))
                taken.append(out / f"report-{part}.png")
    with browser_page(375, 800, scale=1.5) as (page, phone):
        page.goto(address)
        page.screenshot(path=out / "report-phone.png")
    if wrong + phone:
        raise SystemExit(f"{run / 'report.html'}: " + "; ".join(wrong + phone))
    taken.append(out / "report-phone.png")
    for path in taken:
        slim(path)
    return taken


def _around(box: dict[str, float]) -> dict[str, float]:
    """A part with some of the page to its sides and below."""
    return {"x": box["x"] - MARGIN, "y": box["y"], "width": box["width"] + 2 * MARGIN, "height": box["height"] + MARGIN}


def slim(path: Path) -> None:
    """At most 256 colours, cut from below until it is no larger than `LARGEST` and no taller than `TALLEST`."""
    image = Image.open(path).convert("RGB")
    image = image.crop((0, 0, image.width, min(image.height, TALLEST)))
    while True:
        image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size <= LARGEST:
            return
        image = image.crop((0, 0, image.width, int(image.height * 0.85)))


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    for made in take(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else HERE / "images"):
        print(f"{made} {made.stat().st_size // 1000} kB")
