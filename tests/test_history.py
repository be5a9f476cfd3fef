"""The database: nothing is lost, nothing half-written, and text goes out and comes back the same."""

from __future__ import annotations

import json
import multiprocessing
import sqlite3
import sys
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from automl_tl import Backbone, Candidate, Point, Profile, Task, Trial
from automl_tl.cli import main
from automl_tl.errors import HistoryError
from automl_tl.exchange import FILES, RECORDING, read_facts
from automl_tl.experience import Experience
from automl_tl.facts import backbone_facts, trial_of
from automl_tl.history import History, open_history
from automl_tl.objectives import REQUIRED
from automl_tl.records import Grown, trial_id

SHIPPED = Path(str(files("automl_tl.metadb")))
BACKBONE = Backbone(
    "net", "embedded", "resnet10t", "resnet", "somewhere", "natural", 64, (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0, 10, 20, 30
)


def task(name: str = "photos", fingerprint: str = "f" * 16) -> Task:
    labels = np.array([0, 1, 0, 1])
    splits = {"train": np.array([0, 1]), "validation": np.array([2, 3])}
    return Task(name, [""] * 4, labels, ("a", "b"), splits, fingerprint, [""] * 4, np.arange(4, dtype=np.uint64))


def trial(number: int = 0, *, fingerprint: str = "f" * 16, status: str = "finished", **changed: object) -> Trial:
    candidate = Candidate("net", "fine-tuning", {"rate": 0.001 * (number + 1), "augmentation": "light", "flip": False})
    scores = {"accuracy": min(0.5 + number / 100, 1.0), "log_loss": 0.7} if status != "failed" else {}
    curve = (Point(1, 1.5, 0.9, 0.4, 300.0), Point(2, 3.0, None, 0.5, 310.0, "two")) if status != "failed" else ()
    made = Trial(trial_id(fingerprint, candidate, 0), fingerprint, candidate, 0, status, curve, scores, {}, 3.0, 310.0)
    return replace(made, **{"provenance": {"command": "test", "speed": 1e9}, **changed})  # type: ignore[arg-type]


def profile(fingerprint: str = "f" * 16) -> Profile:
    return Profile("photos", fingerprint, {"images": 2.0}, {"somewhere": {"frechet": 1.5}}, {"net": {"logme": -0.25}}, 1.0)


@pytest.fixture
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> History:
    """An empty one: the shipped facts are another matter."""
    monkeypatch.setattr("automl_tl.history._add_shipped", lambda history: None)
    opened = open_history(tmp_path / "history.db")
    opened.record_task(task(), "photos")
    opened.record_backbone(BACKBONE)
    return opened


def test_the_history_knows_where_a_trial_was_at_a_third(history: History) -> None:
    """Of twelve epochs the fourth; not of failed trials, nor of the task that asks."""
    points = tuple(Point(epoch, float(epoch), 1.0, score) for epoch, score in ((2, 0.3), (4, 0.5), (5, 0.8), (12, 0.7)))
    values = {"rate": 0.002, "epochs": 12}
    long = replace(trial(), candidate=Candidate("net", "fine-tuning", values), curve=points)
    history.record_trial(long)
    history.record_trial(trial(1, status="failed", error="no"))
    assert history.growths(1 / 3) == {"fine-tuning": [Grown(values, 0.5, 0.8)]}
    assert history.growths(1 / 3, without=long.task) == {}


def test_nothing_is_learnt_from_another_cycle(history: History) -> None:
    """It is kept, but its seconds and its score are no candidate's of a ranking."""
    values = {"rate": 0.002, "epochs": 2}
    once = replace(trial(), candidate=Candidate("net", "fine-tuning", values))
    twice = replace(trial(1), candidate=Candidate("net", "fine-tuning", {**values, "cycles": 2}))
    for each in (once, twice):
        history.record_trial(each)
    assert history.known() == {once.id: "finished", twice.id: "finished"}
    assert history.table().hyperparameters == [values]
    candidate = Candidate("net", "a plugin's", {"epochs": 2, "schedule": "cycles"})
    named = replace(trial(2), id=trial_id("f" * 16, candidate, 0), candidate=candidate)
    history.record_trial(named)
    assert candidate.hyperparameters in history.table().hyperparameters, "a setting may be called so"
    assert history.growths(1.0).keys() == {"fine-tuning", "a plugin's"}
    assert [grown.hyperparameters for grown in history.growths(1 / 3)["fine-tuning"]] == [values]


def test_what_goes_in_comes_out(history: History) -> None:
    history.record_profile(profile())
    history.record_trial(trial())
    assert history.trial(trial().id) == trial()
    assert history.profiles() == {"f" * 16: profile()}
    assert history.backbones() == {"net": BACKBONE}
    assert history.tasks()["f" * 16].source_dataset == "photos"
    assert history.integrity() == []


def test_a_crop_mode_comes_out_and_facts_without_one_mean_the_centre(history: History) -> None:
    squash = replace(BACKBONE, name="squash", crop_mode="squash")
    history.record_backbone(squash)
    assert history.backbones() == {"net": BACKBONE, "squash": squash}
    assert "crop_mode" not in backbone_facts(BACKBONE), "or all that was shipped and recorded before would be other facts"


def test_the_database_is_set_up_to_last(history: History, tmp_path: Path) -> None:
    pragmas = {name: history.db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "foreign_keys")}
    assert pragmas == {"journal_mode": "wal", "foreign_keys": 1}
    again = open_history(tmp_path / "history.db")
    assert again.tasks().keys() == {"f" * 16}, "migrations are applied once"


