"""Models of one operator, cut out of converted ones, for trying releases of runtimes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import keras
import numpy as np
import tensorflow as tf
from operator_models import BODIES, KERNEL, Body, X, float_file

from edgepipe.compress.quantizer import flatbuffer_edits, recipes
from edgepipe.compress.quantizer.flatbuffer_edits import pack_model, unpack_model
from edgepipe.compress.quantizer.mutable_graph import MutableGraph
from edgepipe.compress.quantizer.quantization import QuantizationRequest, quantize_tflite
from edgepipe.compress.quantizer.recipes import RecipeRule
from edgepipe.core.arrays import Array
from edgepipe.tflite.intermediate_tensors import record_tensors
from edgepipe.tflite.interpreter import Runtime
from edgepipe.tflite.model import Model, Operator
from edgepipe.tflite.reader import read

SAMPLE_COUNT = 3
WIDE = np.random.default_rng(2).normal(size=(4, 24)).astype("float32")
SPREAD = WIDE * np.logspace(0, -1.5, 24).astype("float32")  # one scale for all filters is not one for each
DEEP = np.random.default_rng(3).normal(size=(3, 3, 4, 4)).astype("float32") * np.logspace(0, -1.5, 4).astype("float32")


def _rank5(x: Any) -> Any:
    return tf.reshape(x, (1, 4, 3, 2, 4))


def _back(x: Any) -> Any:
    return tf.reshape(x, (1, -1, 1, 4))


def _bias(x: Any) -> Any:
    return tf.constant(np.linspace(-1, 1, int(x.shape[-1])).astype("float32"))


def _transposed(x: Any) -> Any:
    return tf.nn.conv2d_transpose(x, KERNEL, (1, 8, 12, 4), 2, "SAME") + _bias(tf.zeros((1, 4)))


MORE_BODIES: Mapping[str, Body] = {
    "ADD rank 5": lambda x: _back(_rank5(x) + tf.reverse(_rank5(x)[:, :1], (3,))),
    "ADD_N": lambda x: tf.add_n([x, 0.5 * x, tf.reverse(x, (1,))]),
    "ATAN2": lambda x: tf.atan2(x, tf.reverse(x, (1,)) + 0.1),
    "CEIL": tf.math.ceil,
    "CONV_2D bias": lambda x: tf.nn.relu(tf.nn.conv2d(x, DEEP, 1, "SAME") + _bias(tf.zeros((1, 4)))),
    "CONV_2D dilated": lambda x: tf.nn.conv2d(x, DEEP, 1, "SAME", dilations=2),
    "CONV_2D grouped": lambda x: tf.nn.conv2d(x, DEEP[:, :, :2], 1, "SAME"),
    "CONV_2D strided": lambda x: tf.nn.conv2d(x, DEEP, 2, "VALID"),
    "CONV_2D skipping": lambda x: tf.nn.conv2d(x, DEEP, 4, "SAME"),
    "COS": tf.cos,
    "CUMSUM": lambda x: tf.cumsum(x, axis=2),
    "DEPTHWISE_CONV_2D dilated": lambda x: tf.nn.depthwise_conv2d(
        x, DEEP[..., :1], (1, 1, 1, 1), "SAME", dilations=(2, 2)
    ),
    "DEPTHWISE_CONV_2D skipping": lambda x: tf.nn.depthwise_conv2d(x, DEEP[..., :1], (1, 4, 4, 1), "SAME"),
    "DEPTHWISE_CONV_2D multiplier": lambda x: tf.nn.depthwise_conv2d(x, DEEP[..., :2], (1, 1, 1, 1), "SAME")[..., ::2],
    "DIV": lambda x: x / (tf.abs(tf.reverse(x, (1,))) + 4.0),
    "FLOOR": tf.floor,
    "FLOOR_DIV": lambda x: tf.math.floordiv(x, 0.75),
    "FLOOR_MOD": lambda x: tf.math.floormod(x, 0.75),
    "FULLY_CONNECTED bias": lambda x: _back(
        tf.nn.relu(tf.matmul(tf.reshape(x, (24, 4)), SPREAD) + _bias(tf.zeros((1, 24))))
    ),
    "FULLY_CONNECTED flat": lambda x: _back(
        tf.nn.relu(tf.matmul(tf.reduce_max(x, axis=(1, 2)), SPREAD) + _bias(tf.zeros((1, 24))))
    ),
    "GATHER batched": lambda x: tf.gather(x, tf.constant([[2, 0, 1]]), axis=1, batch_dims=1),
    "GREATER": lambda x: tf.where(x > tf.reverse(x, (1,)), x, tf.reverse(x, (1,))),
    "LESS_EQUAL": lambda x: tf.where(x <= 0.25, x, tf.ones_like(x) * 0.25),
    "MUL rescaled": lambda x: (10.0 * x) * tf.constant([[[[9.0, 9.0, 9.0, 9.0]]]]) * 0.001,
    "NEG": lambda x: -tf.abs(x),
    "PAD rank 5": lambda x: _back(tf.pad(_rank5(x), ((0, 0), (1, 0), (0, 0), (0, 0), (0, 0)))),
    "POW": lambda x: tf.pow(tf.abs(x), 1.7),
    "RESIZE_BILINEAR corners": lambda x: tf.compat.v1.image.resize_bilinear(x, (8, 12), align_corners=True),
    "RESIZE_NEAREST_NEIGHBOR plain": lambda x: tf.compat.v1.image.resize_nearest_neighbor(x, (8, 12)),
    "PACK rank 4": lambda x: tf.reshape(tf.stack([x[0], tf.reverse(x, (1,))[0]]), (1, 8, 6, 4)),
    "RESHAPE rank 5": lambda x: _back(tf.reverse(_rank5(x), (1,))),
    "ROUND": tf.round,
    "SIGN": tf.sign,
    "SIN": tf.sin,
    "SLICE rank 5": lambda x: _back(tf.slice(_rank5(x), (0, 1, 0, 0, 0), (1, 2, 3, 2, 4))),
    "SQUARE": tf.square,
    "STRIDED_SLICE rank 5": lambda x: _back(_rank5(x)[:, ::2]),
    "TILE rank 5": lambda x: _back(tf.tile(_rank5(x), (1, 1, 2, 1, 1))),
    "TRANSPOSE rank 5": lambda x: _back(tf.transpose(_rank5(x), (0, 2, 1, 3, 4))),
    "TRANSPOSE rank 6": lambda x: _back(tf.transpose(tf.reshape(x, (1, 2, 2, 3, 2, 4)), (0, 2, 4, 1, 3, 5))),
    "TRANSPOSE_CONV activation": lambda x: tf.nn.relu(
        tf.nn.conv2d_transpose(x, KERNEL, (1, 8, 12, 4), 2, "SAME") + _bias(tf.zeros((1, 4)))
    ),
    "TRANSPOSE_CONV bias": lambda x: (
        tf.nn.conv2d_transpose(x, KERNEL, (1, 8, 12, 4), 2, "SAME") + _bias(tf.zeros((1, 4)))
    ),
}


def _four_bits(config: RecipeRule) -> RecipeRule:
    return {**config, "weight_tensor_config": {**config["weight_tensor_config"], "num_bits": 4}}


INT8, INT16, HYBRID = recipes.integer_config(8), recipes.integer_config(16), recipes.weight_config(8, integer=True)
FORMS: Mapping[str, RecipeRule | None] = {"float": None, "int8": INT8, "int16": INT16}
WEIGHT_FORMS: Mapping[str, RecipeRule] = {
    "int8 per tensor": recipes.per_tensor_config(INT8),
    "int16 per tensor": recipes.per_tensor_config(INT16),
    "int8 with int4": _four_bits(INT8),
    "int16 with int4": _four_bits(INT16),
    "hybrid": HYBRID,
    "hybrid per tensor": recipes.per_tensor_config(HYBRID),
    "hybrid int4": _four_bits(HYBRID),
    "hybrid int4 per tensor": recipes.per_tensor_config(_four_bits(HYBRID)),
}
DEQUANTIZE_FORMS: Mapping[str, RecipeRule] = {
    "int8": recipes.weight_config(8),
    "int8 per tensor": recipes.per_tensor_config(recipes.weight_config(8)),
    "int4": recipes.weight_config(4),
}
UNDERSTATED_FORMS = {
    "FULLY_CONNECTED flat": ("hybrid", "int16", "int16 per tensor"),
    "FULLY_CONNECTED bias": ("hybrid", "int16", "int16 per tensor"),
    "CONV_2D bias": ("int16", "int16 per tensor", "hybrid int4"),
}
# every LiteRT reads one scale for each filter there, whatever there is, and computes something else each time
WITHOUT_REFERENCE = {"DEPTHWISE_CONV_2D multiplier": ("hybrid per tensor",)}
WEIGHTED_BODIES = (
    *(
        "FULLY_CONNECTED flat",
        "FULLY_CONNECTED bias",
        "FULLY_CONNECTED",
        "CONV_2D bias",
        "CONV_2D dilated",
        "CONV_2D skipping",
        "DEPTHWISE_CONV_2D multiplier",
    ),
    *("TRANSPOSE_CONV", "TRANSPOSE_CONV bias", "BATCH_MATMUL"),
)


@final
@dataclass(frozen=True)
class OperatorCase:
    """A model that tries one operator, and samples for its inputs."""

    name: str
    content: bytes
    samples: list[list[Array]]

    @property
    def operator_name(self) -> str:
        """The operator that it tries, which its name begins with."""
        return self.name.split()[0]


def operator_cases(folder: Path) -> Iterator[OperatorCase]:
    """Every operator in every form; float models are written into `folder` on the way."""
    for name, body in {**BODIES, **MORE_BODIES}.items():
        forms = {**FORMS, **(WEIGHT_FORMS if name in WEIGHTED_BODIES else {})}
        for form in WITHOUT_REFERENCE.get(name, ()):
            del forms[form]
        yield from _cases(name, body, forms, folder)
    yield from _dequantize_cases(folder)
    yield from _interface_cases(folder)
    yield _open_batch_case(folder)
    yield from _understated_cases(folder)


def _cases(name: str, body: Body, forms: Mapping[str, RecipeRule | None], folder: Path) -> Iterator[OperatorCase]:
    lite = float_file(body, folder)
    for form, config in forms.items():
        model = _quantized(lite, config, folder)
        operators = [op for op in model.operators if op.name == name.split()[0] and _is_of_form(op, form)]
        if operators:
            yield _cut_case(f"{name} {form}", model, [operators[len(operators) // 2]])


def _is_of_form(operator: Operator, form: str) -> bool:
    """Whether the operator got the form that the recipe asks for: some have no kernel for it."""
    dtypes = {tensor.dtype for tensor in operator.tensors}
    weights = operator.input(1)
    if form.startswith("hybrid"):
        return weights is not None and weights.dtype == ("int4" if "int4" in form else "int8")
    if "int4" in form and (weights is None or weights.dtype != "int4"):
        return False
    return form == "float" or (form.split()[0] in dtypes and "float32" not in dtypes)


def _quantized(lite: Model, config: RecipeRule | None, folder: Path) -> Model:
    if config is None:
        return lite
    request = QuantizationRequest("recipe", recipe=[recipes.make_rule(config)])
    path = folder / "quantized.tflite"
    path.write_bytes(quantize_tflite(lite, request, [X] if "activation_tensor_config" in config else None).content)
    return read(path)


def _cut_case(name: str, model: Model, operators: list[Operator]) -> OperatorCase:
    """A model of these operators only, which follow each other."""
    outputs = [tensor for tensor in operators[-1].outputs if tensor is not None]
    computed = {tensor.key for operator in operators for tensor in operator.outputs if tensor is not None}
    inputs = [
        tensor
        for tensor in dict.fromkeys(tensor for operator in operators for tensor in operator.inputs)
        if tensor is not None and not tensor.is_constant and not tensor.is_variable and tensor.key not in computed
    ]
    samples = list(record_tensors(model, X[:SAMPLE_COUNT], inputs, Runtime.BUILTIN))
    graph = MutableGraph(unpack_model(model.content))
    graph.subgraph.operators = [graph.operators[operator.index] for operator in operators]
    graph.subgraph.inputs, graph.subgraph.outputs = [t.index for t in inputs], [t.index for t in outputs]
    graph.model.signatureDefs = []
    content = pack_model(flatbuffer_edits.canonicalize(graph.model))
    return OperatorCase(name, content, samples)


def _dequantize_cases(folder: Path) -> Iterator[OperatorCase]:
    """Constants that an operator reads dequantized; the case has that operator too."""
    lite = float_file(MORE_BODIES["CONV_2D bias"], folder)
    for form, config in DEQUANTIZE_FORMS.items():
        yield _weights_case(f"DEQUANTIZE weights {form}", _quantized(lite, config, folder))
    path = folder / "float16.tflite"
    path.write_bytes(quantize_tflite(lite, QuantizationRequest("float16"), None).content)
    yield _weights_case("DEQUANTIZE weights float16", read(path))


def _weights_case(name: str, model: Model) -> OperatorCase:
    dequantize = [operator for operator in model.operators if operator.name == "DEQUANTIZE"][1]
    reader = next(operator for operator in model.operators if dequantize.outputs[0] in operator.inputs)
    first = [
        operator
        for operator in model.operators
        if operator.name == "DEQUANTIZE" and operator.outputs[0] in reader.inputs
    ]
    return _cut_case(name, model, [*first, reader])


def _interface_cases(folder: Path) -> Iterator[OperatorCase]:
    """QUANTIZE and DEQUANTIZE at the interface of a model, and between types."""
    lite = float_file(BODIES["ADD"], folder)
    for scheme, interface in (("int8", "float32"), ("int8", "uint8"), ("int16x8", "float32")):
        path = folder / "interface.tflite"
        path.write_bytes(quantize_tflite(lite, QuantizationRequest(scheme, interface, interface), [X]).content)
        model = read(path)
        for operator in (model.operators[0], model.operators[-1]):
            yield _cut_case(f"{operator.name} {scheme} {interface} {operator.index}", model, [operator])
    for form in ("int8", "int16"):
        model = _quantized(float_file(BODIES["MINIMUM"], folder), FORMS[form], folder)
        rescaling = next(op for op in model.operators if op.name == "QUANTIZE")
        yield _cut_case(f"QUANTIZE {form} rescaled", model, [rescaling])
    rules = [*recipes.scheme_recipe("int8"), recipes.make_rule(INT16, operation="ADD")]
    path.write_bytes(quantize_tflite(lite, QuantizationRequest("recipe", recipe=rules), [X]).content)
    model = read(path)
    for operator in (operator for operator in model.operators if operator.name == "QUANTIZE"):
        yield _cut_case(f"QUANTIZE mixed {operator.index}", model, [operator])


def _open_batch_case(folder: Path) -> OperatorCase:
    """A dilated convolution over time whose batch is open, which moves time into the batch."""
    model = keras.Sequential([keras.Input((12, 4)), keras.layers.Conv1D(4, 3, dilation_rate=2, padding="causal")])
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    path = folder / "open.tflite"
    path.write_bytes(converter.convert())
    samples = [[sample.reshape(1, 24, 4)[:, :12]] for sample in X[:SAMPLE_COUNT]]
    return OperatorCase("SPACE_TO_BATCH_ND open batch", path.read_bytes(), samples)


def _understated_cases(folder: Path) -> Iterator[OperatorCase]:
    """Operators with a version below the one that their tensors demand, as older converters wrote them."""
    for name, forms in UNDERSTATED_FORMS.items():
        lite = float_file(MORE_BODIES[name], folder)
        for form in forms:
            model = _quantized(lite, {**FORMS, **WEIGHT_FORMS}[form], folder)
            operator = next(operator for operator in model.operators if operator.name == name.split()[0])
            case = _cut_case(f"{name} {form} understated", model, [operator])
            yield OperatorCase(case.name, _with_versions(case.content, 1), case.samples)


def _with_versions(content: bytes, version: int) -> bytes:
    from ai_edge_litert.tools.flatbuffer_utils import convert_object_to_bytearray

    model = unpack_model(content)
    for code in model.operatorCodes:
        code.version = version
    return bytes(convert_object_to_bytearray(model))
