"""Two histories become one: nothing is lost, the order does not matter, and twice is once."""

from __future__ import annotations

import functools
import itertools
import json
import re
import shutil
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_history import BACKBONE, profile, task, trial

from automl_tl import Candidate, Point, Trial
from automl_tl.errors import HistoryError
from automl_tl.exchange import FILES, checked
from automl_tl.experience import Experience
from automl_tl.history import History, _add_shipped, open_history
from automl_tl.merging import DIGEST, MARKS, merge
from automl_tl.schema import migrations

ADD_SHIPPED = _add_shipped
"""The real one, as most tests are of a history without."""
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


def test_another_result_has_the_same_text_here_and_where_it_was_merged(make: Make, tmp_path: Path) -> None:
    whole = replace(ELSEWHERE, curve=(Point(1, 0.5, None, 0.5),))  # as a strategy of one epoch says it
    here, there = make(HERE, whole), make()
    there.merge(path_of(here))
    assert text_of(there, tmp_path / "there") == text_of(here, tmp_path / "here")


def test_merging_twice_changes_nothing(make: Make, tmp_path: Path) -> None:
    here, there = make(HERE, trial(1)), make(ELSEWHERE, trial(2), trial(3, status="failed", error="fine-tuning: OSError: full"))
    here.merge(path_of(there))
    before = text_of(here, tmp_path / "before")
    assert not any(here.merge(path_of(there)).values())
    there.export(tmp_path / "text")
    assert not any(here.merge(tmp_path / "text").values()), "nor does its text, without names"
    assert text_of(here, tmp_path / "after") == before
    assert not any(here.merge(path_of(here)).values()), "nor does merging a history into itself"


def failure(error: str, *, seconds: float, date: str) -> Trial:
    told = {"error": f"fine-tuning: {error}", "seconds": seconds, "provenance": {"date": date, "hardware": f"CPU {seconds}"}}
    return replace(HERE, status="failed", validation={}, test={}, curve=(), **told)


