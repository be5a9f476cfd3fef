"""What to train on a task: asked once, and kept beside the run that goes by it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import model, registry
from .backbones import adopt, catalogue, here
from .candidates import propose
from .cost import CostModel
from .device import chance_put_back
from .errors import InputError
from .experience import Experience, proven
from .facts import backbone_of, profile_of
from .history import History, open_history
from .home import cache, read_json, write_text
from .model import as_it_starts
from .objectives import REQUIRED, brings, left_out
from .profiling import look_through, profile_task
from .progress import read_trials
from .ranker import rank, ranker_for, shortlist
from .records import Backbone, Candidate, Profile, Ranked, Ranking, Task
from .space import check

if TYPE_CHECKING:
    from .strategy import Strategy

Progress = Callable[[str, int, int], None]
LOOKED_AT = 6
"""Backbones that are looked at through the images, before the second ranking."""
SETTINGS = 8
"""Of a strategy, in the second ranking, from its whole space, and as many near its defaults: enough beside those that are proven,
and too few to fill the top of a ranking with copies of one idea."""
KEPT = 1000
"""Candidates of a ranking that a run writes down, beside the best one without epochs of each network; no search gets further."""


@dataclass(frozen=True)
class Advice:
    """What is recommended for a task, and what that rests on."""

    profile: Profile = field(repr=False)
    ranking: Ranking
    backbones: dict[str, Backbone] = field(repr=False)


@chance_put_back()
def recommend(
    task: Task,
    *,
    history: History | None = None,
    zoo: str | None = None,
    strategies: Sequence[str] | None = None,
    backbones: Sequence[str] | None = None,
    looks: int = LOOKED_AT,
    seed: int = 0,
    progress: Progress | None = None,
) -> Advice:
    """Rank what could be trained on `task`; nothing is trained.

    Stage 1 ranks every candidate by metadata and names a shortlist of `looks` backbones; stage 2 looks at those through the
    images and ranks again.

    Raises:
        PluginError: an unknown zoo, strategy or backbone.
        InputError: nothing is left to choose from, or `backbones` has others than the earlier model's, where there is one.
    """
    if history is None:
        with open_history() as opened:
            chosen: dict[str, Any] = {"zoo": zoo, "strategies": strategies, "backbones": backbones}
            return recommend(task, history=opened, **chosen, looks=looks, seed=seed, progress=progress)
    if looks < 1:
        raise InputError(f"looks is {looks}; advice takes a look through one network at least")
    known = registry.strategies()
    strategies, backbones = registry.several(strategies), registry.several(backbones)
    at_hand = at_hand_for(task, zoo, strategies or (), backbones or ())
    experience = Experience.of(history, without=task.fingerprint, objective=task.objective)
    ranker = ranker_for(experience, cache() / "rankers", seed=seed)
    cost_model = CostModel.learn(experience, strategies=known, seed=seed)
    suited = partial(propose, at_hand, known, seed=seed, met=brings(task), required=REQUIRED[task.objective])
    candidates = suited(only_strategies=strategies, only_backbones=backbones)
    if not candidates:
        raise InputError(_none_left(known, task))
    first = profile_task(task, at_hand, seed=seed, progress=progress)
    ranking = rank(ranker, candidates, first, at_hand, cost_model, strategies=known, stage=1)
    looked = tuple(shortlist(ranking, at_hand, size=looks))
    second = look_through(first, task, at_hand, look=looked, seed=seed, progress=progress)
    finer = [
        *suited(per_pair=SETTINGS, only_strategies=strategies, only_backbones=looked, proven=proven(experience)),
        *suited(per_pair=SETTINGS, only_strategies=strategies, only_backbones=looked, near=True),
    ]
    several = list({one.id: one for one in finer}.values())
    ranking = rank(ranker, several, second, at_hand, cost_model, strategies=known, stage=2)
    return Advice(replace(second, warnings=(*second.warnings, *_omissions(known, task))), ranking, at_hand)


def at_hand_for(task: Task, zoo: str | None, strategies: Sequence[str], backbones: Sequence[str]) -> dict[str, Backbone]:
    """The networks to choose from. Raises PluginError: a name of a zoo, a strategy or a backbone is unknown."""
    known = registry.strategies()
    for name in strategies:
        registry.lookup("strategy", name, known)
    adopt(backbones)
    at_hand = catalogue(zoo=zoo) if not task.earlier else _of_earlier(task, backbones)
    for name in backbones:
        registry.lookup("backbone", name, at_hand)
    return at_hand


def _of_earlier(task: Task, asked: Sequence[str]) -> dict[str, Backbone]:
    """The one backbone that a task after another goes on with: what is known lies in the earlier model's weights. Where they are
    all that is left of it here, it is looked at as they are.

    Raises:
        InputError: another one is asked for.
    """
    backbone = model.load(Path(task.earlier)).backbone
    others = [name for name in asked if name != backbone.name]
    if others:
        raise InputError(f"--backbone {others[0]}: the model of --after is a {backbone.name}, and only that can go on from it")
    return {backbone.name: here(backbone) or as_it_starts(task, backbone)}


def _omissions(known: dict[str, type[Strategy]], task: Task) -> list[str]:
    """What a task cannot try, and why, for a person."""
    notes = [f"{name} is left out: {advice}" for name, advice in left_out(known, task).items()]
    if task.earlier:
        notes.insert(0, "every candidate goes on from the earlier model, so its backbone is the only one")
    return notes


def _none_left(known: dict[str, type[Strategy]], task: Task) -> str:
    """Why, for a person."""
    met, required = brings(task), REQUIRED[task.objective]
    fit = [name for name, strategy in known.items() if required <= strategy.needs <= met]
    brought = ", ".join(sorted(met)) or "nothing but its images"
    return "; ".join(
        [
            "no candidate is left; widen --strategy, --backbone or --zoo. "
            f"The task brings {brought}; strategies for it: {', '.join(fit) or 'none is installed'}",
            *(f"{name} is left out: {advice}" for name, advice in left_out(known, task).items()),
        ]
    )


def changes(out: Path, request: dict[str, Any]) -> list[str]:
    """What `out` holds the run of another request by, for a person; nothing where it is free or the run is the same."""
    path = out / "run.json"
    if not path.exists():
        return []
    before = {"remember": [], **read_json(path, _in_order, remedy="choose another --out or delete it")}
    changed = [name for name in request if before.get(name) != request[name]]
    if "seed" in changed:  # which splits them otherwise: whether the images are others, too, nobody can tell
        changed = [name for name in changed if name != "fingerprint"]
    return ["images" if name == "fingerprint" else name for name in changed]


def _in_order(request: Any) -> dict[str, Any]:
    """Names in the order of the alphabet: in which they were given makes no other run; older runs kept it."""
    return {name: sorted(set(value)) if isinstance(value, list) else value for name, value in dict(request).items()}


def keep_advice(out: Path, request: dict[str, Any], advice: Advice, looks: int) -> Advice:
    """From now on `out` is this request's; what is kept is what a later start goes on with."""
    items = advice.ranking.items
    probes = {item.candidate.backbone: item for item in reversed(items) if "epochs" not in item.candidate.hyperparameters}
    kept = replace(advice.ranking, items=items[:KEPT] + tuple(item for item in items[KEPT:] if item in probes.values()))
    backbones = {**_backbones_before(out), **advice.backbones}
    used = {item.candidate.backbone for item in kept.items} | _trained(out)
    facts = {
        "looks": looks,
        "profile": asdict(advice.profile),
        "ranking": asdict(kept),
        "backbones": {name: asdict(backbone) for name, backbone in backbones.items() if name in used},
    }
    write_text(out / "run.json", json.dumps(request, indent=1))
    write_text(out / "advice.json", json.dumps(facts, indent=1))
    return replace(advice, ranking=kept, backbones=backbones)


