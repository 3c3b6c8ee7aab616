"""The facts of a .tflite: counts against independent references, and damaged files."""

import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from tflite_handmade import Op, T, write
from tflite_published import FILES, MISSING

from edgepipe.core.errors import InputError
from edgepipe.tflite import integer_check, macs, operator_facts, reader


def test_counts_of_a_converted_network(int8_net: Path, net: Any) -> None:
    model = reader.read(int8_net)
    assert model.bytes == int8_net.stat().st_size
    assert model.parameters == net.count_params()
    layers = (8 * 8 * 6 * 9 * 2, 6 * 6 * 6 * 9, 6 * 6 * 6 * 9 * 4, 4 * 5)  # conv, depthwise, transposed, dense
    assert [operator.macs for operator in model if operator.macs] == list(layers)
    assert model.macs == sum(layers)
    assert model.uncounted_operator_names == ()
    assert [(t.dtype, t.shape) for t in (*model.inputs, *model.outputs)] == [("int8", (1, 8, 8, 2)), ("int8", (1, 5))]
    assert set(model.dtype_counts) == {"int8", "int32"}
    assert model.operator_counts["CONV_2D"] == 1
    conv = next(operator for operator in model if operator.name == "CONV_2D")
    assert (conv.options["strideW"], conv.options["padding"]) == (1, schema.Padding.SAME)