TRIALS = (
    HERE,
    ELSEWHERE,
    replace(HERE, test={}),
    replace(ELSEWHERE, test={}),
    replace(HERE, seconds=9.0),
    replace(HERE, status="stopped", curve=HERE.curve[:1], test={}),
    replace(ELSEWHERE, status="stopped", seconds=1.0, test={}),
    failure("OSError: a disk is full", seconds=2.0, date="2026-11-20T10:00:00+00:00"),
    failure("OSError: no space", seconds=1.0, date="2026-11-21T10:00:00+00:00"),
    failure("OSError: no space", seconds=1.0, date="2026-11-19T10:00:00+00:00"),
    failure("MemoryError: much", seconds=4.0, date="2026-11-20T10:00:00+00:00"),
    failure("MemoryError: more", seconds=0.5, date="2026-11-22T10:00:00+00:00"),
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
    assert merged.transferability["net"] == {"logme": -0.25, "knn": 0.5}
    assert not any(here.merge(path_of(there)).values())
    here.record_profile(replace(profile(), transferability={"net": {"logme": 7.0}}))
    told = here.profiles()["f" * 16].transferability["net"]
    assert told == {"logme": 7.0, "knn": 0.5}, "a later look tells the newer number, and nothing of the other"
    assert dict(here.db.execute("SELECT metric, value FROM scores").fetchall()) == told


def test_a_trial_that_is_not_what_its_id_says_is_refused(make: Make, tmp_path: Path) -> None:
    make(trial()).export(tmp_path / "text")
    facts = json.loads((tmp_path / "text" / "trials.jsonl").read_text())
    facts["candidate"]["strategy"] = "from-scratch"
    (tmp_path / "text" / "trials.jsonl").write_text(json.dumps(facts) + "\n")
    other = make()
    with pytest.raises(HistoryError, match=r"trials\.jsonl line 1: '\w+' is not the id of this task, candidate and seed"):
        other.merge(tmp_path / "text")
    assert other.known() == {}


DAMAGES = {
    "a backbone of nothing": ("UPDATE backbones SET facts = NULL", "backbone 1: no history of automl_tl, or damaged"),
    "a list as provenance": ("UPDATE trials SET provenance = '[]'", "trial 1: no history of automl_tl, or damaged"),
    "bytes as a name": ("UPDATE tasks SET name = x'ff00'", "task 1: no history of automl_tl, or damaged"),
    "a number as a curve": ("UPDATE trials SET validation = '3'", "trial 1: validation: expected an object"),
    "no points": ("DROP TABLE points", "trial 1: no history of automl_tl, or damaged: .*no such table"),
    "no profiles": ("DROP TABLE profiles", "profile 1: no history of automl_tl, or damaged: .*no such table"),
    "no state": ("DROP TABLE state", "task 1: no history of automl_tl, or damaged: .*no such table"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_history_is_named(damage: str, make: Make) -> None:
    here, there = make(), make(trial())
    there.db.execute("PRAGMA foreign_keys = OFF")
    statement, told = DAMAGES[damage]
    there.db.execute(statement)
    with pytest.raises(HistoryError, match=f"^{re.escape(str(path_of(there)))} {told}"):
        here.merge(path_of(there))
    assert here.known() == {}


def test_trials_of_another_program_are_no_history(make: Make, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "clinic.db") as clinic:
        clinic.execute("CREATE TABLE trials (patient TEXT)")
    clinic.close()
    with pytest.raises(HistoryError, match=r"^\S+/clinic\.db: is no history of automl_tl, or damaged: table trials") as caught:
        make().merge(tmp_path / "clinic.db")
    assert "move it away" not in str(caught.value)


@pytest.mark.parametrize("finished", [False, True], ids=["alone", "beside a finished one"])
def test_of_failures_of_one_kind_the_same_is_kept_in_whatever_order(finished: bool, make: Make) -> None:
    """Also where only the date differs."""
    failures = [one for one in TRIALS if one.status == "failed" and "OSError" in one.error]
    kept = set()
    for order in itertools.permutations(failures):
        here = make(*([HERE] if finished else []))
        for one in order:
            merged(here, make(one))
        (found,) = [one for one in (here.trial(HERE.id), *here.other_results(HERE.id)) if one.status == "failed"]
        kept.add(found.provenance["date"])
        assert len(here.other_results(HERE.id)) == finished
    assert len(kept) == 1


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


def test_a_database_of_a_newer_version_is_named(tmp_path: Path, make: Make) -> None:
    make().db.conn.close()
    path = next(tmp_path.rglob("*.db"))
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("ALTER TABLE tasks ADD COLUMN licence TEXT")
        database.execute("INSERT INTO _sqlite_migrations (migration_set, name) VALUES ('automl_tl', 'm999_licences')")
    for read in (open_history, make().merge):
        with pytest.raises(HistoryError, match=r"\.db: was written by a newer version of automl_tl \(m999_licences\); update"):
            read(path)


def test_only_what_differs_names_a_result(make: Make) -> None:
    history = make(HERE)
    history.record_trial(replace(HERE, artefact="elsewhere", provenance={"command": "again"}))
    assert history.other_results(HERE.id) == []
    history.record_trial(replace(HERE, candidate=Candidate(*vars(HERE.candidate).values()), seconds=99.0))
    assert [other.seconds for other in history.other_results(HERE.id)] == [99.0]


Ship = Callable[[Path, History], History]


@pytest.fixture
def ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ship:
    """Opens a home with a version of the package that ships what this history knows."""
    numbers = itertools.count()

    def opened(home: Path, version: History) -> History:
        folder = tmp_path / f"version {next(numbers)}"
        version.export(folder, names=True)
        with monkeypatch.context() as patch:
            patch.setattr("automl_tl.history._add_shipped", ADD_SHIPPED)
            patch.setattr("automl_tl.history._shipped", lambda: folder)
            return open_history(home)

    return opened


@pytest.fixture
def versions(make: Make) -> tuple[History, History]:
    """What is shipped first; and later, with everything corrected, withdrawn or added that can be."""
    first, later = make(HERE, ELSEWHERE, trial(1), trial(2), trial(3, status="failed")), make(ELSEWHERE)
    first.record_task(task("music", "e" * 16), "songs")
    first.record_backbone(replace(BACKBONE, name="gone"))
    first.record_profile(replace(profile("e" * 16), transferability={"gone": {"logme": 1.0}}))
    first.record_trial(trial(4, fingerprint="e" * 16))
    later.record_backbone(replace(BACKBONE, source_accuracy=0.5))
    later.record_profile(replace(profile(), meta={"images": 3.0}, distances={"elsewhere": {"frechet": 2.0}}))
    later.record_trial(replace(trial(1), test={"accuracy": 0.7}))
    later.record_trial(trial(5))
    return first, later


def work(home: History) -> None:
    """Of the user: further trials, one of them of what was shipped, and a look through another network."""
    home.record_backbone(replace(BACKBONE, name="mine"))
    home.record_profile(replace(profile(), meta={}, distances={}, transferability={"mine": {"logme": 0.5}}))
    home.record_trial(replace(trial(2), seconds=77.0, artefact="trials/mine", provenance={"command": "automl-tl fit"}))
    home.record_trial(trial(9))


def test_what_is_shipped_no_more_goes_and_the_users_own_stays(
    ship: Ship, versions: tuple[History, History], tmp_path: Path
) -> None:
    first, later = versions
    with ship(tmp_path / "home.db", first) as home:
        assert home.merge(path_of(first))["trials"] == 0
        work(home)
        (other,) = home.other_results(trial(2).id)
        before = home.digest(), home.known(), home.profiles(), home.backbones(), home.tasks()
    with ship(tmp_path / "home.db", later) as home, ship(tmp_path / "fresh.db", later) as fresh:
        work(fresh)
        assert home.trial(trial(2).id) == other, "the user's result, where the shipped one was withdrawn"
        assert "e" * 16 not in home.tasks()
        assert home.backbones()["net"].source_accuracy == 0.5
        assert home.profiles()["f" * 16].transferability.keys() == {"net", "mine"}
        assert home.integrity() == []
        assert home.digest() == fresh.digest()
        assert text_of(home, tmp_path / "home") == text_of(fresh, tmp_path / "fresh")
    with ship(tmp_path / "home.db", first) as home:
        assert (home.digest(), home.known(), home.profiles(), home.backbones(), home.tasks()) == before


def test_a_number_is_corrected_beside_one_that_was_merged(ship: Ship, make: Make, tmp_path: Path) -> None:
    first, later, friend = make(), make(), make()
    later.record_profile(replace(profile(), transferability={"net": {"logme": 0.5}}))
    friend.record_profile(replace(profile(), transferability={"net": {"knn": 0.9}}))
    with ship(tmp_path / "home.db", first) as home:
        home.merge(path_of(friend))
        assert home.profiles()["f" * 16].transferability["net"] == {"logme": -0.25, "knn": 0.9}
    with ship(tmp_path / "home.db", later) as home:
        assert home.profiles()["f" * 16].transferability["net"] == {"logme": 0.5, "knn": 0.9}


def test_a_task_that_is_shipped_no_more_stays_with_the_users_trials(
    ship: Ship, versions: tuple[History, History], tmp_path: Path
) -> None:
    own = trial(8, fingerprint="e" * 16)
    with ship(tmp_path / "home.db", versions[0]) as home:
        home.record_trial(own)
    with ship(tmp_path / "home.db", versions[1]) as home:
        assert [one.id for one in home.find(task="e" * 16)[1]] == [own.id]
        assert home.profiles().keys() == home.tasks().keys()
        assert home.integrity() == []


def test_what_was_imported_before_it_was_shipped_stays(
    ship: Ship, versions: tuple[History, History], make: Make, tmp_path: Path
) -> None:
    first, later = versions
    home = make()
    home.merge(path_of(first))
    known = home.known()
    with ship(path_of(home), first) as home, ship(path_of(home), later) as home:
        assert known.keys() <= home.known().keys()


def test_a_home_of_before_shipped_facts_were_noted(ship: Ship, versions: tuple[History, History], tmp_path: Path) -> None:
    first, later = versions
    with ship(tmp_path / "home.db", first) as home:
        home.db.execute("DELETE FROM state WHERE name = ?", [MARKS])
        home.db.execute("UPDATE state SET value = 'an older form' WHERE name = ?", [DIGEST])
        work(home)
    ship(tmp_path / "home.db", first).db.conn.close()
    with ship(tmp_path / "home.db", later) as home, ship(tmp_path / "fresh.db", later) as fresh:
        work(fresh)
        assert text_of(home, tmp_path / "home") == text_of(fresh, tmp_path / "fresh")


def test_a_correction_is_there_whole_or_not_at_all(
    ship: Ship, versions: tuple[History, History], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, later = versions
    with ship(tmp_path / "home.db", first) as home:
        before = text_of(home, tmp_path / "before")

    def killed(db: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("automl_tl.merging._take_in", killed)
        with pytest.raises(KeyboardInterrupt):
            ship(tmp_path / "home.db", later)
    with ship(tmp_path / "home.db", first) as home:
        assert text_of(home, tmp_path / "after") == before
    with ship(tmp_path / "home.db", later) as home, ship(tmp_path / "fresh.db", later) as fresh:
        assert text_of(home, tmp_path / "home") == text_of(fresh, tmp_path / "fresh")


def test_several_open_a_home_that_is_to_be_corrected(
    ship: Ship, versions: tuple[History, History], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, later = versions
    with ship(tmp_path / "home.db", first) as home:
        work(home)
    later.export(tmp_path / "later", names=True)
    monkeypatch.setattr("automl_tl.history._add_shipped", ADD_SHIPPED)
    monkeypatch.setattr("automl_tl.history._shipped", lambda: tmp_path / "later")

    def text(number: int) -> dict[str, bytes]:
        with open_history(tmp_path / "home.db") as home:
            assert home.integrity() == []
            return text_of(home, tmp_path / f"text {number}")

    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(text, range(4)))
    with open_history(tmp_path / "fresh.db") as fresh:
        work(fresh)
        assert texts == [text_of(fresh, tmp_path / "fresh")] * 4
