"""torch.export: a program that torch runs without our code or timm's.

`torch.export.load` is made for files that one trusts: it unpickles what an archive says is a pickle, loads compiled code, finds
operators by name and evaluates the text of symbolic sizes. `write` leaves nothing of that in the archive (weights as raw bytes,
no sample inputs, no guards), and `read` looks into an archive before torch does, and refuses what `write` would not have written.
"""

from __future__ import annotations

import io
import json
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from automl_tl.errors import InputError
from automl_tl.model import Model

from .graph import INPUT, facts_of, graph_of, largest_difference, predictor, probes, write_facts
from .predictor import Predictor

FILE = "model.pt2"
_PART = re.compile(
    r"(byteorder|version|archive_format|archive_version|\.data/\w+|models/model\.json|data/sample_inputs/model\.pt"
    r"|data/(weights|constants)/(model_(weights|constants)_config\.json|weight_\d+|tensor_\d+))"
)
_OPERATOR = re.compile(r"torch\.ops\.aten\.\w+\.\w+|_operator\.(getitem|add|sub|mul|floordiv|mod)")
_SYMBOL = re.compile(r"Symbol\('[su]\d+'(, (positive|nonnegative|integer)=True)*\)")
_ARITHMETIC = re.compile(r"[\d\s+*/()-]*")


def write(folder: Path, trained: Model) -> float:
    """`model.pt2` and `model.pt2.json` into `folder`; the largest difference of a probability that was found.

    Raises:
        AutomlError: the program would answer differently.
    """
    graph, size, file = graph_of(trained), trained.backbone.input_size, folder / FILE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        example = (torch.from_numpy(probes(size, 2)),)
        program = torch.export.export(graph, example, dynamic_shapes={INPUT: {0: torch.export.Dim("n")}})
        program.example_inputs = None  # it would be pickled
        program._guards_code = []  # text that loading turns into code; the only guard is the shape, which the JSON states
        torch.export.save(program, file)
    facts = facts_of(trained, "torch.export")
    facts["largest_difference"] = difference = largest_difference(graph, _program(file), size, "torch.export")
    write_facts(file, facts)
    return difference


def read(file: Path) -> Predictor:
    """Raises InputError: not a program that `write` wrote."""
    return predictor(file, _program(file))


def _program(file: Path) -> Any:
    """uint8 images to probabilities."""
    check_archive(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module = torch.export.load(file).module(check_guards=False)
        except (RuntimeError, ValueError, LookupError, AssertionError, TypeError, AttributeError) as error:
            raise InputError(f"{file}: torch {torch.__version__} cannot read it: {str(error)[:200]}; export it anew") from None

    @torch.inference_mode()
    def answer(images: np.ndarray) -> np.ndarray:
        found: np.ndarray = module(torch.from_numpy(images)).numpy()
        return found

    return answer


def check_archive(file: Path) -> None:
    """Look into a .pt2 without loading it.

    Raises:
        InputError: it is damaged, or holds what could run code: a pickle, compiled code, an operator that is not torch's own
            arithmetic, text that would be evaluated.
    """
    refuse = f"{file}: was not written by `automl-tl export` and is not loaded, as loading could run code"
    try:
        with zipfile.ZipFile(io.BytesIO(file.read_bytes())) as archive:
            names = archive.namelist()
            parts = {name.partition("/")[2]: name for name in names}
            if len(parts) < len(names):  # of two parts with one name, torch might read the other
                raise InputError(f"{refuse}: it holds parts twice")
            for part, name in parts.items():
                if not _PART.fullmatch(part):
                    raise InputError(f"{refuse}: it holds {part or name!r}")
                if part.startswith("data/sample_inputs/") and archive.getinfo(name).file_size:
                    raise InputError(f"{refuse}: it holds pickled sample inputs")
            tables = {part: json.loads(archive.read(name)) for part, name in parts.items() if part.endswith(".json")}
    except (OSError, ValueError, zipfile.BadZipFile, RecursionError) as error:
        raise InputError(f"{file}: cannot be read as a torch.export program: {error}") from None
    for part, table in tables.items():
        for key, value in _pairs(table):
            if (key == "use_pickle" and value) or (key == "guards_code" and value):
                raise InputError(f"{refuse}: {part} says {key}")
            if key == "target" and not _OPERATOR.fullmatch(str(value)):
                raise InputError(f"{refuse}: it calls {str(value)[:80]!r}")
            if key == "expr_str" and not _ARITHMETIC.fullmatch(_SYMBOL.sub("", str(value))):
                raise InputError(f"{refuse}: it has the size {str(value)[:80]!r}")
            if key == "path_name" and not re.fullmatch(r"(weight|tensor)_\d+", str(value)):
                raise InputError(f"{refuse}: it has the constant {str(value)[:80]!r}")


def _pairs(table: Any) -> Iterator[tuple[str, Any]]:
    """Every key of a JSON value with what it holds, at any depth."""
    todo = [table]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            yield from value.items()
            todo.extend(value.values())
        elif isinstance(value, list):
            todo.extend(value)
