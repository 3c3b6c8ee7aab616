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

    A tensor has one name: one that is an input and an output is called by its input, one that is two outputs by the
    first. Two ports of one name, such as an input and its dequantized copy, are numbered. Inner tensors give way.
    """
    model = unpack_model(content)
    main_subgraph = model.subgraphs[0]
    _rename(main_subgraph, _port_name_by_tensor(model))
    return pack_model(model)


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
