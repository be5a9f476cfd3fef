"""`fit A`, then `fit B --after runs/A`: what people read, and what lies on disk."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from small import TINY

from automl_tl import TransferClassifier, checkpoint, cli, model
from automl_tl.along import Along, read_task
from automl_tl.errors import InputError, TrialWarning
from automl_tl.objectives import brings
from automl_tl.records import SOURCE

pytestmark = pytest.mark.usefixtures("used_home")

DIGITS = load_digits()


def lay(folder: Path, classes: range) -> Path:
    """Some digits of each class as files, in train/ and in test/."""
    for label in classes:
        for number, index in enumerate(np.flatnonzero(DIGITS.target == label)[:18]):
            place = folder / ("train" if number < 12 else "test") / f"digit {label}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.uint8(DIGITS.images[index] * 15)).save(place / f"{number}.png")
    return folder


def typed(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["automl-tl", *map(str, words)])
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def test_one_task_after_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = lay(tmp_path / "first", range(2)), lay(tmp_path / "second", range(2, 4))
    a, b = tmp_path / "a", tmp_path / "b"
    options = ("--strategy", "linear-probe", "--backbone", TINY, "--trials", 1, "--out", a)
    code, out, err = typed(capsys, "fit", first, *options, "--remember", "exemplars", "--exemplars", 9)
    assert code == 0, err
    file = checkpoint.beside(a / "model", "exemplars")
    size = file.stat().st_size
    assert f"Remembered: exemplars, {size:,} bytes: images of yours, which go with the model" in out
    assert 8 * 64 * 64 * 3 < size < 8 * 64 * 64 * 3 + 1000, "nine images shared by two classes are four each"
    assert json.loads((a / "model" / model.CARD).read_text())["remembered"] == {"exemplars": size}
    assert not checkpoint.beside(a / "model", "fisher").exists(), "nothing that was not asked for"

    task = read_task(second, Along(source=a, shots=2))
    assert brings(task) == {"source"}, "an earlier task to learn how to learn from"
    assert len(task.part(SOURCE)) == 8

    after = ("fit", second, "--after", a, "--keep", first, "--budget", "3 epochs", "--out", b)
    code, out, err = typed(capsys, *after, "--backbone", "resnet10t_24.omniglot_a_64")
    assert code == 2
    assert f"the model of --after is a {TINY}, and only that can go on from it" in err
    code, _, err = typed(capsys, *after[:-1], first / "run")
    assert code == 2
    assert "lies in the folder of the images of --keep; choose another --out" in err
    code, out, err = typed(capsys, *after, "--strategy", "ewc")
    assert code == 0, err
    found = re.search(
        r"Old classes: test (\S+) \((\S+) before\), new classes: (\S+); told which of the two: (\S+) and (\S+)", out
    )
    assert found, out
    kept, before, new, kept_told, new_told = map(float, found.groups())
    assert kept_told >= kept
    assert new_told >= new
    assert "note: synaptic-intelligence is left out: train the earlier model with --remember importance" in out
    assert "its backbone is the only one" in out
    trial = json.loads(next((b / "trials").glob("*/trial.json")).read_text())
    assert trial["test"]["forgotten"] == pytest.approx(before - kept, abs=2e-3)
    assert set(trial["validation"]) >= {"new", "kept", "score"}
    assert model.load(b / "model").classes == ("digit 0", "digit 1", "digit 2", "digit 3")
    code, out, _ = typed(capsys, "predict", b, first / "test", "--json")
    assert {one["label"] for one in json.loads(out)} <= {f"digit {label}" for label in range(4)}
    code, out, err = typed(capsys, "fit", second, "--remember", "everything")
    assert (code, "there is no such memory; known: fisher, importance, exemplars, statistics" in err) == (2, True)


def test_what_a_winner_by_votes_cannot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither Fisher information nor attacks without a gradient; the model is there all the same, and it is said."""
    images, run = lay(tmp_path / "first", range(2)), tmp_path / "run"
    stale = checkpoint.beside(run / "model", "fisher")
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"of the winner before the run went on")
    only = ("--strategy", "knn", "--backbone", TINY, "--trials", 1, "--out", run)
    with pytest.warns(TrialWarning) as said:
        code, out, err = typed(capsys, "fit", images, *only, "--remember", "fisher", "--remember", "importance")
    assert code == 0, err
    assert [str(one.message).split(";")[0] for one in said] == [
        "--remember fisher: is left out, as the winner, knn, counts votes, which have no gradient",
        "--remember importance: is left out, as the winner, knn, was not trained in one descent",
    ]
    assert "Remembered" not in out
    assert not stale.exists()
    assert "remembered" not in json.loads((run / "model" / model.CARD).read_text())
    assert model.load(run / "model").classes == ("digit 0", "digit 1")
    code, out, err = typed(capsys, "evaluate", run, images, "--robust", "8/255")
    assert (code, out) == (2, "")
    assert "error: the model classifies by the votes of neighbours, which have no gradient" in err


def test_a_winner_is_saved_before_anything_is_remembered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, run = lay(tmp_path / "first", range(2)), tmp_path / "run"
    only = ("--strategy", "linear-probe", "--backbone", TINY, "--trials", 1, "--out", run)
    code, _, err = typed(capsys, "fit", images, *only, "--remember", "exemplars", "--exemplars", 1)
    assert (code, "1 exemplars are too few for 2 classes; allow at least one for each" in err) == (2, True)
    assert not run.exists(), "it is said before anything is trained"

    def full(*_: Any, **__: Any) -> None:
        raise InputError("no room")

    with monkeypatch.context() as patch:
        patch.setattr("automl_tl.memory.choose_exemplars", full)
        code, _, err = typed(capsys, "fit", images, *only, "--remember", "exemplars", "--exemplars", 2)
    assert (code, "no room" in err) == (2, True)
    before = json.loads((run / "model" / model.CARD).read_text())
    assert model.load(run / "model").classes == ("digit 0", "digit 1")
    code, _, err = typed(capsys, "fit", images, *only, "--remember", "exemplars", "--exemplars", 2)
    assert code == 0, err
    size = checkpoint.beside(run / "model", "exemplars").stat().st_size
    assert json.loads((run / "model" / model.CARD).read_text()) == {**before, "remembered": {"exemplars": size}}


@pytest.mark.slow
def test_the_estimator_knows_the_classes_of_both(tmp_path: Path) -> None:
    images = (DIGITS.images * 15).astype(np.uint8)
    old, new = (np.flatnonzero(np.isin(DIGITS.target, classes))[:60] for classes in ((0, 1), (2, 3)))
    first = TransferClassifier("1 trials", strategies=["linear-probe"], backbones=[TINY], remember=["exemplars"])
    first.fit(images[old], DIGITS.target[old]).save(tmp_path / "first")
    assert checkpoint.beside(tmp_path / "first", "exemplars").exists()
    second = TransferClassifier("1 trials", after=tmp_path / "first", strategies=["rehearsal"])
    second.fit(images[new], DIGITS.target[new])
    assert second.classes_.tolist() == [0, 1, 2, 3]
    both = np.concatenate([old, new])
    assert float((second.predict(images[both]) == DIGITS.target[both]).mean()) > 0.8