def test_a_trial_of_nothing_known_is_refused(history: History) -> None:
    with pytest.raises(HistoryError, match="record its task and its backbone first"):
        history.record_trial(trial(fingerprint="e" * 16))
    assert history.known() == {}


def test_a_trial_is_one_transaction(history: History) -> None:
    """Its second learning-curve point cannot be stored; so nothing of it is."""
    broken = trial(curve=(Point(1, 1.0, 0.5, 0.4), Point(2, 2.0, 0.4, "high")))  # type: ignore[arg-type]
    history.db.execute(
        "CREATE TRIGGER full BEFORE INSERT ON points WHEN new.epoch = 2 BEGIN SELECT RAISE(ABORT, 'disk full'); END"
    )
    with pytest.raises(HistoryError, match="disk full"):
        history.record_trial(broken)
    assert history.known() == {}
    assert history.db.execute("SELECT count(*) FROM points").fetchone()[0] == 0


def test_a_trial_only_ever_gets_better_known(history: History) -> None:
    stopped = trial(status="stopped")
    history.record_trial(stopped)
    history.record_trial(trial())
    history.record_trial(stopped)
    assert history.known() == {trial().id: "finished"}
    history.record_trial(trial(test={"accuracy": 0.61}))
    history.record_trial(trial(test={"accuracy": 0.99}))
    assert history.trial(trial().id).test == {"accuracy": 0.61}, "the test images are used once"


def test_only_finished_trials_are_learnt_from(history: History) -> None:
    for number, status in enumerate(("finished", "stopped", "failed")):
        history.record_trial(trial(number, status=status))
    table = history.table()
    assert table.score.tolist() == [0.5]
    assert history.trial(trial(2, status="failed").id).validation == {}


def test_the_digest_names_what_is_learnt_from(history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history.record_profile(profile())
    history.record_trial(trial(0))
    before = history.digest()
    history.record_trial(trial(1, status="failed"))
    history.record_trial(trial(0, test={"accuracy": 0.6}))
    assert history.digest() == before, "neither failures nor test scores are learnt from"
    history.record_trial(trial(2))
    assert history.digest() != before
    other = open_history(tmp_path / "other.db")
    other.record_task(task(), "photos")
    other.record_backbone(BACKBONE)
    for number in (2, 0):
        other.record_trial(trial(number))
    other.record_profile(profile())
    assert other.digest() == history.digest(), "the order does not matter"


def test_what_is_learnt_from_and_its_name_are_of_one_moment(history: History, tmp_path: Path) -> None:
    """A trial that another process records in between would be named, but not learnt from."""
    history.record_profile(profile())
    history.record_trial(trial(0))
    named = history.digest()

    def meanwhile(statement: str) -> None:
        if statement == "SELECT task, facts FROM profiles":
            with open_history(tmp_path / "history.db") as other:
                other.record_trial(trial(1))

    history.db.conn.set_trace_callback(meanwhile)
    found = Experience.of(history)
    history.db.conn.set_trace_callback(None)
    assert (len(found.trials), found.digest) == (1, named)
    assert (len(Experience.of(history).trials), history.digest() == named) == (2, False)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE tasks SET source_dataset = 'photos' WHERE name = 'others'",
        "UPDATE tasks SET train = 3 WHERE name = 'photos'",
        "UPDATE trials SET speed = 2 * speed",
        "UPDATE trials SET speed = NULL",
        "UPDATE trials SET memory_mb = memory_mb + 1",
        "UPDATE trials SET speed = 3e9 - speed, memory_mb = memory_mb",
        "UPDATE other_results SET memory_mb = memory_mb + 1",
    ],
)
def test_the_digest_tells_of_sources_images_speed_and_memory(change: str, history: History) -> None:
    """Rankers and cost models learn from them, too."""
    history.record_task(task("others", "e" * 16), "others")
    history.record_task(task("never tried", "d" * 16), "photos")
    history.record_trial(trial(0))
    history.record_trial(trial(1, provenance={"speed": 2e9}))
    history.record_trial(trial(2, fingerprint="e" * 16))
    history.record_trial(trial(2, fingerprint="e" * 16, seconds=9.0))
    before = history.digest()
    history.db.execute("UPDATE tasks SET source_dataset = 'x', train = 9 WHERE name = 'never tried'")
    history.db.execute("UPDATE tasks SET source_dataset = 'a salted hash' WHERE name = 'photos'")
    assert history.digest() == before, "nothing is learnt from what was never tried, nor from what a source is called"
    history.db.execute("UPDATE tasks SET source_dataset = 'photos' WHERE name = 'photos'")
    history.db.execute(change)
    assert history.digest() != before


