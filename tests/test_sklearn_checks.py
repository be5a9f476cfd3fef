"""scikit-learn's own checks of an estimator, on rows of numbers that are laid out as small images.

The checks come with tables; `OfRows` makes an image of each row and leaves the rest to `TransferClassifier`. What only asks how
a table is looked at would be answered by `OfRows`, so it is left out, with its reason. A few run by default, all in
`make test-all`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Self

import numpy as np
import pytest
from sklearn.utils.estimator_checks import estimator_checks_generator
from sklearn.utils.validation import validate_data
from small import QUICK

from automl_tl import TransferClassifier

TABLE = "asks how a table is looked at; images are looked at one by one, and the tests of bad input show how"
LEFT_OUT = {
    "check_n_features_in": TABLE + ": there are no columns to count",
    "check_n_features_in_after_fitting": TABLE + ": there are no columns to count",
    "check_fit1d": TABLE,
    "check_fit2d_predict1d": TABLE,
    "check_complex_data": TABLE,
    "check_dtype_object": TABLE,
    "check_estimators_empty_data_messages": TABLE,
    "check_estimators_nan_inf": TABLE,
    "check_estimator_sparse_tag": "an image is not a sparse matrix",
    "check_estimator_sparse_array": "an image is not a sparse matrix",
    "check_estimator_sparse_matrix": "an image is not a sparse matrix",
    "check_positive_only_tag_during_fit": TABLE,
    "check_array_api_input": "the images are decoded by Pillow and NumPy, whatever library holds them",
    "check_classifiers_one_label_sample_weights": "there are no sample weights",
    "check_estimators_partial_fit_n_features": "there is no partial_fit",
    "check_non_transformer_estimators_n_iter": "there is no max_iter",
    "check_decision_proba_consistency": "there is no decision_function",
}
SAMPLE = {
    "check_estimator_cloneable",
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_get_params_invariance",
    "check_set_params",
    "check_estimators_unfitted",
    "check_requires_y_none",
    "check_classifiers_one_label",
    "check_mixin_order",
}


class OfRows(TransferClassifier):
    """Row of d numbers → grey square of d stripes: each number folded into 0–255."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        tags.input_tags.three_d_array = False
        tags.classifier_tags.poor_score = True  # a network for photographs sees little in two columns of grey
        return tags

    def fit(self, X: Any, y: Any) -> Self:
        return super().fit(_images(validate_data(self, X)), y)

    def predict_proba(self, X: Any) -> np.ndarray:
        if not hasattr(self, "model_"):
            return super().predict_proba(X)  # which says so
        return super().predict_proba(_images(validate_data(self, X, reset=False)))


def _images(rows: np.ndarray) -> np.ndarray:
    """A wave of triangles, so that rows far from zero differ as much as those near it: images that are all alike are refused."""
    grey = np.uint8(255 * np.abs((np.asarray(rows, dtype=np.float64) / 8 + 0.5) % 2 - 1))
    stripes = np.repeat(grey, 4, axis=1)
    return np.repeat(stripes[:, None, :], stripes.shape[1], axis=1)


def checks() -> Iterator[Any]:
    """Each check that scikit-learn has for such an estimator, with the marks that say when it runs."""
    estimator = OfRows("1 trials", strategies=["linear-probe"], backbones=[QUICK])
    for _, check in estimator_checks_generator(estimator):
        name, options = getattr(check, "func", check).__name__, getattr(check, "keywords", {})
        left_out = [pytest.mark.skip(reason=LEFT_OUT[name])] if name in LEFT_OUT else []
        marks = left_out or ([] if name in SAMPLE else [pytest.mark.slow])
        yield pytest.param(estimator, check, marks=marks, id="-".join([name, *map(str, options.values())]))


@pytest.mark.filterwarnings("ignore:.*near-duplicates:automl_tl.errors.InputWarning")  # stripes of random greys may be alike
@pytest.mark.parametrize(("estimator", "check"), list(checks()))
def test_every_check_that_makes_sense(estimator: OfRows, check: Callable[[OfRows], None]) -> None:
    check(estimator)
