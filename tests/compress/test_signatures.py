"""Inputs and outputs of a .tflite have the names and the order of the model they come from."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import native_litert
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from ai_edge_litert.interpreter import Interpreter
from commands import Command

from edgepipe.compress.conversion import convert_model
from edgepipe.compress.keras_to_tflite import convert, convert_keras
from edgepipe.compress.port_signature import name_ports
from edgepipe.compress.qat import qat_store
from edgepipe.compress.qat.fake_quant import QatRecipe, build_fake_quant
from edgepipe.compress.qat.range_initialization import initialize_ranges
from edgepipe.compress.quantizer.quantization import QuantizationRequest
from edgepipe.compress.quantizer.recipes import scheme_recipe
from edgepipe.compress.schemes import SchemeName
from edgepipe.compress.source_model import open_source, read_float_tflite
from edgepipe.core.arrays import Array
from edgepipe.core.artifact import ArtifactKind
from edgepipe.core.errors import InputError
from edgepipe.models.bridge import bridge
from edgepipe.models.freeze import freeze
from edgepipe.models.keras3_export import export_to_keras3
from edgepipe.models.model_files import load_model, save_float
from edgepipe.models.port_names import input_names, number_repeats, output_names
from edgepipe.models.saved_model_signatures import natural_order
from edgepipe.tflite import tflm_runtime
from edgepipe.tflite.interpreter import predict
from edgepipe.tflite.reader import read

SIZE = 8
Build = Callable[[Any], Any]  # of a Keras package: keras or tf_keras


def _input(package: Any, name: str | None = "mic") -> Any:
    return package.Input((SIZE,), name=name)


def _dense(package: Any, name: str | None = None) -> Any:
    return package.layers.Dense(3, name=name)


def _functional(package: Any) -> Any:
    x = _input(package)
    return package.Model(x, _dense(package, "scores")(x))


def _sequential(package: Any) -> Any:
    model = package.Sequential([_dense(package, "hidden"), _dense(package, "scores")])
    model.build((None, SIZE))
    return model


def _two_ports(package: Any) -> Any:
    """Inputs and outputs, neither in the order of the alphabet nor of computation."""
    left, right = _input(package, "left"), _input(package, "a_right")
    outputs = [_dense(package, "z")(package.layers.add([left, right])), _dense(package, "b")(right)]
    return package.Model([left, right], outputs)


def _keys(package: Any) -> Any:
    """Dictionaries; the layers inside are called otherwise."""
    left, right = _input(package, "input_7"), _input(package, "input_8")
    joined = package.layers.add([left, right])
    outputs = {"scores": _dense(package)(joined), "boxes": _dense(package)(joined)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "When providing `inputs` as a dict")  # Keras 3 wants input layers renamed
        return package.Model({"near": left, "far": right}, outputs)


def _nested_keys(package: Any) -> Any:
    x = _input(package)
    outputs = {"heads": [_dense(package)(x), _dense(package)(x)], "flag": _dense(package)(x)}
    return package.Model(x, outputs)


def _shared_layer(package: Any) -> Any:
    x, head = _input(package), _dense(package, "head")
    return package.Model(x, [head(x), head(package.layers.ReLU()(x))])


def _same_tensor_twice(package: Any) -> Any:
    x = _input(package)
    scores = _dense(package, "scores")(x)
    return package.Model(x, [scores, scores])


def _input_as_output(package: Any) -> Any:
    x = _input(package)
    return package.Model(x, [_dense(package, "scores")(x), x])


def _odd_characters(package: Any) -> Any:
    x = _input(package, "ton:größe 1")
    return package.Model(x, {"a/b": _dense(package)(x), "größe:0": _dense(package)(x), "": _dense(package, "last")(x)})


# name -> (the model, its inputs, its outputs)
KINDS: dict[str, tuple[Build, list[str], list[str]]] = {
    "functional": (_functional, ["mic"], ["scores"]),
    "inputs and outputs in a list": (_two_ports, ["left", "a_right"], ["z", "b"]),
    "dictionaries": (_keys, ["far", "near"], ["boxes", "scores"]),
    "a list in a dictionary": (_nested_keys, ["mic"], ["flag", "heads/0", "heads/1"]),
    "a layer called twice": (_shared_layer, ["mic"], ["head", "head_1"]),
    "a tensor twice": (_same_tensor_twice, ["mic"], ["scores", "scores_1"]),
    "the input as output": (_input_as_output, ["mic"], ["scores", "mic"]),
    "odd characters": (_odd_characters, ["ton:größe 1"], ["last", "a/b", "größe:0"]),
}


def _samples(names: list[str], count: int = 24) -> dict[str, Array]:
    generator = np.random.default_rng(0)  # the samples that calibrate are those that are compared
    return {name: generator.uniform(-1, 1, (count, SIZE)).astype(np.float32) for name in names}


def _tensor_names(content: bytes) -> tuple[list[str], list[str]]:
    interpreter = Interpreter(model_content=content)
    return (
        [detail["name"] for detail in interpreter.get_input_details()],
        [detail["name"] for detail in interpreter.get_output_details()],
    )


def _run_signature(content: bytes, samples: dict[str, Array]) -> dict[str, Array]:
    """The outputs of the first sample, in real numbers, through the only signature."""
    interpreter = Interpreter(model_content=content)
    (signature,) = interpreter.get_signature_list()
    runner = interpreter.get_signature_runner(signature)
    codes = {
        name: _quantize(samples[name][:1], detail["quantization"], detail["dtype"])
        for name, detail in runner.get_input_details().items()
    }
    outputs = runner(**codes)
    details = runner.get_output_details()
    return {name: _dequantize(array, details[name]["quantization"]) for name, array in outputs.items()}


def _quantize(array: Array, quantization: tuple[float, int], dtype: Any) -> Array:
    scale, zero_point = quantization
    if not scale:
        return array.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(array / scale) + zero_point, limits.min, limits.max).astype(dtype)


def _dequantize(array: Array, quantization: tuple[float, int]) -> Array:
    scale, zero_point = quantization
    return (array.astype(np.float32) - zero_point) * scale if scale else array


@pytest.mark.slow
@pytest.mark.parametrize("package", [keras, tf_keras], ids=["keras", "tf_keras"])
@pytest.mark.parametrize("kind", KINDS)
def test_names_and_order_are_those_of_keras(kind: str, package: Any) -> None:
    build, inputs, outputs = KINDS[kind]
    model, samples = build(package), _samples(inputs)
    assert (input_names(model), output_names(model)) == (inputs, outputs)
    expected = [np.asarray(array)[:1] for array in keras.tree.flatten(model(_call_arguments(kind, samples)))]
    tolerances: list[tuple[SchemeName, float]] = [("float32", 1e-5), ("int8", 0.1)]
    for scheme, tolerance in tolerances:
        content = convert(model, scheme, samples if scheme == "int8" else None)
        found = _run_signature(content, samples)
        assert set(found) == set(outputs)
        for name, array in zip(outputs, expected, strict=True):
            np.testing.assert_allclose(found[name], array, atol=tolerance, err_msg=f"{scheme} {name}")
        assert _tensor_names(content) == (inputs, outputs)


@pytest.mark.parametrize("kind", KINDS)
def test_native_programs_find_the_same_names(kind: str, tmp_path: Path) -> None:
    """C++ and Android take LiteRT's library, not its Python package."""
    build, inputs, outputs = KINDS[kind]
    path = tmp_path / "m.tflite"
    path.write_bytes(convert(build(keras), "int8", _samples(inputs)))
    names = [(name, name) for name in (*inputs, *outputs)]
    assert native_litert.read_names(path) == {"serving_default": names}


