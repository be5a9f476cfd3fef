"""Advice on profiles, many at once: the ranker is learnt once for a state of the history, and never while somebody waits for
advice that an older one can give."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from automl_tl.adviser import Adviser
from automl_tl.history import open_history
from automl_tl.records import Profile, Ranking

KEPT = 8
"""Advisers in memory: one for all strange tasks, and one for each task of the history that is asked about again."""


@dataclass
class _Place:
    """The adviser for one task."""

    learning: threading.Lock = field(default_factory=threading.Lock)
    known: tuple[str, Adviser] | None = None
    """With the digest of what it was learnt from."""


class Advisers:
    """Answers any number of threads. Where the history has grown since, the older adviser answers until the new one is there."""

    def __init__(self) -> None:
        self._places: OrderedDict[str, _Place] = OrderedDict()
        self._lock = threading.Lock()

    def warm(self) -> None:
        """Learn in the background, before the first question."""
        self._learn_aside("", self._place(""))

    def recommend(
        self, profile: Profile, *, zoo: str | None, strategies: Sequence[str] | None, backbones: Sequence[str] | None
    ) -> Ranking:
        """`Adviser.recommend`, by one that never saw the trials of this very task."""
        adviser = self._adviser(profile.fingerprint)
        return adviser.recommend(profile, zoo=zoo, strategies=strategies, backbones=backbones)

    def _adviser(self, task: str) -> Adviser:
        with open_history() as history:
            without = task if history.knows(task) else ""
            digest = history.digest(without=without)
        place = self._place(without)
        if place.known is None:
            self._learn(without, place)
        assert place.known is not None
        if place.known[0] != digest and not place.learning.locked():
            self._learn_aside(without, place)
        return place.known[1]

    def _learn_aside(self, without: str, place: _Place) -> None:
        """A server that ends does not wait for it: what it learns is written whole or not at all."""
        threading.Thread(target=self._learn_until_the_end, args=[without, place], daemon=True).start()

    def _learn_until_the_end(self, without: str, place: _Place) -> None:
        """`_learn`, which finds no threads for its work any more where the process ends meanwhile."""
        try:
            self._learn(without, place)
        except RuntimeError:
            if threading.main_thread().is_alive():
                raise

    def _learn(self, without: str, place: _Place) -> None:
        """Learn what the history says now, unless somebody did meanwhile."""
        with place.learning, open_history() as history:
            digest = history.digest(without=without)
            if place.known is None or place.known[0] != digest:
                place.known = digest, Adviser.of(history, without=without)

    def _place(self, without: str) -> _Place:
        with self._lock:
            place = self._places.setdefault(without, _Place())
            self._places.move_to_end(without)
            while len(self._places) > KEPT:
                self._places.popitem(last=False)
            return place
