"""A float .tflite of another converter in the form that the quantizer takes: float32 constants and fixed sizes.

Converters store weights in float16 behind a DEQUANTIZE, and leave the batch open. An integer model with an open batch
is wrong where its runtime takes sizes from the file and an operator moves the batch into another size; see
`edgepipe.tflite.open_dimensions`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgepipe.compress.quantizer import flatbuffer_edits
from edgepipe.compress.quantizer.mutable_graph import MutableGraph
from edgepipe.core.units import plural
from edgepipe.tflite.interpreter import Runtime, run_on_zeros
from edgepipe.tflite.model import Model, Tensor
from edgepipe.tflite.reader import read


@dataclass(frozen=True)
class PreparedModel:
    """The float model in the quantizer's form, and what was changed."""

    model: Model
    notes: tuple[str, ...] = ()


def folded_float16_constants(lite: Model) -> list[Tensor]:
    """The float16 constants that only a DEQUANTIZE reads."""
    readers_by_key: dict[tuple[int, int], set[str]] = {}
    for operator in lite.operators:
        for tensor in operator.inputs:
            if tensor is not None:
                readers_by_key.setdefault(tensor.key, set()).add(operator.name)
    return [
        tensor
        for tensor in lite.tensors
        if tensor.is_constant and tensor.dtype == "float16" and readers_by_key.get(tensor.key) == {"DEQUANTIZE"}
    ]


@contextmanager
def prepare_float_model(lite: Model, fixes_batch: bool) -> Iterator[PreparedModel]:
    """`lite` with float32 constants and, if `fixes_batch`, with the sizes of a batch of 1 wherever the batch is open.

    The file exists inside the block only.
    """
    float16_constants = folded_float16_constants(lite)
    has_open_batch = fixes_batch and any(tensor.shape_signature[:1] == (-1,) for tensor in lite.inputs)
    if not float16_constants and not has_open_batch:
        yield PreparedModel(lite)
        return
    graph, notes = MutableGraph(flatbuffer_edits.unpack_model(lite.content)), []
    if has_open_batch:
        _fix_sizes(graph, lite)
        notes.append(_describe_fixed_batch(lite))
    if float16_constants:
        _unfold_float16(graph, lite)
        notes.append(f"{plural(len(float16_constants), 'float16 constant')} became float32 before quantization")
    content = flatbuffer_edits.pack_model(flatbuffer_edits.canonicalize(graph.model))
    with flatbuffer_edits.temporary_tflite(content, lite.path.name) as path:
        yield PreparedModel(read(path), tuple(notes))


def _fix_sizes(graph: MutableGraph, lite: Model) -> None:
    """Store the sizes that LiteRT computes with the sizes of the inputs in the file, which are 1 where one is open."""
    interpreter, _ = run_on_zeros(lite, Runtime.BUILTIN, threads=1)
    shape_by_index = {details["index"]: details["shape"] for details in interpreter.get_tensor_details()}
    for tensor in lite.subgraphs[0].tensors:
        flatbuffer_tensor = graph.tensor(tensor.index)
        if not tensor.is_constant and tensor.index in shape_by_index:
            flatbuffer_tensor.shape = [int(size) for size in shape_by_index[tensor.index]]
        flatbuffer_tensor.shapeSignature = _keep_inner_open(tensor)


def _keep_inner_open(tensor: Tensor) -> Any:
    """The signature with a batch of 1, or None if nothing else is open."""
    inner_sizes = tensor.shape_signature[1:]
    return [tensor.shape[0], *inner_sizes] if -1 in inner_sizes else None


def _describe_fixed_batch(lite: Model) -> str:
    note = (
        "the open batch of the inputs was fixed to 1, as runtimes need it that take sizes from the file "
        "(keep_open_batch keeps it)"
    )
    open_names = [name for name, tensor in lite.inputs_by_name.items() if -1 in tensor.shape_signature[1:]]
    if open_names:
        note += f"; other sizes of '{open_names[0]}' stay open: convert the Keras model with --input-shape"
    return note


def _unfold_float16(graph: MutableGraph, lite: Model) -> None:
    """Give what the DEQUANTIZE operators of float16 constants compute as float32 constants, and drop the operators."""
    kept_operators = []
    for operator in graph.operators:
        source = lite.subgraphs[0].tensors[int(operator.inputs[0])] if len(operator.inputs) else None
        if (
            graph.kind(operator) != "DEQUANTIZE"
            or source is None
            or source.dtype != "float16"
            or not source.is_constant
        ):
            kept_operators.append(operator)
            continue
        graph.set_float_constant(int(operator.outputs[0]), lite.read_values(source).astype(np.float32))
    graph.subgraph.operators = kept_operators