def test_advice_can_leave_a_task_out(history: History) -> None:
    history.record_profile(profile())
    before = history.digest(without="e" * 16)
    empty = Experience.of(history, without="e" * 16)
    history.record_task(task("own", "e" * 16))
    history.record_profile(profile("e" * 16))
    history.record_trial(trial(fingerprint="e" * 16))
    assert history.digest(without="e" * 16) == before
    left = Experience.of(history, without="e" * 16)
    assert (len(left.trials), left.digest) == (len(empty.trials), empty.digest)
    assert len(Experience.of(history).trials) == 1


def test_text_and_back(history: History, tmp_path: Path) -> None:
    history.record_profile(profile())
    provenance = {"command": "automl-tl fit /srv/ann/secret --out runs/secret", "speed": 1e9}
    for number in range(3):
        history.record_trial(trial(number, artefact="runs/secret", provenance=provenance))
    failed = trial(3, status="failed", error="fine-tuning: OSError: /srv/ann/secret/a.png is broken")
    history.record_trial(failed)
    counts = history.export(tmp_path / "text", names=True)
    assert counts == {"tasks": 1, "backbones": 1, "profiles": 1, "trials": 4}
    assert "secret" not in (tmp_path / "text" / "trials.jsonl").read_text()
    other = open_history(tmp_path / "other.db")
    assert other.import_facts(tmp_path / "text") == {**counts, "more of trials": 0, "other results": 0}
    assert other.trial(failed.id).error == "fine-tuning: OSError: …/a.png is broken"
    assert other.trial(trial().id).provenance["command"] == "automl-tl fit"
    assert not any(other.import_facts(tmp_path / "text").values()), "known facts are not added twice"
    assert other.digest() == history.digest()
    other.export(tmp_path / "again", names=True)
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "text" / name).read_bytes()


def test_names_and_free_text_stay_here_unless_asked(history: History, tmp_path: Path) -> None:
    history.record_task(task("ward 7", "e" * 16), "clinic")
    history.record_profile(replace(profile(), task="photos", warnings=("photos/cats/a.png: twice",)))
    history.record_trial(trial(curve=(Point(1, 1.5, 0.9, 0.4, 300.0, "cats against dogs"),)))
    history.record_trial(trial(1, status="failed", error="fine-tuning: OSError: photos/a.png is broken"))
    history.record_trial(trial(2, status="failed", error="fine-tuning: cats: needs more images"))
    history.export(tmp_path / "text")
    text = "".join((tmp_path / "text" / name).read_text() for name in FILES)
    for word in ("photos", "cats", "dogs", "ward", "clinic", "a.png"):
        assert word not in text
    assert "fine-tuning: OSError" in text
    history.export(tmp_path / "again")
    assert all((tmp_path / "again" / name).read_bytes() == (tmp_path / "text" / name).read_bytes() for name in FILES)
    other = open_history(tmp_path / "other.db")
    other.import_facts(tmp_path / "text")
    assert other.digest() == history.digest(), "whoever gets it learns the same"
    assert len({facts.source_dataset for facts in other.tasks().values()}) == 2
    history.export(tmp_path / "named", names=True)
    other.import_facts(tmp_path / "named")
    assert other.tasks() == history.tasks(), "a name wins over none"
    assert other.integrity() == []


