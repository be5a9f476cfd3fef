"""Every command and every snippet of the pages that walk a reader through a job, run as it stands on real images.

Only the time of a budget is cut: a page's ten minutes are two trials here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
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


PAGES = {"first-model.md": signs, "budget.md": signs, "domain-adaptation.md": domains, "robust.md": signs}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_snippet_runs(page: str, tmp_path: Path, sets: Callable[[str], Path]) -> None:
    PAGES[page](tmp_path, sets)
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```(sh|python)\n(.*?)```", text, flags=re.DOTALL)
    assert blocks
    home = {
        "AUTOML_TL_HOME": str(tmp_path / "home"),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    for language, code in blocks:
        code = re.sub(r"--budget \S+", "--budget '2 trials'", code)
        words = ["sh", "-e", "-c", code] if language == "sh" else [sys.executable, "-c", code]
        done = subprocess.run(words, cwd=tmp_path, env={**os.environ, **home}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_links_lead_somewhere(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert "://" in target or (DOCS / target).exists(), target
