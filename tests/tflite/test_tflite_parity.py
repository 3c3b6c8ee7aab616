"""Parity is a distribution against the reference, checked on outputs made by hand."""

import json

import numpy as np
import pytest

from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError
from edgepipe.tflite.parity import compare
from edgepipe.tflite.sample_conversion import ModelOutputs


def make_outputs(raw: Array, scale: float = 0.5) -> ModelOutputs:
    values = raw if raw.dtype.kind == "f" else (raw * np.float32(scale)).astype(np.float32)
    scales = {} if raw.dtype.kind == "f" else {"output": scale}
    return ModelOutputs(raw, values, scales, dict.fromkeys(scales, 0), "by hand")


def test_differences_are_counted_with_their_sign() -> None:
    a = make_outputs(np.array([[1, 5, 3], [9, 0, 0], [-128, 127, 0]], np.int8))
    b = make_outputs(np.array([[2, 5, 3], [9, 0, -2], [127, -128, 0]], np.int8))
    found = compare(a, b)
    assert found.histogram == {-255: 1, -2: 1, 0: 5, 1: 1, 255: 1}
    assert (found.samples, found.max_lsb, found.max_difference) == (3, 255, 127.5)
    assert found.labels_equal == pytest.approx(2 / 3)
    assert found.text() == "labels 66.67 % equal; LSB -255: 1, -2: 1, 0: 5, 1: 1, 255: 1"
    assert json.loads(found.model_dump_json())["histogram"]["-2"] == 1


def test_the_99th_percentile_ignores_the_rarest() -> None:
    raw = np.zeros((1000, 1), np.int8)
    other = raw.copy()
    other[:5] = 9
    found = compare(make_outputs(raw), make_outputs(other))
    assert (found.max_lsb, found.p99_lsb, found.labels_equal) == (9, 0.0, None)


def test_floats_have_no_lsb() -> None:
    a, b = np.array([[0.25, 1]], np.float32), np.array([[0.5, 1]], np.float32)
    found = compare(make_outputs(a), make_outputs(b))
    assert (found.histogram, found.max_lsb, found.p99_lsb) == ({}, None, None)
    assert (found.max_difference, found.labels_equal) == (0.25, 1.0)
    assert found.text() == "labels 100.00 % equal; largest difference 0.25"


def test_labels_of_several_outputs_must_all_agree() -> None:
    left, right = np.array([[1, 2], [2, 1]], np.int8), np.array([[1, 2], [1, 2]], np.int8)
    a = ModelOutputs({"a": left, "b": left}, {"a": left, "b": left}, {}, {}, "")
    b = ModelOutputs({"a": left, "b": right}, {"a": left, "b": right}, {}, {}, "")
    found = compare(a, b)
    assert (found.labels_equal, found.histogram) == (0.5, {-1: 1, 0: 6, 1: 1})


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (make_outputs(np.zeros((2, 3), np.int8)), r"the reference gave .*\(1, 3\).* the other .*\(2, 3\)"),
        (make_outputs(np.zeros((1, 3), np.uint8)), r"'int8'.*'uint8'"),
        (make_outputs(np.zeros((1, 3), np.int8), scale=0.25), r"scales or zero points differ"),
    ],
)
def test_what_cannot_be_compared(other: ModelOutputs, message: str) -> None:
    with pytest.raises(InputError, match=message):
        compare(make_outputs(np.zeros((1, 3), np.int8)), other)
