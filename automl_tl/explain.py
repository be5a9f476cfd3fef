"""Why a candidate stands where it stands, in words: the contributions of LightGBM, gathered by what they are about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .encoding import Column, alternatives
from .records import Backbone, Candidate, Profile

MOST = 3
SMALLEST = 0.03
"""Of a reason, in logits: less than a point of accuracy is no reason."""


@dataclass(frozen=True, eq=False)
class Picture:
    """One candidate as the ranker sees it."""

    candidate: Candidate
    backbone: Backbone
    profile: Profile
    columns: Sequence[Column]
    contributions: np.ndarray
    """Of each column, in logits, relative to the other candidates for the same task."""
    values: np.ndarray
    """Of each column; NaN: unknown."""

    def strongest(self, about: str, *, sign: float) -> int:
        """The known column about this that pulls most in the direction of `sign`."""
        known = [i for i, column in enumerate(self.columns) if column.about == about and not np.isnan(self.values[i])]
        return max(known, key=lambda i: sign * float(self.contributions[i]), default=-1)


def explain(picture: Picture) -> tuple[str, ...]:
    """The strongest reasons for or against, at most three; a reason against starts with "but"."""
    sums: dict[str, float] = {}
    for column, contribution in zip(picture.columns, picture.contributions, strict=True):
        sums[column.about] = sums.get(column.about, 0.0) + float(contribution)
    reasons: list[str] = []
    for about, total in sorted(sums.items(), key=lambda pair: -abs(pair[1])):
        strongest = picture.strongest(about, sign=np.sign(total))
        if abs(total) < SMALLEST or strongest < 0 or len(reasons) == MOST:
            continue
        reasons.append(("" if total > 0 else "but ") + _WORDS[about](picture, strongest, total > 0))
    return tuple(reasons)


def _transferability(picture: Picture, column: int, good: bool) -> str:
    known, metric = picture.profile.transferability, picture.columns[column].name
    value, _, place = alternatives(known, metric, best_is_low=False)[picture.candidate.backbone]
    looked = sum(metric in scores for scores in known.values())
    verb = "suit your classes well" if good else "suit your classes less well than others'"
    return f"its features {verb} ({metric} {value:.3g}, {_place(place)} of {looked} looked at)"


def _distance(picture: Picture, column: int, good: bool) -> str:
    metric, source = picture.columns[column].name, picture.backbone.source_dataset
    found = alternatives(picture.profile.distances, metric, best_is_low=True)
    value, _, place = found[source]
    others = sorted((other[0], name) for name, other in found.items() if name != source)
    beside = f" against {others[0][0]:.3g} for {others[0][1]}" if others else ""
    if good and place == 0 and others:
        return f"its source, {source}, is the closest to your images ({metric} {value:.3g}{beside})"
    return f"the closeness of its source, {source}, speaks {_side(good)} it ({metric} {value:.3g}{beside})"


def _record(picture: Picture, column: int, good: bool) -> str:
    kind, form = picture.columns[column].name, picture.columns[column].form
    subject = {
        "backbone and strategy": f"this network with {picture.candidate.strategy}",
        "backbone": "this network",
        "family": f"networks of its family ({picture.backbone.family})",
        "source dataset": f"networks pretrained on {picture.backbone.source_dataset}",
    }[kind]
    where = "tasks like yours" if form == "near" else "earlier tasks"
    if picture.values[column] == 0:  # a standing without a trial
        return f"{subject} {'were' if subject.startswith('networks') else 'was'} never tried, which speaks {_side(good)} it"
    share = round(100 * (float(picture.values[column]) + 0.5))
    return f"in {where} {subject} did better than {'' if good else 'only '}{share} % of what was tried"


def _network(picture: Picture, column: int, good: bool) -> str:
    backbone, name = picture.backbone, picture.columns[column].name
    fact = {
        "params": f"{backbone.params / 1e6:.2g} million weights",
        "macs": f"{backbone.macs / 1e9:.2g} billion multiply-adds an image",
        "input_size": f"{backbone.input_size} px input",
        "num_features": f"{backbone.num_features} features",
    }[name]
    return f"its size speaks {_side(good)} it ({fact})"


def _source(picture: Picture, column: int, good: bool) -> str:
    backbone = picture.backbone
    if picture.columns[column].name == "source_classes":
        fact = f"{backbone.num_classes} classes" if backbone.num_classes else "no labels"
    else:
        fact = f"accuracy there {backbone.source_accuracy:.3g}"
    return f"its pretraining on {backbone.source_dataset} speaks {_side(good)} it ({fact})"


def _task(picture: Picture, column: int, good: bool) -> str:
    name, value = picture.columns[column].name.replace("_", " "), float(picture.values[column])
    return f"your images speak {_side(good)} {picture.candidate.strategy} with this network ({name} {_figure(value)})"


def _strategy(picture: Picture, column: int, good: bool) -> str:
    return f"{picture.candidate.strategy} did {'better' if good else 'worse'} than other strategies where the rest was like here"


def _hyperparameter(picture: Picture, column: int, good: bool) -> str:
    name = picture.columns[column].name
    value = picture.candidate.hyperparameters[name]
    shown = _figure(value) if isinstance(value, float) else str(value)
    return f"its setting speaks {_side(good)} it ({name.replace('_', ' ')} {shown})"


def _figure(value: float) -> str:
    """Three digits, but all those before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _place(better: float) -> str:
    if better == 0:
        return "best"
    number = int(better) + 1
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10 if number % 100 not in (11, 12, 13) else 0, "th")
    return f"{number}{ending} best"


def _side(good: bool) -> str:
    return "for" if good else "against"


_WORDS: dict[str, Callable[[Picture, int, bool], str]] = {
    "transferability": _transferability,
    "distance": _distance,
    "record": _record,
    "network": _network,
    "source": _source,
    "task": _task,
    "strategy": _strategy,
    "hyperparameter": _hyperparameter,
}
