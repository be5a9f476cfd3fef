"""Pictures of the page for the docs: `python docs/screenshots.py` writes docs/images/page.png.

A real server trains on scikit-learn's digits meanwhile; Chromium must be installed.
"""

from __future__ import annotations

import io
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

OUT = Path(__file__).parent / "images" / "page.png"
WIDTH = 1100
LARGEST = 300_000
"""Bytes of a picture in the repository."""


def picture(number: int) -> bytes:
    """One digit, eight times as large."""
    file = io.BytesIO()
    Image.fromarray(np.uint8(load_digits().images[number] * 15)).resize((64, 64)).save(file, "PNG")
    return file.getvalue()


def photos(path: Path, count: int = 400) -> None:
    labels = load_digits().target
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(count):
            archive.writestr(f"digits/digit {labels[number]}/{number:03d}.png", picture(number))


def start(folder: Path, token: str) -> tuple[subprocess.Popen[bytes], str]:
    """A server of its own, and where it is."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    line = [sys.executable, "-m", "automl_tl.cli", "serve", "--port", str(port), "--state", str(folder / "state")]
    environment = {**os.environ, "AUTOML_TL_HOME": str(folder / "home"), "AUTOML_TL_TOKEN": token}
    server = subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    for _ in range(1800):
        try:
            urllib.request.urlopen(f"{url}/api/health").close()
            return server, url
        except urllib.error.URLError:
            time.sleep(0.1)
    raise SystemExit("the server did not start")


def take(url: str, token: str, folder: Path) -> None:
    """From a zip to a prediction, then one picture of the whole page."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("needs Chromium (a Debian package: chromium)")
    photos(folder / "digits.zip")
    for number in (1795, 1796, 1794):
        (folder / f"{number}.png").write_bytes(picture(number))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 900})
        page.set_default_timeout(3_000_000)
        page.goto(f"{url}/#token={token}")
        page.set_input_files("#archive", folder / "digits.zip")
        page.locator("#taken").wait_for()
        page.get_by_label("Budget for training").fill("60s")
        page.get_by_role("button", name="Train").click()
        page.locator("#outcome").wait_for()
        page.set_input_files("#pictures", [folder / f"{number}.png" for number in (1795, 1796, 1794)])
        page.locator("#predictions li").first.wait_for()
        page.get_by_role("searchbox").fill("fine-tuning")
        page.get_by_text("1–15 of").wait_for()
        page.evaluate("scrollTo(0, 0)")
        page.screenshot(path=folder / "page.png", full_page=True)
        browser.close()
    small = Image.open(folder / "page.png").convert("RGB").quantize(64, dither=Image.Dither.NONE)
    OUT.parent.mkdir(exist_ok=True)
    small.save(OUT, optimize=True)
    if OUT.stat().st_size > LARGEST:
        raise SystemExit(f"{OUT} has {OUT.stat().st_size:,} bytes, more than {LARGEST:,}")
    print(f"{OUT}: {OUT.stat().st_size:,} bytes")


def main() -> None:
    token = secrets.token_urlsafe(24)
    with tempfile.TemporaryDirectory() as name:
        server, url = start(Path(name), token)
        try:
            take(url, token, Path(name))
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
