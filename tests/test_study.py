"""Data efficiency measured for real: shares, resuming, what the page says."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from pictures import lay_drawn
from small import QUICK, arrays, digits

from automl_tl import data, registry, study
from automl_tl.backbones import catalogue
from automl_tl.errors import InputError
from automl_tl.evaluation.efficiency import Saving
from automl_tl.home import write_text
from automl_tl.progress import alone_in
from automl_tl.records import TARGET, TEST, TRAIN, VALIDATION, Candidate
from automl_tl.space import defaults
from automl_tl.study import Run, Study, means_of, saving_in_words, share_of, study_data
from automl_tl.trials import Limits, run_trial

SHARES = (0.3, 1.0)


class Made(NamedTuple):
    study: Study
    out: Path


@pytest.fixture(scope="module")
def home(make_home: Callable[[], Path]) -> Path:
    return make_home()


@pytest.fixture(autouse=True)
def in_that_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOML_TL_HOME", str(home))


@pytest.fixture(scope="module")
def made(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOML_TL_HOME", str(home))
        out = tmp_path_factory.mktemp("study")
        yield Made(run(out), out)


def run(out: Path, *, seeds: int = 1, **options: object) -> Study:
    chosen = {"strategy": "linear-probe", "backbone": QUICK, "epochs": 5, **options}
    return study_data(arrays(150), out=out, seeds=seeds, shares=SHARES, **chosen)  # type: ignore[arg-type]


def test_every_kind_is_trained_on_every_share(made: Made) -> None:
    runs = made.study.runs
    assert {(run.kind, run.share) for run in runs} == {(k, s) for k in ("transferred", "from scratch") for s in SHARES}
    few, all_ = (next(run for run in runs if run.share == share).images for share in SHARES)
    assert 0.25 < few / all_ < 0.4
    assert made.study.candidates["transferred"].strategy == "linear-probe"
    assert made.study.candidates["from scratch"].hyperparameters["epochs"] == 5
    assert made.study.test_images > 20
    rows = means_of(made.study)
    assert [row[0] for row in rows] == list(SHARES)
    assert rows[1][2][0] > rows[1][2][1]  # six hundred steps of a probe beat five epochs from nothing
    assert not (made.out / "checkpoints").exists()


def test_a_second_call_trains_only_what_is_missing(made: Made) -> None:
    kept = json.loads((made.out / "study.json").read_text(encoding="utf-8"))
    removed = kept["runs"].pop()
    (made.out / "study.json").write_text(json.dumps(kept), encoding="utf-8")
    told: list[tuple[int, int]] = []
    again = study_data(
        arrays(150),
        out=made.out,
        seeds=1,
        shares=SHARES,
        strategy="linear-probe",
        backbone=QUICK,
        epochs=5,
        progress=lambda what, done, total: told.append((done, total)) if "study" in what else None,
    )
    assert told[-1] == (4, 4)
    before = {(run.kind, run.share): run for run in made.study.runs}
    for run_ in again.runs:
        old = before[run_.kind, run_.share]
        assert run_.score == old.score  # the same seed trains the same model
        assert (run_.seconds == old.seconds) == ((run_.kind, run_.share) != (removed["kind"], removed["share"]))
    assert again.saving == made.study.saving


def test_another_study_in_the_same_folder_is_refused(made: Made) -> None:
    with pytest.raises(InputError, match="holds another study"):
        run(made.out, epochs=6)


def test_a_run_that_was_killed_is_not_taken_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, network = data.load_task(arrays(150), seed=0, test=0.2), catalogue()[QUICK]
    candidate = Candidate(QUICK, "fine-tuning", {**defaults(registry.strategies()["fine-tuning"].space), "epochs": 3})
    curves: list[list[tuple[float, float]]] = []

    def killed(*given: Any, **options: Any) -> None:
        run_trial(*given, limits=Limits(stop_after=2), **options)
        raise KeyboardInterrupt

    def watched(*given: Any, **options: Any) -> Any:
        trial, fitted = run_trial(*given, **options)
        curves.append([(point.epoch, point.score) for point in trial.curve])
        return trial, fitted

    def one(share: float, number: int, out: str) -> Run:
        return study._run(task, candidate, network, "transferred", share, number, tmp_path / out)

    monkeypatch.setattr(study, "run_trial", killed)
    with pytest.raises(KeyboardInterrupt):
        one(1.0, 1, "a")
    monkeypatch.setattr(study, "run_trial", watched)
    found = one(0.3, 0, "a"), one(0.3, 0, "b")
    assert found[0].score == found[1].score
    assert curves[0] == curves[1]
    assert [path.name for path in (tmp_path / "a" / "checkpoints").iterdir()] == ["transferred-1.0-1"], "that one can go on"
    assert not (tmp_path / "b" / "checkpoints").exists()


def test_a_plan_is_kept_whole_or_not_at_all(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(path: Path, text: str) -> None:
        write_text(path, text)
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    kept = json.loads((tmp_path / "study.json").read_text(encoding="utf-8"))
    assert kept == {name: json.loads((made.out / "study.json").read_text())[name] for name in ("request", "candidates")}


def test_one_process_at_a_time_works_on_a_study(made: Made) -> None:
    before = (made.out / "study.json").read_bytes()
    with alone_in(made.out), pytest.raises(InputError, match="another process is working in"):
        run(made.out)
    assert (made.out / "study.json").read_bytes() == before


def test_a_study_of_no_transfer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no transfer to study"):
        run(tmp_path / "s", strategy="from-scratch")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(("epochs", "strategy"), [(2, None), (2, "linear-probe"), (1000, "linear-probe")])
def test_epochs_that_cannot_be_are_refused_before_the_images_are_read(epochs: int, strategy: str | None, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"^--epochs {epochs}: from-scratch trains for \d+ to \d+$"):
        study_data(tmp_path / "nowhere", out=tmp_path / "s", strategy=strategy, epochs=epochs)


@pytest.mark.parametrize("other", ["run.json", "unfreezing.json"])
def test_a_folder_of_something_else_is_refused(other: str, tmp_path: Path) -> None:
    (tmp_path / other).write_text("{}")
    with pytest.raises(InputError, match=f"holds something else \\({other}\\); choose another --out"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [other]


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ([1.0], r"\(1\): all come to \d+ training images; a learning curve takes two different numbers"),
        ([0.01, 0.02], r"\(0.01, 0.02\): all come to 10 training images; a learning curve takes two different numbers"),
        ([5, 10, 25], "a share of the images is above 0 and at most 1, but one is 5"),
        ([0.5, math.nan], "at most 1, but one is nan"),
        ([], r"\(none\); a learning curve takes two different numbers"),
    ],
)
def test_shares_without_a_curve_are_refused_before_training(shares: list[float], message: str, tmp_path: Path) -> None:
    out = tmp_path / "s"
    with pytest.raises(InputError, match=message):
        study_data(arrays(150), out=out, seeds=1, shares=shares, strategy="linear-probe", backbone=QUICK, epochs=5)
    assert not out.exists()


def test_the_page_says_what_the_records_say(made: Made) -> None:
    html = (made.out / "study.html").read_text(encoding="utf-8")
    assert "<script" not in html
    assert "http" not in html
    for _, images, means in means_of(made.study):
        assert f">{images}<" in html
        assert all(f"{mean:.3f}" in html for mean in means)
    assert html.count('class="band') == 2
    facts = json.loads((made.out / "study.json").read_text(encoding="utf-8"))["result"]
    assert facts["words"] == saving_in_words(made.study)
    assert len(facts["runs"]) == 4


def test_a_share_is_of_every_class_and_part_of_the_larger_ones() -> None:
    task = digits(240)
    small, large = share_of(task, 0.1, seed=1), share_of(task, 0.5, seed=1)
    assert len(small.classes) == len(large.classes) == len(task.classes)
    np.testing.assert_array_equal(small.hashes[small.part(TEST)], task.hashes[task.part(TEST)])
    for split in (TRAIN, VALIDATION):
        inner, outer, whole = (set(t.hashes[t.part(split)].tolist()) for t in (small, large, task))
        assert inner <= outer <= whole
        counts = np.bincount(small.labels[small.part(split)])
        wanted = np.ceil(0.1 * np.bincount(task.labels[task.part(split)]) - 1e-9)
        np.testing.assert_array_equal(counts, wanted)
    other = share_of(task, 0.1, seed=2)
    assert set(other.hashes[other.part(TRAIN)].tolist()) != set(small.hashes[small.part(TRAIN)].tolist())
    assert share_of(task, 1.0, seed=3).fingerprint == share_of(task, 1.0, seed=4).fingerprint


def test_a_share_has_all_images_without_a_label(tmp_path: Path) -> None:
    """A strategy that takes as many of them as of the others would wait for them without end."""
    lay_drawn(tmp_path / "set" / "train", {"a": 10, "b": 10})
    task = data.load_task(lay_drawn(tmp_path / "set", {"unlabelled": 8}, start=50), test=0.2)
    part = share_of(task, 0.5, seed=0)
    assert (part.classes, len(part.part(TARGET)), len(part.part(TRAIN))) == (("a", "b"), 8, 6)
    assert set(part.labels[part.part(TARGET)].tolist()) == {-1}
    without = data.subset(task, np.flatnonzero(task.labels >= 0), name="labelled")
    assert (without.classes, TARGET in without.splits) == (("a", "b"), False)


@pytest.mark.parametrize(
    ("saving", "words"),
    [
        (Saving(8.0, 5.0, 12.0, 1000, 0.1, 20.0), "takes 8 times fewer images for 90.0% right"),
        (Saving(8.0, 5.0, 20.0, 1000, 0.1, 20.0), "takes 8 times fewer images for 90.0% right"),
        (Saving(8.0, 5.0, 20.0, 1000, 0.1, 20.0), "(95 % interval 5 to 20 or more, as times fewer)"),
        (Saving(20.0, 18.0, 20.0, 1000, 0.1, 20.0), "takes at least 20 times fewer images for 90.0% right"),
        (Saving(151.2, 98.7, 12345.0, 1000, 0.1, 2e4), "takes 150 times fewer images"),
        (Saving(151.2, 98.7, 12345.0, 1000, 0.1, 2e4), "(95 % interval 99 to 12,000, as times fewer)"),
        (Saving(0.5, 0.2, 0.9, 1000, 0.1, 20.0), "takes 2 times more images"),
        (Saving(0.5, 0.2, 0.9, 1000, 0.1, 20.0), "as times fewer; that lies outside what was measured"),
        (Saving(0.0, 0.0, 1.0, 1000, 0.1, 20.0), "no factor can be given"),
    ],
)
def test_the_factor_in_words(made: Made, saving: Saving, words: str) -> None:
    from dataclasses import replace

    assert words in saving_in_words(replace(made.study, saving=saving))


def test_the_facts_are_json(made: Made) -> None:
    assert json.loads(json.dumps(study.facts_of(made.study), allow_nan=False))["task"] == made.study.task
