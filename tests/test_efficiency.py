"""Power laws and the factor of data that one way saves, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from automl_tl.evaluation.efficiency import Curve, PowerLaw, data_saving, fit_curve, fit_power_law

IMAGES = [100, 200, 400, 800, 1600]


def errors(scale: float, exponent: float, *, noise: float = 0.0, seed: int = 0) -> list[float]:
    factors = np.exp(np.random.default_rng(seed).normal(0, noise, len(IMAGES)))
    return [scale * n**-exponent * f for n, f in zip(IMAGES, factors, strict=True)]


def test_two_points_by_hand() -> None:
    """Four times the images, half the error: exponent 1/2."""
    law = fit_power_law([100, 400], [0.4, 0.2])
    assert law.exponent == pytest.approx(0.5)
    assert law.scale == pytest.approx(4.0)
    assert law.explained == pytest.approx(1.0)
    assert law.error(1600) == pytest.approx(0.1)
    assert law.images(0.1) == pytest.approx(1600)


def test_more_data_that_does_not_help() -> None:
    law = fit_power_law([100, 200], [0.3, 0.4])
    assert law.exponent < 0
    assert law.images(0.2) == float("inf")


def test_the_factor_by_hand() -> None:
    """Errors 2·n^-½ and 4·n^-½: the first needs a quarter of the images, at any error."""
    mine = fit_curve(IMAGES, errors(2, 0.5), smallest=1e-4)
    its = fit_curve(IMAGES, errors(4, 0.5), smallest=1e-4)
    saved = data_saving(mine, its, fewest=100, images=1600)
    assert saved.error == pytest.approx(0.1)
    assert (saved.factor, saved.low, saved.high, saved.most) == pytest.approx((4, 4, 4, 16))
    back = data_saving(its, mine, fewest=100, images=1600)
    assert back.factor == pytest.approx(1 / 4)


def test_nine_in_ten_intervals_hold_the_truth() -> None:
    held = 0
    for seed in range(60):
        mine = fit_curve(
            IMAGES * 3, [e for s in range(3) for e in errors(2, 0.5, noise=0.1, seed=7 * seed + s)], smallest=1e-4, draws=200
        )
        its = fit_curve(
            IMAGES * 3,
            [e for s in range(3) for e in errors(4, 0.45, noise=0.1, seed=900 + 7 * seed + s)],
            smallest=1e-4,
            draws=200,
        )
        truth = 1600 / (2 / (4 * 1600**-0.45)) ** 2
        saved = data_saving(mine, its, fewest=100, images=1600)
        held += saved.low <= truth <= saved.high
    assert held / 60 >= 0.85


def test_the_band_holds_the_law_and_errors_of_nothing_are_possible() -> None:
    curve = fit_curve(IMAGES, [0.3, 0.1, 0.02, 0.0, 0.0], smallest=0.005)
    low, high = curve.band(np.array([100.0, 1600.0]))
    assert (low <= high).all()
    assert curve.law.exponent > 0
    assert len(curve.drawn) == 1000
    again = fit_curve(IMAGES, [0.3, 0.1, 0.02, 0.0, 0.0], smallest=0.005)
    assert again == curve


@pytest.mark.parametrize(("images", "found"), [([100], [0.1]), ([100, 100], [0.1, 0.2]), ([100, 200], [0.1, 0.0])])
def test_what_no_law_can_be_fitted_to(images: list[int], found: list[float]) -> None:
    with pytest.raises(ValueError, match="two different numbers"):
        fit_power_law(images, found)


def test_a_law_that_never_gets_there_saves_nothing() -> None:
    flat = PowerLaw(0.5, 0.0, 1.0)
    assert flat.images(0.1) == float("inf")


def test_a_law_that_is_nearly_flat_takes_more_images_than_a_float_holds() -> None:
    """5 to the power of 100 000."""
    flat, steep = PowerLaw(0.5, 1e-5, 1.0), PowerLaw(4.0, 0.5, 1.0)
    assert flat.images(0.1) == float("inf")
    saved = data_saving(Curve(flat, (flat,) * 10), Curve(steep, (steep,) * 10), fewest=100, images=1600)
    assert (saved.factor, saved.low, saved.high) == (0, 0, 0)


@pytest.mark.parametrize("found", [[0.0] * 5, [0.02] * 5, [0.02, 0.021, 0.02, 0.021, 0.021], [0.03, 0.029, 0.03, 0.028, 0.028]])
def test_what_is_better_with_the_fewest_images_saves_as_much_as_can_be_measured(found: list[float]) -> None:
    """Flat, a little rising, a little falling: the laws themselves name no image, infinitely many, or a billionth of one."""
    its = fit_curve(IMAGES, errors(4, 0.5), smallest=1e-4)
    saved = data_saving(fit_curve(IMAGES, found, smallest=0.005), its, fewest=100, images=1600)
    assert (saved.factor, saved.low, saved.high, saved.most) == (16, 16, 16, 16)