def test_values_are_those_the_interpreter_sees(int8_net: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter

    model, interpreter = reader.read(int8_net), Interpreter(str(int8_net))
    interpreter.allocate_tensors()
    assert model.parameter_tensors
    for tensor in model.parameter_tensors:
        np.testing.assert_array_equal(model.read_values(tensor), interpreter.get_tensor(tensor.index))
    for detail in interpreter.get_tensor_details():
        if detail["index"] < len(model.tensors):
            quantization = model.tensors[detail["index"]].quantization
            scales = quantization.scales if quantization else ()
            np.testing.assert_array_equal(np.array(scales, np.float32), detail["quantization_parameters"]["scales"])


def test_zero_weights_are_found(int8_net: Path, float_net: Path, float16_net: Path, net: Any) -> None:
    kernels = [layer.get_weights()[0] for layer in net.layers if layer.get_weights()]
    for path in (float_net, float16_net, int8_net):
        found = reader.weight_sparsity(reader.read(path))
        kinds = [layer.kind for layer in found]
        assert kinds == ["CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED"]
        assert [layer.elements for layer in found] == [kernel.size for kernel in kernels]
        assert found[0].zeros >= kernels[0].size // 2
        if path != int8_net:  # rounding to 8 bits makes a few more
            assert [layer.zeros for layer in found] == [np.count_nonzero(kernel == 0) for kernel in kernels]
    assert reader.read(float_net).zero_parameters == sum(np.count_nonzero(w == 0) for w in net.get_weights())


def test_parameters_are_the_same_in_every_format(int8_net: Path, float_net: Path, float16_net: Path, net: Any) -> None:
    assert {reader.read(path).parameters for path in (int8_net, float_net, float16_net)} == {net.count_params()}


@pytest.mark.skipif(not FILES, reason=MISSING)
@pytest.mark.parametrize(
    ("name", "counted", "parameters"),
    [
        # MLPerf Tiny: ResNet-8 12.5 M and 78 k, DS-CNN 2.66 M, MobileNetV1 0.25 96 7.5 M; arXiv 2106.07597
        ("image_classification__pretrainedResnet_quant", 12_501_632, 77_706),
        ("keyword_spotting__kws_ref_model", 2_656_768, 22_604),
        ("anomaly_detection__ad01_int8", 264_192, 265_864),
    ],
)
def test_published_models(name: str, counted: int, parameters: int) -> None:
    model = reader.read(next(path for path in FILES if path.name.startswith(name)))
    assert (model.macs, model.parameters) == (counted, parameters)


def test_rules_of_macs_against_counting_by_hand(tmp_path: Path) -> None:
    matmul = schema.BatchMatMulOptionsT()
    matmul.adjX = True
    lstm = [T(f"w{i}", (4, 3)) for i in range(4)] + [T(f"r{i}", (4, 4)) for i in range(4)]
    cases = [
        ("BATCH_MATMUL", [T("a", (2, 5, 3)), T("b", (2, 3, 7))], (2, 5, 7), None, 2 * 5 * 7 * 3),
        ("BATCH_MATMUL", [T("a", (2, 3, 5)), T("b", (2, 3, 7))], (2, 5, 7), matmul, 2 * 5 * 7 * 3),
        ("CONV_3D", [T("x", (1, 4, 4, 4, 2)), T("w", (3, 3, 3, 2, 5))], (1, 2, 2, 2, 5), None, 8 * 5 * 27 * 2),
        ("CONV_2D", [T("x", (1, 4, 4, 8)), T("w", (6, 3, 3, 2))], (1, 4, 4, 6), None, 16 * 6 * 9 * 2),  # 4 groups
        ("TRANSPOSE_CONV", [T("s", (4,)), T("w", (5, 3, 3, 2)), T("x", (1, 4, 4, 2))], (1, 8, 8, 5), None, 16 * 90),
        ("UNIDIRECTIONAL_SEQUENCE_LSTM", [T("x", (2, 10, 3)), *lstm], (2, 10, 4), None, 2 * 10 * 4 * (12 + 16)),
        (
            "UNIDIRECTIONAL_SEQUENCE_RNN",
            [T("x", (2, 10, 3)), T("w", (4, 3)), T("r", (4, 4))],
            (2, 10, 4),
            None,
            20 * 28,
        ),
        ("SVDF", [T("x", (2, 3)), T("w", (6, 3)), T("t", (6, 8))], (2, 3), None, 2 * (18 + 48)),
        ("ADD", [T("a", (2, 3)), T("b", (2, 3))], (2, 3), None, 0),
    ]
    for name, inputs, shape, options, expected in cases:
        tensors = [*inputs, T("y", shape)]
        operator = Op(name, tuple(t.name for t in inputs), ("y",), options)
        model = reader.read(write(tmp_path / "m.tflite", tensors, [operator], [inputs[0].name], ["y"]))
        assert model.macs == expected, name
        assert model.uncounted_operator_names == ()


def test_operators_that_are_not_counted_are_named(tmp_path: Path) -> None:
    ops = [Op("CUSTOM", ("x",), ("y",), custom="MyFft"), Op("RFFT2D", ("y",), ("z",)), Op("ABS", ("z",), ("z",))]
    path = write(tmp_path / "m.tflite", [T("x", (1, 4)), T("y", (1, 4)), T("z", (1, 4))], ops, ["x"], ["z"])
    assert reader.read(path).uncounted_operator_names == ("MyFft", "RFFT2D")
    assert not any(operator_facts.traits_of(name).has_uncounted_macs for name in macs.MAC_RULES)


def test_shapes_and_axes_are_no_parameters(tmp_path: Path) -> None:
    tensors = [
        T("x", (1, 4)),
        T("shape", (2,), "int32", np.array([2, 2], np.int32)),
        T("w", (2, 2), "int8", np.array([[0, 5], [5, 7]], np.int8), scales=(0.5, 0.25), zero_points=(0, 5)),
        T("b", (2,), "int32", np.array([0, 3], np.int32)),
        T("y", (2, 2)),
        T("z", (2, 2)),
    ]
    ops = [Op("RESHAPE", ("x", "shape"), ("y",)), Op("FULLY_CONNECTED", ("y", "w", "b"), ("z",))]
    model = reader.read(write(tmp_path / "m.tflite", tensors, ops, ["x"], ["z"]))
    assert [tensor.name for tensor in model.parameter_tensors] == ["w", "b"]
    assert (model.parameters, model.zero_parameters) == (6, 1 + 1 + 1)  # 0 in row one, 5 in row two, 0 in the bias


@pytest.mark.parametrize(
    ("dtype", "data", "expected"),
    [
        ("int4", bytes([0x21, 0xF8, 0x07]), [1, 2, -8, -1, 7]),
        ("int2", bytes([0b11_10_01_00, 0b01]), [0, 1, -2, -1, 1]),
        ("uint4", bytes([0x21, 0xF8, 0x07]), [1, 2, 8, 15, 7]),
        ("bfloat16", np.array([0x3F80, 0xC000, 0, 0x3F00, 0x4040], np.uint16).tobytes(), [1, -2, 0, 0.5, 3]),
    ],
)
def test_packed_types(tmp_path: Path, dtype: str, data: bytes, expected: list[float]) -> None:
    tensors = [T("w", (5,), dtype, data), T("y", (5,), dtype)]
    model = reader.read(write(tmp_path / "m.tflite", tensors, [Op("ABS", ("w",), ("y",))], [], ["y"]))
    assert model.read_values(model.tensors[0]).tolist() == expected


def test_what_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    tensors = [T("w", (4,), "float8_e5m2", b"\0\1\2\3"), T("y", (4,), "float32")]
    model = reader.read(write(tmp_path / "m.tflite", tensors, [Op("CAST", ("w",), ("y",))], [], ["y"]))
    assert reader.summarize(model).unreadable == ("w",)
    assert model.zero_parameters == 0
    with pytest.raises(InputError, match=r"tensor 'w' cannot be read: its type float8_e5m2 is not supported"):
        model.read_values(model.tensors[0])
    with pytest.raises(InputError, match=r"tensor 'y' cannot be read: it is not a constant"):
        model.read_values(model.tensors[1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot be read: No such file"),
        (b"", r"the file is empty"),
        (b"PK\3\4" + bytes(100), r"not a \.tflite: bytes 5 to 8 must be 'TFL3', the file begins with 50 4b"),
        (b"\x10\0\0", r"not a \.tflite"),
        (b"\x10\0\0\0TFL3", r"damaged or truncated \.tflite \(8 bytes\)"),
        (b"\xff\xff\xff\x7fTFL3" + bytes(100), r"damaged or truncated"),
        (b"\x08\0\0\0TFL3" + bytes(100), r"damaged .tflite: it holds no subgraph"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "m.tflite"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        reader.read(path)
    with pytest.raises(InputError, match="cannot be read"):
        reader.read(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "op", "message"),
    [
        (
            [T("w", (4,), "int8", b"123"), T("y", (4,))],
            Op("ABS", ("w",), ("y",)),
            r"'w' of int8 \(4,\) has 3 bytes .* of 4",
        ),
        ([T("w", (-4,)), T("y", (4,))], Op("ABS", ("w",), ("y",)), r"'w' has type 9 and shape \(-4,\)"),
        (
            [T("w", (4,), scales=(1.0, 2.0), zero_points=(0,)), T("y", (4,))],
            Op("ABS", ("w",), ("y",)),
            r"'w' of shape \(4,\) has 2 scales and 1 zero points along axis 0",
        ),
        ([T("w", (4,), scales=(np.nan,)), T("y", (4,))], Op("ABS", ("w",), ("y",)), r"not finite"),
    ],
)
def test_contradictions_inside_a_file(tmp_path: Path, tensors: list[T], op: Op, message: str) -> None:
    path = write(tmp_path / "m.tflite", tensors, [op], [], ["y"])
    with pytest.raises(InputError, match=message):
        reader.read(path)


def test_every_truncation_is_an_input_error(int8_net: Path, tmp_path: Path) -> None:
    content, path = int8_net.read_bytes(), tmp_path / "cut.tflite"
    for length in [*range(0, len(content), 97), *range(len(content) - 40, len(content) - 4)]:
        path.write_bytes(content[:length])
        with pytest.raises(InputError):
            reader.read(path)


def test_flipped_bits_give_a_model_or_an_input_error(int8_net: Path, tmp_path: Path) -> None:
    content, path, outcomes = int8_net.read_bytes(), tmp_path / "flipped.tflite", set()
    for seed in range(300):
        path.write_bytes(_damaged(content, random.Random(seed)))
        start = time.perf_counter()
        try:
            model = reader.read(path)
            reader.summarize(model), reader.weight_sparsity(model), integer_check.check_integer_only(model)
            outcomes.add("read")
        except InputError:
            outcomes.add("refused")
        assert time.perf_counter() - start < 5, f"seed {seed}"
    assert outcomes == {"read", "refused"}


def _damaged(content: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 4, 30))):
        place = rng.randrange(8, len(damaged))
        damaged[place] = rng.choice((damaged[place] ^ 1 << rng.randrange(8), 0xFF, 0x7F, rng.randrange(256)))
    return bytes(damaged[: rng.choice((len(damaged), rng.randrange(8, len(damaged))))])


def test_importing_is_light() -> None:
    heavy = ("tensorflow", "keras", "tf_keras", "sklearn", "ai_edge_litert", "tflite_micro", "flatbuffers")
    code = (
        "import sys; from edgepipe.tflite import host_latency, integer_check, interpreter, parity, reader;"
        "from edgepipe.tflite import tflm_memory, tflm_runtime;"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
