"""Outputs of the model that are also read inside it.

litert-quantizer 0.11 gives such a tensor the type of the interface inside as well: the model does not run then, or
gives wrong numbers. Each is therefore set apart by a RESHAPE to its own shape before, which is taken out again after.
"""

from typing import Any

from edgepipe.compress.quantizer import flatbuffer_edits
from edgepipe.compress.quantizer.mutable_graph import Graph, Step

MARK = "/output"  # how the name of a tensor that was set apart goes on after its own; then its place follows


def apart(content: bytes) -> tuple[bytes, dict[str, str]]:
    """The float .tflite `content` with no output read inside; the names of those set apart, each with its own."""
    graph = Graph(flatbuffer_edits.opened(content))
    names: dict[str, str] = {}
    outputs = [int(index) for index in graph.main.outputs]
    for place, index in enumerate(outputs):
        if graph.is_float(index) and (graph.readers(index) or index in outputs[:place]):
            made = _set_apart(graph, index, place)
            names[graph.name(made)] = graph.name(index)
            _replace_output(graph, place, made)
    return (flatbuffer_edits.closed(graph.model) if names else content), names


def _set_apart(graph: Graph, index: int, place: int) -> int:
    name, shape = f"{graph.name(index)}{MARK}{place}", [int(size) for size in graph.tensor(index).shape]
    wanted = graph.whole(f"{name}_shape", [-1, *shape[1:]])
    made = graph.floating(name, shape)
    graph.tensor(made).shapeSignature = graph.tensor(index).shapeSignature
    graph.operators.append(graph.operator("RESHAPE", 1, [index, wanted], [made]))
    return made


def _replace_output(graph: Graph, place: int, made: int) -> None:
    """Put a tensor into the place of an output, in the signatures too."""
    before = int(graph.main.outputs[place])
    graph.main.outputs = [*graph.main.outputs[:place], made, *graph.main.outputs[place + 1 :]]
    for signature in graph.model.signatureDefs or []:
        entry = next((entry for entry in signature.outputs if entry.tensorIndex == before), None)
        if entry is not None:
            entry.tensorIndex = made


def together(content: bytes, names: dict[str, str]) -> bytes:
    """The quantized model `content` without the operators that set outputs apart."""
    if not names:
        return content
    graph = Graph(flatbuffer_edits.opened(content))
    for operator in [operator for operator in graph.operators if _idle(graph, operator, names)]:
        given, made = int(operator.inputs[0]), int(operator.outputs[0])
        graph.remove(operator)
        for reader in graph.readers(made):
            reader.inputs = [given if index == made else int(index) for index in reader.inputs]
        for place in [place for place, output in enumerate(graph.main.outputs) if output == made]:
            _replace_output(graph, place, given)
    return flatbuffer_edits.closed(flatbuffer_edits.tidy(graph.model))


def _idle(graph: Graph, operator: Any, names: dict[str, str]) -> bool:
    """Whether an operator sets an output apart, and gives the same numbers that it is given."""
    given, made = int(operator.inputs[0]), int(operator.outputs[0])
    alike = _numbers(graph, given) == _numbers(graph, made)
    return graph.kind(operator) == "RESHAPE" and graph.name(made) in names and alike


def _numbers(graph: Graph, index: int) -> tuple[int, Step | None]:
    """How values are stored: type, and scale and zero point."""
    return graph.tensor(index).type, None if graph.bits(index) is None else graph.step(index)