PRIVATE = replace(
    BACKBONE, name="melanoma-net", zoo="folder", source_dataset="clinic-b", licence="of clinic B alone", digest="ab"
)
MELANOMA = Candidate("melanoma-net", "fine-tuning", {"rate": 0.001})


def of_private(**changed: Any) -> Trial:
    return replace(trial(**changed), id=trial_id("f" * 16, MELANOMA, 0), candidate=MELANOMA)


def test_networks_of_the_users_own_stay_here_unless_asked(history: History, tmp_path: Path) -> None:
    """With what was tried on them and what was seen through them; those that the package knows are everybody's."""
    shipped = {backbone.name: backbone for backbone in read_facts(SHIPPED).backbones}
    known = next(backbone for backbone in shipped.values() if backbone.zoo == "embedded")
    elsewhere = next(backbone for backbone in shipped.values() if backbone.zoo == "shared")
    for backbone in (PRIVATE, replace(known, zoo="folder", licence="mine"), elsewhere, replace(BACKBONE, name="tim", zoo="timm")):
        history.record_backbone(backbone)
    sources = {name: {"frechet": 1.0} for name in ("clinic-b", "clinic-c", "cifar10", "somewhere")}
    looks = {name: {"logme": 1.0} for name in ("melanoma-net", "net", elsewhere.name)}
    history.record_profile(replace(profile(), distances=sources, transferability=looks))
    history.record_trial(trial())
    history.record_trial(of_private(error="", provenance={}))
    history.record_trial(of_private(seconds=9.0))
    counts = history.export(tmp_path / "text")
    assert counts == {
        "tasks": 1,
        "backbones": 4,
        "profiles": 1,
        "trials": 1,
        "backbones left out": 1,
        "trials left out": 2,
    }
    text = "".join((tmp_path / "text" / name).read_text() for name in FILES)
    for word in ("melanoma", "clinic", "mine"):
        assert word not in text
    there = list(read_facts(tmp_path / "text").profiles)
    assert there[0].distances.keys() == {"cifar10", "somewhere"}
    assert there[0].transferability.keys() == {"net", elsewhere.name}
    assert list(read_facts(tmp_path / "text").backbones) == sorted(
        [BACKBONE, known, elsewhere, replace(BACKBONE, name="tim", zoo="timm")], key=lambda backbone: backbone.name
    )
    open_history(tmp_path / "other.db").import_facts(tmp_path / "text")
    assert history.export(tmp_path / "named", names=True) == {"tasks": 1, "backbones": 5, "profiles": 1, "trials": 3}
    assert "melanoma-net" in (tmp_path / "named" / "profiles.jsonl").read_text()


def test_a_network_that_only_has_the_name_of_a_public_one_stays_here(history: History, tmp_path: Path) -> None:
    shipped = list(read_facts(SHIPPED).backbones)
    for backbone in shipped:
        history.record_backbone(replace(backbone, zoo="hub", licence="secret", digest="ab" * 32))
    assert history.export(tmp_path / "text")["backbones left out"] == len(shipped)
    assert "secret" not in (tmp_path / "text" / "backbones.jsonl").read_text()


def test_a_task_that_was_named_before_it_was_shipped_keeps_its_name_here(history: History, tmp_path: Path) -> None:
    one, two = list(read_facts(SHIPPED).tasks)[:2]
    history.record_task(task("ward 7", one.fingerprint), "clinic")
    history.record_task(task(two.name, two.fingerprint), "clinic")
    history.import_facts(SHIPPED)
    history.export(tmp_path / "text")
    text = "".join((tmp_path / "text" / name).read_text() for name in FILES)
    assert "ward" not in text
    assert "clinic" not in text
    told = {facts.fingerprint: facts for facts in read_facts(tmp_path / "text").tasks}
    assert told[one.fingerprint].name == one.fingerprint
    assert sum(facts.name != facts.fingerprint for facts in told.values()) == len(list(read_facts(SHIPPED).tasks)) - 2


def test_the_committed_facts_are_what_is_exported(tmp_path: Path) -> None:
    with open_history() as home:
        home.export(tmp_path / "text", names=True)
    assert all((tmp_path / "text" / name).read_bytes() == (SHIPPED / name).read_bytes() for name in FILES)


