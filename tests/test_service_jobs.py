"""Jobs in a queue: what becomes of them, whatever ends and whatever is damaged."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from pathlib import Path

import pytest
import serving
from serving import TOKEN, Running, fault, left_by, wait_until
from small import QUICK

from automl_tl import Candidate, Trial
from automl_tl.history import open_history
from automl_tl.service import events, history_routes, job_routes, worker
from automl_tl.service.faults import Refused
from automl_tl.service.jobs import Job, Jobs, _without_places
from automl_tl.service.server import Server
from automl_tl.service.settings import Settings
from automl_tl.service.shapes import Resumed
from automl_tl.testing import small_task

home, root, server, dataset = serving.home, serving.root, serving.server, serving.dataset


def test_one_job_at_a_time_and_the_others_wait(server: Running, dataset: str) -> None:
    first = server.submit(kind="profile", images={"path": "our-digits"})
    second = server.submit(kind="profile", images={"dataset": dataset})
    waiting = server.client.get(f"/api/jobs/{second}").json()
    assert (waiting["state"], waiting["before"]) == ("queued", 1)
    assert "cancel it first" in fault(server.client.delete(f"/api/jobs/{second}"), 409)
    assert "cancel that first" in fault(server.client.delete(f"/api/datasets/{dataset}"), 409)
    assert server.client.post(f"/api/jobs/{second}/cancel").json()["state"] == "cancelled"
    assert server.client.post(f"/api/jobs/{first}/cancel").json()["state"] in ("cancelling", "cancelled")
    assert server.ended(first)["state"] == "cancelled"
    states = [facts["state"] for _, _, facts in server.events(second)]
    assert states == ["queued", "cancelled"], "it never ran"
    assert server.client.delete(f"/api/jobs/{second}").status_code == 204
    assert fault(server.client.get(f"/api/jobs/{second}"), 404)
    assert not (server.state / "jobs" / second).exists()


def test_a_job_that_fails_says_why(server: Running, root: Path) -> None:
    (root / "broken" / "cat").mkdir(parents=True)
    (root / "broken" / "cat" / "1.png").write_bytes(b"no image")
    job = server.ended(server.submit(kind="profile", images={"path": "broken"}))
    assert job["state"] == "failed"
    assert "a classifier needs at least two" in job["error"]
    assert "only a fit" in fault(server.client.post(f"/api/jobs/{job['id']}/resume", json={"budget": "1m"}), 422)


def test_what_a_killed_server_left_goes_on(tmp_path: Path) -> None:
    states = ("queued", "running", "finished", "cancelling", "failed")
    left = {state: left_by(state, tmp_path, number) for number, state in enumerate(states, 1)}
    (tmp_path / left["running"].id / "events.jsonl").write_bytes(b'{"event": "progress", "do')  # cut off in the middle of a line
    jobs = Jobs(tmp_path)
    assert {state: jobs.get(job.id).state for state, job in left.items()} == {
        "queued": "queued",
        "running": "queued",
        "finished": "finished",
        "cancelling": "cancelled",
        "failed": "failed",
    }
    assert [jobs.place(jobs.get(left[state].id)) for state in ("queued", "running", "failed")] == [0, 1, None]
    (event,) = events.read(tmp_path / left["running"].id)
    assert (event.kind, event.facts["state"]) == ("state", "queued")
    assert "started anew" in event.facts["note"]


def test_a_clock_that_is_put_back_changes_no_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = Jobs(tmp_path)
    ids = [jobs.submit("profile", {}, tmp_path).id]
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    ids += [jobs.submit("profile", {}, tmp_path).id for _ in range(3)]
    assert [jobs.place(jobs.get(id)) for id in ids] == [0, 1, 2, 3]


def test_a_job_that_cannot_be_written_does_not_end_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("automl_tl.service.jobs.PAUSE_SECONDS", 0.1)
    jobs = Jobs(tmp_path)
    stuck, after = (jobs.submit("profile", {"seed": 0, "zoo": None}, tmp_path / "nowhere") for _ in range(2))
    (tmp_path / stuck.id / "worker.log").mkdir()  # as on a full disk: neither it nor job.json can be written
    flush = os.fsync

    def full(descriptor: int) -> None:
        if stuck.id in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    jobs.start()
    try:
        wait_until(lambda: jobs.ended(after.id))
        assert "nowhere does not exist" in jobs.get(after.id).error, "its worker has run"
        assert jobs.get(stuck.id).state == "failed"
        assert jobs.get(stuck.id).error == f"could not be run: [Errno 21] Is a directory: '{stuck.id}/worker.log'"
    finally:
        jobs.stop()
    assert Jobs(tmp_path).get(stuck.id).state == "queued", "the next start tries again"


@pytest.mark.parametrize("end", [-35, RuntimeError("our fault")], ids=["a signal without a name", "our fault"])
def test_a_job_that_ends_as_nobody_expects_does_not_end_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: int | Exception
) -> None:
    monkeypatch.setattr("automl_tl.service.jobs.PAUSE_SECONDS", 0.1)
    jobs = Jobs(tmp_path)
    first, after = (jobs.submit("profile", {"seed": 0, "zoo": None}, tmp_path / "nowhere") for _ in range(2))

    def wait(job: Job) -> int:
        if job.id == after.id:
            return -9
        if isinstance(end, Exception):
            raise end
        return end

    monkeypatch.setattr(jobs, "_wait", wait)
    jobs.start()
    try:
        wait_until(lambda: jobs.ended(after.id), 30)
    finally:
        jobs.stop()
    assert (jobs.get(first.id).state, jobs.get(after.id).state) == ("failed", "failed")
    expected = "could not be run: our fault" if isinstance(end, Exception) else "the worker was ended by signal 35, perhaps"
    assert jobs.get(first.id).error.startswith(expected)
    assert jobs.get(after.id).error.startswith("the worker was ended by SIGKILL, perhaps")


@pytest.mark.parametrize("damaged", ["", "{", "[]", '{"id": "000000000001"}', "\0" * 100])
def test_a_job_that_cannot_be_read_does_not_keep_the_server_from_starting(
    tmp_path: Path, damaged: str, caplog: pytest.LogCaptureFixture
) -> None:
    broken, whole = (left_by("finished", tmp_path, number) for number in (1, 2))
    (tmp_path / broken.id / "job.json").write_text(damaged)
    assert Jobs(tmp_path).all() == [whole]
    (line,) = caplog.messages
    assert f"{broken.id}/job.json: passed over, as it cannot be read" in line


@pytest.mark.parametrize(("interrupted", "state"), [(False, "finished"), (True, "cancelled")])
def test_a_job_that_is_resumed_and_leaves_the_queue_is_what_it_was(tmp_path: Path, interrupted: bool, state: str) -> None:
    job = left_by(state, tmp_path, 1)
    (tmp_path / job.id / "result.json").write_text(json.dumps({"interrupted": interrupted}))
    jobs = Jobs(tmp_path)
    assert jobs.resume(job.id, {"budget": "2 trials"}).request == {**job.request, "budget": "2 trials"}
    jobs = Jobs(tmp_path)  # as after a restart of the server
    assert (jobs.get(job.id).state, jobs.get(job.id).request["budget"]) == ("queued", "2 trials")
    assert jobs.cancel(job.id).state == state
    assert jobs.result(job.id) == {"interrupted": interrupted}
    again = Jobs(tmp_path).get(job.id)
    assert (again.state, again.request) == (state, job.request), "what came of it came of this request"


def test_a_job_that_ran_with_another_budget_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = Jobs(tmp_path)
    job = jobs.submit("profile", {"seed": 0, "zoo": None}, tmp_path / "nowhere")
    jobs.cancel(job.id)
    jobs.resume(job.id, {"budget": "2 trials"})
    monkeypatch.setattr(jobs, "_wait", lambda job: -9)
    jobs.start()
    wait_until(lambda: jobs.ended(job.id), 30)
    jobs.stop()
    jobs.resume(job.id, {"budget": "3 trials"})
    assert jobs.cancel(job.id).request["budget"] == "2 trials"


EXITS = """#!{python}
import os, sys
from automl_tl.service import worker

