"""What could be trained: every backbone with every strategy, each in several settings."""

from __future__ import annotations

import hashlib
import json
import warnings
import zlib
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from .errors import PLUGIN_FAULTS, PluginError
from .home import cache, write_text
from .records import Backbone, Candidate
from .registry import PluginWarning
from .space import Space, Value, defaults, draw

if TYPE_CHECKING:
    from .strategy import Strategy

POOL = 512
"""Draws of a strategy's space that all backbones share: 100,000 candidates then take one second, not ten."""
PER_PAIR = 8
"""Settings of each pair of backbone and strategy."""
KEPT = 0.7
"""Share of its hyperparameters in which a draw near the defaults does not differ from them."""


def propose(
    backbones: Mapping[str, Backbone],
    strategies: Mapping[str, type[Strategy]],
    *,
    seed: int,
    per_pair: int = PER_PAIR,
    near: bool = False,
    proven: Mapping[str, Sequence[Mapping[str, Value]]] | None = None,
    met: frozenset[str] = frozenset(),
    required: frozenset[str] = frozenset(),
    only_strategies: Collection[str] | None = None,
    only_backbones: Collection[str] | None = None,
) -> list[Candidate]:
    """Every backbone × every strategy that suits × (its defaults, then draws of its space, `per_pair` in all).

    The draws come from the whole space or, with `near`, from around the defaults. Settings that are `proven` (strategy →
    settings, see `experience.proven`) come beside them.

    A strategy suits if its needs are `met` and include what is `required`; settings that need more are left out.

    The same seed gives the same candidates; another backbone or strategy beside them changes nothing.
    """
    chosen = {
        name: strategy
        for name, strategy in strategies.items()
        if required <= strategy.needs <= met and (only_strategies is None or name in only_strategies)
    }
    names = [name for name in backbones if only_backbones is None or name in only_backbones]
    pools, besides = dict[str, list[dict[str, Value]]](), dict[str, list[Mapping[str, Value]]]()
    for name, strategy in chosen.items():
        try:
            besides[name] = [values for values in (proven or {}).get(name, ()) if _suits(strategy, values, met)]
            pools[name] = _pool(strategy, f"{seed}/{name}", met, KEPT if near else 0.0)  # type: ignore[arg-type]
        except PluginError as error:  # it is named, and the others are ranked
            warnings.warn(str(error), PluginWarning, stacklevel=2)
    return [
        Candidate(backbone, strategy, values)
        for backbone in names
        for strategy, pool in pools.items()
        for values in (*_settings(pool, per_pair, offset=zlib.crc32(f"{seed}/{backbone}".encode())), *besides[strategy])
    ]


def _suits(strategy: type[Strategy], values: Mapping[str, Value], met: frozenset[str]) -> bool:
    """Raises PluginError: the strategy cannot say what it needs."""
    try:
        return strategy.requires(values) <= met
    except PLUGIN_FAULTS as error:
        words = f"{type(error).__name__}: {error}"
        raise PluginError(f"strategy {strategy.name!r} is left out, as its `requires` failed: {words}") from error


@lru_cache(256)
def _pool(strategy: type[Strategy], seed: str, met: frozenset[str], kept: float) -> list[dict[str, Value]]:
    """The defaults and up to `POOL` draws, all different; the defaults alone where there is nothing to choose. Drawn once.

    Empty where the strategy `requires` what is not met in all of them.
    """
    space = strategy.space
    draws = _draws(space, seed, kept) if space else []
    fit = [values for values in (defaults(space), *draws) if _suits(strategy, values, met)]
    return list({tuple(values.items()): values for values in fit}.values())


def _draws(space: Space, seed: str, kept: float) -> list[dict[str, Value]]:
    """`POOL` draws, kept among the caches: for all strategies of a task they take a second of each advice."""
    key = hashlib.sha256(repr((POOL, seed, kept, dict(space))).encode()).hexdigest()
    path = cache() / "draws" / f"{key[:32]}.json"
    try:
        return list(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        draws = [draw(space, f"{seed}/{index}", kept=kept) for index in range(POOL)]
        path.parent.mkdir(exist_ok=True)
        write_text(path, json.dumps(draws))
        return draws


def _settings(pool: list[dict[str, Value]], count: int, *, offset: int) -> list[dict[str, Value]]:
    """The defaults and `count - 1` neighbours in the pool, from a place of the backbone's own; nothing of an empty pool."""
    draws = pool[1:]
    taken = [draws[(offset + step) % len(draws)] for step in range(min(count - 1, len(draws)))]
    return [*pool[:1], *taken]
