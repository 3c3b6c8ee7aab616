"""Running a model over samples: against TensorFlow Lite's own kernels, in batches and one by one, and on bad input."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from tflite_conversion import SAMPLES, convert, integer, nothing
from tflite_handmade import Op, T, write

from edgepipe.core.errors import InputError
from edgepipe.tflite import interpreter, reader, sample_conversion
from edgepipe.tflite.interpreter import Runtime


def run_interpreter(path: Path, x: np.ndarray) -> np.ndarray:
    """One sample after another with nothing but the interpreter, reference kernels."""
    runner = Interpreter(str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    runner.allocate_tensors()
    results = []
    for sample in x:
        runner.set_tensor(runner.get_input_details()[0]["index"], sample[None])
        runner.invoke()
        results.append(runner.get_tensor(runner.get_output_details()[0]["index"])[0])
    return np.stack(results)


@pytest.mark.parametrize("runtime", list(Runtime))
@pytest.mark.parametrize("batch", [1, 7, 32, 1000])
def test_batches_change_no_number(flat_net: Path, int8_net: Path, runtime: Runtime, batch: int) -> None:
    for path in (flat_net, int8_net):
        single = interpreter.predict(path, SAMPLES, runtime, batch_size=1)
        many = interpreter.predict(path, SAMPLES, runtime, threads=2, batch_size=batch)
        np.testing.assert_array_equal(single.stored_values, many.stored_values)
        assert single.provenance == f"LiteRT {runtime}, 1 thread, one by one"
        if path == flat_net and batch > 1:
            assert many.provenance == f"LiteRT {runtime}, 2 threads, batches of {min(batch, len(SAMPLES))}"


def test_the_reference_equals_the_bare_interpreter(int8_net: Path) -> None:
    model = reader.read(int8_net)
    stored = sample_conversion.convert_samples(model, SAMPLES)[0]
    found = interpreter.predict(int8_net, SAMPLES, Runtime.REFERENCE)
    np.testing.assert_array_equal(found.stored_values, run_interpreter(int8_net, stored))
    np.testing.assert_array_equal(
        found.stored_values, interpreter.predict(int8_net, stored, Runtime.REFERENCE).stored_values
    )
    (name,), quantization = found.scales, model.outputs[0].quantization
    assert quantization is not None
    assert (found.scales[name], found.zero_points[name]) == (quantization.scales[0], quantization.zero_points[0])


def test_dequantized_outputs_are_close_to_the_float_network(int8_net: Path, net: Any) -> None:
    found = interpreter.predict(int8_net, SAMPLES)
    expected = net(SAMPLES).numpy()
    assert isinstance(found.real_values, np.ndarray)
    assert found.real_values.dtype == np.float32
    assert np.abs(found.real_values - expected).max() < 0.05 * np.abs(expected).max()


def test_a_float_model_needs_no_scale(float_net: Path, net: Any) -> None:
    found = interpreter.predict(float_net, SAMPLES.astype(np.float64), Runtime.BUILTIN)
    assert isinstance(found.real_values, np.ndarray)
    np.testing.assert_allclose(found.real_values, net(SAMPLES).numpy(), atol=1e-5)
    assert found.stored_values is found.real_values
    assert found.scales == found.zero_points == {}


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
def test_quantizing_is_what_the_quantize_kernel_does(tmp_path: Path, dtype: str) -> None:
    zero, rng = (0 if dtype == "int16" else 7), np.random.default_rng(0)
    scale = float(np.float32(0.1))
    tensors = [T("x", (1, 4000), "float32"), T("y", (1, 4000), dtype, scales=(scale,), zero_points=(zero,))]
    path = write(tmp_path / "q.tflite", tensors, [Op("QUANTIZE", ("x",), ("y",), version=2)], ["x"], ["y"])
    ties = (np.arange(2000) - 1000) * np.float32(0.05)
    below_half = np.float32(0.49999997) * np.float32(0.1)
    x = np.concatenate([ties, rng.normal(size=1999) * 20, [below_half]]).astype(np.float32)
    expected = run_interpreter(path, x[None])[0]
    np.testing.assert_array_equal(sample_conversion.quantize_array(x, reader.read(path).outputs[0]), expected)


def test_a_model_that_refuses_batches_runs_one_by_one(tmp_path: Path) -> None:
    tensors = [T("x", (1, 4)), T("s", (2,), "int32", np.array([2, 2], np.int32)), T("y", (2, 2))]
    path = write(tmp_path / "m.tflite", tensors, [Op("RESHAPE", ("x", "s"), ("y",))], ["x"], ["y"])
    x = np.arange(20, dtype=np.int8).reshape(5, 4)
    found = interpreter.predict(path, x)
    assert found.provenance.startswith("LiteRT xnnpack, 1 thread, one by one: a batch of 5 is refused (")
    np.testing.assert_array_equal(found.stored_values, x.reshape(5, 2, 2))


def test_a_model_that_mixes_samples_runs_one_by_one(tmp_path: Path) -> None:
    """A cumulative sum along the sample axis is the identity for one sample and something else for a batch."""
    tensors = [T("x", (1, 4), "int32"), T("axis", (), "int32", np.array(0, np.int32)), T("y", (1, 4), "int32")]
    op = Op("CUMSUM", ("x", "axis"), ("y",), schema.CumsumOptionsT())
    path = write(tmp_path / "m.tflite", tensors, [op], ["x"], ["y"])
    x = np.arange(20, dtype=np.int32).reshape(5, 4)
    found = interpreter.predict(path, x, Runtime.BUILTIN)
    assert found.provenance.endswith("one by one: a batch gives other numbers than single samples")
    np.testing.assert_array_equal(found.stored_values, x)


def test_state_is_forgotten_between_samples(tmp_path: Path) -> None:
    floats = {
        "x": T("x", (1, 1, 1), "float32"),
        "w": T("w", (1, 1), "float32", np.array([[1]], np.float32)),
        "r": T("r", (1, 1), "float32", np.array([[1]], np.float32)),
        "b": T("b", (1,), "float32", np.array([0], np.float32)),
        "h": T("h", (1, 1), "float32", variable=True),
        "y": T("y", (1, 1, 1), "float32"),
    }
    options = schema.SequenceRNNOptionsT()
    options.fusedActivationFunction = schema.ActivationFunctionType.RELU
    op = Op("UNIDIRECTIONAL_SEQUENCE_RNN", ("x", "w", "r", "b", "h"), ("y",), options)
    path = write(tmp_path / "m.tflite", list(floats.values()), [op], ["x"], ["y"])
    x = np.ones((4, 1, 1), np.float32)
    found = interpreter.predict(path, x, Runtime.BUILTIN)
    assert found.provenance.endswith("one by one: the model keeps state between calls")
    np.testing.assert_array_equal(found.stored_values, x)


@pytest.fixture(scope="session")
def two_inputs(folder: Path) -> Path:
    import keras

    left, right = keras.Input((3,), name="left"), keras.Input((4,), name="right")
    joined = keras.layers.Concatenate()([keras.layers.Dense(4)(left), right])
    model = keras.Model([left, right], [keras.layers.Dense(2)(joined), keras.layers.Dense(3)(joined)])
    return convert(model, folder / "two.tflite", nothing)


def test_several_inputs_and_outputs_go_by_name(two_inputs: Path) -> None:
    names = list(reader.read(two_inputs).inputs_by_name)
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=(9, width)) for name, width in zip(names, (3, 4), strict=True)}
    found = interpreter.predict(two_inputs, arrays)
    swapped = interpreter.predict(two_inputs, dict(reversed(arrays.items())), batch_size=1)
    assert isinstance(found.stored_values, dict)
    assert isinstance(swapped.stored_values, dict)
    assert [array.shape for array in found.stored_values.values()] == [(9, 2), (9, 3)]
    for name, array in found.stored_values.items():
        np.testing.assert_allclose(array, swapped.stored_values[name], atol=1e-6)
    with pytest.raises(InputError, match="one array given for 2 inputs; name them: "):
        interpreter.predict(two_inputs, arrays[names[0]])
    with pytest.raises(InputError, match="inputs given: nonsense; the model's inputs: "):
        interpreter.predict(two_inputs, {"nonsense": arrays[names[0]]})
    with pytest.raises(InputError, match="the inputs need the same number of samples, at least one; found "):
        interpreter.predict(two_inputs, {**arrays, names[0]: arrays[names[0]][:3]})


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((3, 8, 8, 3)), r"takes samples of shape \(8, 8, 2\), found \(8, 8, 3\)"),
        (np.zeros((8, 8, 2)), r"takes samples of shape \(8, 8, 2\), found \(8, 2\)"),
        (np.zeros((0, 8, 8, 2)), r"the same number of samples, at least one; found .*: 0"),
        (np.float64(3), r"the same number of samples, at least one"),
        (np.full((1, 8, 8, 2), np.nan), r"values that are not finite"),
        (np.zeros((1, 8, 8, 2), np.uint8), r"takes int8 or real numbers \(float\), found uint8; convert the samples"),
        (np.zeros((1, 8, 8, 2), str), r"takes int8 or real numbers \(float\), found <U1"),
        (np.zeros((1, 8, 8, 2), complex), r"found complex128"),
    ],
)
def test_samples_that_do_not_fit(int8_net: Path, x: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        interpreter.predict(int8_net, x)


def test_indices_must_fit_their_type(tmp_path: Path) -> None:
    tensors = [T("x", (1, 2), "int32"), T("y", (1, 2), "int32")]
    path = write(tmp_path / "m.tflite", tensors, [Op("ABS", ("x",), ("y",))], ["x"], ["y"])
    found = interpreter.predict(path, np.array([[-3, 5]], np.int64), Runtime.BUILTIN)
    assert found.stored_values.tolist() == [[3, 5]]  # type: ignore[union-attr]
    with pytest.raises(InputError, match="takes int32, found values from 1 to 1099511627776"):
        interpreter.predict(path, np.array([[1, 2**40]], np.int64), Runtime.BUILTIN)


def test_a_runtime_that_refuses_the_model_says_why(tmp_path: Path) -> None:
    tensors = [T("x", (1, 4)), T("y", (1, 4))]
    path = write(tmp_path / "m.tflite", tensors, [Op("CUSTOM", ("x",), ("y",), custom="MyOp")], ["x"], ["y"])
    with pytest.raises(InputError, match=r"m\.tflite: LiteRT reference does not run this model: .*MyOp"):
        interpreter.predict(path, np.zeros((1, 4), np.int8), Runtime.REFERENCE)
    with pytest.raises(InputError, match=r"takes int8 \(no scale\), found 0.5 in float64"):
        interpreter.predict(path, np.full((1, 4), 0.5), Runtime.REFERENCE)


def test_a_file_that_crashes_the_runtime_is_an_input_error(tmp_path: Path, int8_net: Path) -> None:
    """An IF whose branch is the graph it stands in recurses until the stack is used up."""
    tensors = [T("c", (1,), "bool"), T("y", (1,), "float32")]
    path = write(tmp_path / "m.tflite", tensors, [Op("IF", ("c", "c"), ("y",), schema.IfOptionsT())], ["c"], ["y"])
    with pytest.raises(InputError, match=r"m\.tflite: LiteRT builtin: the child process crashed with SIGSEGV"):
        interpreter.check_runs(path)
    interpreter.check_runs(int8_net)


def test_the_delegates_notice_stays_off_stderr(int8_net: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import os

    with interpreter.hide_delegate_notice():
        os.write(2, b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\nsomething else\n")
    assert capfd.readouterr().err == "something else\n"
    interpreter.predict(int8_net, SAMPLES[:1], Runtime.XNNPACK)
    assert capfd.readouterr().err == ""


def test_uint8_samples_of_a_uint8_model(net: Any, folder: Path) -> None:
    path = convert(net, folder / "uint8.tflite", integer(SAMPLES, "uint8"))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 2), dtype=np.uint8)
    assert sample_conversion.convert_samples(reader.read(path), pixels)[0] is pixels
    assert interpreter.predict(path, pixels).stored_values.dtype == np.uint8  # type: ignore[union-attr]
