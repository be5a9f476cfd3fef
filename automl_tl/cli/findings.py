"""A profile, a ranking and an outcome, in words and tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .console import figure, print_table

if TYPE_CHECKING:
    from automl_tl.records import Outcome, Profile, Ranked, Ranking, Task

EXPLAINED = 3
"""Candidates whose reasons are printed; --json gives those of all."""


def print_on_request() -> None:
    """Which zoos would be considered, too, if they were named; nothing is downloaded unasked."""
    from statistics import median

    from automl_tl.advice import LOOKED_AT
    from automl_tl.backbones import on_request

    for name, more in on_request().items():
        if more:
            size = median(backbone.download_bytes for backbone in more) / 1e6
            print(
                f"note: --zoo {name} would add {len(more)} networks to the choice and download the {LOOKED_AT} "
                f"that look best ({size:.0f} MB each in the median)"
            )


def print_profile(task: Task, profile: Profile) -> None:
    usual = ("train", "validation", "test")
    splits = [*usual, *(split for split in task.splits if split not in usual)]
    parts = ", ".join(f"{len(task.part(split))} {split}" for split in splits)
    print(f"{task.name}: {len(task.labels)} images of {len(task.classes)} classes ({parts})")
    for warning in profile.warnings:
        print(f"note: {warning}")
    gaps = {name.removeprefix("gap_"): value for name, value in profile.meta.items() if name.startswith("gap_")}
    if gaps:
        print("Gap of the two domains: " + ", ".join(f"{name} {value:.4g}" for name, value in gaps.items()))
    if profile.distances:
        names = sorted({name for scores in profile.distances.values() for name in scores})
        order = sorted(profile.distances, key=lambda source: profile.distances[source].get("frechet", float("inf")))
        rows = [(source, *(figure(profile.distances[source].get(name)) for name in names)) for source in order]
        print_table("Distance to the sources (smaller is closer)", ("source", *names), rows)
    if profile.transferability:
        names = sorted({name for scores in profile.transferability.values() for name in scores})
        rows = [(b, *(figure(scores.get(name)) for name in names)) for b, scores in profile.transferability.items()]
        print_table("Transferability (larger is better)", ("backbone", *names), rows)


def print_ranking(ranking: Ranking, top: int) -> None:
    print(f"Advice from {ranking.basis}:")
    rows = [
        (
            str(place),
            item.candidate.backbone,
            item.candidate.strategy,
            _hyperparameters(item.candidate.hyperparameters),
            _expected(item),
            f"{item.seconds:.0f} s",
        )
        for place, item in enumerate(ranking.items[:top], 1)
    ]
    print_table("", ("", "backbone", "strategy", "hyperparameters", "expected accuracy", "time"), rows)
    for place, item in enumerate(ranking.items[:EXPLAINED], 1):
        if item.reasons:
            print(f"Why {place}: {'; '.join(item.reasons)}")


def _expected(item: Ranked) -> str:
    """Nothing where the interval says nothing: without a history there is an order, but no accuracy."""
    return "" if (item.low, item.high) == (0.0, 1.0) else f"{item.score:.3f} ({item.low:.2f}–{item.high:.2f})"


def _hyperparameters(values: Any) -> str:
    """Without those that are off (0 or False): most are, and --json gives all."""
    shown = {name: f"{value:.3g}" if isinstance(value, float) else str(value) for name, value in values.items() if value}
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def print_outcome(outcome: Outcome) -> None:
    from automl_tl.records import KEPT_UNTESTED

    winner = outcome.winner
    tested = f", test {winner.test['accuracy']:.3f}" if winner.test else ", no test images"
    found = f" ({winner.note})" if winner.note else ""
    if outcome.interrupted:
        print("Interrupted: this is the best model so far; the same command resumes the search")
    print(f"Winner: {winner.candidate.strategy} on {winner.candidate.backbone}{found}")
    print(f"Accuracy: validation {winner.validation['accuracy']:.3f}{tested}")
    for note in outcome.notes:
        print(f"note: {note}")
    if "kept" in (scores := winner.test or winner.validation):
        _print_retention(scores, "test" if winner.test and KEPT_UNTESTED not in outcome.notes else "validation")
    if "robust_accuracy" in winner.test:
        _print_robustness(winner.test)
    if "information" in winner.validation:
        labelled, sure = winner.validation["labelled"], winner.validation["information"]
        print(f"Chosen by accuracy on labelled images {labelled:.3f}, and information on the target's {sure:.3f}")
    print(f"{_count(outcome)}, in {outcome.seconds:.0f} s")
    print(f"Model:  {outcome.folder / 'model'}")
    print(f"Report: {outcome.folder / 'report.html'}")
    for kind, size in outcome.remembered.items():
        print(f"Remembered: {kind}, {size:,} bytes" + (": images of yours, which go with the model" * (kind == "exemplars")))


def _count(outcome: Outcome) -> str:
    """ "4 trials to the end, 1 paused"."""
    ends = {"finished": "to the end", "stopped": "paused", "failed": "failed"}
    counts = {words: sum(trial.status == status for trial in outcome.trials) for status, words in ends.items()}
    (first, count), *others = [(words, count) for words, count in counts.items() if count]
    trials = "1 trial" if count == 1 else f"{count} trials"
    return ", ".join([f"{trials} {first}", *(f"{count} {words}" for words, count in others)])


def _print_retention(scores: Mapping[str, float], split: str) -> None:
    """Accuracy on what was known before and on what is new."""
    before = f" ({scores['kept_before']:.3f} before)" if "kept_before" in scores else ""
    told = f"; told which of the two: {scores['kept_told']:.3f} and {scores['new_told']:.3f}" if "kept_told" in scores else ""
    print(f"Old classes: {split} {scores['kept']:.3f}{before}, new classes: {scores['new']:.3f}{told}")


def _print_robustness(scores: Mapping[str, float]) -> None:
    """What stands of the test images that were attacked."""
    print(
        f"Under attack, of {scores['attacked_images']:.0f} test images: {scores['attacked_clean_accuracy']:.3f} as they are, "
        f"{scores['pgd_accuracy']:.3f} after PGD, {scores['robust_accuracy']:.3f} after all attacks"
    )
