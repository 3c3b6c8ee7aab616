"""Conversion: the right numbers and types, named inputs, the same bytes every time, and bad input refused."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from edgepipe.compress.keras_to_tflite import convert
from edgepipe.compress.schemes import SchemeName
from edgepipe.core.arrays import Arrays
from edgepipe.core.errors import InputError
from edgepipe.models.bridge import bridge
from edgepipe.models.freeze import freeze
from edgepipe.models.model_files import load_model, save_keras
from edgepipe.models.perturb import perturb
from edgepipe.models.saved_model_signatures import choose_signature
from edgepipe.tflite.reader import read

RANDOM = np.random.default_rng(7)
IMAGES = RANDOM.uniform(0, 1, (40, 8, 8, 2)).astype("float32")


def _net() -> Any:
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2), name="pixels"),
            keras.layers.Conv2D(4, 3, name="conv"),
            keras.layers.BatchNormalization(name="bn"),
            keras.layers.ReLU(name="relu"),
            keras.layers.DepthwiseConv2D(3, name="dw"),
            keras.layers.Flatten(name="flat"),
            keras.layers.Dense(3, activation="softmax", name="out"),
        ],
        name="net",
    )
    perturb(model)
    return model


def _two_inputs() -> Any:
    # the same shape but ranges that differ a thousandfold: swapped samples would show in the scales
    big, small = keras.Input((4,), name="zulu_big"), keras.Input((4,), name="alpha_small")
    joined = keras.layers.Concatenate(name="join")(
        [keras.layers.Dense(3, name="p")(big), keras.layers.Dense(2, name="q")(small)]
    )
    model = keras.Model([big, small], [joined, keras.layers.Dense(1, name="r")(joined)], name="two")
    perturb(model)
    return model


TWO_INPUTS = {
    "alpha_small": RANDOM.uniform(-0.01, 0.01, (30, 4)).astype("float32"),
    "zulu_big": RANDOM.uniform(-10, 10, (30, 4)).astype("float32"),
}


def _run(content: bytes, feeds: dict[str, Any]) -> list[Any]:
    """One sample through the reference kernels; real values in and out, whatever the types."""
    interpreter = Interpreter(model_content=content, experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    interpreter.allocate_tensors()
    for detail in interpreter.get_input_details():
        interpreter.set_tensor(detail["index"], _quantize(feeds[detail["name"]], detail))
    interpreter.invoke()
    return [_dequantize(interpreter.get_tensor(detail["index"]), detail) for detail in interpreter.get_output_details()]


def _quantize(array: Any, detail: dict[str, Any]) -> Any:
    scale, zero = detail["quantization"]
    if not scale:
        return array.astype(detail["dtype"])
    limits = np.iinfo(detail["dtype"])
    return np.clip(np.round(array / scale) + zero, limits.min, limits.max).astype(detail["dtype"])


def _dequantize(array: Any, detail: dict[str, Any]) -> Any:
    scale, zero = detail["quantization"]
    return (array.astype("float64") - zero) * scale if scale else array


def _io_types(content: bytes) -> tuple[list[str], list[str]]:
    interpreter = Interpreter(model_content=content)
    details = interpreter.get_input_details(), interpreter.get_output_details()
    return tuple([np.dtype(detail["dtype"]).name for detail in side] for side in details)  # type: ignore[return-value]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "tolerance"), [("float32", 1e-6), ("float16", 2e-3), ("dynamic", 2e-2), ("int8", 4e-2)]
)
@pytest.mark.parametrize("through", ["keras", "bridge"])
def test_numbers_agree_with_keras(scheme: Any, tolerance: float, through: str) -> None:
    model = _net()
    content = convert(
        model if through == "keras" else bridge(model).model, scheme, IMAGES if scheme == "int8" else None
    )
    for image in IMAGES[:5]:
        (found,) = _run(content, {"pixels": image[None]})
        np.testing.assert_allclose(found, model(image[None]), atol=tolerance)


@pytest.mark.parametrize("inputs", ["int8", "uint8", "float32", None])
@pytest.mark.parametrize("outputs", ["int8", "uint8", "float32", None])
def test_interface_types(inputs: Any, outputs: Any) -> None:
    x = keras.Input((4,), name="x")
    content = convert(
        keras.Model(x, keras.layers.Dense(2, name="d")(x)), "int8", RANDOM.normal(size=(9, 4)), inputs, outputs
    )
    assert _io_types(content) == ([inputs or "int8"], [outputs or "int8"])


def test_weights_are_stored_as_the_scheme_says() -> None:
    x = keras.Input((64,), name="x")
    model = keras.Model(x, keras.layers.Dense(256, name="d")(x))
    perturb(model)
    sizes = {scheme: len(convert(model, scheme)) for scheme in ("float32", "float16", "dynamic")}  # type: ignore[arg-type]
    assert sizes["float32"] > 4 * 64 * 256
    assert 2 * 64 * 256 < sizes["float16"] < 3 * 64 * 256
    assert 64 * 256 < sizes["dynamic"] < 2 * 64 * 256


def test_inputs_keep_names_order_and_their_own_samples() -> None:
    model = _two_inputs()
    content = convert(model, "int8", TWO_INPUTS)
    details = Interpreter(model_content=content).get_input_details()
    assert [detail["name"] for detail in details] == ["zulu_big", "alpha_small"]
    assert [detail["quantization"][0] for detail in details] == pytest.approx([20 / 255, 0.02 / 255], rel=0.05)
    feeds = {name: values[:1] for name, values in TWO_INPUTS.items()}
    found = _run(content, feeds)
    expected = model([feeds["zulu_big"], feeds["alpha_small"]])
    assert [value.shape for value in found] == [(1, 5), (1, 1)]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.3)


def test_dictionary_models_and_integer_inputs() -> None:
    ids, x = keras.Input((3,), dtype="int32", name="ids"), keras.Input((2,), name="x")
    pooled = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(9, 4, name="emb")(ids))
    model = keras.Model(
        {"ids": ids, "x": x}, {"y": keras.layers.Dense(2, name="y")(keras.layers.Concatenate()([pooled, x]))}
    )
    perturb(model)
    feeds = {"ids": np.array([[1, 5, 8]]), "x": np.array([[0.5, -0.25]], "float32")}
    expected = model({name: tf.constant(value) for name, value in feeds.items()})["y"]
    np.testing.assert_allclose(_run(convert(model, "float32"), feeds)[0], expected, atol=1e-6)
    samples = {"ids": RANDOM.integers(0, 9, (20, 3)), "x": RANDOM.normal(size=(20, 2))}
    content = convert(model, "int8", samples)
    assert _io_types(content)[0] == ["int32", "int8"]
    np.testing.assert_allclose(_run(content, feeds)[0], expected, atol=0.05)


def test_bridged_operators_convert_like_the_original() -> None:
    x = keras.Input((6, 4), name="x")
    y = keras.layers.LSTM(3, name="lstm")(keras.ops.mean(x * 2.0 - 1.0, axis=1, keepdims=True) + x)
    model = keras.Model(x, y, name="recurrent")
    perturb(model)
    values = RANDOM.normal(size=(1, 6, 4)).astype("float32")
    for candidate in (model, bridge(model).model):
        np.testing.assert_allclose(_run(convert(candidate, "float32"), {"x": values})[0], model(values), atol=1e-6)


def test_fake_quant_models_convert_to_integers() -> None:
    model = tfmot.quantization.keras.quantize_model(bridge(_net()).model)
    content = convert(model, "int8", IMAGES)
    assert _io_types(content) == (["int8"], ["int8"])
    kinds = {np.dtype(d["dtype"]).name for d in Interpreter(model_content=content).get_tensor_details()}
    assert kinds <= {"int8", "int32"}


def test_saved_model(tmp_path: Path) -> None:
    class Scaled(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.scale = tf.Variable([[1.0, 2.0], [3.0, 4.0]])

        @tf.function(input_signature=[tf.TensorSpec((None, 2), tf.float32, name="x")])
        def __call__(self, x: Any) -> Any:
            return {"y": x @ self.scale}

    module = Scaled()
    tf.saved_model.save(module, str(tmp_path / "m"))
    values = np.array([[1.0, -1.0]], "float32")
    signature, notes = choose_signature(tmp_path / "m", None)
    assert notes == ()
    np.testing.assert_allclose(_run(convert(signature, "float32"), {"x": values})[0], [[-2, -2]])
    assert _io_types(convert(signature, "int8", RANDOM.normal(size=(9, 2)))) == (["int8"], ["int8"])
    tf.saved_model.save(tf.Module(), str(tmp_path / "empty"))
    with pytest.raises(InputError, match=r"empty: the SavedModel has no signature to call it by"):
        choose_signature(tmp_path / "empty", None)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "saved_model.pb").write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"broken: not a readable SavedModel"):
        choose_signature(tmp_path / "broken", None)


def digests(path: Path) -> list[str]:
    """Of the .tflite files of a stored model and of its twin, by two schemes."""
    model = load_model(path)
    samples = np.random.default_rng(0).uniform(0, 1, (8, 8, 8, 2))
    candidates = (model, bridge(model).model)
    schemes: tuple[SchemeName, ...] = ("int8", "float16")
    return [hashlib.sha256(convert(m, scheme, samples)).hexdigest() for m in candidates for scheme in schemes]


@pytest.mark.slow
def test_same_model_same_bytes_in_two_processes(tmp_path: Path) -> None:
    """In a new process and in this one, where Keras has named many layers already."""
    save_keras(_net(), tmp_path / "m.keras")
    code = "import sys, pathlib, test_convert; print(*test_convert.digests(pathlib.Path(sys.argv[1])))"
    line = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "m.keras")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    other = subprocess.run(line, capture_output=True, text=True, check=True, env=environment).stdout.split()
    _net()
    assert digests(tmp_path / "m.keras") == other
    assert len(set(other)) == 4


def test_same_model_same_bytes_again_in_one_process() -> None:
    model = _net()
    digests = {hashlib.sha256(convert(model, "int8", IMAGES)).hexdigest() for _ in range(2)}
    digests.add(hashlib.sha256(convert(_net(), "int8", IMAGES)).hexdigest())
    assert len(digests) == 1


def _open_files() -> int:
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def test_nothing_reaches_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    before = _open_files()
    convert(_net(), "int8", IMAGES)
    after = _open_files()
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert after == before


def _nan(index: int) -> Any:
    bad = IMAGES.copy()
    bad[index, 0, 0, 0] = np.nan
    return bad


BAD_SAMPLES: list[tuple[Callable[[], Any], Callable[[], Arrays | None], str]] = [
    (_net, lambda: None, r"needs representative samples .*found none"),
    (_net, lambda: IMAGES[:0], r"needs representative samples .*found none"),
    (
        _net,
        lambda: _nan(3),
        r"1 of 40 representative samples of input 'pixels' hold NaN or infinity, the first is number 3",
    ),
    (_net, lambda: IMAGES[:, :7], r"have the shape \(7, 8, 2\), input 'pixels' takes \(8, 8, 2\)"),
    (_net, lambda: IMAGES.reshape(40, -1), r"have the shape \(128,\), input 'pixels' takes \(8, 8, 2\)"),
    (_net, lambda: {"images": IMAGES}, r"samples are named images, the model's inputs pixels"),
    (_net, lambda: np.full((2, 8, 8, 2), "a"), r"of input 'pixels' are <U1, not numbers"),
    (_two_inputs, lambda: TWO_INPUTS["zulu_big"], r"inputs zulu_big, alpha_small, the samples are one array"),
    (
        _two_inputs,
        lambda: {"zulu_big": TWO_INPUTS["zulu_big"]},
        r"samples are named zulu_big, the model's inputs zulu_big, alpha_small",
    ),
    (
        _two_inputs,
        lambda: {**TWO_INPUTS, "zulu_big": TWO_INPUTS["zulu_big"][:5]},
        r"different numbers of samples: 'zulu_big' 5, 'alpha_small' 30",
    ),
]


@pytest.mark.parametrize(("make", "samples", "message"), BAD_SAMPLES)
def test_bad_samples(make: Callable[[], Any], samples: Callable[[], Arrays | None], message: str) -> None:
    with pytest.raises(InputError, match=message):
        convert(make(), "int8", samples())


@pytest.mark.parametrize(
    ("scheme", "inputs", "message"),
    [
        (
            "int4",
            None,
            r"scheme 'int4' is unknown; did you mean 'int8'\?|scheme 'int4' is unknown; did you mean 'int16x8'",
        ),
        ("float16", "int8", r"input type int8: scheme float16 has float32; schemes with int8: int8, mixed, recipe"),
        (
            "int8",
            "int16",
            r"input type int16: scheme int8 has int8, uint8, float32; schemes with int16: int16x8, recipe",
        ),
        ("int8", "int12", r"input type int12: scheme int8 has int8, uint8, float32; no scheme has it"),
    ],
)
def test_bad_options(scheme: Any, inputs: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        convert(_net(), scheme, IMAGES, inputs)


def test_unsupported_operator_is_named_with_its_layer() -> None:
    @tf_keras.utils.register_keras_serializable(package="test")
    class Digamma(tf_keras.layers.Layer):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return tf.math.digamma(x)

    x = tf_keras.Input((4,), name="x")
    model = tf_keras.Model(x, Digamma(name="odd_one")(x), name="odd")
    with pytest.raises(
        InputError,
        match=r"it has no builtin operator for tf\.Digamma \(node 'odd/odd_one/Digamma'\)",
    ) as raised:
        convert(model, "float32")
    assert "\n" not in str(raised.value)


def test_freeze_keeps_the_signature() -> None:
    frozen = freeze(_two_inputs())
    assert [(port.name, port.shape, port.dtype) for port in frozen.inputs] == [
        ("zulu_big", (1, 4), "float32"),
        ("alpha_small", (1, 4), "float32"),
    ]
    assert [tensor.name for tensor in frozen.function.inputs] == ["zulu_big:0", "alpha_small:0"]
    assert not frozen.function.variables


def test_open_shapes_and_unbuilt_models_are_refused() -> None:
    x = keras.Input((None, 3), name="wave")
    with pytest.raises(InputError, match=r"input 'wave' of 'm' has the shape \(None, None, 3\)"):
        convert(keras.Model(x, keras.layers.GlobalMaxPooling1D()(x), name="m"), "float32")
    with pytest.raises(InputError, match=r"'raw' is not built"):
        convert(keras.Sequential([keras.layers.Dense(2)], name="raw"), "float32")


@pytest.mark.slow
def test_an_operator_without_an_integer_kernel_is_a_table_after_training(tmp_path: Path) -> None:
    import keras

    from edgepipe.compress.qat import range_initialization
    from edgepipe.compress.qat.fake_quant import QatRecipe, build_fake_quant
    from edgepipe.models.bridge import bridge

    inputs = keras.Input((6, 6, 4), name="x")
    x = keras.layers.Flatten()(keras.ops.sin(keras.layers.Conv2D(4, 1)(inputs)))
    model = build_fake_quant(bridge(keras.Model(inputs, keras.layers.Dense(2)(x))).model, QatRecipe()).model
    samples = np.random.default_rng(0).normal(0, 1, (8, 6, 6, 4)).astype("float32")
    range_initialization.initialize_ranges(model, samples, seed=0, use_batch_statistics=False)
    (tmp_path / "m.tflite").write_bytes(convert(model, samples=samples))
    kinds = {op.name for op in read(tmp_path / "m.tflite").operators}
    assert "GATHER" in kinds
    assert not {"SIN", "DEQUANTIZE"} & kinds
