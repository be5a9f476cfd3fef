"""Fixtures of all tests: a home of their own, and the real data beside the checkout."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

HUB = tempfile.TemporaryDirectory(prefix="automl_tl_hub_")
os.environ["HF_HOME"] = HUB.name  # read at import: tests never see the developer's own hub cache
SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_finish() -> None:
    """What is there by now stays to the end. Each trial collects garbage, and need not look through it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def common(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all the processes of these tests."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def make_home(common: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Makes homes without a history. Their rankers lie in one place, each under the digest of what it was learnt from: it takes
    seconds to learn one, and hundreds of tests would."""
    rankers = common / "rankers"
    rankers.mkdir(exist_ok=True)

    def make() -> Path:
        home = tmp_path_factory.mktemp("home")
        (home / "cache").mkdir()
        (home / "cache" / "rankers").symlink_to(rankers)
        return home

    return make


@pytest.fixture(autouse=True)
def own_home(make_home: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees or touches the user's history and caches."""
    home = make_home()
    monkeypatch.setenv("AUTOML_TL_HOME", str(home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return home


@pytest.fixture(scope="session")
def shipped(common: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The history of a new home. To take in the shipped facts is most of a second, and each test with a fit would."""
    from automl_tl.history import open_history

    path = common / "shipped.db"
    if not path.exists():
        made = tmp_path_factory.mktemp("shipped") / "history.db"
        open_history(made).db.conn.close()
        made.replace(path)  # whole, whichever process is the first
    return path


@pytest.fixture
def used_home(own_home: Path, shipped: Path) -> Path:
    """Here the program was opened before."""
    shutil.copy(shipped, own_home / "history.db")
    return own_home


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and networks."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder ../shared (real images and networks), which is not here")
    return SHARED


@pytest.fixture
def signs(shared: Path, tmp_path: Path) -> Path:
    """Ten classes of thirty real photographs."""
    from pictures import lay, real_images

    return lay(tmp_path / "signs", real_images(shared / "data" / "sign_digits.zip", "train", 10, 30))