def _call_arguments(kind: str, samples: dict[str, Array]) -> Any:
    arrays = list(samples.values())
    return samples if kind == "dictionaries" else arrays if len(arrays) > 1 else arrays[0]


def test_a_sequential_without_input_has_the_name_keras_gives_it() -> None:
    for package in (keras, tf_keras):
        model = _sequential(package)
        (name,) = input_names(model)
        assert name == model.inputs[0]._keras_history[0].name
        assert _tensor_names(convert(model, "float32")) == ([name], ["scores"])


def test_repeated_names_are_numbered() -> None:
    assert number_repeats(["a", "a", "b", "a", "a_1"]) == ["a", "a_1", "b", "a_2", "a_1_1"]


SCHEMES: list[SchemeName] = ["float16", "dynamic", "int16x8", "weight_only_int8", "weight_only_int4"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_keeps_names(scheme: SchemeName) -> None:
    model = _two_ports(keras)
    content = convert(model, scheme, _samples(["left", "a_right"]) if scheme == "int16x8" else None)
    assert _tensor_names(content) == (["left", "a_right"], ["z", "b"])
    assert set(_run_signature(content, _samples(["left", "a_right"]))) == {"z", "b"}


def test_a_recipe_keeps_names() -> None:
    request = QuantizationRequest("recipe", "float32", "int8", recipe=scheme_recipe("int8"))
    content = convert_keras(_two_ports(keras), request, _samples(["left", "a_right"])).content
    assert _tensor_names(content) == (["left", "a_right"], ["z", "b"])


@pytest.mark.parametrize("io_types", [("float32", "float32"), ("uint8", "uint8"), ("int8", "float32")])
def test_a_copy_of_the_input_has_a_name_of_its_own(io_types: tuple[Any, Any]) -> None:
    """With other interface types, the output is another tensor; the signature still calls both `mic`."""
    content = convert(_input_as_output(keras), "int8", _samples(["mic"]), *io_types)
    assert _tensor_names(content) == (["mic"], ["scores", "mic_1"])
    found = _run_signature(content, samples := _samples(["mic"]))
    np.testing.assert_allclose(found["mic"], samples["mic"][:1], atol=0.02)


def test_an_inner_tensor_gives_way_to_a_port() -> None:
    x = _input(keras)
    model = keras.Model(x, _dense(keras, "head")(keras.layers.ReLU(name="body")(x)))
    content = convert(model, "float32")
    inner_name = next(t["name"] for t in Interpreter(model_content=content).get_tensor_details() if "body" in t["name"])
    model = keras.Model(x, {inner_name: model.outputs[0]})
    content = convert(model, "float32")
    names = [detail["name"] for detail in Interpreter(model_content=content).get_tensor_details()]
    assert _tensor_names(content) == (["mic"], [inner_name])
    assert len(set(names)) == len(names)


def test_tensors_are_named_after_what_the_port_is_called() -> None:
    """Not after `Identity`, TensorFlow's own name."""
    content = convert(_functional(keras), "int8", _samples(["mic"]), "float32", "float32")
    names = {detail["name"] for detail in Interpreter(model_content=content).get_tensor_details()}
    assert {"mic", "mic_inside", "scores", "scores_inside"} <= names
    assert name_ports(content) == content


def test_micro_finds_outputs_by_name(tmp_path: Path) -> None:
    samples = _samples(["left", "a_right"])
    path = tmp_path / "m.tflite"
    path.write_bytes(convert(_two_ports(keras), "int8", samples))
    for outputs in (tflm_runtime.predict(path, samples), predict(path, samples)):
        assert isinstance(outputs.real_values, dict)
        assert list(outputs.real_values) == ["z", "b"]


def test_one_tensor_that_is_two_outputs_is_found_by_both_names(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(convert(_same_tensor_twice(keras), "float32"))
    outputs = predict(path, _samples(["mic"])["mic"]).real_values
    assert isinstance(outputs, dict)
    np.testing.assert_array_equal(outputs["scores"], outputs["scores_1"])


def test_vela_takes_named_models(tmp_path: Path) -> None:
    pytest.importorskip("ethosu.vela")
    from edgepipe.core.cache import Cache
    from edgepipe.devices import device_profile
    from edgepipe.devices.vela.vela_compiler import compile_model, device_settings

    path = tmp_path / "m.tflite"
    settings = device_settings(device_profile.load("ethos-u55-128", tmp_path))
    assert settings is not None
    path.write_bytes(convert(_odd_characters(keras), "int8", _samples(["ton:größe 1"])))
    compile_model(read(path), settings, Cache(tmp_path / "cache"))


@pytest.mark.slow
def test_bridged_stored_and_trained_models_keep_names(tmp_path: Path) -> None:
    """Through every kind of artifact: bridged to tf_keras, stored, with fake-quant, written back to Keras 3."""
    samples = _samples(["far", "near"])
    twin = bridge(_keys(keras)).model
    save_float(twin, tmp_path / "float.keras")
    stored = load_model(tmp_path / "float.keras")
    recipe = QatRecipe()
    fake_quant = build_fake_quant(stored, recipe).model
    initialize_ranges(fake_quant, samples, 0, use_batch_statistics=True)
    qat_store.save(fake_quant, stored, recipe, tmp_path / "qat")
    for model in (twin, stored, qat_store.restore_model(tmp_path / "qat"), export_to_keras3(stored).model):
        assert (input_names(model), output_names(model)) == (["far", "near"], ["boxes", "scores"])
    for scheme in ("int8", "float32"):
        content = convert(fake_quant, scheme, samples)
        assert _tensor_names(content) == (["far", "near"], ["boxes", "scores"])


def test_an_input_name_that_the_bridge_must_change_is_told() -> None:
    note = "input 'ton:größe 1' is called 'ton_gr__e_1' from here on: TensorFlow refuses some of its characters"
    assert note in bridge(_odd_characters(keras)).notes


def test_stored_names_of_another_model_are_refused(tmp_path: Path) -> None:
    twin = bridge(_keys(keras)).model
    twin.output_names = ["one"]
    save_float(twin, path := tmp_path / "float.keras")
    with pytest.raises(InputError, match=r"holds 2 outputs, and the names \['one'\] for them; is it damaged\?"):
        load_model(path)


def test_a_layer_name_that_tensorflow_refuses() -> None:
    x = _input(keras)
    with pytest.raises(InputError, match=r"TensorFlow refuses the layer name 'größe:1': it must start with a letter"):
        freeze(keras.Model(x, _dense(keras, "größe:1")(x)))


class _Detector(tf.Module):  # type: ignore[misc]
    """Two entry points."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = tf.Variable(tf.random.stateless_normal((SIZE, 3), (1, 2)))

    @tf.function(input_signature=[tf.TensorSpec((None, SIZE), tf.float32, name="pixels")])  # type: ignore[untyped-decorator]
    def detect(self, pixels: Any) -> Any:
        return {f"output_{index}": pixels @ self.kernel + float(index) for index in (0, 10, 2)}

    @tf.function(input_signature=[tf.TensorSpec((None, SIZE), tf.float32, name="features")])  # type: ignore[untyped-decorator]
    def embed(self, features: Any) -> Any:
        return {"embedding": tf.nn.relu(features @ self.kernel)}


@pytest.fixture(scope="module")
def detectors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, module = tmp_path_factory.mktemp("saved"), _Detector()
    signatures_by_name = {
        "default": {"serving_default": module.detect, "embed": module.embed},
        "one": {"embed": module.embed},
        "several": {"detect": module.detect, "embed": module.embed},
    }
    for name, signatures in signatures_by_name.items():
        tf.saved_model.save(module, str(folder / name), signatures=signatures)
    return {name: folder / name for name in signatures_by_name}


SIGNATURES = [
    ("default", None, "serving_default", ["output_0", "output_2", "output_10"],
     ("of the SavedModel, signature 'serving_default' is converted; dropped: 'embed'",)),
    ("default", "embed", "embed", ["embedding"],
     ("of the SavedModel, signature 'embed' is converted; dropped: 'serving_default'",)),
    ("one", None, "embed", ["embedding"],
     ("signature 'embed' is converted: the SavedModel has no 'serving_default'",)),
    ("one", "embed", "embed", ["embedding"], ()),
]  # fmt: skip


@pytest.mark.parametrize(("name", "wanted", "chosen", "outputs", "notes"), SIGNATURES)
def test_a_signature_of_a_saved_model(
    detectors: dict[str, Path], name: str, wanted: str | None, chosen: str, outputs: list[str], notes: tuple[str, ...]
) -> None:
    source = open_source(detectors[name], ArtifactKind.SAVED_MODEL, allow_code=True, signature=wanted)
    assert source.notes == notes
    inputs = ["pixels" if len(outputs) > 1 else "features"]
    for scheme in ("float32", "int8"):
        content = convert(source.model, scheme, _samples(inputs)[inputs[0]])
        assert _tensor_names(content) == (inputs, outputs)
        assert list(Interpreter(model_content=content).get_signature_list()) == [chosen]


REFUSED_SIGNATURES = [
    ("default", "embedd", r"default: no signature 'embedd'; it has embed, serving_default; did you mean 'embed'\?"),
    ("default", "x", r"default: no signature 'x'; it has embed, serving_default$"),
    ("several", None, r"several: no signature 'serving_default'; choose one of detect, embed \(`signature`, --sig"),
]


@pytest.mark.parametrize(("name", "wanted", "message"), REFUSED_SIGNATURES)
def test_signatures_that_are_refused(detectors: dict[str, Path], name: str, wanted: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_source(detectors[name], ArtifactKind.SAVED_MODEL, allow_code=True, signature=wanted)


def test_only_a_saved_model_has_signatures_to_choose(tmp_path: Path) -> None:
    for kind, name in ((ArtifactKind.KERAS, "m.keras"), (ArtifactKind.TFLITE, "m.tflite")):
        with pytest.raises(InputError, match=f"signature 'x': only a SavedModel has signatures, this is a {kind} mod"):
            open_source(tmp_path / name, kind, allow_code=False, signature="x")


def test_outputs_are_ordered_by_their_numbers() -> None:
    names = ["output_10", "output_2", "b", "a3", "a", "²", "7"]
    assert sorted(names, key=natural_order) == ["7", "a", "a3", "b", "output_2", "output_10", "²"]


def test_a_tflite_keeps_its_names_and_signatures(tmp_path: Path) -> None:
    """Those of TensorFlow's own converter."""
    model = _two_ports(tf_keras)
    path = tmp_path / "stock.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    names, signatures = _tensor_names(path.read_bytes()), Interpreter(str(path)).get_signature_list()
    assert signatures
    samples = _samples(["left", "a_right"])
    content = convert_model(read_float_tflite(path), QuantizationRequest("int8"), samples).content
    assert _tensor_names(content) == names
    assert Interpreter(model_content=content).get_signature_list() == signatures
    assert set(_run_signature(content, samples)) == {"z", "b"}


def test_the_command_names_what_it_drops(detectors: dict[str, Path], tmp_path: Path, command: Command) -> None:
    out = tmp_path / "m.tflite"
    ended = command("convert", detectors["default"], "--allow-code", "--scheme=float32", "--json", "--signature=embed",
                    "-o", out)  # fmt: skip
    notes = json.loads(ended.out)["notes"]
    assert "of the SavedModel, signature 'embed' is converted; dropped: 'serving_default'" in notes
    assert _tensor_names(out.read_bytes()) == (["features"], ["embedding"])


def test_notes_call_outputs_by_their_names() -> None:
    x = _input(keras)
    hidden = keras.layers.ReLU(name="dead")(_dense(keras, "hidden")(x))
    model = keras.Model(x, {"score": hidden})
    model.get_layer("hidden").set_weights([np.zeros((SIZE, 3)), -np.ones(3)])
    notes = convert_keras(model, QuantizationRequest("int8"), _samples(["mic"])["mic"]).notes
    assert "always zero on the 24 representative samples, so without a range: 'score'" in notes
