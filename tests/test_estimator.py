"""The scikit-learn face."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from small import QUICK as SMALL
from small import TINY, arrays
from torch import nn

from automl_tl import Candidate, Classifier, TransferClassifier, api, load_task, model, steps
from automl_tl.backbones import build, catalogue
from automl_tl.budget import Budget, parse_budget
from automl_tl.data import class_name
from automl_tl.errors import InputError, InputWarning, PluginError
from automl_tl.estimator import _seed, _with_earlier
from automl_tl.exports import predictor

pytestmark = pytest.mark.usefixtures("used_home")

QUICK = {"budget": "1 trials", "strategies": ["linear-probe"], "backbones": [TINY]}


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    images, labels = arrays(200)
    return np.stack(images), np.array(labels)


@pytest.fixture(scope="module")
def fitted(
    digits: tuple[np.ndarray, np.ndarray], make_home: Callable[[], Path], tmp_path_factory: pytest.TempPathFactory
) -> TransferClassifier:
    """By the first 150 of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOML_TL_HOME", str(make_home()))
        out = tmp_path_factory.mktemp("fitted") / "run"
        return TransferClassifier(**QUICK, out=out).fit(digits[0][:150], digits[1][:150])


def test_fit_predict_and_what_is_learnt(digits: tuple[np.ndarray, np.ndarray], fitted: TransferClassifier) -> None:
    images, labels = digits
    classifier = fitted
    chances = classifier.predict_proba(images[150:])
    assert chances.shape == (50, 10)
    np.testing.assert_allclose(chances.sum(axis=1), 1, atol=1e-4)
    assert classifier.score(images[150:], labels[150:]) > 0.6
    assert classifier.classes_.tolist() == list(range(10))
    assert classifier.predict(images[:3]).dtype == labels.dtype
    assert classifier.predict_proba(images[:0]).shape == (0, 10)
    assert (classifier.predict(images[:0]).shape, classifier.predict([]).dtype) == ((0,), labels.dtype)
    assert classifier.ranking_.items
    assert Path(classifier.report_).read_text(encoding="utf-8").startswith("<!doctype html>")


