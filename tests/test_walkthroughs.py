"""Every command and every snippet of the pages that walk a reader through a job, run as it stands on real images.

Only the time of a budget is cut: a page's ten minutes are two trials here, its twenty rounds two; and its server is this machine.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
EACH = 12
"""Images that a class keeps."""


@pytest.fixture(scope="module")
def sets(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Unpacks a set of ../shared/data once."""
    folder = tmp_path_factory.mktemp("sets")

    def unpacked(name: str) -> Path:
        if not (folder / name).exists():
            with zipfile.ZipFile(shared / "data" / f"{name}.zip") as archive:
                archive.extractall(folder)
        return folder / name

    return unpacked


def few(source: Path, target: Path, first: int = 0) -> None:
    """Some images of each class of a folder."""
    for directory in sorted(path for path in source.iterdir() if path.is_dir()):
        (target / directory.name).mkdir(parents=True)
        for image in sorted(directory.iterdir())[first : first + EACH]:
            shutil.copy(image, target / directory.name)


def flat(source: Path, target: Path) -> None:
    """Some images, of which nobody says what they show."""
    target.mkdir(parents=True)
    for directory in sorted(path for path in source.iterdir() if path.is_dir()):
        for image in sorted(directory.iterdir())[:EACH]:
            shutil.copy(image, target / f"{directory.name}-{image.name}")


def signs(place: Path, sets: Callable[[str], Path]) -> None:
    few(sets("traffic_signs") / "train", place / "photos")
    few(sets("traffic_signs") / "test", place / "test_images")
    flat(sets("traffic_signs") / "test", place / "new_images")


def domains(place: Path, sets: Callable[[str], Path]) -> None:
    few(sets("pacs") / "photo" / "train", place / "photo")
    few(sets("pacs") / "sketch" / "test", place / "sketch" / "test")
    flat(sets("pacs") / "sketch" / "train", place / "sketch" / "unlabelled")


def classes_in_turn(place: Path, sets: Callable[[str], Path]) -> None:
    few(sets("traffic_signs") / "train", place / "first")
    (place / "second").mkdir()
    for directory in sorted((place / "first").iterdir())[10:]:
        directory.rename(place / "second" / directory.name)
    flat(sets("traffic_signs") / "test", place / "new_images")


def hospitals(place: Path, sets: Callable[[str], Path]) -> None:
    for number, owner in enumerate(("photos", "hospital_a", "hospital_b")):
        few(sets("brain_tumor") / "train", place / owner, EACH * number)


PAGES = {
    "first-model.md": signs,
    "budget.md": signs,
    "domain-adaptation.md": domains,
    "robust.md": signs,
    "continual.md": classes_in_turn,
    "federated.md": hospitals,
    "networks.md": signs,
}
ELSEWHERE = {
    "evaluation.md": "test_cli.py",
    "export.md": "test_docs_export.py",
    "trackers.md": "test_docs_export.py",
    "history.md": "test_sharing.py",
    "http.md": "test_service.py",
    "plugins.md": "test_docs.py",
    "writing-a-plugin.md": "test_writing_a_plugin.py",
}
"""Pages that a test of their subject runs."""


def shortened(code: str, port: int) -> str:
    for pattern, instead in (
        (r"--budget \S+", "--budget '2 trials'"),
        (r"epochs=20", "epochs=2"),
        (r"DNS:server\.example", "IP:127.0.0.1"),
        (r"(server\.example|0\.0\.0\.0):8080", f"127.0.0.1:{port}"),
    ):
        code = re.sub(pattern, instead, code)
    return code


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def places_of_clients(place: Path) -> list[Path]:
    """What each of two clients has at its place."""
    places = [place / "client a", place / "client b"]
    for own, images in zip(places, ("hospital_a", "hospital_b"), strict=True):
        own.mkdir()
        shutil.copytree(place / images, own / "own_photos")
        shutil.copy(place / "certificates" / "ca.pem", own)
    return places


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_snippet_runs(page: str, tmp_path: Path, own_home: Path, sets: Callable[[str], Path]) -> None:
    PAGES[page](tmp_path, sets)
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```(sh|python)\n(.*?)```", text, flags=re.DOTALL)
    assert blocks
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "AUTOML_TL_HOME": str(own_home), "PATH": path}
    port = free_port()
    running: list[tuple[str, subprocess.Popen[str]]] = []
    try:
        for language, code in blocks:
            code = shortened(code, port)
            words = ["sh", "-e", "-c", code] if language == "sh" else [sys.executable, "-c", code]
            for place in places_of_clients(tmp_path) if "federate join" in code else [tmp_path]:
                running.append((code, begun(words, place, environment)))
            while running and "federate serve" not in code:
                code, process = running.pop()
                said, wrong = process.communicate(timeout=3000)
                assert process.returncode == 0, f"{code}\n{said}\n{wrong}"
        assert not running
    finally:
        for _, process in running:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def begun(words: list[str], place: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(words, cwd=place, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_no_page_has_a_command_that_nothing_runs(page: str) -> None:
    """Whoever writes a page with a command also says here what runs it, and the walk-throughs mark it as one that runs."""
    text = (DOCS / page).read_text(encoding="utf-8")
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    commands = [
        language for language, code in fenced if language == "python" or re.search(r"^(\$ )?automl-tl ", code, re.MULTILINE)
    ]
    if page in PAGES:
        assert set(commands) <= {"sh", "python"}
    elif commands:
        assert page in (DOCS.parent / "tests" / ELSEWHERE[page]).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_links_lead_somewhere(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert "://" in target or (DOCS / target).exists(), target