@pytest.mark.parametrize("name", ["a\rb", "a\nb", "a\r\nb", 'a "b", c', " a "])
def test_a_task_may_have_any_name(name: str, history: History, tmp_path: Path) -> None:
    history.record_task(task(name, "e" * 16), name)
    history.export(tmp_path / "text", names=True)
    other = open_history(tmp_path / "other.db")
    other.import_facts(tmp_path / "text")
    assert other.tasks() == history.tasks()


def test_a_field_too_many_is_named(history: History, tmp_path: Path) -> None:
    history.export(tmp_path / "text")
    path = tmp_path / "text" / "tasks.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([f"{lines[0]},zzz", f"{lines[1]},1,2"]))
    with pytest.raises(HistoryError, match=r"tasks\.csv line 2: .* is no field of a TaskFacts"):
        history.import_facts(tmp_path / "text")


@pytest.mark.parametrize("names", [False, True], ids=["anonymous", "names"])
@pytest.mark.parametrize(
    ("command", "left"),
    [
        ("automl-tl fit melanoma-patients --source clinic-b --budget 10m", "automl-tl fit"),
        ("automl-tl history build melanoma-plan --workers 2", "automl-tl history build"),
        ("automl-tl fit history build", "automl-tl fit"),
        ("automl-tl fit", "automl-tl fit"),
        ("automl-tl fitness melanoma", ""),
        ("melanoma-of-clinic-b --budget 10m", ""),
        ("python melanoma fit", ""),
        ("", ""),
    ],
)
def test_only_the_verb_of_a_command_leaves(command: str, left: str, names: bool, history: History, tmp_path: Path) -> None:
    history.record_trial(trial(provenance={"command": command}))
    history.export(tmp_path / "text", names=names)
    (line,) = (tmp_path / "text" / "trials.jsonl").read_text().splitlines()
    assert json.loads(line)["provenance"] == {"command": left}


def test_recording_commands_are_commands() -> None:
    """Of the command line, as it is: a verb that was renamed must be renamed there, too."""
    import typer

    from automl_tl.cli import app

    for words in RECORDING:
        command: Any = typer.main.get_command(app)
        for word in words.split()[1:]:
            command = command.commands[word]


def _spoil(line: str, kind: str) -> str:
    facts = json.loads(line)
    if kind == "text":
        return "not JSON"
    if kind == "score":
        facts["validation"]["accuracy"] = "high"
    elif kind == "missing":
        del facts["candidate"]
    elif kind == "status":
        facts["status"] = "splendid"
    elif kind == "part":
        facts |= {"status": "stopped", "validation": {"log_loss": 0.7}}
    else:
        facts["task"] = "0" * 16
    return json.dumps(facts)


@pytest.mark.parametrize("kind", ["text", "score", "missing", "status", "part", "stranger"])
def test_a_wrong_line_is_named_and_nothing_is_imported(history: History, tmp_path: Path, kind: str) -> None:
    for number in range(3):
        history.record_trial(trial(number))
    history.export(tmp_path / "text")
    path = tmp_path / "text" / "trials.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], _spoil(lines[1], kind), lines[2]]))
    other = open_history(tmp_path / "other.db")
    with pytest.raises(HistoryError, match=r"trials\.jsonl line 2: "):
        other.import_facts(tmp_path / "text")
    assert (other.known(), other.tasks()) == ({}, {})


def test_a_profile_of_nothing_that_is_known_is_named(history: History, tmp_path: Path) -> None:
    history.record_profile(profile())
    history.export(tmp_path / "text")
    path = tmp_path / "text" / "profiles.jsonl"
    path.write_text(path.read_text().replace("f" * 16, "0" * 16))
    other = open_history(tmp_path / "other.db")
    with pytest.raises(HistoryError, match=r"profiles\.jsonl line 1: its task or a backbone is nowhere; add its line first"):
        other.import_facts(tmp_path / "text")
    assert other.tasks() == {}


@pytest.mark.parametrize("value", [10**400, -(2**63) - 1, [1], None], ids=["huge", "low", "list", "none"])
def test_hyperparameters_are_numbers_texts_or_truths(value: object) -> None:
    facts = json.loads(json.dumps(asdict(trial())))
    for fine in (True, 15, 0.001, "light"):
        facts["candidate"]["hyperparameters"]["epochs"] = fine
        assert trial_of(facts).candidate.hyperparameters["epochs"] == fine
    facts["candidate"]["hyperparameters"]["epochs"] = value
    with pytest.raises(HistoryError, match=r"hyperparameters: 'epochs' is .*; expected a finite number, a text or a truth value"):
        trial_of(facts)


