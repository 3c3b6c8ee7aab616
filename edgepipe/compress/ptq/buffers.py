"""Small changes of a .tflite as a flatbuffer: where operator codes stand, which are there, where the model ends."""

from typing import Any


def opened(content: bytes) -> Any:
    """The flatbuffer as objects of the schema."""
    from ai_edge_litert.tools.flatbuffer_utils import read_model_from_bytearray

    return read_model_from_bytearray(bytearray(content))


def closed(model: Any) -> bytes:
    """The bytes of such objects."""
    from ai_edge_litert.tools.flatbuffer_utils import convert_object_to_bytearray

    return bytes(convert_object_to_bytearray(model))


def kind(model: Any, operator: Any) -> int:
    """The builtin operator's number; files of before 2020 have it in another field."""
    code = model.operatorCodes[operator.opcodeIndex]
    return int(max(code.builtinCode, code.deprecatedBuiltinCode))


def plain(content: bytes) -> bytes:
    """A model whose operator codes both quantizers read: litert-quantizer looks for them in the newer field only, and
    TensorFlow's looks all of them up, also one that no operator has."""
    model = opened(content)
    used = sorted({operator.opcodeIndex for graph in model.subgraphs for operator in graph.operators})
    codes = [model.operatorCodes[index] for index in used]
    if len(codes) == len(model.operatorCodes) and all(c.builtinCode >= c.deprecatedBuiltinCode for c in codes):
        return content
    for operator in (operator for graph in model.subgraphs for operator in graph.operators):
        operator.opcodeIndex = used.index(operator.opcodeIndex)
    for code in codes:
        code.builtinCode = max(code.builtinCode, code.deprecatedBuiltinCode)
    model.operatorCodes = codes
    return closed(model)


def without_head(content: bytes) -> bytes:
    """A model whose outputs are those that a SOFTMAX or LOGISTIC at the end is given."""
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    model = opened(content)
    graph, heads = model.subgraphs[0], (BuiltinOperator.SOFTMAX, BuiltinOperator.LOGISTIC)
    outputs = {int(index) for index in graph.outputs}
    ends = {
        int(operator.outputs[0]): int(operator.inputs[0])
        for operator in graph.operators
        if kind(model, operator) in heads and int(operator.outputs[0]) in outputs
    }
    if not ends:
        return content
    graph.operators = [operator for operator in graph.operators if int(operator.outputs[0]) not in ends]
    graph.outputs = [ends.get(int(index), int(index)) for index in graph.outputs]
    model.signatureDefs = []
    return plain(closed(model))