def test_what_a_notebook_prints_is_short(fitted: TransferClassifier) -> None:
    """A ranking is of a thousand candidates, a task of all its images."""
    first, *others = fitted.ranking_.items
    ranking = replace(fitted.ranking_, items=(first, *others) * 500)
    title, best, *rest = repr(ranking).splitlines()
    assert title == f"Ranking of {len(ranking.items)} candidates from {ranking.basis}"
    assert best.startswith(f"1. linear-probe on {TINY}: {first.score:.3f} ({first.low:.2f}–{first.high:.2f})")
    assert len(rest) == 4
    assert len(repr(load_task("digits"))) < 1000
    assert len(repr(replace(fitted.outcome_, ranking=ranking))) < 5000
    predictions = api.Predictions(("a.png",) * 5000, ("a", "b"), np.zeros((5000, 2)))
    assert len(repr(predictions)) < 300


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("grey array", marks=pytest.mark.slow),
        pytest.param("colour array", marks=pytest.mark.slow),
        pytest.param("pictures", marks=pytest.mark.slow),
        "paths",
    ],
)
def test_images_come_in_many_ways(kind: str, digits: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    grey = digits[0]
    labels = np.array(["odd" if label % 2 else "even" for label in digits[1]])
    pictures = [Image.fromarray(image) for image in grey]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    images = {
        "grey array": grey,
        "colour array": np.repeat(grey[..., None], 3, axis=3),
        "pictures": pictures,
        "paths": [tmp_path / f"{number}.png" for number in range(len(grey))],
    }[kind]
    classifier = TransferClassifier(**QUICK).fit(images, labels)
    assert classifier.classes_.tolist() == ["even", "odd"]
    expected = TransferClassifier(**QUICK).fit(grey, labels).predict_proba(grey[:10])
    np.testing.assert_allclose(classifier.predict_proba(images[:10]), expected, atol=1e-6)


def test_one_image_is_no_batch(digits: tuple[np.ndarray, np.ndarray], fitted: TransferClassifier, tmp_path: Path) -> None:
    """Its rows would be taken for grey images, each with a label."""
    colours = np.repeat(digits[0][..., None], 3, axis=3)
    classifier = TransferClassifier(**QUICK).fit(colours, digits[1])
    classifier.save(tmp_path)
    for same in (classifier, TransferClassifier.load(tmp_path), pickle.loads(pickle.dumps(classifier))):
        with pytest.raises(InputError, match=r"X of shape \(\d+, \d+, 3\) is one image; give a batch: X\[None\]"):
            same.predict(colours[0])
        assert same.predict(colours[0][None]).shape == (1,)
        assert same.predict(digits[0][:2]).shape == (2,), "grey images are images, too"
    for one in (digits[0][0], colours[0]):
        with pytest.raises(InputError, match="is one image"):
            fitted.predict(one)


def test_what_is_no_batch_and_no_folder_is_said(digits: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    labels = np.where(digits[1] < 5, "\ud800", "b")  # half a character is no name of a file, but a label
    fitted = TransferClassifier(**QUICK).fit((image for image in digits[0]), labels)  # one by one is a batch
    assert set(fitted.predict(iter(digits[0]))) == {"\ud800", "b"}
    table = SimpleNamespace(columns=["path"])
    for one, words in (
        (Image.new("L", (8, 8)), r"X is one Image; give a batch: \[X\]"),
        (tmp_path, "X is one PosixPath, a folder; give a list of its images, or use automl_tl.fit and predict"),
        (Path("a.png"), r"X is one PosixPath; give a batch: \[X\]"),
        ("a.png", "X is one str"),
        (None, "X is a NoneType"),
        (table, "X is a table"),
    ):
        with pytest.raises(InputError, match=words):
            fitted.predict(one)
        with pytest.raises(InputError, match=words):
            TransferClassifier(**QUICK).fit(one, digits[1])
    (tmp_path / "model").write_text("mine")
    with pytest.raises(InputError, match="is not a folder that can be written to"):
        fitted.save(tmp_path / "model")
    assert (tmp_path / "model").read_text() == "mine"


def test_names_come_alone_and_in_arrays(digits: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    images, labels = digits[0][:60], digits[1][:60]
    alone = TransferClassifier("1 trials", strategies="nearest-mean", backbones=TINY, remember="exemplars").fit(images, labels)
    array = TransferClassifier("1 trials", strategies=np.array(["nearest-mean"]), backbones=np.array([TINY])).fit(images, labels)
    assert alone.outcome_.winner.candidate == array.outcome_.winner.candidate
    with pytest.raises(PluginError, match="unknown strategy 'nearest'"):
        TransferClassifier(strategies="nearest").fit(images, labels)
    first, second = (tmp_path / name / "exemplars.safetensors" for name in ("first", "second"))
    alone.save(first.parent)
    TransferClassifier.load(first.parent).save(second.parent)
    assert second.read_bytes() == first.read_bytes(), "what is remembered goes where the model goes"
    array.save(second.parent)
    assert not second.exists(), "and with no other model"


@pytest.mark.parametrize(
    ("classes", "known", "expected"),
    [
        (np.array([3, 4]), ["1", "2", "3", "4"], [1, 2, 3, 4]),
        (np.array([3, 4]), ["00001", "3", "4"], ["00001", "3", "4"]),
        (np.array([3, 4], dtype=np.uint8), ["300", "3", "4"], ["3", "300", "4"]),
        (np.array([3.0, 4.0]), ["1", "3", "4"], [1.0, 3.0, 4.0]),
        (np.array([3.0, 4.0]), ["a", "3", "4"], ["3", "4", "a"]),
        (np.array([False, True]), ["perhaps", "False", "True"], ["False", "True", "perhaps"]),
        (np.array(["e\u0301"]), ["\u00e9", "a"], ["a", "e\u0301"]),
    ],
    ids=["numbers", "with zeros before", "too large", "floats", "floats and texts", "texts", "texts in another form"],
)
def test_classes_of_an_earlier_model_keep_their_names(classes: np.ndarray, known: list[str], expected: list[object]) -> None:
    found = _with_earlier(classes, known)
    assert found.tolist() == expected
    assert sorted(map(class_name, found)) == sorted(known), "a column of what the model says for each"


def test_labels_without_an_order_are_refused(digits: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(InputError, match="make them all strings or all numbers"):
        TransferClassifier(**QUICK).fit(digits[0][:4], np.array([1, "a", 1, "a"], dtype=object))


def test_what_is_left_out_is_warned_of(digits: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    paths = []
    for number, image in enumerate(digits[0]):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(image).save(paths[-1])
    Path(paths[7]).write_bytes(b"no image")
    with pytest.warns(InputWarning, match=r"skipped, as it cannot be read: image 7: cannot be read") as caught:
        TransferClassifier(**QUICK).fit(np.array(paths), digits[1])
    assert {warning.filename for warning in caught} == {__file__}
    paths[7] = str(tmp_path / "nowhere.png")
    with pytest.raises(InputError, match=r"image 7: .*nowhere\.png: there is no such file"):
        TransferClassifier(**QUICK).fit(paths, digits[1])


def test_labels_that_are_not_counted_from_zero(digits: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = digits
    odd, before = labels * 10 - 45, torch.random.get_rng_state()
    classifier = TransferClassifier(**QUICK).fit(images, odd)
    assert torch.equal(torch.random.get_rng_state(), before), "the generator is the calling program's"
    assert classifier.classes_.tolist() == sorted(set(odd.tolist())), "also negative ones, which a run sorts as text"
    assert classifier.score(images, odd) > 0.6


def test_chance_is_left_to_the_calling_program(
    fitted: TransferClassifier, digits: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    """A network is made with random weights before it is given its own."""
    run, pairs = fitted.report_.parent, (digits[0][:20], digits[1][:20])
    fitted.save(tmp_path / "saved")
    packed, task = pickle.dumps(fitted), load_task((digits[0], digits[1]))
    before = torch.random.get_rng_state()
    for step in (
        lambda: TransferClassifier.load(tmp_path / "saved").predict(digits[0][:2]),
        lambda: pickle.loads(packed),
        lambda: api.predict(run, list(digits[0][:2])),
        lambda: api.evaluate(run, pairs),
        lambda: api.profile_task(task),
        lambda: api.recommend(task, strategies=["linear-probe"], backbones=[TINY]),
        lambda: api.compare(run),
        lambda: api.export(run, to="timm", out=tmp_path / "timm"),
        lambda: api.predict(tmp_path / "timm", list(digits[0][:2])),
    ):
        step()
        assert torch.equal(torch.random.get_rng_state(), before)


def test_parameters_are_only_stored(digits: tuple[np.ndarray, np.ndarray]) -> None:
    classifier = TransferClassifier(budget="3 trials", random_state=7)
    assert classifier.get_params()["random_state"] == 7
    assert clone(classifier).get_params() == classifier.get_params()
    with pytest.raises(NotFittedError):
        classifier.predict(digits[0])
    with pytest.raises(InputError, match="cannot read the budget '1 of parsecs'"):
        TransferClassifier(budget="1 of parsecs").fit(*digits)


@pytest.mark.slow
def test_random_state_decides(digits: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = digits
    one, same, other = (TransferClassifier(**QUICK, random_state=s).fit(images, labels).predict_proba(images) for s in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0, "another split, another probe"


def test_save_and_load(digits: tuple[np.ndarray, np.ndarray], fitted: TransferClassifier, tmp_path: Path) -> None:
    images, classifier = digits[0], fitted
    classifier.save(tmp_path / "saved")
    loaded = TransferClassifier.load(tmp_path / "saved")
    np.testing.assert_array_equal(loaded.predict_proba(images), classifier.predict_proba(images))
    assert loaded.classes_.tolist() == classifier.classes_.tolist()
    assert loaded.get_params() == {**classifier.get_params(), "out": None}, "an empty tuple is none of JSON's"
    with pytest.raises(InputError, match=r"holds no saved TransferClassifier .*; automl_tl\.predict uses the model of a run"):
        TransferClassifier.load(classifier.out)
    assert {path.suffix for path in (tmp_path / "saved").iterdir()} <= {".json", ".safetensors", ".html"}


def test_the_type_of_the_labels_is_kept(tmp_path: Path) -> None:
    backbone, names = catalogue()[SMALL], [str(number) for number in range(10)]
    net = Classifier(build(backbone), nn.Linear(backbone.num_features, 10))
    model.save(tmp_path, net, backbone, Candidate(SMALL, "linear-probe"), names, {})
    classifier = TransferClassifier(remember={"fisher", "exemplars"})
    classifier._use(model.load(tmp_path), np.arange(10), ())
    for dtype in ("uint8", "float32", "object", "<U4", ">i4", np.dtypes.StringDType()):
        classifier.classes_ = np.arange(10).astype("<U4" if dtype == "object" else int).astype(dtype)
        classifier.save(tmp_path)
        loaded = TransferClassifier.load(tmp_path)
        assert loaded.classes_.dtype == classifier.classes_.dtype
        assert loaded.classes_.tolist() == classifier.classes_.tolist()
    assert loaded.remember == ["exemplars", "fisher"]
    file = tmp_path / "estimator.json"
    older = {name: value for name, value in json.loads(file.read_text()).items() if name != "dtype"}
    file.write_text(json.dumps(older))
    assert TransferClassifier.load(tmp_path).classes_.tolist() == classifier.classes_.tolist()


def test_what_was_saved_and_is_damaged_is_said(fitted: TransferClassifier, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    (tmp_path / "estimator.json").write_text("{")
    with pytest.raises(InputError, match=r"estimator\.json: is damaged: .*; save the classifier anew"):
        TransferClassifier.load(tmp_path)
    fitted.save(tmp_path)
    card = json.loads((tmp_path / "estimator.json").read_text())
    card["parameters"] |= {"depth": 3, "speed": 1}
    (tmp_path / "estimator.json").write_text(json.dumps(card))
    with pytest.raises(InputError, match=r"it names depth, speed, which this version does not know; save the classifier anew"):
        TransferClassifier.load(tmp_path)
    limited = TransferClassifier(budget=Budget(seconds=1e6, trials=5))
    limited._use(fitted.model_, fitted.classes_, ())
    limited.save(tmp_path / "limited")
    assert parse_budget(TransferClassifier.load(tmp_path / "limited").budget) == limited.budget
    strange = TransferClassifier(budget=b"1m")  # type: ignore[arg-type]
    strange._use(fitted.model_, fitted.classes_, ())
    with pytest.raises(TypeError, match="a bytes is no parameter that can be saved"):
        strange.save(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_any_number_of_images_is_predicted_in_blocks(
    digits: tuple[np.ndarray, np.ndarray], fitted: TransferClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, held = fitted.predict_proba(digits[0][:20]), []
    decoded = predictor.pixels.decode_images

    def watched(images: list[np.ndarray], *rest: Any, **options: Any) -> np.ndarray:
        held.append(len(images))
        return decoded(images, *rest, **options)

    monkeypatch.setattr(predictor.pixels, "decode_images", watched)
    monkeypatch.setattr(predictor, "DECODED", 8)
    np.testing.assert_allclose(fitted.predict_proba(digits[0][:20]), expected, atol=1e-5)  # of smaller batches
    assert held == [8, 8, 4]


def test_an_interrupted_fit_is_told_and_leaves_a_usable_estimator(
    digits: tuple[np.ndarray, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a cross-validation, too, ends rather than goes on with the next fold."""
    images, labels = digits[0][digits[1] < 3], digits[1][digits[1] < 3]
    trained, begun = steps.run_trial, []

    def interrupted(task: object, candidate: Candidate, *rest: Any, **options: Any) -> Any:
        begun.append(candidate)
        if len(begun) > 1:
            raise KeyboardInterrupt
        return trained(task, candidate, *rest, **options)

    monkeypatch.setattr(steps, "run_trial", interrupted)
    classifier = TransferClassifier(**{**QUICK, "budget": "2 trials", "backbones": [TINY, SMALL]}, out=tmp_path / "run")
    with pytest.raises(KeyboardInterrupt, match="the best model that was trained until then"):
        classifier.fit(images[:40], labels[:40])
    assert classifier.outcome_.interrupted
    assert classifier.score(images[40:], labels[40:]) > 0.5
    assert Path(classifier.report_).exists()


@pytest.mark.slow
def test_saved_where_it_lies_it_is_there(digits: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    """Into the folder of its run, that of the run's model, or where it was loaded from. Numbers may be NumPy's."""
    images, labels = digits
    run = tmp_path / "run"
    classifier = TransferClassifier(**QUICK, out=run, remember=["exemplars"], random_state=np.int64(3)).fit(images, labels)
    expected = classifier.predict_proba(images[:9])
    classifier.set_params(budget=np.int64(60), backbones=np.array([TINY]))
    for folder in (run, run / "model"):
        classifier.save(folder)
        TransferClassifier.load(folder).save(folder)
        loaded = TransferClassifier.load(folder)
        np.testing.assert_array_equal(loaded.predict_proba(images[:9]), expected)
        parameters = loaded.get_params()
        assert (parameters["random_state"], parameters["budget"], parameters["backbones"]) == (3, 60, [TINY])
        assert (folder / "exemplars.safetensors").stat().st_size > 0
        assert (folder / "report.html").stat().st_size > 0


@pytest.mark.parametrize(
    ("random_state", "message"),
    [
        (np.random.RandomState(0), "random_state is a RandomState; give a whole number"),
        (1.0, "random_state is a float; give a whole number"),
        ("1", "random_state is a str; give a whole number"),
        (-1, "random_state is -1; give a whole number from 0 to 2147483647"),
        (2**31, "random_state is 2147483648; give a whole number from 0 to 2147483647"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_seed_is_said(random_state: Any, message: str, digits: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        TransferClassifier(**QUICK, out=tmp_path / "run", random_state=random_state).fit(*digits)
    assert not (tmp_path / "run").exists()


def test_seeds_are_whole_numbers_of_any_kind() -> None:
    seeds = [_seed(random_state) for random_state in (None, 3, np.int64(3), np.uint8(3), 2**31 - 1)]
    assert seeds == [0, 3, 3, 3, 2**31 - 1]
    assert {type(seed) for seed in seeds} == {int}


@pytest.mark.slow
def test_cross_validation(digits: tuple[np.ndarray, np.ndarray]) -> None:
    scores = cross_val_score(TransferClassifier(**QUICK), *digits, cv=2)
    assert scores.min() > 0.5


@pytest.mark.slow
def test_a_pickle_holds_the_model_by_value(digits: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    """In a fresh process, where neither the run's folder nor the home of its caches is."""
    images, labels = digits
    classifier = TransferClassifier(**QUICK, out=tmp_path / "run").fit(images[:120], labels[:120])
    state = classifier.__getstate__()
    assert set(state["model_"]) == {"model.json", "model.safetensors"}
    assert isinstance(state["model_"]["model.safetensors"], bytes)
    assert json.loads(state["model_"]["model.json"])["classes"] == [str(number) for number in range(10)]
    assert "report_" not in state
    (tmp_path / "classifier.pickle").write_bytes(pickle.dumps(classifier))
    np.save(tmp_path / "images.npy", images[120:140])
    expected = classifier.predict_proba(images[120:140])
    shutil.rmtree(tmp_path / "run")
    code = """
import pickle
import numpy as np
with open("classifier.pickle", "rb") as file:
    classifier = pickle.load(file)
np.save("found.npy", classifier.predict_proba(np.load("images.npy")))
print(classifier.classes_.tolist(), len(classifier.ranking_.items) > 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "AUTOML_TL_HOME": str(tmp_path / "elsewhere")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{list(range(10))} True"
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), expected)


def test_before_it_is_fitted_it_pickles_too() -> None:
    copy = pickle.loads(pickle.dumps(TransferClassifier(budget="3 trials")))
    assert copy.get_params() == TransferClassifier(budget="3 trials").get_params()
    with pytest.raises(NotFittedError):
        copy.predict(np.zeros((1, 8, 8), np.uint8))


@pytest.mark.slow
def test_in_a_pipeline_and_a_search_over_budgets(digits: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = digits
    darker = FunctionTransformer(lambda batch: batch // 2, check_inverse=False)
    pipeline = make_pipeline(darker, TransferClassifier(**{**QUICK, "backbones": [TINY, SMALL]}))
    search = GridSearchCV(pipeline, {"transferclassifier__budget": ["1 trials", "2 trials"]}, cv=2).fit(images, labels)
    assert search.best_params_["transferclassifier__budget"] in ("1 trials", "2 trials")
    assert search.cv_results_["mean_test_score"].min() > 0.5
    assert search.predict(images[:5]).shape == (5,)
