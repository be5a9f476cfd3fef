"""Two histories become one: nothing is lost, the order does not matter, and twice is once."""

from __future__ import annotations

import functools
import itertools
import json
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_history import BACKBONE, profile, task, trial

from automl_tl import Candidate, Trial
from automl_tl.errors import HistoryError
from automl_tl.exchange import FILES, checked
from automl_tl.experience import Experience
from automl_tl.history import History, open_history
from automl_tl.merging import merge
from automl_tl.schema import migrations

ASSETS = Path(__file__).parent / "assets"
HERE = trial(test={"accuracy": 0.6})
ELSEWHERE = replace(
    HERE,
    validation={"accuracy": 0.55, "log_loss": 0.6},
    test={"accuracy": 0.62},
    seconds=1.5,
    provenance={"command": "automl-tl fit", "hardware": "GPU", "speed": 1e12},
)
Make = Callable[..., History]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Histories with these trials of one task."""
    monkeypatch.setattr("automl_tl.history._add_shipped", lambda history: None)
    numbers = itertools.count()

    def made(*trials: Trial) -> History:
        history = open_history(tmp_path / f"{next(numbers)}.db")
        history.record_task(task(), "photos")
        history.record_backbone(BACKBONE)
        history.record_profile(profile())
        for one in trials:
            history.record_trial(one)
        return history

    return made


def path_of(history: History) -> Path:
    return Path(history.db.execute("PRAGMA database_list").fetchone()[2])


def text_of(history: History, folder: Path) -> dict[str, bytes]:
    history.export(folder, names=True)
    return {name: (folder / name).read_bytes() for name in FILES}


def test_another_result_is_kept_with_its_provenance(make: Make, tmp_path: Path) -> None:
    here, there = make(HERE), make(ELSEWHERE)
    counts = here.merge(path_of(there))
    assert counts["other results"] == 1
    assert sum(counts.values()) == 1
    assert here.trial(HERE.id) == HERE, "what was known here stays"
    (other,) = here.other_results(HERE.id)
    assert other == ELSEWHERE
    assert here.summary()["other results"] == 1
    assert sorted(here.table().score) == [0.5, 0.55], "both are learnt from"
    assert sorted(here.table().speed) == [1e9, 1e12]
    assert here.digest() != make(HERE).digest()
    assert here.integrity() == []


def test_merging_twice_changes_nothing(make: Make, tmp_path: Path) -> None:
    here, there = make(HERE, trial(1)), make(ELSEWHERE, trial(2), trial(3, status="failed", error="fine-tuning: OSError: full"))
    here.merge(path_of(there))
    before = text_of(here, tmp_path / "before")
    assert not any(here.merge(path_of(there)).values())
    there.export(tmp_path / "text")
    assert not any(here.merge(tmp_path / "text").values()), "nor does its text, without names"
    assert text_of(here, tmp_path / "after") == before
    assert not any(here.merge(path_of(here)).values()), "nor does merging a history into itself"


TRIALS = (
    HERE,
    ELSEWHERE,
    replace(HERE, test={}),
    replace(ELSEWHERE, test={}),
    replace(HERE, seconds=9.0),
    replace(HERE, status="stopped", curve=HERE.curve[:1], test={}),
    replace(ELSEWHERE, status="stopped", seconds=1.0, test={}),
    replace(HERE, status="failed", validation={}, test={}, curve=(), error="fine-tuning: OSError: a disk is full"),
    replace(HERE, status="failed", validation={}, test={}, curve=(), error="fine-tuning: OSError: no space"),
    replace(HERE, status="failed", validation={}, test={}, curve=(), error="fine-tuning: MemoryError: much"),
    trial(1),
)


@functools.cache
def empty() -> sqlite3.Connection:
    history = History(sqlite3.connect(":memory:", isolation_level=None))
    migrations.apply(history.db)
    history.record_task(task(), "photos")
    history.record_backbone(BACKBONE)
    return history.db.conn


def in_memory(*trials: Trial) -> History:
    history = History(sqlite3.connect(":memory:", isolation_level=None))
    empty().backup(history.db.conn)
    history.db.execute("PRAGMA foreign_keys = ON")
    for one in trials:
        history.record_trial(one)
    return history


def merged(whole: History, part: History) -> dict[str, int]:
    return merge(whole.db, checked(part.rows(names=True), Path("part")), whole._writing)


@settings(max_examples=20, deadline=None)
@given(parts=st.lists(st.lists(st.sampled_from(TRIALS), max_size=4), min_size=3, max_size=3))
def test_the_order_of_merging_does_not_matter(parts: list[list[Trial]]) -> None:
    """What is exported and what is learnt from is the same whoever merged whom first. Texts of errors are compared by kind."""
    unions = []
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        whole = in_memory()
        for index in order:
            part = in_memory(*parts[index])
            merged(whole, part)
            assert not any(merged(whole, part).values())
        assert whole.integrity() == []
        trials = [dict(row) for row in whole.rows(names=False)["trials.jsonl"]]
        unions.append((trials, whole.digest(), whole.table().score.tolist()))
    assert unions[0] == unions[1] == unions[2]


def test_more_of_a_profile_is_added_and_what_is_known_stays(make: Make, tmp_path: Path) -> None:
    here, there = make(), make()
    there.record_profile(
        replace(profile(), meta={"images": 3.0, "edges": 0.5}, transferability={"net": {"logme": 9.0, "knn": 0.5}})
    )
    assert here.merge(path_of(there))["profiles"] == 1
    merged = here.profiles()["f" * 16]
    assert merged.meta == {"images": 2.0, "edges": 0.5}
    assert merged.transferability["net"] == {"logme": -0.25, "knn": 0.5} or merged.transferability["net"] == {"logme": -0.25}
    assert not any(here.merge(path_of(there)).values())


def test_a_trial_that_is_not_what_its_id_says_is_refused(make: Make, tmp_path: Path) -> None:
    make(trial()).export(tmp_path / "text")
    facts = json.loads((tmp_path / "text" / "trials.jsonl").read_text())
    facts["candidate"]["strategy"] = "from-scratch"
    (tmp_path / "text" / "trials.jsonl").write_text(json.dumps(facts) + "\n")
    other = make()
    with pytest.raises(HistoryError, match=r"trials\.jsonl line 1: '\w+' is not the id of this task, candidate and seed"):
        other.merge(tmp_path / "text")
    assert other.known() == {}


def test_what_is_no_history_is_named(make: Make, tmp_path: Path) -> None:
    here = make()
    with pytest.raises(HistoryError, match="is neither a folder that"):
        here.merge(tmp_path / "nothing.db")
    (tmp_path / "diary.db").write_text("dear diary" * 500)
    with pytest.raises(HistoryError, match=r"diary\.db: cannot be read as a history"):
        here.merge(tmp_path / "diary.db")
    with sqlite3.connect(tmp_path / "music.db") as music:
        music.execute("CREATE TABLE songs (name TEXT)")
    music.close()
    with pytest.raises(HistoryError, match=r"music\.db: is a database, but no history"):
        here.merge(tmp_path / "music.db")


def test_others_can_write_while_a_large_history_is_checked(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its first line and its last another process records a trial; the import then takes in all the same."""
    here, there = make(), make(*(trial(number) for number in range(5)))
    there.export(tmp_path / "text")
    monkeypatch.setattr("automl_tl.merging.BATCH", 1)
    written = []

    def write(db: object, *_: object) -> str:
        if not written:
            with open_history(path_of(here)) as second:
                second.record_trial(trial(9))
            written.append(True)
        return real(db, *_)  # type: ignore[arg-type]

    from automl_tl import merging

    real = merging.trial_values
    monkeypatch.setattr(merging, "trial_values", write)
    assert here.merge(tmp_path / "text")["trials"] == 5
    assert len(here.known()) == 6
    assert here.integrity() == []


