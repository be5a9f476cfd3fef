"""torch.export: a program that torch runs without our code or timm's.

`torch.export.load` is made for files that one trusts: it unpickles what an archive says is a pickle, loads compiled code, finds
operators by name and evaluates the text of symbolic sizes. `write` leaves nothing of that in the archive (weights as raw bytes,
no sample inputs, no guards) and nothing of where the code lay. `read` looks into an archive before torch does, and
refuses what `write` would not have written.
"""

from __future__ import annotations

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
_OPERATOR = re.compile(
    r"""_operator\.(getitem|add|sub|mul|floordiv|mod)
    | torch\.ops\.aten\.(
        # kinds and sizes
        _assert_scalar | _assert_tensor_metadata | sym_size | to | type_as
        # new tensors
        | arange | eye | full | full_like | lift_fresh_copy | linspace | meshgrid | new_full | new_ones | new_zeros
        | one_hot | ones | ones_like | scalar_tensor | tril | triu | zeros | zeros_like
        # the same numbers elsewhere
        | alias | cat | chunk | clone | contiguous | copy | detach | diagonal | expand | expand_as | flatten | flip
        | movedim | narrow | numpy_T | pad | permute | pixel_shuffle | pixel_unshuffle | repeat | repeat_interleave
        | reshape | reshape_as | roll | select | slice | split | split_with_sizes | squeeze | stack | t | tile
        | transpose | unbind | unflatten | unfold | unsqueeze | view | view_as
        # some of the numbers
        | argmax | argmin | argsort | embedding | gather | index | index_put | index_select | masked_fill | max
        | min | scatter | sort | topk | where
        # number by number
        | abs | add | addcdiv | addcmul | bitwise_and | bitwise_not | bitwise_or | ceil | clamp | clamp_max
        | clamp_min | cos | div | eq | erf | exp | expm1 | floor | floor_divide | ge | gt | le | lerp | log | log1p
        | log2 | logaddexp | logical_and | logical_not | logical_or | lt | maximum | minimum | mul | ne | neg | pow | reciprocal
        | remainder | round | rsqrt | rsub | sign | sin | sqrt | square | sub
        # sums and extremes
        | all | amax | amin | any | cumsum | linalg_vector_norm | logsumexp | mean | norm | prod | std | std_mean
        | sum | var | var_mean
        # matrices
        | addmm | baddbmm | bmm | cdist | einsum | linear | matmul | mm | scaled_dot_product_attention
        # neighbours in an image
        | _upsample_bicubic2d_aa | _upsample_bilinear2d_aa | adaptive_avg_pool1d | adaptive_avg_pool2d
        | adaptive_max_pool2d | avg_pool1d | avg_pool2d | col2im | conv1d | conv2d | conv3d | conv_transpose1d
        | conv_transpose2d | im2col | max_pool1d | max_pool2d | upsample_bicubic2d | upsample_bilinear2d
        | upsample_nearest2d
        # normalising
        | batch_norm | group_norm | instance_norm | layer_norm | rms_norm
        # between layers
        | celu | dropout | elu | feature_dropout | gelu | glu | hardsigmoid | hardswish | hardtanh | leaky_relu
        | log_sigmoid | log_softmax | lstm | mish | prelu | relu | relu6 | selu | sigmoid | silu | softmax | softplus
        | tanh
    )_?\.(?!\w*out$)\w+""",
    re.VERBOSE,
)
"""What torch.export leaves of a network of each of timm's families (timm 1.0.31), and their like. Not all of torch.ops.aten only
computes: `from_file` maps any file into memory, to be read or overwritten."""
_SYMBOL = re.compile(r"Symbol\('[su]\d+'(, (positive|nonnegative|integer)=True)*\)")
_ARITHMETIC = re.compile(r"(?!.*(\*\*|\d{19}))(Integer|Mul|Add|[\d\s+*/(),-]){0,999}", re.DOTALL)
"""Of sizes, as torch prints them, now (`Mul(Integer(4), …)`) and formerly. No powers and no endless numbers: working out a short
text with them takes for ever."""
LARGEST_TABLE = 1 << 26
"""Bytes of a JSON part; those of timm's largest networks have a twentieth of it."""
_UNREADABLE = (RuntimeError, ValueError, LookupError, AssertionError, TypeError, AttributeError, ArithmeticError, OSError)