def test_the_list_of_a_tasks_trials_is_newest_first(
    history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two tasks may have one name."""
    monkeypatch.setenv("AUTOML_TL_HOME", str(tmp_path))
    history.record_task(task("photos", "a" * 16), "photos")
    history.record_task(task("others", "c" * 16), "others")
    made = [trial(number, fingerprint="fac"[number % 3] * 16) for number in range(9)]
    for each in made:
        history.record_trial(each)
    newest = [each.id for each in reversed(made) if not each.task.startswith("c")]
    for wanted, expected in (("photos", newest[:3]), ("a" * 16, [made[7].id, made[4].id, made[1].id])):
        monkeypatch.setattr(sys, "argv", ["automl-tl", "history", "list", "--task", wanted, "--limit", "3", "--json"])
        with pytest.raises(SystemExit):
            main()
        assert [facts["id"] for facts in json.loads(capsys.readouterr().out)] == expected


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    path.write_text("a diary, not a database" * 100)
    with pytest.raises(HistoryError, match=r"history\.db: cannot be used as a history"):
        open_history(path)
    assert path.read_text().startswith("a diary")


def test_a_database_that_proves_to_be_damaged_is_named(history: History, tmp_path: Path) -> None:
    """It opens: what is damaged in the middle is found when that is read."""
    for number in range(99):
        history.record_trial(trial(number))
    pages, size = (history.db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
    history.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    path = tmp_path / "history.db"
    with path.open("rb+") as file:
        file.seek(pages // 2 * size)
        file.write(b"\xff" * (pages - pages // 2) * size)
    words = r"history\.db: cannot be used as a history: .* malformed; move it away, or set"
    with pytest.raises(HistoryError, match=words), open_history(path) as opened:
        opened.find(limit=99)
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        opened.known()


def _write(path: Path, first: int) -> None:
    with open_history(path) as history:
        for number in range(first, first + 25):
            history.record_trial(trial(number))


@pytest.mark.slow
def test_several_processes_write_at_once(history: History, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(tmp_path / "history.db", first)) for first in (0, 25, 50)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
        assert writer.exitcode == 0
    assert {trial(number).id for number in range(75)} <= history.known().keys()
    assert history.integrity() == []


def test_integrity_says_what_is_wrong(history: History, tmp_path: Path) -> None:
    history.record_trial(trial())
    raw = sqlite3.connect(tmp_path / "history.db")
    raw.execute("UPDATE trials SET accuracy = NULL")
    raw.execute("DELETE FROM tasks")
    raw.commit()
    raw.close()
    found = " ".join(history.integrity())
    assert "has no score" in found
    assert "missing row of tasks" in found


def test_a_new_home_knows_the_shipped_facts() -> None:
    with open_history() as history:
        summary = history.summary()
        assert summary["finished trials"] >= 400
        assert summary["source datasets"] >= 12
        assert history.integrity() == []
        told = [len(Experience.of(history, objective=objective).trials) for objective in REQUIRED]
        assert sum(told) == summary["finished trials"]
        assert all(count >= 40 for count in told)
        assert history.profiles().keys() == history.tasks().keys()


def test_a_paused_trial_that_fails_is_no_longer_paused(history: History) -> None:
    history.record_trial(trial(0, status="stopped"))
    history.record_trial(trial(0, status="failed", error="out of memory"))
    assert history.trial(trial().id).status == "failed"
    assert history.trial(trial().id).curve == ()
    history.record_trial(trial(0, status="stopped"))
    assert history.trial(trial().id).status == "failed", "what was paused before is older news"
    history.record_trial(trial(0))
    history.record_trial(trial(0, status="failed"))
    assert history.trial(trial().id).status == "finished"


def test_a_paused_winner_is_completed_by_its_test_scores(history: History) -> None:
    """And by the error that ended it; what is known stays."""
    paused = trial(status="stopped")
    history.record_trial(paused)
    history.record_trial(replace(paused, error="out of memory"))
    history.record_trial(replace(paused, test={"accuracy": 0.61}))
    history.record_trial(replace(paused, test={"accuracy": 0.99}, error="another"))
    history.record_trial(paused)
    assert history.trial(paused.id) == replace(paused, test={"accuracy": 0.61}, error="out of memory")
    behind = replace(paused, curve=paused.curve[:1], test={"accuracy": 0.3})
    history.record_trial(behind)
    assert history.trial(paused.id).test == {"accuracy": 0.61}
    history.record_trial(trial())
    assert history.trial(paused.id) == trial()