@pytest.mark.parametrize("name", sorted(path.name for path in ASSETS.glob("history-*.db")))
def test_databases_of_old_schemas_are_brought_up_to_date(name: str, tmp_path: Path, make: Make) -> None:
    copy = tmp_path / "history.db"
    shutil.copy(ASSETS / name, copy)
    with open_history(copy) as history:
        assert history.integrity() == []
        assert history.trial(trial().id) == trial(0, test={"accuracy": 0.61})
        assert history.known() == {
            trial().id: "finished",
            trial(1).id: "stopped",
            trial(2).id: "failed",
        }
        assert history.profiles() == {"f" * 16: profile()}
        assert len(Experience.of(history).trials) == 1
        history.record_trial(replace(ELSEWHERE, test={"accuracy": 0.5}))
        assert len(history.other_results(trial().id)) == 1
    before = (ASSETS / name).read_bytes()
    assert make().merge(ASSETS / name)["trials"] == 3, "another's old database is read as it is"
    assert (ASSETS / name).read_bytes() == before
    assert not list(ASSETS.glob("*-wal"))


def test_only_what_differs_names_a_result(make: Make) -> None:
    history = make(HERE)
    history.record_trial(replace(HERE, artefact="elsewhere", provenance={"command": "again"}))
    assert history.other_results(HERE.id) == []
    history.record_trial(replace(HERE, candidate=Candidate(*vars(HERE.candidate).values()), seconds=99.0))
    assert [other.seconds for other in history.other_results(HERE.id)] == [99.0]
