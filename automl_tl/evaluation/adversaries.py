"""What a model stands: the worst of several attacks of a kept library (foolbox), none of which it was trained on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from automl_tl.attacks import held
from automl_tl.device import device
from automl_tl.errors import InputError
from automl_tl.heads import Neighbours
from automl_tl.records import Backbone

if TYPE_CHECKING:
    Attack = Callable[[Any, Tensor, Tensor], Tensor]
    """(foolbox model, images of 0 to 1, labels) to changed images."""

MOST = 128
"""Images that are attacked: some hundred passes each."""
BATCH = 64
STEPS, RESTARTS, TARGETS = 50, 3, 3
ROUNDING = 1e-5


def require_attacks() -> None:
    """Raises InputError where foolbox is not installed: robust models could be trained, but not judged."""
    if find_spec("foolbox") is None:
        raise InputError("robust models are judged by the attacks of foolbox: pip install 'automl_tl[attacks]'")


def _library() -> Any:
    require_attacks()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # foolbox 3.3.4 takes a filter from where SciPy 1 had it
        import foolbox
    return foolbox


def judge_robust(
    model: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    backbone: Backbone,
    *,
    epsilon: float,
    most: int = MOST,
) -> dict[str, float]:
    """Accuracy on N×size×size×3 uint8 images of which every pixel may change by `epsilon` (of 0–1); on `most` of them, evenly.

    "pgd_accuracy": after projected gradient descent of 50 steps from 3 random starts (Madry et al., 2018).
    "robust_accuracy": after that and an ensemble in the manner of AutoAttack (Croce and Hein, 2020): descent on the margin of
    the logits, descent towards each of the 3 next classes, a minimum-norm attack (FMN, Pintor et al., 2021), and random noise,
    which needs no gradient and so shows where gradients are hidden. An image counts as right only if it stands all of them.

    Raises:
        InputError: foolbox is not installed, or the model counts votes.
    """
    if any(isinstance(layer, Neighbours) for layer in model.modules()):
        raise InputError(
            "the model classifies by the votes of neighbours, which have no gradient for an attack to follow; "
            "judge one that ends in a linear layer: run `automl-tl fit` with another --strategy"
        )
    foolbox = _library()
    chosen = np.linspace(0, len(labels) - 1, min(most, len(labels))).astype(int)
    preprocessing = {"mean": list(backbone.mean), "std": list(backbone.std), "axis": -3}
    stands: dict[str, list[bool]] = {"clean": [], "pgd": [], "robust": []}
    with held(model), torch.random.fork_rng():
        torch.manual_seed(0)
        attacked = foolbox.PyTorchModel(model, bounds=(0, 1), device=device(), preprocessing=preprocessing)
        for start in range(0, len(chosen), BATCH):
            part = chosen[start : start + BATCH]
            batch = torch.from_numpy(np.ascontiguousarray(images[part])).to(device()).permute(0, 3, 1, 2).float() / 255
            truth = torch.from_numpy(labels[part]).to(device())
            for name, right in _standing(attacked, batch, truth, epsilon):
                stands[name] += right.tolist()
    accuracy = {name: float(np.mean(right)) for name, right in stands.items()}
    return {
        "attacked_images": float(len(chosen)),
        "attacked_clean_accuracy": accuracy["clean"],
        "pgd_accuracy": accuracy["pgd"],
        "robust_accuracy": accuracy["robust"],
    }


def _standing(attacked: Any, images: Tensor, labels: Tensor, epsilon: float) -> Iterator[tuple[str, Tensor]]:
    """Which images are right: clean, after the first attack, after all. Each attack gets those that stood the ones before."""
    with torch.no_grad():
        right = attacked(images).argmax(1) == labels
    yield "clean", right.clone()
    for number, attack in enumerate(_attacks(epsilon)):
        left = torch.nonzero(right).squeeze(1)
        if len(left):
            changed = attack(attacked, images[left], labels[left])
            right[left] = ~_fooled(attacked, changed, images[left], labels[left], epsilon)
        if number + 1 == RESTARTS:
            yield "pgd", right.clone()
    yield "robust", right


def _fooled(attacked: Any, changed: Tensor, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """Whether an image is told wrong, and was changed by no more than it may be: no attack is taken at its word."""
    allowed = (changed - images).abs().amax((1, 2, 3)) <= epsilon + ROUNDING
    with torch.no_grad():
        wrong: Tensor = attacked(changed).argmax(1) != labels
    return wrong & allowed & (changed.amin((1, 2, 3)) >= 0) & (changed.amax((1, 2, 3)) <= 1)


def _attacks(epsilon: float) -> list[Attack]:
    """`RESTARTS` times projected gradient descent, then the others."""
    import eagerpy

    foolbox = _library()

    class Margin(foolbox.attacks.LinfPGD):  # type: ignore[misc, name-defined]
        """Descent on the lead of the true class over the best other one, which cross-entropy loses sight of where it is sure."""

        def get_loss_fn(self, model: Any, labels: Any) -> Callable[[Any], Any]:
            def lead(inputs: Any) -> Any:
                logits = model(inputs)
                mask = eagerpy.onehot_like(logits, labels, value=1e9)
                true = (logits * eagerpy.onehot_like(logits, labels)).sum(axis=-1)
                return ((logits - mask).max(axis=-1) - true).sum()

            return lead

    def untargeted(attack: Any) -> Attack:
        return lambda model, images, labels: attack.run(
            model, images, foolbox.criteria.Misclassification(labels), epsilon=epsilon
        )

    def minimal(attack: Any) -> Attack:
        return lambda model, images, labels: attack(model, images, labels, epsilons=epsilon)[1]

    def towards(place: int) -> Attack:
        def run(model: Any, images: Tensor, labels: Tensor) -> Tensor:
            with torch.no_grad():
                order = model(images).scatter(1, labels[:, None], -torch.inf).argsort(1, descending=True)
            goal = order[:, min(place, order.shape[1] - 2)]
            aim = foolbox.criteria.TargetedMisclassification(goal)
            changed: Tensor = descent(foolbox.attacks.LinfPGD).run(model, images, aim, epsilon=epsilon)
            return changed

        return run

    def descent(kind: Any) -> Any:
        return kind(steps=STEPS, rel_stepsize=2.5 / STEPS, random_start=True)

    return [
        *(untargeted(descent(foolbox.attacks.LinfPGD)) for _ in range(RESTARTS)),
        untargeted(descent(Margin)),
        *(towards(place) for place in range(TARGETS)),
        minimal(foolbox.attacks.LInfFMNAttack(steps=STEPS)),
        minimal(foolbox.attacks.LinfRepeatedAdditiveUniformNoiseAttack(repeats=STEPS)),
    ]
