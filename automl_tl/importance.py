"""How much each weight of a network matters to what it knows: two measures, a tensor of numbers ≥ 0 for each parameter.

Names are those of a saved model: `backbone.…` and `head.…`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import heads
from .checkpoint import prefixed
from .inference import prepare
from .records import Backbone
from .strategy import Classifier

FISHER_IMAGES = 200
"""A mean over so many images tells weights that matter from those that do not."""
DAMPING = 1e-3
"""ξ of synaptic importance: weights that hardly moved are not divided by nearly nothing."""


def parameters_of(net: Classifier) -> dict[str, nn.Parameter]:
    """The parameters under the names that a saved model has them by; dropout before a head has none."""
    backbone, head = dict(net.backbone.named_parameters()), dict(heads.plain(net.head, "training").named_parameters())
    return {**prefixed(backbone, "backbone"), **prefixed(head, "head")}  # type: ignore[dict-item]


def fisher_diagonal(
    net: Classifier, images: np.ndarray, index: np.ndarray, classes: np.ndarray, backbone: Backbone, *, seed: int = 0
) -> dict[str, Tensor]:
    """The diagonal of the Fisher information: mean over images of (∂ log p(y | x) / ∂w)², y drawn from p(· | x).

    Kirkpatrick et al. (2017), Overcoming catastrophic forgetting in neural networks, section 2. p is the softmax over the
    logits at `classes`. Of uint8 `images` (N×size×size×3), at most `FISHER_IMAGES` of those at `index` (a seeded choice) are
    looked at, one by one: the square is of each image's own gradient. Labels are drawn, not given, as the definition has it:
    given labels, which a trained network predicts well, would have gradients near zero.
    """
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    chosen = np.sort(rng.permutation(index)[:FISHER_IMAGES])
    parameters = {name: p for name, p in parameters_of(net).items() if p.is_floating_point()}
    total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
    frozen = [p for p in parameters.values() if not p.requires_grad]
    net.eval().requires_grad_(True)
    for position in chosen:
        logits = net(prepare(images[[position]], backbone)).float()[:, classes]
        drawn = torch.multinomial(logits.detach().softmax(1).cpu(), 1, generator=generator).squeeze(1).to(logits.device)
        gradients = torch.autograd.grad(F.cross_entropy(logits, drawn), list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                total[name] += gradient.float().square()
    for parameter in frozen:
        parameter.requires_grad_(False)
    return {name: (value / max(len(chosen), 1)).cpu() for name, value in total.items()}


class PathIntegral:
    """What each weight did for the loss on its way through training: Σ over steps of -gradient · movement.

    Zenke, Poole and Ganguli (2017), Continual learning through synaptic intelligence, equation 3. The training loop tells it of
    each step; where the loss has a term that is not the task's, `extra` gives that term's gradient, to be left out.
    """

    def __init__(self) -> None:
        self.extra: Callable[[], Mapping[str, Tensor]] | None = None
        self.descents = 0

    def begin(self, model: nn.Module) -> None:
        """At the start of a descent: where it is now is where it came from."""
        self.model = model
        self.descents += 1
        self.origin = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.gained = {name: torch.zeros_like(p) for name, p in self.origin.items()}
        self.mark()

    def before(self) -> None:
        """Before a step, with the gradients as they are, not clipped."""
        extra = {} if self.extra is None else self.extra()
        self.moving = {
            name: (p, p.detach().clone(), p.grad.clone() - extra[name] if name in extra else p.grad.clone())
            for name, p in self.model.named_parameters()
            if p.grad is not None
        }

    @torch.no_grad()
    def after(self) -> None:
        """After the step; nothing is counted of a gradient that is no number, for which a GradScaler leaves the step out."""
        for name, (parameter, position, gradient) in self.moving.items():
            self.gained[name] -= gradient.nan_to_num(0.0, 0.0, 0.0) * (parameter - position)
        self.moving = {}

    def mark(self) -> None:
        """The model as it is now is the best so far."""
        self.marked = {name: value.clone() for name, value in self.gained.items()}

    def back(self) -> None:
        """The best is back in the model, and the descent goes on from there."""
        self.gained = {name: value.clone() for name, value in self.marked.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """For a checkpoint. A head that is fitted anew where training goes on is not where it came from."""
        return {**prefixed(self.origin, "origin"), **prefixed(self.gained, "gained"), **prefixed(self.marked, "marked")}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, origin in self.origin.items():
            self.origin[name] = state[f"origin.{name}"].to(origin.device)
            self.gained[name] = state[f"gained.{name}"].to(origin.device)
            self.marked[name] = state[f"marked.{name}"].to(origin.device)

    def end(self) -> None:
        """The best is back in the model."""
        self.reached = {name: p.detach().clone() for name, p in self.model.named_parameters()}

    def importance(self, net: nn.Module) -> dict[str, Tensor] | None:
        """Gain over squared movement, equation 5 for this task alone, of the network that training left.

        None where its backbone is not what one descent ended in: it was probed, merged, or trained in stages. A head that was
        changed after the descent is left out: what a later task does cannot touch the rows of other classes.
        """
        if self.descents != 1 or not isinstance(net, Classifier):
            return None
        known = {id(p): name for name, p in self.model.named_parameters()}
        found = {}
        for name, parameter in parameters_of(net).items():
            own = known.get(id(parameter))
            if own is None or not torch.equal(parameter, self.reached[own]):
                if name.startswith("head."):
                    continue
                return None
            moved = (self.reached[own] - self.origin[own]).square()
            found[name] = (self.marked[own].clamp(min=0) / (moved + DAMPING)).cpu()
        return found
