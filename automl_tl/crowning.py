"""The end of a search: its winner chosen, cooled, judged on the test images and saved."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from . import heads, memory, model
from .errors import AutomlError, BudgetError, TrialWarning
from .evaluation.calibration import choose_temperature
from .evaluation.classification import lower_beyond_luck
from .home import write_text
from .objectives import ACCURACY, RETENTION, ROBUSTNESS
from .pixels import pixels_of
from .progress import Search, leader, record_trial
from .records import IMPORTANCE, KEPT_TEST, KEPT_UNTESTED, TEST, TRAIN, VALIDATION, Task, Trial
from .trials import judge_on_test, probabilities_on

RULE = (
    "best validation score (accuracy, unless the task asks for more); ties go to the lower validation log-loss, "
    "then to the fewer epochs, then to the earlier trial; kept as it was at its best epoch; "
    "the test images were used once, for this winner alone"
)


def crown(state: Search) -> tuple[Trial, dict[str, int]]:
    """The winner, its confidence set right on the validation images, judged on the test images, its model in `folder/model`.

    With the bytes of what is remembered beside it. The model is whole before anything is remembered: what fails there, or on a
    full disk, does not lose it.

    Raises:
        BudgetError: there is no winner.
        InputError: the images cannot be decoded anew, as for want of room.
    """
    while True:
        winner = _best(state)
        pixels_of(state.task, state.backbones[winner.candidate.backbone])  # what fails here is no model's fault
        try:
            winner, trained, temperature = _judged(state, winner)
            break
        except AutomlError as error:  # a strategy may leave a network that fails on other images than those it was chosen by
            words = f"{winner.candidate.strategy}: its model is no good: {error}"
            record_trial(state, replace(winner, status="failed", curve=(), validation={}, artefact="", error=words))
    facts = {
        **trained.facts,
        "test": dict(winner.test),
        "temperature": temperature,
        "trial": winner.id,
        "fingerprint": state.task.fingerprint,
        "images": {split: len(state.task.part(split)) for split in (TRAIN, VALIDATION, TEST)},
    }
    folder = state.folder / "model"
    memory.forget(folder)  # of the winner before the run went on
    model.save(folder, trained.net, trained.backbone, trained.candidate, trained.classes, facts)
    remembered = _remember_for_later(state, winner, trained, temperature)
    if remembered:
        _note(folder / model.CARD, remembered)
    for kind in sorted(state.remember - remembered.keys()):
        words = f"the winner, {winner.candidate.strategy}, {memory.LACKING[kind]}; name others with --strategy to have it"
        warnings.warn(f"--remember {kind}: is left out, as {words}", TrialWarning, stacklevel=2)
    return winner, remembered


def notes_on(task: Task, winner: Trial) -> tuple[str, ...]:
    """What nobody should overlook of a winner's scores."""
    if task.objective == RETENTION and "kept" in winner.test and not len(task.part(KEPT_TEST)):
        return (KEPT_UNTESTED,)
    if task.objective == ROBUSTNESS and not winner.test:
        return (
            "without test images, what it withstands is told by ten steps of PGD on the validation images alone, the kind of "
            "attack that it was trained with; "
            f"`automl-tl evaluate RUN IMAGES --robust {task.epsilon:.3g}` judges it by stronger ones",
        )
    if task.objective != ACCURACY or not winner.test:
        return ()
    test, validation = winner.test["accuracy"], winner.validation["accuracy"]
    if not lower_beyond_luck(test, len(task.part(TEST)), validation, len(task.part(VALIDATION))):
        return ()
    return (
        f"the test images are recognised less often than the validation images ({test:.3f} against {validation:.3f}), and not by "
        "luck: either they are of another kind, or the validation images are more like the training images than new ones will be "
        "(the same things photographed again: give a `group` column). The winner was chosen by the validation images; expect of "
        "new images what the test images show",
    )


def _best(state: Search) -> Trial:
    """Raises BudgetError: there is none."""
    winner = leader(state)
    if winner is None:
        failed = [trial.error for trial in state.trials.values() if trial.error]
        cause = f"every trial failed, the last with: {failed[-1]}" if failed else "no trial ended in time; give more time"
        raise BudgetError(f"no model was trained within the budget: {cause}")
    return winner


def _judged(state: Search, winner: Trial) -> tuple[Trial, model.Model, float]:
    """The winner with its scores on the test images, and its model, whose confidence was divided by the temperature."""
    trained = model.load(state.folder / winner.artefact)
    validation = state.task.part(VALIDATION)
    probabilities = probabilities_on(state.task, trained.backbone, trained.net, validation)
    temperature = choose_temperature(probabilities, state.task.labels[validation], seed=state.seed)
    heads.cool(trained.net.head, temperature)
    if not winner.test:
        winner = replace(winner, test=judge_on_test(state.task, trained.backbone, trained.net))
        record_trial(state, winner)
    return winner, trained, temperature


def _remember_for_later(state: Search, winner: Trial, trained: model.Model, temperature: float) -> dict[str, int]:
    if not state.remember:
        return {}
    found = memory.recall(state.folder / winner.artefact, IMPORTANCE)
    return memory.remember(
        state.folder / "model",
        trained.net,
        state.task,
        pixels_of(state.task, trained.backbone).array,
        trained.backbone,
        kinds=state.remember,
        importance=None if found is None else found[0],
        temperature=temperature,
        most=state.exemplars,
        seed=state.seed,
    )


def _note(card: Path, remembered: Mapping[str, int]) -> None:
    """Add to a model's card the bytes of what lies beside it."""
    facts = {**json.loads(card.read_text(encoding="utf-8")), "remembered": dict(remembered)}
    write_text(card, json.dumps(facts, indent=1, ensure_ascii=False))
