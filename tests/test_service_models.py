"""Models that a server keeps, whole, damaged or deleted."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from serving import TOKEN, left_by

from automl_tl.service import job_routes, model_routes
from automl_tl.service.faults import Refused
from automl_tl.service.server import Server
from automl_tl.service.settings import Settings


def with_model(jobs: Path, number: int, card: str = "{}") -> Path:
    """The model of a job, as far as a list looks at it."""
    folder = jobs / left_by("finished", jobs, number).id / "run" / "model"
    folder.mkdir(parents=True)
    (folder / "model.json").write_text(card)
    (folder / "model.safetensors").write_bytes(bytes(2**20))
    return folder


def test_a_model_that_is_not_whole_is_not_told_of(tmp_path: Path) -> None:
    settings = Settings(tmp_path, TOKEN).checked()
    whole, half, damaged = (with_model(tmp_path / "jobs", number, card) for number, card in ((1, "{}"), (2, "{}"), (3, "{")))
    (half / "model.safetensors").unlink()
    server = Server.of(settings)
    assert [card["id"] for card in server.models.all()] == [whole.parents[1].name]
    told = {job.id: job_routes.shown(server, job)["model"] for job in server.jobs.all()}
    assert told == {whole.parents[1].name: True, half.parents[1].name: False, damaged.parents[1].name: True}
    with pytest.raises(Refused, match="has no model"):
        server.models.card(half.parents[1].name)
    for ask in (server.models.card, lambda id: server.models.predict(id, [b""], ["1.png"])):
        with pytest.raises(Refused, match="is damaged on the server; resume the job") as refused:
            ask(damaged.parents[1].name)
        assert str(tmp_path) not in refused.value.detail


def test_a_model_that_is_deleted_while_a_prediction_waits_is_not_there(tmp_path: Path) -> None:
    id = with_model(tmp_path / "jobs", 1).parents[1].name
    server = Server.of(Settings(tmp_path, TOKEN).checked())
    with ThreadPoolExecutor(1) as pool:
        with server.models._lock:
            waiting = pool.submit(server.models.predict, id, [b""], ["1.png"])
            time.sleep(0.5)
            server.jobs.remove(id)
        with pytest.raises(Refused, match="there is no job"):
            waiting.result(30)


def test_a_model_that_cannot_be_packed_leaves_nothing(tmp_path: Path) -> None:
    import resource

    id = with_model(tmp_path / "jobs", 1).parents[1].name
    server = Server.of(Settings(tmp_path, TOKEN).checked())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))  # as on a full disk
    try:
        with pytest.raises(OSError, match="too large"):
            model_routes.download_model(id, server)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.glob("*.zip"))


def test_what_a_server_left_of_a_download_is_swept(tmp_path: Path) -> None:
    (tmp_path / "tmpabc123.zip").write_bytes(b"half")
    Server.of(Settings(tmp_path, TOKEN).checked())
    assert not list(tmp_path.glob("*.zip"))
