"""The layers of a backbone, bottom to top, and freezing."""

from __future__ import annotations

from torch import nn

MOST_GROUPS = 6


def layer_groups(backbone: nn.Module) -> list[list[nn.Parameter]]:
    """Parameters in the order that images meet them: stem first, last stage last; at most `MOST_GROUPS` groups.

    timm networks say it themselves (`group_matcher`); others are taken child by child.
    """
    names = _timm_groups(backbone) if hasattr(backbone, "group_matcher") else _child_groups(backbone)
    parameters = dict(backbone.named_parameters())
    groups = [[parameters[name] for name in group if name in parameters] for group in names]
    groups = [group for group in groups if group]
    while len(groups) > MOST_GROUPS:
        _merge_smallest_neighbours(groups)
    return groups


def _timm_groups(backbone: nn.Module) -> list[list[str]]:
    from timm.models import group_parameters

    try:
        matcher = backbone.group_matcher(coarse=True)  # type: ignore[operator]
    except AssertionError:  # RDNet has only fine ones, of which `layer_groups` makes few
        matcher = backbone.group_matcher(coarse=False)  # type: ignore[operator]
    matched = group_parameters(backbone, matcher)
    return [matched[key] for key in sorted(matched)]


def _child_groups(backbone: nn.Module) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for name, _ in backbone.named_parameters():
        groups.setdefault(name.split(".", 1)[0], []).append(name)
    return list(groups.values())


def _merge_smallest_neighbours(groups: list[list[nn.Parameter]]) -> None:
    sizes = [sum(p.numel() for p in group) for group in groups]
    left = min(range(len(groups) - 1), key=lambda i: sizes[i] + sizes[i + 1])
    groups[left : left + 2] = [groups[left] + groups[left + 1]]


def still_norms(model: nn.Module, *, only_frozen: bool) -> None:
    """Batch norms keep the statistics they were pretrained with: those that are not trained (`only_frozen`), or all.

    A few dozen batches of a small set give worse statistics than millions of source images did, and a head that was probed on
    features of the old ones does not fit features of the new ones. The scale and shift of a norm are trained all the same.
    """
    for layer in model.modules():
        trained = any(parameter.requires_grad for parameter in layer.parameters())
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and not (only_frozen and trained):
            layer.eval()