def _backbones_before(out: Path) -> dict[str, Backbone]:
    """Those of the advice that a new one takes the place of: what was trained by then may be at hand no longer."""
    return advice_of(out)[0].backbones if (out / "advice.json").exists() else {}


def _trained(out: Path) -> set[str]:
    """The networks of the trials in `out`: whatever a new advice ranks, these are compared, and the best of them may go on."""
    return {trial.candidate.backbone for trial in read_trials(out)}


def advice_of(out: Path) -> tuple[Advice, int]:
    """What an interrupted run was advised: it goes on with the same plan. And how many networks could be looked at for it."""
    return read_json(out / "advice.json", _advice_from, remedy="delete it, and the next start of the run asks for advice anew")


def outdated(advice: Advice) -> bool:
    """Whether it has what can no longer be trained: a plugin is gone, or its strategy has another space than it had then."""
    known = registry.strategies()
    for item in advice.ranking.items:
        if item.candidate.strategy not in known:
            return True
        try:
            check(known[item.candidate.strategy].space, item.candidate.hyperparameters)
        except InputError:
            return True
    return False


def _advice_from(facts: Mapping[str, Any]) -> tuple[Advice, int]:
    ranking = facts["ranking"]
    items = tuple(
        Ranked(**{**item, "candidate": Candidate(**item["candidate"]), "reasons": tuple(item["reasons"])})
        for item in ranking["items"]
    )
    kept = {name: backbone_of(backbone) for name, backbone in facts["backbones"].items()}
    backbones = {name: here(backbone) or backbone for name, backbone in kept.items()}
    advice = Advice(profile_of(facts["profile"]), Ranking(**{**ranking, "items": items}), backbones)
    return advice, facts.get("looks", LOOKED_AT)
