"""A float .tflite of another converter: float16 weights are unfolded, and an open batch becomes 1 in integer models."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from tflite_handmade import Op, T, write

from edgepipe.compress.conversion import convert_model
from edgepipe.compress.quantizer.quantization import QuantizationRequest
from edgepipe.compress.schemes import SchemeName
from edgepipe.compress.source_model import read_float_tflite
from edgepipe.core.errors import InputError
from edgepipe.tflite import interpreter, parity, reader, tflm_runtime
from edgepipe.tflite.interpreter import Runtime
from edgepipe.tflite.model import Model

RNG = np.random.default_rng(3)
SAMPLES = RNG.normal(size=(40, 1, 8, 4)).astype("float32")
WEIGHTS = RNG.normal(size=(4, 1, 3, 4)).astype("float32") / 4
BATCH_NOTE = "the open batch of the inputs was fixed to 1"


def _options(name: str, **fields: Any) -> Any:
    table = getattr(schema, f"{name}T")()
    for field, value in fields.items():
        setattr(table, field, value)
    return table


def dilated(path: Path, batch: int = -1, has_float16: bool = False) -> Path:
    """A convolution dilated by SPACE_TO_BATCH_ND, as converters write it: every open batch is a 1 in the file."""

    def activation(name: str, width: int) -> T:
        return T(name, (1, 1, width, 4), "float32", signature=(batch, 1, width, 4))

    weights = T("stored", WEIGHTS.shape, "float16", WEIGHTS.astype("float16")) if has_float16 else None
    tensors = [
        activation("x", 8), activation("padded", 12), activation("a", 6), activation("b", 4), activation("y", 8),
        T("pads", (4, 2), "int32", np.array([[0, 0], [0, 0], [4, 0], [0, 0]], np.int32)),
        T("blocks", (2,), "int32", np.array([1, 2], np.int32)), T("none", (2, 2), "int32", np.zeros((2, 2), np.int32)),
        T("w", WEIGHTS.shape, "float32", None if has_float16 else WEIGHTS),
        T("bias", (4,), "float32", np.ones(4, np.float32)),
        *([weights] if weights is not None else []),
    ]  # fmt: skip
    strides = {"strideW": 1, "strideH": 1, "dilationWFactor": 1, "dilationHFactor": 1}
    ops = [
        *([Op("DEQUANTIZE", ("stored",), ("w",))] if has_float16 else []),
        Op("PAD", ("x", "pads"), ("padded",), _options("PadOptions")),
        Op("SPACE_TO_BATCH_ND", ("padded", "blocks", "none"), ("a",)),
        Op("CONV_2D", ("a", "w", "bias"), ("b",), _options("Conv2DOptions", padding=1, **strides)),
        Op("BATCH_TO_SPACE_ND", ("b", "blocks", "none"), ("y",)),
    ]
    return write(path, tensors, ops, ["x"], ["y"])


def _convert(path: Path, scheme: SchemeName, out: Path) -> tuple[Model, str]:
    samples = None if scheme in ("dynamic", "float16", "float32") else SAMPLES
    converted = convert_model(read_float_tflite(path), QuantizationRequest(scheme), samples)
    out.write_bytes(converted.content)
    return reader.read(out), "; ".join(converted.notes)


@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
def test_an_open_batch_becomes_one_with_all_sizes(scheme: SchemeName, tmp_path: Path) -> None:
    lite, notes = _convert(dilated(tmp_path / "m.tflite"), scheme, tmp_path / "out.tflite")
    assert BATCH_NOTE in notes
    assert reader.read(tmp_path / "m.tflite").open_size_reason
    assert lite.open_size_reason == ""
    assert all(-1 not in tensor.shape_signature for tensor in lite.tensors)
    assert [op.outputs[0].shape for op in lite if op.name == "SPACE_TO_BATCH_ND"] == [(2, 1, 6, 4)]  # type: ignore[union-attr]
    (conv,) = [op for op in lite if op.name == "CONV_2D"]
    assert conv.macs == 2 * 4 * 4 * 3 * 4


def test_a_device_without_dynamic_sizes_computes_it_right(tmp_path: Path) -> None:
    pytest.importorskip("tflite_micro", reason="the extra `micro` is not installed")
    lite, _ = _convert(dilated(tmp_path / "m.tflite"), "int8", tmp_path / "out.tflite")
    reference = interpreter.predict(lite.path, SAMPLES[:4], Runtime.REFERENCE)
    assert parity.compare(reference, tflm_runtime.predict(lite.path, SAMPLES[:4])).max_lsb == 0


def test_float_schemes_keep_the_batch_open(tmp_path: Path) -> None:
    lite, notes = _convert(dilated(tmp_path / "m.tflite"), "dynamic", tmp_path / "out.tflite")
    assert lite.inputs[0].shape_signature[0] == -1
    assert BATCH_NOTE not in notes


def test_the_user_may_keep_it_open(tmp_path: Path) -> None:
    request = QuantizationRequest("int8", keep_open_batch=True)
    converted = convert_model(read_float_tflite(dilated(tmp_path / "m.tflite")), request, SAMPLES)
    (tmp_path / "out.tflite").write_bytes(converted.content)
    assert reader.read(tmp_path / "out.tflite").inputs[0].shape_signature[0] == -1
    assert BATCH_NOTE not in "; ".join(converted.notes)
    with pytest.raises(InputError, match=r"keep_open_batch is for a float \.tflite"):
        convert_model("not a .tflite", request, SAMPLES)


def test_a_fixed_batch_needs_no_note(tmp_path: Path) -> None:
    path = dilated(tmp_path / "m.tflite", batch=1)
    with pytest.raises(InputError, match="scheme float32 would change nothing"):
        _convert(path, "float32", tmp_path / "out.tflite")
    assert BATCH_NOTE not in _convert(path, "int8", tmp_path / "out.tflite")[1]


@pytest.mark.parametrize("scheme", ["int8", "dynamic", "float16", "float32"])
def test_float16_weights_are_unfolded_and_quantized(scheme: SchemeName, tmp_path: Path) -> None:
    folded, plain = dilated(tmp_path / "f16.tflite", has_float16=True), dilated(tmp_path / "f32.tflite")
    lite, notes = _convert(folded, scheme, tmp_path / "out.tflite")
    assert "1 float16 constant became float32 before quantization" in notes
    assert scheme == "float16" or all(tensor.dtype != "float16" for tensor in lite.tensors)
    expected = interpreter.predict(plain, SAMPLES[:4], Runtime.BUILTIN).real_values
    outputs = interpreter.predict(lite.path, SAMPLES[:4], Runtime.BUILTIN).real_values
    assert np.abs(np.asarray(expected) - np.asarray(outputs)).max() < (0.1 if scheme == "int8" else 0.02)


def test_float16_activations_are_still_refused(tmp_path: Path) -> None:
    tensors = [T(name, (1, 4), "float16") for name in ("x", "y")]
    tensors.append(T("w", (1, 4), "float16", np.ones((1, 4), "float16")))
    path = write(tmp_path / "m.tflite", tensors, [Op("ADD", ("x", "w"), ("y",), _options("AddOptions"))], ["x"], ["y"])
    with pytest.raises(InputError, match="'w' is float16"):
        read_float_tflite(path)
