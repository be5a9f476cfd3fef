"""Tensors and plain facts in one safetensors file, written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as of_bytes
from safetensors.torch import save as to_bytes
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from .home import whole


def save(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write `tensors`, and `facts` as JSON in the file's header. A crash leaves the old file.

    Raises:
        OSError: it cannot be written, as where the disk is full.
    """
    packed = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with whole(path) as partial:
        write_tensors(partial, packed, {"facts": json.dumps(facts)})
        with partial.open("rb+") as file:
            os.fsync(file.fileno())


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file, of tensors as it wants them.

    Raises:
        OSError: it cannot be written; safetensors has words of its own for what the system says.
    """
    try:
        save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
    except SafetensorError as error:
        code = re.search(r"\(os error (\d+)\)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from None


def beside(folder: Path | str, name: str) -> Path:
    """The file of `name` in a model's folder."""
    return Path(folder) / f"{name}.safetensors"


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """`tensors` as the bytes of a safetensors file."""
    packed: bytes = to_bytes({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    return packed


def unpack(packed: bytes) -> dict[str, Tensor]:
    """What `pack` gave, on the CPU."""
    tensors: dict[str, Tensor] = of_bytes(packed)
    return tensors


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save` wrote, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        SafetensorError: it is damaged, or something else wrote it.
    """
    if not path.exists():  # safetensors would not name it where programs look for the name
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    with safe_open(path, framework="pt") as file:
        facts = _facts(file.metadata() or {})
        return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118 (not a dict)


def cached(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a file that can be made anew: None where there is none, or it is damaged."""
    try:
        return load(path)[0]
    except (OSError, ValueError, SafetensorError):
        return None


def _facts(metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads(metadata["facts"])
    except (KeyError, ValueError, RecursionError):
        raise SafetensorError("its header has no facts, as a file of automl-tl has") from None
    return facts


def nested(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose name starts with `prefix.`, without it."""
    start = len(prefix) + 1
    return {name[start:]: tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")}


def prefixed(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def moments(optimiser: Optimizer) -> dict[str, Tensor]:
    """What an optimiser remembers of earlier steps."""
    return {
        f"{index}.{name}": value
        for index, state in optimiser.state_dict()["state"].items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def remember(optimiser: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimiser of the same parameters what `moments` found, laid out as they are: fused kernels insist on it."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    for parameter, values in optimiser.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
