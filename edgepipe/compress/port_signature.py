"""The names of inputs and outputs in a .tflite: a signature, and tensors of the same names.

The signature is written into the float model and follows its tensors through quantization, which refers to tensors by
the names that TensorFlow gave them. The tensors are named last.

Python finds ports by the signature or by tensor, Android by the signature, C++ by either; TensorFlow Lite Micro by
position only.
"""

from collections.abc import Collection, Sequence

from edgepipe.compress.quantizer.flatbuffer_edits import (
    INSIDE_SUFFIX,
    FlatbufferModel,
    FlatbufferSubgraph,
    pack_model,
    unpack_model,
)
from edgepipe.compress.quantizer.mutable_graph import MutableGraph
from edgepipe.models.port_names import PortNames


def write_signature(content: bytes, ports: PortNames) -> bytes:
    """The float .tflite `content` with a signature that names its inputs and outputs, in their order."""
    from ai_edge_litert.schema_py_generated import SignatureDefT

    model = unpack_model(content)
    signature = SignatureDefT()
    signature.signatureKey = ports.signature
    signature.inputs = _tensor_maps(ports.inputs, model.subgraphs[0].inputs)
    signature.outputs = _tensor_maps(ports.outputs, model.subgraphs[0].outputs)
    model.signatureDefs = [signature]
    return pack_model(model)


def name_ports(content: bytes) -> bytes:
    """The .tflite `content`, its input and output tensors named as in its signature.

    A tensor that is several outputs is copied: LiteRT's library knows one name of a tensor. One that is an input and
    an output is called by its input. Two ports of one name, such as an input and its dequantized copy, are numbered.
    Inner tensors give way.
    """
    model = unpack_model(content)
    _separate_outputs(MutableGraph(model))
    _rename(model.subgraphs[0], _port_name_by_tensor(model))
    return pack_model(model)


def _separate_outputs(graph: MutableGraph) -> None:
    """A tensor of its own for each output."""
    output_indices = [int(index) for index in graph.subgraph.outputs]
    for position, tensor_map in enumerate(graph.model.signatureDefs[0].outputs):
        if output_indices[position] in output_indices[:position]:
            output_indices[position] = tensor_map.tensorIndex = _copy_output(graph, output_indices[position])
    graph.subgraph.outputs = output_indices


def _copy_output(graph: MutableGraph, index: int) -> int:
    shape = [-1, *graph.tensor(index).shape[1:]]  # any batch
    copy_index = graph.add_copied_tensor(index)
    shape_index = graph.add_int32_constant(f"{graph.name(copy_index)}/shape", shape)
    graph.operators.append(graph.new_operator("RESHAPE", [index, shape_index], [copy_index]))
    return copy_index


def _tensor_maps(names: Sequence[str], tensor_indices: Sequence[int]) -> list[object]:
    from ai_edge_litert.schema_py_generated import TensorMapT

    tensor_maps = []
    for name, index in zip(names, tensor_indices, strict=True):
        tensor_map = TensorMapT()
        tensor_map.name, tensor_map.tensorIndex = name, int(index)
        tensor_maps.append(tensor_map)
    return tensor_maps


def _port_name_by_tensor(model: FlatbufferModel) -> dict[int, str]:
    signature = model.signatureDefs[0]
    name_by_tensor: dict[int, str] = {}
    for tensor_map in (*signature.inputs, *signature.outputs):
        index = int(tensor_map.tensorIndex)
        if index not in name_by_tensor:
            name_by_tensor[index] = _free_name(tensor_map.name.decode(), "", name_by_tensor.values())
    return name_by_tensor


def _rename(subgraph: FlatbufferSubgraph, name_by_tensor: dict[int, str]) -> None:
    names = [tensor.name.decode() for tensor in subgraph.tensors]
    # what the quantizer called after a port, `Identity_inside`, is called after its new name
    new_name_by_old = {
        f"{names[index]}{INSIDE_SUFFIX}": f"{name}{INSIDE_SUFFIX}" for index, name in name_by_tensor.items()
    }
    taken_names = {*name_by_tensor.values(), *names}
    port_names = set(name_by_tensor.values())
    for index, tensor in enumerate(subgraph.tensors):
        name = name_by_tensor.get(index) or new_name_by_old.get(names[index], names[index])
        if index not in name_by_tensor and (name in port_names or name != names[index]):
            name = _free_name(name.removesuffix(INSIDE_SUFFIX), INSIDE_SUFFIX, taken_names)
            taken_names.add(name)
        tensor.name = name.encode()


def _free_name(name: str, suffix: str, taken_names: Collection[str]) -> str:
    candidate, number = f"{name}{suffix}", 0
    while candidate in taken_names:
        number += 1
        candidate = f"{name}{suffix}_{number}"
    return candidate
