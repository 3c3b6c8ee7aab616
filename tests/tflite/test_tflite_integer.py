"""The fully-integer proof names every offender and nothing else."""

from pathlib import Path

import pytest
from tflite_handmade import Op, T, write

from edgepipe.tflite import integer_check, reader


def test_an_integer_network_has_no_findings(int8_net: Path) -> None:
    assert integer_check.check_integer_only(reader.read(int8_net)) == []


def test_a_float_interface_is_found_unless_allowed(float_io_net: Path) -> None:
    model = reader.read(float_io_net)
    found = [str(finding) for finding in integer_check.check_integer_only(model)]
    assert [text.split(":")[1].split(" ")[1] for text in found] == ["input", "output", "QUANTIZE", "DEQUANTIZE"]
    assert "is float32 (at the model's float interface); convert with int8 input and output" in found[2]
    assert {finding.rule for finding in integer_check.check_integer_only(model)} == {"integer-only"}
    assert integer_check.check_integer_only(model, allow_float_interface=True) == []


def test_every_operator_of_a_float_network_is_found(float_net: Path) -> None:
    model = reader.read(float_net)
    places = {finding.place for finding in integer_check.check_integer_only(model, allow_float_interface=True)}
    assert places == {operator.location for operator in model}


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """int8 with a float island in the middle, and a float16 constant."""
    tensors = [
        T("x", (1, 4), scales=(1.0,)),
        T("f", (1, 4), "float32"),
        T("c", (4,), "float16", b"\0" * 8),
        T("g", (1, 4), "float32"),
        T("y", (1, 4), scales=(1.0,)),
    ]
    ops = [Op("DEQUANTIZE", ("x",), ("f",)), Op("ADD", ("f", "c"), ("g",)), Op("QUANTIZE", ("g",), ("y",))]
    return write(tmp_path / "m.tflite", tensors, ops, ["x"], ["y"])


@pytest.mark.parametrize("allowed", [False, True])
def test_a_float_island_is_named_with_its_tensors(mixed: Path, allowed: bool) -> None:
    assert [
        (finding.place, finding.observed) for finding in integer_check.check_integer_only(reader.read(mixed), allowed)
    ] == [
        ("DEQUANTIZE #0", "tensor 'f' is float32"),
        ("ADD #1", "tensor 'f' is float32, tensor 'c' is float16, tensor 'g' is float32"),
        ("QUANTIZE #2", "tensor 'g' is float32"),
    ]


def test_custom_and_flex_operators_are_found(tmp_path: Path) -> None:
    ops = [Op("CUSTOM", ("x",), ("y",), custom="FlexErf"), Op("CUSTOM", ("y",), ("z",), custom="MyOp")]
    path = write(tmp_path / "m.tflite", [T("x", (1,)), T("y", (1,)), T("z", (1,))], ops, ["x"], ["z"])
    found = [str(finding) for finding in integer_check.check_integer_only(reader.read(path))]
    assert found[0].startswith("integer-only: FlexErf #0: runs TensorFlow's own kernel (Flex); replace the layer")
    assert found[1].startswith("integer-only: MyOp #1: is a custom operator, whose arithmetic is unknown")


def test_a_float_output_that_no_dequantize_makes_stays_a_finding(tmp_path: Path) -> None:
    tensors = [T("x", (1, 4), "float32"), T("y", (1, 4), "float32")]
    model = reader.read(write(tmp_path / "m.tflite", tensors, [Op("ABS", ("x",), ("y",))], ["x"], ["y"]))
    assert [finding.place for finding in integer_check.check_integer_only(model, allow_float_interface=True)] == [
        "ABS #0"
    ]