worker._do, sys.argv = lambda job, folder: os._exit(0), ["worker", sys.argv[-1]]
worker.main()
"""
"""In place of Python: a worker that a plugin ends, as if all was well."""


@pytest.mark.parametrize("how", ["fails", "exits"])
def test_a_job_that_goes_on_in_vain_keeps_what_came_of_it(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "exits":
        (tmp_path / "python").write_text(EXITS.format(python=sys.executable))
        (tmp_path / "python").chmod(0o700)
        monkeypatch.setattr("automl_tl.service.jobs.sys.executable", str(tmp_path / "python"))
    job = left_by("finished", tmp_path / "jobs", 1)
    (tmp_path / "jobs" / job.id / "result.json").write_text('{"winner": 1}')
    jobs = Jobs(tmp_path / "jobs")
    jobs.resume(job.id, {"budget": "2 trials"})
    jobs.start()
    try:
        wait_until(lambda: jobs.ended(job.id))
    finally:
        jobs.stop()
    expected = "nowhere does not exist" if how == "fails" else "the worker ended without a word"
    assert (jobs.get(job.id).state, jobs.get(job.id).error[: len(expected)]) == ("failed", expected)
    assert jobs.result(job.id) == {"winner": 1}
    jobs.resume(job.id, {})
    assert jobs.cancel(job.id).state == "cancelled", "what there is did not come of the request that failed"


@pytest.mark.parametrize("images", [{"dataset": "0123456789abcdef"}, {"path": "photos"}])
def test_a_job_whose_images_are_gone_is_not_resumed(images: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    server = Server.of(Settings(tmp_path / "state", TOKEN, root=tmp_path / "root").checked())
    job = server.jobs.submit("fit", {"seed": 0, "images": images}, tmp_path / "root" / "photos")
    server.jobs.cancel(job.id)
    with pytest.raises(Refused, match="there is no ") as refused:
        job_routes.resume_job(job.id, server, Resumed(budget="2 trials"))
    assert refused.value.status_code == 404
    assert server.jobs.get(job.id).state == "cancelled"
    (tmp_path / "root" / "photos").mkdir()
    if "path" in images:
        assert job_routes.resume_job(job.id, server)["state"] == "queued"


def test_the_error_of_a_job_names_no_place_of_the_server(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path / "state" / "jobs")
    (tmp_path / "root" / "empty").mkdir(parents=True)
    (tmp_path / "root" / "list.csv").write_text("path,label\ncat/1.png,cat\n")
    texts = {"gone": "gone does not exist;", "empty": "empty: is empty of folders;", "list.csv": "list.csv row 2: cat/1.png: "}
    left = {name: jobs.submit("profile", {"seed": 0, "zoo": None}, tmp_path / "root" / name) for name in texts}
    jobs.start()
    try:
        wait_until(lambda: all(jobs.ended(job.id) for job in left.values()))
    finally:
        jobs.stop()
    for name, text in texts.items():
        assert jobs.get(left[name].id).error.startswith(text)
    job, photos = tmp_path / "state" / "jobs" / "0a1b", tmp_path / "photos"
    said = f"{job}/run, {tmp_path}/state/x, {photos}/cat/1.png, {tmp_path}/list.csv, /srv/ann/history.db"
    shown = f"0a1b/run, state/x, photos/cat/1.png, {tmp_path.name}/list.csv, ann/history.db"
    assert _without_places(said, job, photos, Path("/srv/ann")) == shown
    assert _without_places("a/b", job, Path("/"), Path("/")) == "a/b"


@pytest.mark.usefixtures("own_home")
def test_the_error_of_a_trial_names_no_place_of_the_server() -> None:
    task, error = small_task(), "lda: /srv/ann/cache/pixels: is full"
    trial = Trial("0123456789abcdef", task.fingerprint, Candidate(QUICK, "lda"), 0, "failed", error=error)
    with open_history() as history:
        history.record_task(task)
        history.record_trial(trial)
    told = [worker._trial_facts(trial)["error"], history_routes.show_trial(trial.id).error]
    told += [one.error for one in history_routes.find_trials(search=trial.id)["items"]]
    assert told == ["lda: …/pixels: is full"] * 3


@pytest.mark.parametrize("damaged", ["", "{", "[1]", "\0" * 100])
def test_a_result_that_is_damaged_ends_no_server(tmp_path: Path, damaged: str, caplog: pytest.LogCaptureFixture) -> None:
    job = left_by("finished", tmp_path, 1)
    (tmp_path / job.id / "result.json").write_text(damaged)
    jobs = Jobs(tmp_path)
    assert jobs.result(job.id) is None
    assert jobs.resume(job.id, {"budget": "2 trials"}).state == "queued"
    assert jobs.cancel(job.id).state == "cancelled"
    assert f"{job.id}/result.json: is damaged" in caplog.text


def test_a_job_is_named_as_its_folder_is(tmp_path: Path) -> None:
    server = Server.of(Settings(tmp_path / "state", TOKEN).checked())
    (tmp_path / "flowers.v2").mkdir()
    (tmp_path / "list.v2.csv").touch()
    names = {"flowers.v2": "flowers.v2", "list.v2.csv": "list.v2", "gone.v2": "gone.v2"}
    for place, name in names.items():
        assert job_routes.shown(server, server.jobs.submit("profile", {}, tmp_path / place))["name"] == name


@pytest.mark.slow
def test_a_fit_is_cancelled_with_its_best_model_and_goes_on(server: Running, dataset: str) -> None:
    request = {"kind": "fit", "strategies": ["fine-tuning", "linear-probe"], "backbones": [QUICK], "budget": "10m"}
    id = server.submit(images={"dataset": dataset}, **request)
    for _, kind, facts in server.events(id):
        if kind == "trial" and facts["status"] in ("finished", "stopped"):
            server.client.post(f"/api/jobs/{id}/cancel")
            break
    job = server.ended(id)
    assert (job["state"], job["model"], job["result"]["interrupted"]) == ("cancelled", True, True)
    before = len(job["result"]["trials"])
    assert server.client.post(f"/api/jobs/{id}/resume", json={"budget": f"{before + 1} trials"}).status_code == 202
    job = server.ended(id)
    assert (job["state"], job["request"]["budget"]) == ("finished", f"{before + 1} trials")
    assert len(job["result"]["trials"]) > before


@pytest.mark.slow
def test_kill_9_of_the_server_loses_nothing(tmp_path: Path, home: Path, root: Path) -> None:
    server = Running(tmp_path / "state", home, "--root", root)
    request = {"strategies": ["fine-tuning"], "backbones": [QUICK], "budget": "2 trials + 30 epochs"}
    fit = server.submit(kind="fit", images={"path": "our-digits"}, **request)
    later = [server.submit(kind="profile", images={"path": "our-digits"}) for _ in range(2)]
    for _, kind, facts in server.events(fit):
        if kind == "epoch" and facts["epoch"] >= 2:
            break
    server.kill()
    seen = {path.parent.name for path in (tmp_path / "state" / "jobs").glob("*/job.json")}
    assert seen == {fit, *later}
    again = Running(tmp_path / "state", home, "--root", root)
    job = again.ended(fit)
    assert job["state"] == "finished", job["error"]
    assert job["result"]["winner"]["validation"]["accuracy"] > 0.5
    states = [(facts["state"], facts["note"]) for _, kind, facts in again.events(fit) if kind == "state"]
    assert [state for state, _ in states] == ["queued", "running", "queued", "running", "finished"]
    assert "started anew" in states[2][1]
    assert [again.ended(id)["state"] for id in later] == ["finished", "finished"]
    assert again.client.get("/api/history").json()["integrity"] == []
    again.end()
