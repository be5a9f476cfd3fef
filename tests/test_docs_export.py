"""Every command and every snippet of docs/export.md and docs/trackers.md, run as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from small import arrays

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with photos/."""
    for number, (image, label) in enumerate(zip(*arrays(100), strict=True)):
        folder = tmp_path / "photos" / f"digit {label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(("document", "extra"), [("export.md", "onnx"), ("trackers.md", "tensorboard")])
def test_commands_and_snippets_run(document: str, extra: str, place: Path) -> None:
    pytest.importorskip(extra, reason=f"needs pip install 'automl_tl[{extra}]'")
    text = (DOCS / document).read_text(encoding="utf-8")
    blocks = re.findall(r"```(sh|python)\n(.*?)```", text, flags=re.DOTALL)
    assert blocks
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for language, code in blocks:
        words = ["sh", "-e", "-c", code] if language == "sh" else [sys.executable, "-c", code]
        done = subprocess.run(words, cwd=place, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("document", ["export.md", "trackers.md"])
def test_links_lead_somewhere(document: str) -> None:
    text = (DOCS / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert (DOCS / target).exists(), target
