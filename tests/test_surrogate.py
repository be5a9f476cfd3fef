"""What a search believes of untried candidates, against closed forms and on a known truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from small import QUICK, TINY

from automl_tl import Candidate, Ranked
from automl_tl.backbones import catalogue
from automl_tl.registry import strategies
from automl_tl.space import Choice, Float, Int, defaults, draw
from automl_tl.surrogate import LUCK, Growth, Observed, Surrogate

BIG = "resnet10t_40.tiny_imagenet_64"


def item(strategy: str, backbone: str, score: float, **changed: object) -> Ranked:
    values = {**defaults(strategies()[strategy].space), **changed}
    return Ranked(Candidate(backbone, strategy, values), score, score - 0.15, score + 0.1, 5.0, 100.0)  # type: ignore[arg-type]


def surrogate(items: list[Ranked], images: int = 200) -> Surrogate:
    spaces = {name: strategy.space for name, strategy in strategies().items()}
    return Surrogate(items, catalogue(), spaces, validation_images=images)


def logit(score: float) -> float:
    return math.log(score / (1 - score))


def test_without_trials_it_believes_the_ranking() -> None:
    items = [item("fine-tuning", BIG, 0.8), item("linear-probe", TINY, 0.6)]
    mean, spread = surrogate(items).believe([])
    assert mean == pytest.approx([logit(0.8), logit(0.6)])
    assert spread[0] == spread[1] > 0.2


def test_one_trial_moves_its_own_candidate_as_bayes_says() -> None:
    one = item("fine-tuning", BIG, 0.8)
    model = surrogate([one])
    prior = model.believe([])[1][0] ** 2
    mean, spread = model.believe([Observed(one.candidate, 0.6)])
    noise = LUCK / (200 * 0.6 * 0.4)
    assert mean[0] == pytest.approx(logit(0.8) + prior / (prior + noise) * (logit(0.6) - logit(0.8)))
    assert spread[0] ** 2 == pytest.approx(prior * noise / (prior + noise))


def test_the_more_alike_the_more_a_trial_says() -> None:
    tried = item("fine-tuning", BIG, 0.8, rate=1e-4)
    others = [
        item("fine-tuning", BIG, 0.8, rate=2e-4),
        item("fine-tuning", BIG, 0.8, rate=1e-2, augmentation="strong", epochs=40),
        item("fine-tuning", TINY, 0.8, rate=1e-4),
        item("from-scratch", QUICK, 0.8),
    ]
    mean, spread = surrogate([tried, *others]).believe([Observed(tried.candidate, 0.5)])
    assert all(np.diff(mean) > 0), "a bad score tells most about what is most alike"
    assert all(np.diff(spread) > 0)


def test_candidates_of_an_earlier_version_are_no_error() -> None:
    """An option that is gone is like no other; what their strategy got since is at its default; a strategy may be gone."""
    plain = item("fine-tuning", BIG, 0.8)
    lacking = Ranked(Candidate(BIG, "fine-tuning", {}), 0.8, 0.65, 0.9, 5.0, 100.0)
    other, gone = (item("fine-tuning", BIG, 0.8, augmentation=option) for option in ("strong", "gone"))
    foreign = Ranked(Candidate(BIG, "uninstalled", {"rate": "any"}), 0.8, 0.65, 0.9, 5.0, 100.0)
    mean, spread = surrogate([plain, lacking, other, gone, foreign]).believe([Observed(plain.candidate, 0.5)])
    assert mean[0] == mean[1] < mean[2] < mean[3] < mean[4]
    assert np.isfinite(spread).all()


def test_a_paused_trial_may_still_grow() -> None:
    one = item("fine-tuning", BIG, 0.8)
    model = surrogate([one])
    (done,), (paused,) = (model.believe([Observed(one.candidate, 0.7, paused=growth)])[0] for growth in (None, Growth(0.5, 0.1)))
    assert done + 0.3 < paused < logit(0.7) + 0.5 + 0.05


def test_what_is_only_believed_promises_nothing_again() -> None:
    """Another draw that is the same but for its weight decay is better left to the next batch; another strategy is not."""
    first, again = (item("fine-tuning", BIG, 0.8, weight_decay=value) for value in (0.02, 0.021))
    other = item("linear-probe", BIG, 0.75)
    model = surrogate([first, again, other], images=20)
    seen, believed = ([Observed(first.candidate, 0.8, believed=sure)] for sure in (False, True))
    assert model.improvement(seen)[1] > model.improvement(seen)[2], "a score of 20 images leaves room for luck"
    assert model.improvement(believed)[1] < model.improvement(believed)[2]
    assert model.improvement(believed)[0] < 0.02


def test_draws_are_of_what_is_believed_and_alike_items_turn_out_alike() -> None:
    items = [item("fine-tuning", BIG, 0.8, weight_decay=value) for value in (0.02, 0.021)]
    items += [item("fine-tuning", BIG, 0.8), item("from-scratch", QUICK, 0.75)]
    model = surrogate(items)
    for observed in ([Observed(items[3].candidate, 0.7)], [Observed(items[2].candidate, 0.7, paused=Growth(0.5, 0.5))]):
        mean, spread = model.believe(observed)
        drawn = model.draw(observed, [0, 1, 2, 3], 20_000, np.random.default_rng(0))
        assert drawn.mean(axis=0) == pytest.approx(mean, abs=4 * spread.max() / math.sqrt(20_000))
        assert drawn.std(axis=0) == pytest.approx(spread, rel=0.03)
        alike = np.corrcoef(drawn.T)
        assert alike[0, 1] > 0.99
        assert abs(alike[0, 3]) < 0.6


def test_improvement_is_the_expectation_that_it_says() -> None:
    items = [item("fine-tuning", BIG, 0.8), item("linear-probe", TINY, 0.7), item("from-scratch", QUICK, 0.75)]
    model = surrogate(items)
    observed = [Observed(items[0].candidate, 0.78)]
    mean, spread = model.believe(observed)
    drawn = np.random.default_rng(0).normal(mean, spread, size=(400_000, 3))
    sampled = np.maximum(drawn - logit(0.78), 0).mean(axis=0)
    assert model.improvement(observed) == pytest.approx(sampled, rel=0.02, abs=1e-4)


SPACE = {
    "rate": Float(1e-4, 1e-2, 1e-3, log=True),
    "epochs": Int(3, 40, 12),
    "dropout": Float(0.0, 0.5, 0.0),
    "weight_decay": Float(1e-4, 0.3, 0.02, log=True),
    "augmentation": Choice(("none", "light", "medium", "strong"), "light"),
    "flip": Choice((False, True), False),
    "batch_size": Choice((16, 32, 64), 32),
}


@pytest.mark.parametrize("seed", range(4))
def test_it_finds_the_right_rate_sooner_than_chance_does(seed: int) -> None:
    """The ranking holds low rates for a little better; on this task high ones are. Twelve trials each."""
    settings = [draw(SPACE, f"{seed}/{number}") for number in range(150)]
    scores = [0.74 - 0.02 * math.log10(float(values["rate"])) for values in settings]
    items = [
        Ranked(Candidate(BIG, "tuning", values), score, score - 0.3, score + 0.1, 5.0, 100.0)
        for values, score in zip(settings, scores, strict=True)
    ]

    def truth(candidate: Candidate) -> float:
        rate, epochs = (float(candidate.hyperparameters[name]) for name in ("rate", "epochs"))
        return 1 / (1 + math.exp(-(1.2 + 0.9 * (math.log10(rate) + 3) + 0.3 * math.log(epochs / 12))))

    model, observed = Surrogate(items, catalogue(), {"tuning": SPACE}, validation_images=200), list[Observed]()
    for _ in range(12):
        tried = {one.candidate.id for one in observed}
        order = np.argsort(-model.improvement(observed))
        chosen = next(items[i].candidate for i in order if items[i].candidate.id not in tried)
        observed.append(Observed(chosen, truth(chosen)))
    found = max(one.score for one in observed)
    best = max(truth(one.candidate) for one in items)
    rng = np.random.default_rng(seed)
    chance = np.mean([max(truth(items[i].candidate) for i in rng.choice(150, 12, replace=False)) for _ in range(200)])
    assert found > chance + 0.25 * (best - chance)


def test_nothing_to_choose_from_is_no_error() -> None:
    assert len(surrogate([]).improvement([])) == 0
