"""Advice without images: what was learnt from a history, ready to rank for any profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from . import registry
from .backbones import catalogue
from .candidates import propose
from .cost import CostModel
from .errors import InputError
from .experience import Experience
from .history import History
from .home import cache
from .ranker import Ranker, rank, ranker_for
from .records import Profile, Ranking


@dataclass(frozen=True, eq=False)
class Adviser:
    """The ranker and the cost model of one state of a history. Any number of threads may ask it at once."""

    ranker: Ranker | None
    """None: the history is too small to learn from."""
    cost_model: CostModel

    @classmethod
    def of(cls, history: History, *, without: str = "") -> Adviser:
        """Learnt from `history` without the trials of the task `without`; a ranker that was learnt before is read."""
        experience = Experience.of(history, without=without)
        ranker = ranker_for(experience, cache() / "rankers")
        return cls(ranker, CostModel.learn(experience, strategies=registry.strategies()))

    def recommend(
        self,
        profile: Profile,
        *,
        zoo: str | None = None,
        strategies: Sequence[str] | None = None,
        backbones: Sequence[str] | None = None,
    ) -> Ranking:
        """Rank what could be trained on the task that `profile` is of.

        This is stage 1 of `api.recommend`, or stage 2 where the profile has a look through every backbone in question.

        Raises:
            PluginError: an unknown zoo, strategy or backbone.
            InputError: nothing is left to rank.
        """
        known, at_hand = registry.strategies(), catalogue(zoo=zoo)
        strategies, backbones = registry.several(strategies), registry.several(backbones)
        for name in strategies or ():
            registry.lookup("strategy", name, known)
        for name in backbones or ():
            registry.lookup("backbone", name, at_hand)
        candidates = propose(at_hand, known, seed=0, only_strategies=strategies, only_backbones=backbones)
        if not candidates:
            raise InputError("no candidate is left; allow more strategies or backbones")
        stage = 2 if {candidate.backbone for candidate in candidates} <= profile.transferability.keys() else 1
        return rank(self.ranker, candidates, profile, at_hand, self.cost_model, strategies=known, stage=stage)
