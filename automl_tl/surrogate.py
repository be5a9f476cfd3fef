"""What the trials of one search say about the candidates that it has not tried.

The ranker knows candidates from other tasks. How wrong it is on this one shows in the first trials, and is much alike for
candidates that share a backbone, a strategy or hyperparameters. So the error is a Gaussian process over candidates (Rasmussen and
Williams, 2006, ch. 2) with the ranking as its mean, on the logit of the score; what to try next is what promises the largest
expected improvement (Jones et al., 1998).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .records import Backbone, Candidate, Ranked
from .space import Space, placed

SHARES = {"task": 0.06, "backbone": 0.09, "strategy": 0.09, "pair": 0.06, "hyperparameters": 0.7}
"""Of the variance of the ranking's error, before any trial: what all candidates of a task have in common, those of one backbone,
of one strategy, of both, and (each hyperparameter its part) those of one strategy with like hyperparameters; of the strategy that
has most of these, less of others."""
ELSEWHERE = 0.5
"""How much a hyperparameter of another strategy that has the same name tells: a rate is too high for most, or for none."""
MINOR = 0.2
"""Part of a hyperparameter that is off by default, as most regularisers are, to 1 of a rate, a number of epochs or the like."""
FACTORS = (1.0, 4.0, 12.0)
"""By which a share may prove larger. Smaller ones, fitted to a few trials, made what is said too sure."""
SURPRISE = math.log(4)
"""Standard deviation of the logarithm of a factor, before any trial: few hyperparameters matter much, most hardly."""
FEWEST, ENOUGH = 3, 100
"""Trials from which on shares are corrected, and the most that they are corrected by."""
LENGTH = 0.5
"""Of a hyperparameter's range: values so far apart are alike to 0.6."""
LUCK = 0.25
"""Of the binomial variance of a score: all candidates are judged by the same images, so that most of its luck is theirs alike."""
LEAST_NOISE = 1e-3
"""Logits², of what is only believed."""
LEAST_SPREAD, MOST_SPREAD = 0.3, 2.0
"""Logits: of the ranking's error, whatever its intervals say."""


@dataclass(frozen=True)
class Growth:
    """Logits that a paused trial gains on its way to the end (see `growth`)."""

    mean: float = 0.4
    spread: float = 0.5


@dataclass(frozen=True)
class Observed:
    """One trial: what it scored, and how much better it may still get."""

    candidate: Candidate
    score: float
    paused: Growth | None = None
    """What is to be expected of it if it goes on; None: it has ended."""
    believed: bool = False
    """Whether the score is only what is expected of it: it counts without noise, as another look at the same tells nothing."""