def write(folder: Path, trained: Model) -> float:
    """`model.pt2` and `model.pt2.json` into `folder`; the largest difference of a probability that was found.

    Raises:
        InputError: the network calls an operator that `read` refuses.
        AutomlError: the program would answer differently.
    """
    graph, size, file = graph_of(trained), trained.backbone.input_size, folder / FILE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        example = (torch.from_numpy(probes(size, 2)),)
        program = torch.export.export(graph, example, dynamic_shapes={INPUT: {0: torch.export.Dim("n")}})
        _check_calls(program, trained)
        program.example_inputs = None  # it would be pickled
        _forget_origins(program)
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
        except _UNREADABLE as error:
            raise InputError(f"{file}: torch {torch.__version__} cannot read it: {str(error)[:200]}; export it anew") from None

    @torch.inference_mode()
    def answer(images: np.ndarray) -> np.ndarray:
        found: np.ndarray = module(torch.from_numpy(images)).numpy()
        return found

    return answer


def check_archive(file: Path) -> None:
    """Look into a .pt2 without loading it.

    Raises:
        InputError: it is damaged, or holds what could run code or touch a file: a pickle, compiled code, an operator that does
            more than compute, text that would be evaluated.
    """
    refuse = f"{file}: was not written by `automl-tl export` and is not loaded, as loading could run code"
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            parts = {name.partition("/")[2]: name for name in names}
            if len(parts) < len(names):  # of two parts with one name, torch might read the other
                raise InputError(f"{refuse}: it holds parts twice")
            for part, name in parts.items():
                if not _PART.fullmatch(part):
                    raise InputError(f"{refuse}: it holds {part or name!r}")
                if fault := _fault_of(part, archive.getinfo(name)):
                    raise InputError(f"{refuse}: it holds {fault}")
            tables = {part: json.loads(archive.read(name)) for part, name in parts.items() if part.endswith(".json")}
    except InputError:  # which is a ValueError, too
        raise
    except (OSError, ValueError, zipfile.BadZipFile, RuntimeError, EOFError, OverflowError) as error:
        raise InputError(f"{file}: cannot be read as a torch.export program: {error}") from None
    for part, table in tables.items():
        for key, value in _pairs(table):
            if (key == "use_pickle" and value) or (key == "guards_code" and value):
                raise InputError(f"{refuse}: {part} says {key}")
            if key in ("target", "as_operator") and not _OPERATOR.fullmatch(str(value)):
                raise InputError(f"{refuse}: it calls {str(value)[:80]!r}")
            if key == "expr_str" and not _ARITHMETIC.fullmatch(_SYMBOL.sub("1", str(value))):
                raise InputError(f"{refuse}: it has the size {str(value)[:80]!r}")
            if key == "path_name" and not re.fullmatch(r"(weight|tensor)_\d+", str(value)):
                raise InputError(f"{refuse}: it has the constant {str(value)[:80]!r}")


def _fault_of(part: str, entry: zipfile.ZipInfo) -> str:
    """What is wrong with a part before it is read; empty: nothing. torch packs none, so none can become larger than the file."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        return f"{part}, which is packed or encrypted"
    if part.startswith("data/sample_inputs/") and entry.file_size:
        return "pickled sample inputs"
    if part.endswith(".json") and entry.file_size > LARGEST_TABLE:
        return f"{part} of {entry.file_size:,} bytes"
    return ""


def _forget_origins(program: torch.export.ExportedProgram) -> None:
    """Remove what torch notes of where each step comes from: the lines of code, with the folders of this machine."""
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            for name in ("stack_trace", "from_node", "custom"):
                node.meta.pop(name, None)


def _check_calls(program: torch.export.ExportedProgram, trained: Model) -> None:
    """Raises InputError: names the first operator that `check_archive` would refuse."""
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        target: Any = node.target
        of_torch = isinstance(target, torch._ops.OpOverload)
        name = f"torch.ops.{target}" if of_torch else f"{target.__module__}.{target.__name__}"
        if not _OPERATOR.fullmatch(name):
            raise InputError(
                f"{trained.backbone.name}: its network calls {name}, which is not among the operators that a {FILE} may call; "
                "use --to onnx or --to timm"
            )


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
