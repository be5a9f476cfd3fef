"""ONNX: one file that onnxruntime, and much else, runs without Python or torch."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from automl_tl.errors import InputError
from automl_tl.extras import require
from automl_tl.model import Model

from .graph import INPUT, OUTPUT, facts_of, graph_of, largest_difference, predictor, probes, write_facts
from .predictor import Predictor

FILE = "model.onnx"
MOST_INLINE = 1.5e9
"""Bytes of weights up to which they are in the file itself (protobuf ends at 2 GiB); larger ones lie in model.onnx.data."""


def write(folder: Path, trained: Model) -> float:
    """`model.onnx` and `model.onnx.json` into `folder`; the largest difference of a probability that was found.

    Raises:
        PluginError: the extra "onnx" is not installed.
        AutomlError: the file would answer differently.
    """
    require("onnx", "onnx", "onnxscript", "onnxruntime")
    graph, size, file = graph_of(trained), trained.backbone.input_size, folder / FILE
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the exporter's own
        program = torch.onnx.export(
            graph,
            (torch.from_numpy(probes(size, 2)),),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={INPUT: {0: torch.export.Dim("n")}},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    _forget_origins(program.model)
    outside = sum(parameter.numel() * 4 for parameter in graph.parameters()) > MOST_INLINE
    program.save(file, external_data=outside)
    facts = facts_of(trained, "onnx")
    facts["largest_difference"] = difference = largest_difference(graph, _session(file), size, "ONNX")
    program.model.metadata_props.update({name: _text(value) for name, value in facts.items()})
    program.model.doc_string = "An image classifier trained by automl_tl; its metadata say how images are prepared."
    program.save(file, external_data=outside)
    write_facts(file, facts)
    return difference


def _forget_origins(graph: Any) -> None:
    """Remove what the exporter notes of where each part comes from: the lines of code, with the folders of this machine."""
    from onnx_ir.traversal import RecursiveGraphIterator

    graph.metadata_props.clear()
    for part in (graph.graph, *graph.functions.values()):
        part.metadata_props.clear()
        for node in RecursiveGraphIterator(part):
            for noted in (node, node.graph, *node.inputs, *node.outputs):
                if noted is not None:
                    noted.metadata_props.clear()
                    noted.doc_string = None


def read(file: Path) -> Predictor:
    """Raises InputError: not an ONNX file of ours; PluginError: no onnxruntime."""
    require("onnx", "onnxruntime")
    return predictor(file, _session(file))


def _session(file: Path) -> Any:
    """uint8 images to probabilities, by onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common class but this
        raise InputError(f"{file}: cannot be read as ONNX: {str(error).splitlines()[0][:200]}") from None
    names = [one.name for one in session.get_inputs()], [one.name for one in session.get_outputs()]
    if names != ([INPUT], [OUTPUT]):
        raise InputError(f"{file}: was not written by `automl-tl export`: its inputs and outputs are {names}")

    def answer(images: np.ndarray) -> np.ndarray:
        found: np.ndarray = session.run([OUTPUT], {INPUT: images})[0]
        return found

    return answer


def _text(value: Any) -> str:
    """ONNX metadata are text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
