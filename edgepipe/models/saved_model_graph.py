"""Reads the signature of a SavedModel, and what it does to its input first, from saved_model.pb: without TensorFlow.

Schema: saved_model.proto and meta_graph.proto in tensorflow/core/protobuf; graph.proto, function.proto and
tensor.proto in tensorflow/core/framework.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError
from edgepipe.core.protobuf import Message
from edgepipe.models.model_description import PortDescription
from edgepipe.tflite.input_expectation import InputExpectation, affine_expectation

DEFAULT_SIGNATURE = "serving_default"
MAX_GRAPH_BYTES = 1 << 30
_DTYPE_NAMES = {1: "float32", 2: "float64", 3: "int32", 4: "uint8", 6: "int8", 7: "string", 9: "int64", 10: "bool"}
_SAME_VALUES_OPERATIONS = {"Cast", "Identity", "Reshape", "ResizeBilinear", "ExpandDims", "Squeeze", "ReadVariableOp"}
_CALLS = {"StatefulPartitionedCall", "PartitionedCall"}
_OPERATION_NAMES = {"AddV2": "add", "Add": "add", "BiasAdd": "add", "Sub": "subtract", "Mul": "multiply",
                    "RealDiv": "divide", "Div": "divide"}  # fmt: skip
_MAX_STEPS = 50  # operations followed from the input


@dataclass(frozen=True)
class _Node:
    """One operation of the main graph or of a function, and the inputs of its own that it reads."""

    name: str
    operation: str
    inputs: tuple[str, ...]
    message: Message


@dataclass(frozen=True)
class _Graph:
    """The nodes of the main graph, or of a function with arguments."""

    nodes: tuple[_Node, ...]
    argument_names: tuple[str, ...] = ()

    def readers(self, name: str) -> list[_Node]:
        """The nodes that read the first output of the node or argument `name`."""
        return [node for node in self.nodes if name in node.inputs]

    def constant(self, name: str) -> Array | None:
        """The numbers of the constant `name`; None if it is none."""
        node = next((node for node in self.nodes if node.name == name and node.operation == "Const"), None)
        return None if node is None else _constant_numbers(node.message)


def read_ports(path: Path) -> tuple[tuple[PortDescription, ...], tuple[PortDescription, ...]]:
    """Inputs and outputs of the default signature of the SavedModel in the folder `path`; none if it has none.

    Raises:
        InputError: a damaged saved_model.pb.
    """
    signature = _default_signature(_meta_graph(path))
    return tuple(map(_port, signature.map_entries(1).items())), tuple(map(_port, signature.map_entries(2).items()))


def read_saved_model_expectations(path: Path) -> tuple[InputExpectation, ...]:
    """What the default signature does to its only input first, as an expectation; nothing if that is unknown."""
    meta_graph = _meta_graph(path)
    inputs = _default_signature(meta_graph).map_entries(1)
    if len(inputs) != 1:
        return ()
    graph_message = meta_graph.message(2)
    functions = {f.message(1).text(1): _function_graph(f) for f in graph_message.message(2).messages(1)}
    name, tensor_info = next(iter(inputs.items()))
    start = _plain_name(tensor_info.text(1))
    factor, summand, texts = _follow(_Graph(_read_nodes(graph_message.messages(1))), start, functions)
    expectation = affine_expectation(name, f"begins with {', '.join(texts)}", factor, summand)
    return () if expectation is None else (expectation,)


def _meta_graph(path: Path) -> Message:
    file = path / "saved_model.pb"
    if not file.is_file():
        return Message(b"")  # saved_model.pbtxt: text, which only TensorFlow reads
    if file.stat().st_size > MAX_GRAPH_BYTES:
        raise InputError(f"{file}: larger than {MAX_GRAPH_BYTES >> 30} GiB, no graph of a model for a small device")
    try:
        return Message(file.read_bytes()).message(2)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def _default_signature(meta_graph: Message) -> Message:
    signatures = {name: entry for name, entry in meta_graph.map_entries(5).items() if not name.startswith("__")}
    only_signature = next(iter(signatures.values())) if len(signatures) == 1 else Message(b"")
    return signatures.get(DEFAULT_SIGNATURE, only_signature)


def _port(entry: tuple[str, Message]) -> PortDescription:
    name, tensor_info = entry
    shape = tensor_info.message(3)
    sizes = tuple(dimension.integer(1) for dimension in shape.messages(2))
    known_sizes = () if shape.integer(3) else tuple(None if size < 0 else size for size in sizes)
    return PortDescription(name, known_sizes, _DTYPE_NAMES.get(tensor_info.integer(2), "unknown"))


def _read_nodes(messages: Sequence[Message]) -> tuple[_Node, ...]:
    return tuple(
        _Node(node.text(1), node.text(2), tuple(_plain_name(name) for name in node.texts(3)), node) for node in messages
    )


def _plain_name(tensor_name: str) -> str:
    """The name of the node that gives the tensor `name:output:0`, `name:0` or `name`."""
    return tensor_name.removeprefix("^").partition(":")[0]


def _function_graph(function: Message) -> _Graph:
    arguments = tuple(argument.text(1) for argument in function.message(1).messages(2))
    return _Graph(_read_nodes(function.messages(3)), arguments)


def _follow(graph: _Graph, name: str, functions: dict[str, _Graph]) -> tuple[Array, Array, list[str]]:
    """Follow the tensor `name` through its only readers, as long as they do no more than shift and scale it."""
    factor, summand, texts = np.ones(1), np.zeros(1), []
    for _ in range(_MAX_STEPS):
        readers = graph.readers(name)
        if len(readers) != 1:
            break
        node = readers[0]
        if node.operation in _CALLS:
            inner = functions.get(node.message.map_entries(5).get("f", Message(b"")).message(10).text(1))
            position = node.inputs.index(name)
            if inner is None or position >= len(inner.argument_names):
                break
            graph, name = inner, inner.argument_names[position]
            continue
        affine = _affine(graph, node, name)
        if affine is None:
            break
        factor, summand = factor * affine[0], summand * affine[0] + affine[1]
        texts += [f"{node.operation} '{node.name}'"] if node.operation in _OPERATION_NAMES else []
        name = node.name
    return factor, summand, texts


def _affine(graph: _Graph, node: _Node, name: str) -> tuple[Array, Array] | None:
    if node.operation in _SAME_VALUES_OPERATIONS:
        return np.ones(1), np.zeros(1)
    operation = _OPERATION_NAMES.get(node.operation)
    if operation is None or len(node.inputs) < 2:
        return None
    is_first = node.inputs[1] == name  # the constant is the first operand
    numbers = graph.constant(node.inputs[0 if is_first else 1])
    if numbers is None or not numbers.size or (operation == "divide" and (is_first or not numbers.all())):
        return None
    if operation in ("add", "subtract"):
        sign = -1.0 if operation == "subtract" else 1.0
        return (np.full(1, -1.0), numbers) if is_first and sign < 0 else (np.ones(1), sign * numbers)
    return (numbers if operation == "multiply" else 1 / numbers), np.zeros(1)


def _constant_numbers(node: Message) -> Array | None:
    tensor = node.map_entries(5).get("value", Message(b"")).message(8)
    if tensor.integer(1) != 1:  # float32
        return None
    contents = tensor.messages(4)
    if contents:
        return np.frombuffer(contents[-1].content, "<f4").astype(np.float64)
    return np.array(tensor.floats(5), np.float64)
