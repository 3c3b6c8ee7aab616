"""What to do about an operator depends on where it stands in the graph."""

from pathlib import Path
from typing import Any

import pytest
import runtime_models as models
from tflite_handmade import Op, T, write

from edgepipe.devices import device_profile
from edgepipe.devices.placement import place_operators, suggest_replacement
from edgepipe.devices.support_check import check_support
from edgepipe.tflite import reader

HALF: dict[str, Any] = {"scales": (0.5,)}


def _float_in_the_middle(path: Path) -> Path:
    """int8 -> DEQUANTIZE -> EXP in float -> QUANTIZE -> int8."""
    tensors = [T("x", (1, 4), **HALF), T("a", (1, 4), "float32"), T("b", (1, 4), "float32"), T("y", (1, 4), **HALF)]
    ops = [Op("DEQUANTIZE", ("x",), ("a",)), Op("EXP", ("a",), ("b",)), Op("QUANTIZE", ("b",), ("y",))]
    return write(path, tensors, ops, ["x"], ["y"])


def _float_ends(path: Path) -> Path:
    """float -> QUANTIZE -> RELU in int8 -> DEQUANTIZE -> float."""
    tensors = [T("x", (1, 4), "float32"), T("a", (1, 4), **HALF), T("b", (1, 4), **HALF), T("y", (1, 4), "float32")]
    ops = [Op("QUANTIZE", ("x",), ("a",)), Op("RELU", ("a",), ("b",)), Op("DEQUANTIZE", ("b",), ("y",))]
    return write(path, tensors, ops, ["x"], ["y"])


SUGGESTED = [  # model, operator, a part of the suggestion
    (_float_in_the_middle, 0, "it leads to a part in float: quantize EXP #1"),
    (_float_in_the_middle, 2, "quantize the part in float before it"),
    (_float_ends, 0, "convert with int8 inputs"),
    (_float_ends, 2, "convert with int8 outputs"),
    (models.looping, 0, "unroll=True in Keras"),
]


@pytest.mark.parametrize(("build", "index", "text"), SUGGESTED)
def test_the_suggestion_for_the_place_of_an_operator(
    build: models.Build, index: int, text: str, tmp_path: Path
) -> None:
    model = reader.read(build(tmp_path / "m.tflite"))
    assert text in suggest_replacement(model, model.operators[index], ("CONV_2D",))


def test_no_output_is_blamed_for_a_dequantize_in_the_middle(tmp_path: Path) -> None:
    model = reader.read(_float_in_the_middle(tmp_path / "m.tflite"))
    placements = place_operators(device_profile.load("coral-edge-tpu", tmp_path), model)
    assert all("int8 outputs" not in placement.suggestion for placement in placements)


def test_a_recurrent_loop_is_answered_with_unrolling(tmp_path: Path) -> None:
    model = reader.read(models.looping(tmp_path / "m.tflite"))
    findings = check_support(device_profile.load("nucleo-h7a3zi-q", tmp_path), model)
    (loop,) = [finding for finding in findings if finding.place == "WHILE #0" and finding.rule == "operator"]
    assert "fixed length" in loop.suggestion