class Surrogate:
    """The candidates of a search: n ranked items."""

    def __init__(
        self, items: Sequence[Ranked], backbones: Mapping[str, Backbone], spaces: Mapping[str, Space], *, validation_images: int
    ) -> None:
        self._images = max(validation_images, 1)
        self._place = {item.candidate.id: place for place, item in enumerate(items)}
        self._mean = self._logit([item.score for item in items])
        interval = self._logit([item.high for item in items]) - self._logit([item.low for item in items])
        spread = float(np.median(interval)) / (2 * 1.645) if len(items) else LEAST_SPREAD
        self._variance = float(np.clip(spread, LEAST_SPREAD, MOST_SPREAD)) ** 2
        self._likeness = _Likeness.of([item.candidate for item in items], backbones, spaces)
        self._latest: tuple[list[Observed], tuple[np.ndarray, np.ndarray, np.ndarray]] | None = None

    def believe(self, observed: Sequence[Observed]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the logit of every item's score, after `observed`; n each."""
        mean, explained, shares = self._update(observed)
        if not explained.size:
            return mean, np.full(len(mean), math.sqrt(self._variance))
        variance = self._variance * self._likeness.itself(shares) - (explained**2).sum(axis=1)
        return mean, np.sqrt(np.maximum(variance, 1e-9))

    def draw(self, observed: Sequence[Observed], places: Sequence[int], count: int, rng: np.random.Generator) -> np.ndarray:
        """Logits of the items at `places` as they may turn out together, after `observed`: count × places."""
        mean, explained, shares = self._update(observed)
        chosen = np.array(places, dtype=np.int64)
        alike = np.einsum("c,kcl->kl", shares, np.stack([self._likeness.to(place)[:, chosen] for place in places]))
        covariance = self._variance * alike - explained[chosen] @ explained[chosen].T
        root = np.linalg.cholesky(covariance + LEAST_NOISE * self._variance * np.eye(len(places)))  # some are twins
        return np.asarray(mean[chosen] + rng.standard_normal((count, len(places))) @ root.T)

    def _update(self, observed: Sequence[Observed]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The mean (n), a root of the covariance that `observed` takes away (n × what is known), and the shares. A plan asks for
        the same twice."""
        if self._latest is None or self._latest[0] != list(observed):
            self._latest = list(observed), self._updated(observed)
        return self._latest[1]

    def _updated(self, observed: Sequence[Observed]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        known = [one for one in observed if one.candidate.id in self._place]
        if not known:
            return self._mean, np.zeros((len(self._mean), 0)), self._likeness.shares
        places = [self._place[one.candidate.id] for one in known]
        growth = np.array([(one.paused.mean, one.paused.spread) if one.paused else (0.0, 0.0) for one in known])
        right = np.clip([one.score for one in known], 0.02, 0.98)
        chance = np.where([one.believed for one in known], LEAST_NOISE, LUCK / (self._images * right * (1 - right)))
        noise = np.diag(chance + growth[:, 1] ** 2)
        error = self._logit([one.score for one in known]) + growth[:, 0] - self._mean[places]
        across = np.stack([self._likeness.to(place) for place in places])
        shares = self._likelier_shares(across[:, :, places], error, noise)
        covariance = self._variance * np.einsum("c,kcn->nk", shares, across)
        root = np.linalg.cholesky(covariance[places] + noise)
        explained = np.linalg.solve(root, covariance.T).T
        return self._mean + explained @ np.linalg.solve(root, error), explained, shares

    def _likelier_shares(self, among: np.ndarray, error: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Shares of the components (c) that make the errors of k trials likely: one climb along each, from the prior's.

        `among` is k×c×k. The logarithm of the evidence (Rasmussen and Williams, eq. 2.30) and a Gaussian prior on the
        logarithm of each factor are added up.
        """
        shares = self._likeness.shares.copy()

        def merit(tried: np.ndarray) -> float:
            covariance = self._variance * np.einsum("c,kcl->kl", tried, among) + noise
            _, size = np.linalg.slogdet(covariance)
            factors = np.log(tried / self._likeness.shares) / SURPRISE
            return float(-(error @ np.linalg.solve(covariance, error)) - size - (factors**2).sum()) / 2

        if len(error) < FEWEST:
            return shares
        if len(error) > ENOUGH:  # each look costs the cube of their number
            some = np.linspace(0, len(error) - 1, ENOUGH).astype(np.int64)
            error, among, noise = error[some], among[np.ix_(some, np.arange(among.shape[1]), some)], noise[np.ix_(some, some)]
        best = merit(shares)
        for component in range(len(shares)):
            for factor in FACTORS:
                tried = shares.copy()
                tried[component] = self._likeness.shares[component] * factor
                if (found := merit(tried)) > best:
                    best, shares = found, tried
        return shares

    def improvement(self, observed: Sequence[Observed]) -> np.ndarray:
        """Expected improvement (logits) of every item over the best that is observed, or else over the likeliest best; n.

        A paused trial counts with what it has scored: its model is there already, whether it goes on or not.
        """
        mean, spread = self.believe(observed)
        away = (mean - self.goal(observed)) / spread
        below = 0.5 * (1 + np.array([math.erf(value / math.sqrt(2)) for value in away]))
        return np.asarray(spread * (away * below + np.exp(-(away**2) / 2) / math.sqrt(2 * math.pi)))

    def goal(self, observed: Sequence[Observed]) -> float:
        """The logit that is to be surpassed: the best that is observed, or else that of the likeliest best."""
        scores = [one.score for one in observed]
        return float(self._logit([max(scores)])[0] if scores else self._mean.max(initial=-math.inf))

    def expected(self, candidate: Candidate, observed: Sequence[Observed]) -> float:
        """The score that is believed of an item, 0–1."""
        mean, _ = self.believe(observed)
        return float(1 / (1 + math.exp(-mean[self._place[candidate.id]])))

    def _logit(self, scores: Sequence[float]) -> np.ndarray:
        """No score is surer than half of a validation image."""
        kept = np.clip(np.array(scores, dtype=np.float64), 0.5 / (self._images + 1), 1 - 0.5 / (self._images + 1))
        return np.asarray(np.log(kept / (1 - kept)))


@dataclass(frozen=True, eq=False)
class _Likeness:
    """How much alike candidates are, in components: task, backbone, strategy, both, and each hyperparameter."""

    backbone: np.ndarray
    """n: codes."""
    kin: np.ndarray
    """codes × codes, 0–1."""
    strategy: np.ndarray
    """n: codes."""
    values: np.ndarray
    """n × hyperparameters, each within 0–1; NaN where a strategy has none of that name, or no longer such a value."""
    shares: np.ndarray
    """Of the components, before any trial."""

    @classmethod
    def of(cls, candidates: Sequence[Candidate], backbones: Mapping[str, Backbone], spaces: Mapping[str, Space]) -> _Likeness:
        names = sorted({candidate.backbone for candidate in candidates})
        kin = np.array([[_kin(backbones[one], backbones[other]) for other in names] for one in names])
        strategies = sorted({candidate.strategy for candidate in candidates})
        hyperparameters = sorted({name for strategy in strategies for name in spaces.get(strategy, {})})
        values = np.full((len(candidates), len(hyperparameters)), np.nan)
        for row, candidate in enumerate(candidates):
            given = placed(spaces.get(candidate.strategy, {}), candidate.hyperparameters)
            values[row] = [given.get(name, np.nan) for name in hyperparameters]
        parts = np.array([[part_of(spaces.get(strategy, {}), name) for name in hyperparameters] for strategy in strategies])
        parts = parts.reshape(len(strategies), len(hyperparameters))
        own = SHARES["hyperparameters"] * parts.max(axis=0, initial=0.0) / max(parts.sum(axis=1).max(initial=0.0), 1.0)
        shares = [*(SHARES[name] for name in ("task", "backbone", "strategy", "pair")), *own]
        return cls(
            np.array([names.index(candidate.backbone) for candidate in candidates], dtype=np.int64),
            kin.reshape(len(names), len(names)),
            np.array([strategies.index(candidate.strategy) for candidate in candidates], dtype=np.int64),
            values,
            np.array(shares),
        )

    def to(self, place: int) -> np.ndarray:
        """Components × n: how much each candidate is like the one at `place`."""
        network = self.kin[self.backbone[place]][self.backbone]
        strategy = (self.strategy == self.strategy[place]).astype(np.float64)
        apart = self.values - self.values[place]
        near = np.nan_to_num(np.exp(-(apart**2) / (2 * LENGTH**2)), nan=0.0).T
        shared = np.maximum(strategy, ELSEWHERE) * (1 + network) / 2
        return np.concatenate([[np.ones_like(network), network, strategy, strategy * network], near * shared])

    def itself(self, shares: np.ndarray) -> np.ndarray:
        """n: how much each candidate is like itself, the components weighed by `shares`."""
        return np.asarray(shares[:4].sum() + np.isfinite(self.values) @ shares[4:])


def _kin(one: Backbone, other: Backbone) -> float:
    """How much alike two networks are: 1 for the same."""
    if one.name == other.name:
        return 1.0
    return 0.5 * (one.source_dataset == other.source_dataset) + 0.25 * (one.family == other.family)


def part_of(space: Space, name: str) -> float:
    """How much a hyperparameter counts among those of its strategy; 0 where that has none of the name."""
    if name not in space:
        return 0.0
    return 1.0 if space[name].default else MINOR
