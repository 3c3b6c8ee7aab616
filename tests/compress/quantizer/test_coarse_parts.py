"""Parts of one 8-bit tensor with few codes are named, with what to do."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from integer_graphs import Body, float_graph

from edgepipe.compress.quantizer.quantization import QuantizationRequest, quantize_tflite

X = np.random.default_rng(0).normal(size=(120, 6, 4)).astype("float32")
BOXES_AND_SCORES: Body = lambda x: tf.concat([tf.abs(x) * 100.0, tf.sigmoid(x)], axis=-1)  # noqa: E731
# the body, and what its notes say
NAMED: dict[str, tuple[Body, str]] = {
    "boxes and scores": (
        BOXES_AND_SCORES,
        r"joins very different ranges: of its 255 steps '.*' \(0 to 0\.9\d+\) gets 0\.[67]; make them separate outputs",
    ),
    "in the middle": (
        lambda x: tf.matmul(BOXES_AND_SCORES(x), np.ones((8, 2), "float32")),
        r"gets 0\.[67]; scale them alike before they are joined",
    ),
    "stacked": (lambda x: tf.stack([x * 50.0, tf.tanh(x)], axis=1), r"joins very different ranges"),
    "columns of one output": (
        lambda x: tf.matmul(x, np.diag([200.0, 200.0, 1.0, 2.0]).astype("float32")),
        r"2 of its 4 channels \(number 2, 3, counted from 0\) span fewer than 20 of its steps",
    ),
}


def _notes(body: Body, scheme: Any, folder: Path) -> list[str]:
    lite = float_graph(body, folder, X)
    notes = quantize_tflite(lite, QuantizationRequest(scheme), [X[:80]], held_out_feeds=[X[80:]]).notes
    return [note for note in notes if "steps" in note]


@pytest.mark.parametrize("name", NAMED)
def test_parts_with_few_codes_are_named(name: str, tmp_path: Path) -> None:
    body, pattern = NAMED[name]
    (note,) = _notes(body, "int8", tmp_path)
    assert re.search(pattern, note), note
    assert not _notes(body, "int16x8", tmp_path)


SILENT: dict[str, Body] = {
    "alike": lambda x: tf.concat([tf.abs(x), tf.sigmoid(x)], axis=-1),
    "probabilities of rare classes": lambda x: tf.nn.softmax(x - np.array([0, 0, 0, 9], "float32")),
    "a constant column": lambda x: tf.concat([x, np.full((1, 6, 1), 0.01, "float32")], axis=-1),
    "all small": lambda x: 1e-3 * x,
}


@pytest.mark.parametrize("name", SILENT)
def test_healthy_parts_are_not(name: str, tmp_path: Path) -> None:
    assert not _notes(SILENT[name], "int8", tmp_path)
