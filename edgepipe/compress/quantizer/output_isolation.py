"""Model outputs that are also read inside the model.

litert-quantizer 0.11 gives such a tensor the interface type inside as well: the model does not run, or gives wrong
numbers. Each is therefore isolated by a RESHAPE to its own shape before quantization, which is removed afterwards.
"""

from edgepipe.compress.quantizer import flatbuffer_edits
from edgepipe.compress.quantizer.flatbuffer_edits import FlatbufferOperator
from edgepipe.compress.quantizer.mutable_graph import MutableGraph, QuantParams

ISOLATED_SUFFIX = "/output"  # appended to the name of an isolated output, followed by its position


def isolate_outputs(content: bytes) -> tuple[bytes, dict[str, str]]:
    """The float .tflite `content` with no output read inside; and isolated output name -> original name."""
    graph = MutableGraph(flatbuffer_edits.unpack_model(content))
    original_by_isolated_name: dict[str, str] = {}
    output_indices = [int(index) for index in graph.subgraph.outputs]
    for position, index in enumerate(output_indices):
        if graph.is_float(index) and (graph.readers(index) or index in output_indices[:position]):
            isolated_index = _isolate_output(graph, index, position)
            original_by_isolated_name[graph.name(isolated_index)] = graph.name(index)
            _replace_output(graph, position, isolated_index)
    return (
        flatbuffer_edits.pack_model(graph.model) if original_by_isolated_name else content
    ), original_by_isolated_name


def _isolate_output(graph: MutableGraph, index: int, position: int) -> int:
    name, shape = f"{graph.name(index)}{ISOLATED_SUFFIX}{position}", [int(size) for size in graph.tensor(index).shape]
    shape_index = graph.add_int32_constant(f"{name}_shape", [-1, *shape[1:]])
    isolated_index = graph.add_float_tensor(name, shape)
    graph.tensor(isolated_index).shapeSignature = graph.tensor(index).shapeSignature
    graph.operators.append(graph.new_operator("RESHAPE", 1, [index, shape_index], [isolated_index]))
    return isolated_index


def _replace_output(graph: MutableGraph, position: int, new_index: int) -> None:
    """Replace a model output, in the signatures too."""
    old_index = int(graph.subgraph.outputs[position])
    graph.subgraph.outputs = [*graph.subgraph.outputs[:position], new_index, *graph.subgraph.outputs[position + 1 :]]
    for signature in graph.model.signatureDefs or []:
        tensor_map = next((output_map for output_map in signature.outputs if output_map.tensorIndex == old_index), None)
        if tensor_map is not None:
            tensor_map.tensorIndex = new_index


def merge_outputs(content: bytes, original_by_isolated_name: dict[str, str]) -> bytes:
    """The quantized model `content` without the operators that isolate outputs."""
    if not original_by_isolated_name:
        return content
    graph = MutableGraph(flatbuffer_edits.unpack_model(content))
    for operator in [
        operator for operator in graph.operators if _is_redundant(graph, operator, original_by_isolated_name)
    ]:
        source_index, isolated_index = int(operator.inputs[0]), int(operator.outputs[0])
        graph.remove_operator(operator)
        for reader in graph.readers(isolated_index):
            reader.inputs = [source_index if index == isolated_index else int(index) for index in reader.inputs]
        for position in [i for i, output in enumerate(graph.subgraph.outputs) if output == isolated_index]:
            _replace_output(graph, position, source_index)
    return flatbuffer_edits.pack_model(flatbuffer_edits.canonicalize(graph.model))


def _is_redundant(graph: MutableGraph, operator: FlatbufferOperator, original_by_isolated_name: dict[str, str]) -> bool:
    """Whether an operator isolates an output and passes its stored values on unchanged."""
    source_index, isolated_index = int(operator.inputs[0]), int(operator.outputs[0])
    has_same_storage = _storage_format(graph, source_index) == _storage_format(graph, isolated_index)
    return (
        graph.kind(operator) == "RESHAPE"
        and graph.name(isolated_index) in original_by_isolated_name
        and has_same_storage
    )


def _storage_format(graph: MutableGraph, index: int) -> tuple[int, QuantParams | None]:
    """How values are stored: type, and scale and zero point."""
    return graph.tensor(index).type, None if graph.bit_width(index) is None else graph.quant_params(index)
