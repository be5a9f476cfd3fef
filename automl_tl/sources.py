"""Statistics of source datasets, kept beside the networks of a zoo: enough for distances, without the images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .errors import ZooError
from .records import Features

if TYPE_CHECKING:
    from torch import Tensor

SUFFIX = ".source.safetensors"


def write_source(folder: Path, source: str, encoder: str, statistics: Features) -> Path:
    """Keep the statistics of the features that the backbone `encoder` gives for the images of `source`."""
    import torch

    from . import checkpoint

    arrays = {"values": statistics.values, "mean": statistics.mean, "factor": statistics.factor}
    path = folder / f"{source}{SUFFIX}"
    tensors = {name: _small(torch.from_numpy(array)) for name, array in arrays.items() if array is not None}
    checkpoint.save(path, tensors, {"source": source, "encoder": encoder})
    return path


def read_sources(folder: Path) -> tuple[str | None, dict[str, Features]]:
    """The encoder (None: there are no statistics) and, by source dataset, the statistics taken with it.

    Raises:
        ZooError: a file is not what `write_source` wrote, or two sources were seen by different encoders, so that they cannot be
            compared.
    """
    from safetensors import SafetensorError

    from . import checkpoint

    encoder: str | None = None
    found: dict[str, Features] = {}
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            tensors, facts = checkpoint.load(path)
            source, taken_with, values = path.name.removesuffix(SUFFIX), str(facts["encoder"]), tensors["values"]
        except (OSError, SafetensorError, LookupError, TypeError) as error:
            raise ZooError(f"{path}: cannot be read as statistics of a source ({error}); write it anew or remove it") from None
        if encoder not in (None, taken_with):
            raise ZooError(f"{path}: was taken with {taken_with!r}, the others with {encoder!r}; take all with one")
        encoder = taken_with
        mean, factor = (tensors[name].float().numpy() if name in tensors else None for name in ("mean", "factor"))
        found[source] = Features(values.float().numpy(), mean=mean, factor=factor)
    return encoder, found


def _small(tensor: Tensor) -> Tensor:
    """Matrices in fp16, which moves a Fréchet distance by less than 0.1 %; the mean stays fp32."""
    return tensor.half() if tensor.ndim > 1 else tensor.float()
