"""Versions of operators: TensorFlow's converter, which reads a .tflite and writes it again, is the reference."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import pytest
import tensorflow as tf
from ai_edge_litert.tools.flatbuffer_utils import convert_object_to_bytearray, read_model_from_bytearray
from operator_models import BODIES, X, float_file
from tensorflow.lite.python.convert import mlir_sparsify

from edgepipe.compress.keras_to_tflite import convert
from edgepipe.compress.quantizer import recipes
from edgepipe.compress.quantizer.flatbuffer_edits import pack_model, unpack_model
from edgepipe.compress.quantizer.quantization import QuantizationRequest, quantize_tflite
from edgepipe.tflite.minimum_runtimes import FIRST_RELEASES, first_release, minimum_runtime
from edgepipe.tflite.model import Model
from edgepipe.tflite.operator_versions import VERSION_RULES, required_version
from edgepipe.tflite.reader import builtin_name_by_code, read

L = keras.layers
POWER_OF_TWO_OPTION = {"ADD", "SUB"}  # TensorFlow loses the option that says that 16-bit scales are not powers of two
GROUPS = [sorted(set(BODIES) - {"SHAPE", "SQUEEZE", "EXPAND_DIMS"})[part::3] for part in range(3)]


def _versions(content: bytes) -> dict[str, int]:
    """The highest version of each operator; TensorFlow writes one for all operators of a kind."""
    version_by_kind: dict[str, int] = defaultdict(int)
    for code in unpack_model(content).operatorCodes:
        kind = builtin_name_by_code()[max(code.builtinCode, code.deprecatedBuiltinCode)]
        version_by_kind[kind] = max(version_by_kind[kind], code.version)
    return dict(version_by_kind)


def _minimum_runtime(content: bytes) -> str:
    model = unpack_model(content)
    (entry,) = (entry for entry in model.metadata if entry.name == b"min_runtime_version")
    return bytes(model.buffers[entry.buffer].data).rstrip(b"\0").decode()


def _written_by_tensorflow(content: bytes) -> bytes:
    """The same model with the versions that TensorFlow gives it."""
    model = read_model_from_bytearray(bytearray(content))
    for code in model.operatorCodes:
        code.version = 1
    return bytes(mlir_sparsify(bytes(convert_object_to_bytearray(model))))


def _file(content: bytes, folder: Path) -> Model:
    path = folder / "written.tflite"
    path.write_bytes(content)
    return read(path)


def _ruled_versions(model: Model) -> dict[str, int]:
    version_by_kind: dict[str, int] = defaultdict(int)
    for operator in model.operators:
        version_by_kind[operator.name] = max(version_by_kind[operator.name], required_version(operator) or 1)
    return dict(version_by_kind)


def _many_operators(names: list[str]) -> Callable[[Any], Any]:
    """All bodies side by side, so that one conversion tries them."""
    return lambda x: tf.concat([tf.reshape(BODIES[name](x), (1, -1, 1, 4)) for name in names], axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
@pytest.mark.parametrize("names", GROUPS, ids=lambda names: names[0])
def test_integer_operators_have_the_versions_of_tensorflow(names: list[str], scheme: str, tmp_path: Path) -> None:
    lite = float_file(_many_operators(names), tmp_path)
    request = QuantizationRequest("recipe", recipe=recipes.scheme_recipe(scheme))
    content = quantize_tflite(lite, request, [X[:4]]).content
    reference = _written_by_tensorflow(content)
    own_versions, reference_versions = _versions(content), _versions(reference)
    differences = {kind for kind, version in own_versions.items() if version != reference_versions[kind]}
    assert differences <= (POWER_OF_TWO_OPTION if scheme == "int16x8" else set())
    assert _minimum_runtime(content) == _minimum_runtime(reference)
    assert _ruled_versions(_file(reference, tmp_path)) == reference_versions


def _weights_model() -> keras.Model:
    inputs = keras.Input((8, 8, 8))
    x = L.Conv2DTranspose(32, 3)(L.DepthwiseConv2D(5)(L.Conv2D(64, 3)(inputs)))
    return keras.Model(inputs, L.Dense(4, use_bias=False)(L.Dense(96, activation="relu")(L.Flatten()(x))))


@pytest.mark.parametrize("scheme", ["dynamic", "weight_only_int8", "float16", "float32"])
def test_weight_schemes_have_the_versions_of_tensorflow(scheme: Any) -> None:
    content = convert(_weights_model(), scheme)
    reference = _written_by_tensorflow(content)
    assert (_versions(content), _minimum_runtime(content)) == (_versions(reference), _minimum_runtime(reference))


def _hybrid_version(bits: int, granularity: str, folder: Path, layer: Any = None) -> int:
    """Of a dense or another layer in float with integer weights."""
    config = recipes.weight_config(bits, integer=True)
    config["weight_tensor_config"]["granularity"] = granularity
    shape = (32,) if layer is None else (4, 4, 32)
    lite = _file(convert(keras.Sequential([keras.Input(shape), layer or L.Dense(24)]), "float32"), folder)
    content = quantize_tflite(lite, QuantizationRequest("recipe", recipe=[recipes.make_rule(config)]), None).content
    return max(_versions(content).values())


def test_a_hybrid_dense_layer_says_what_it_needs(tmp_path: Path) -> None:
    """Releases before per-channel hybrid kernels load a lower version and use the first channel's scale for all."""
    assert _hybrid_version(8, "CHANNELWISE", tmp_path) == 12
    assert _hybrid_version(8, "TENSORWISE", tmp_path) == 3
    assert _hybrid_version(4, "CHANNELWISE", tmp_path) == 12
    assert _hybrid_version(4, "TENSORWISE", tmp_path) == 10
    assert _hybrid_version(4, "CHANNELWISE", tmp_path, L.Conv2D(24, 3)) == 8


def test_versions_follow_each_operator_and_not_its_kind(tmp_path: Path) -> None:
    """In a dynamic model, the last dense layer is too small for integer weights and runs on every release."""
    content = convert(_weights_model(), "dynamic")
    dense = {code.version for code in unpack_model(content).operatorCodes if code.builtinCode == 9}
    assert dense == {1, 12}


def test_what_has_no_rule_keeps_its_version(tmp_path: Path) -> None:
    body = lambda x: tf.math.cumsum(x, axis=1)  # noqa: E731
    model = unpack_model(float_file(body, tmp_path).content)
    for code in model.operatorCodes:
        code.version = 7
    versions = _versions(pack_model(model))
    assert versions["CUMSUM"] == 7
    assert versions["CONV_2D"] == 1


def test_the_minimum_runtime_is_added_where_it_is_missing(tmp_path: Path) -> None:
    model = unpack_model(float_file(tf.nn.gelu, tmp_path).content)
    model.metadata = None
    assert _minimum_runtime(pack_model(model)) == "2.9.0"


def test_releases_are_compared_as_numbers() -> None:
    assert minimum_runtime([("MUL", 3), ("TILE", 1)]) == "1.15.0"
    assert minimum_runtime([("FULLY_CONNECTED", 12), ("ADD", 5)]) == "2.17.0"
    assert minimum_runtime([("NO_SUCH_OPERATOR", 1)]) == ""
    assert (first_release("TILE", 1), first_release("BROADCAST_TO", 1), first_release("ADD", 0)) == (
        "1.10.1",
        None,
        None,
    )


def test_releases_are_known_for_every_ruled_operator() -> None:
    assert set(VERSION_RULES) <= set(FIRST_RELEASES)
