"""The scikit-learn face of `fit`."""

from __future__ import annotations

import contextlib
import json
import operator
import os
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted, column_or_1d

from . import api, data, memory, model
from .advice import Advice
from .along import Along
from .budget import Budget
from .errors import InputError, InputWarning
from .exports.predictor import of_model
from .home import check_writable, read_json, write_text
from .records import Task

ESTIMATOR = "estimator.json"
SEEDS = 2**31
"""So many seeds there are, as for `--seed`."""


class TransferClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Finds and trains the best transfer-learning classifier within a budget.

    Parameters
    ----------
    budget : str, float or Budget
        "90s", "10m", "5 trials", "60 epochs", several joined by "+", or seconds.
    strategies, backbones : list of str, optional
        Consider only these.
    source, after, keep, clients, skew, robust, shots
        What comes with the images, and so what is asked for; see `automl_tl.along.Along`.
    remember : list of str
        What `save` keeps with the model for a task `after` it: "fisher", "importance", "statistics", "exemplars" (images of `X`).
    zoo : str, optional
        Also consider the networks of this zoo ("timm").
    out : path, optional
        Folder of the run; a temporary one that lives as long as the estimator if not given.
    random_state : int, optional
        0 to 2³¹ - 1; decides the split, the ranking and the training. None means 0, so that the same call gives the same again.

    Attributes
    ----------
    classes_ : the class labels, as in `y`, sorted; with `after`, those of the earlier model, too.
    image_shape_ : shape of each image of an array; () of images in a sequence, which may differ.
    ranking_ : `Ranking`, what was recommended and why.
    outcome_ : `Outcome`, every trial and the winner.
    report_ : path of the HTML report.

    Notes
    -----
    It passes scikit-learn's estimator checks, with rows of numbers laid out as images, but for those that are about tables
    (`tests/test_sklearn_checks.py` lists them, each with its reason), and works in `Pipeline`, `cross_val_score`, `clone` and
    `GridSearchCV`. A pickle holds the model by value (the bytes of a safetensors file and a JSON card), so that it predicts the
    same where the run's folder is not; the report and what it remembers, which are files, stay behind. Unpickling runs what a
    pickle says, so take pickles only from those you trust; `save` and `load` need no pickle.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> digits = load_digits()
    >>> images = (digits.images[:300] * 15.9).astype("uint8")
    >>> clf = TransferClassifier(budget="1 trials", random_state=0).fit(images, digits.target[:300])
    >>> clf.predict(images[:5]).shape
    (5,)
    """

    def __init__(
        self,
        budget: str | float | Budget = "10m",
        *,
        strategies: Sequence[str] | None = None,
        backbones: Sequence[str] | None = None,
        source: Any = None,
        after: str | Path | None = None,
        keep: Any = None,
        clients: int | tuple[Any, ...] = (),
        skew: float = 1.0,
        robust: float | str = 0.0,
        shots: int = 0,
        remember: Sequence[str] = (),
        zoo: str | None = None,
        out: str | Path | None = None,
        random_state: int | None = 0,
    ) -> None:
        self.budget = budget
        self.strategies = strategies
        self.backbones = backbones
        self.source = source
        self.after = after
        self.keep = keep
        self.clients = clients
        self.skew = skew
        self.robust = robust
        self.shots = shots
        self.remember = remember
        self.zoo = zoo
        self.out = out
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Fit on images (array or tensor N×H×W[×3] or N×3×H×W, or a sequence of PIL images, arrays or paths) with labels `y`.

        Warns (`InputWarning`) of images that cannot be read and are left out, and of near-duplicates.

        Ctrl-C ends the search. Where a model was trained by then, the estimator is fitted with the best one, and
        KeyboardInterrupt is raised all the same: a loop over folds must not take it for a whole fit and go on with the next.
        """
        X, labels, seed = _batch(X), _labels(y), _seed(self.random_state)
        data.read_listing((X, labels))  # names an image without a label, while a label is not text yet
        try:
            classes = np.unique(labels)
        except TypeError:
            raise InputError("the labels of y are numbers and texts; make them all strings or all numbers") from None
        if len({_name(label) for label in classes}) != len(classes):
            raise InputError("two labels of y look the same as text; make them all strings or all numbers")
        out = self._temporary() if self.out is None else Path(self.out)
        self.outcome_ = api.fit(
            (X, [_name(label) for label in labels]),
            budget=self.budget,
            out=out,
            along=Along(self.source, self.after, self.keep, self.clients, self.skew, self.robust, self.shots),
            seed=seed,
            zoo=self.zoo,
            strategies=self.strategies,
            backbones=self.backbones,
            remember=self.remember,
            told=_warn,
        )
        trained = model.load(out / "model")
        self._use(trained, _with_earlier(classes, trained.classes), _shape(X)[1:])
        self._folder = out / "model"
        self.ranking_ = self.outcome_.ranking
        self.report_ = out / "report.html"
        if self.outcome_.interrupted:
            raise KeyboardInterrupt("fit was cut short; the estimator has the best model that was trained until then")
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False  # an image has two dimensions or three
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True  # paths
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """By value: no live network, and no place on this machine that will be gone."""
        state: dict[str, Any] = {**super().__getstate__()}
        state.pop("report_", None)
        state.pop("_folder", None)
        if "model_" in state:
            state["model_"] = model.pack(state["model_"])
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "model_": model.unpack(state["model_"])} if "model_" in state else state)

    def _temporary(self) -> Path:
        """A folder that goes with the estimator."""
        folder = Path(tempfile.mkdtemp(prefix="automl_tl_"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return folder

    def _use(self, trained: model.Model, classes: np.ndarray, image_shape: tuple[int, ...]) -> None:
        self.model_ = trained
        self.classes_ = classes
        self.image_shape_ = image_shape

    def predict_proba(self, X: Any) -> np.ndarray:
        """n×classes, in the order of `classes_`; of no images 0×classes."""
        check_is_fitted(self, "model_")
        X = _batch(X)
        self._check_batch(_shape(X))
        found = of_model(self.model_).answer(list(X), [f"image {i}" for i in range(len(X))])
        columns = [self.model_.classes.index(_name(label)) for label in self.classes_]  # which a run has in an order for people
        return found[:, columns]

    def _check_batch(self, shape: tuple[int, ...]) -> None:
        """Raises InputError: it is that of one image, whose rows would each be taken for a grey one."""
        colours = len(shape) == 3 and shape[-1] in (3, 4) and shape[1:] != self.image_shape_
        if shape and (colours or shape == self.image_shape_):
            raise InputError(f"X of shape {shape} is one image; give a batch: X[None]")

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each image."""
        best = self.predict_proba(X).argmax(axis=1)
        labels: np.ndarray = self.classes_[best]
        return labels

    def save(self, folder: str | Path) -> None:
        """Write the model (safetensors and JSON) into `folder`, which may be that of the run, or one it was loaded from."""
        check_is_fitted(self, "model_")
        folder = Path(folder)
        check_writable(folder)
        parameters = {
            **self.get_params(),
            **dict.fromkeys(("out", "source", "after", "keep")),
            "clients": self.clients if isinstance(self.clients, int) else (),
        }  # without the places of this machine
        facts = {
            "parameters": parameters,
            "classes": self.classes_.tolist(),
            "dtype": _dtype(self.classes_),
            "image_shape": self.image_shape_,
        }
        told, m = json.dumps(facts, indent=1, default=_plain), self.model_
        model.save(folder, m.net, m.backbone, m.candidate, m.classes, m.facts)
        write_text(folder / ESTIMATOR, told)
        memory.carry(getattr(self, "_folder", None), folder)
        if getattr(self, "report_", None) and Path(self.report_).exists():
            _copy(Path(self.report_), folder / "report.html")

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """What `save` wrote: a classifier that predicts. Its `ranking_` and `outcome_` are not kept."""
        folder = Path(folder)
        try:
            parameters, classes, image_shape = read_json(folder / ESTIMATOR, _saved, remedy="save the classifier anew")
        except FileNotFoundError:
            raise InputError(
                f"{folder} holds no saved TransferClassifier ({ESTIMATOR} is missing); automl_tl.predict uses the model of a run"
            ) from None
        estimator = cls(**parameters)
        estimator._use(model.load(folder), classes, image_shape)
        estimator._folder = folder
        if (folder / "report.html").exists():
            estimator.report_ = folder / "report.html"
        return estimator


def _saved(facts: Any) -> tuple[dict[str, Any], np.ndarray, tuple[int, ...]]:
    """Parameters, classes and shape of an image, of what `save` wrote; older files name no type, and NumPy chooses it."""
    parameters = {name: () if value == [] else value for name, value in facts["parameters"].items()}
    if unknown := parameters.keys() - TransferClassifier().get_params().keys():
        raise InputError(f"it names {', '.join(sorted(unknown))}, which this version does not know")
    return parameters, np.array(facts["classes"], dtype=facts.get("dtype")), tuple(facts.get("image_shape", ()))


def _dtype(classes: np.ndarray) -> str:
    """In words that `np.dtype` reads back; those of texts of any length are none of them."""
    return "T" if classes.dtype.kind == "T" else str(classes.dtype)


def _with_earlier(classes: np.ndarray, known: Sequence[str]) -> np.ndarray:
    """`classes` and those of an earlier model that are not among them: numbers where all are numbers that `_name` calls the same
    again, unlike "007", else texts, of numbers those of `_name`."""
    more = [name for name in known if name not in {_name(label) for label in classes}]
    if not more:
        return classes
    if classes.dtype.kind in "iuf":
        with contextlib.suppress(ValueError, OverflowError):
            numbers = np.array(more).astype(classes.dtype)
            if [_name(number) for number in numbers] == more:
                return np.unique(np.concatenate([classes, numbers]))
    return np.unique([*(label if isinstance(label, str) else _name(label) for label in classes), *more])


def _batch(X: Any) -> Any:
    """X, or the list of what it gives one by one. Raises InputError: it is one image, a folder, a table, or none of these."""
    if isinstance(X, (str, Path)) and os.path.isdir(X):
        raise InputError(f"X is one {type(X).__name__}, a folder; give a list of its images, or use automl_tl.fit and predict")
    if isinstance(X, (str, bytes, Path, Image.Image)):
        raise InputError(f"X is one {type(X).__name__}; give a batch: [X]")
    if hasattr(X, "columns"):
        raise InputError("X is a table; give the column with the images or their paths, such as X['path']")
    if hasattr(X, "__len__"):
        return X
    if not isinstance(X, Iterable):
        raise InputError(f"X is a {type(X).__name__}; give images: an array, or a list of PIL images, arrays or paths")
    return list(X)


def _name(label: Any) -> str:
    """Of a class, as a model has it."""
    return data.class_name(label)


def _shape(X: Any) -> tuple[int, ...]:
    """That of an array, of NumPy's or another's; nothing of a sequence."""
    return tuple(getattr(X, "shape", ()))


def _warn(task: Task, _advice: Advice) -> None:
    for warning in task.warnings:
        warnings.warn(warning, InputWarning, stacklevel=4)  # where `fit` of the estimator is called


def _seed(random_state: Any) -> int:
    """Raises InputError: it is no seed."""
    try:
        seed = 0 if random_state is None else operator.index(random_state)
    except TypeError:
        kind = type(random_state).__name__
        raise InputError(f"random_state is a {kind}; give a whole number, as a run that goes on has to draw the same") from None
    if not 0 <= seed < SEEDS:
        raise InputError(f"random_state is {seed}; give a whole number from 0 to {SEEDS - 1}")
    return seed


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays, which a grid of parameters may be made of, and sets of names, as JSON has them."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Budget):
        return str(value)
    raise TypeError(f"a {type(value).__name__} is no parameter that can be saved")


def _copy(source: Path, target: Path) -> None:
    """Unless they are the same file: what is saved where it came from is there."""
    with contextlib.suppress(shutil.SameFileError):
        shutil.copyfile(source, target)


def _labels(y: Any) -> np.ndarray:
    """One an image. Raises ValueError: there are none, they are numbers that go on and on, or are not in a line."""
    if y is None:
        raise InputError("TransferClassifier requires y to be passed, but the target y is None")
    labels = np.asarray(y)
    if labels.ndim != 1 and not (labels.ndim == 2 and labels.shape[1] == 1):
        raise InputError(f"y must be one-dimensional, but has shape {labels.shape}")
    labels = np.asarray(column_or_1d(labels, warn=True))
    if labels.dtype.kind == "f":
        for place, label in enumerate(labels):  # in our words, and in those that scikit-learn's checks listen for
            if not np.isfinite(label):
                kind = "NaN" if np.isnan(label) else "infinity"
                raise InputError(f"image {place}: has no label; give it one or remove it (Input y contains {kind})")
            if label != np.floor(label):
                raise InputError(f"image {place}: its label is {label:g}; labels are classes (Unknown label type: continuous)")
    return labels
