"""automl_tl: which pretrained backbone, which transfer strategy, which hyperparameters, answered from experience."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .hookspecs import hookimpl

if TYPE_CHECKING:
    from .api import evaluate, fit, load_task, predict, profile_task, recommend, search
    from .estimator import TransferClassifier
    from .records import (
        Backbone,
        Candidate,
        Features,
        Listing,
        Norms,
        Offer,
        Outcome,
        Point,
        Profile,
        Ranked,
        Ranking,
        Task,
        Trial,
    )
    from .strategy import Batch, Classifier, Fitted, Job, Strategy

__version__ = "0.1.0"
__all__ = [
    "Backbone",
    "Batch",
    "Candidate",
    "Classifier",
    "Features",
    "Fitted",
    "Job",
    "Listing",
    "Norms",
    "Offer",
    "Outcome",
    "Point",
    "Profile",
    "Ranked",
    "Ranking",
    "Strategy",
    "Task",
    "TransferClassifier",
    "Trial",
    "evaluate",
    "fit",
    "hookimpl",
    "load_task",
    "predict",
    "profile_task",
    "recommend",
    "search",
]

_HOMES = {
    "api": ("evaluate", "fit", "load_task", "predict", "profile_task", "recommend", "search"),
    "estimator": ("TransferClassifier",),
    "records": (
        *("Backbone", "Candidate", "Features", "Listing", "Norms", "Offer", "Outcome"),
        *("Point", "Profile", "Ranked", "Ranking", "Task", "Trial"),
    ),
    "strategy": ("Batch", "Classifier", "Fitted", "Job", "Strategy"),
}


def __getattr__(name: str) -> Any:
    """Public names are imported when asked for: importing the package loads no torch."""
    from importlib import import_module

    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
