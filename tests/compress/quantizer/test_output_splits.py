"""An output that joins boxes and scores becomes two outputs, each with its own scale; edgepipe joins them again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

from edgepipe.compress.keras_to_tflite import convert_keras
from edgepipe.compress.quantizer.quantization import QuantizationRequest, QuantizedModel
from edgepipe.compress.schemes import check_split_outputs
from edgepipe.core.errors import InputError
from edgepipe.tflite import tflm_runtime
from edgepipe.tflite.integer_check import check_integer_only
from edgepipe.tflite.interpreter import Runtime, predict
from edgepipe.tflite.metadata import add_metadata
from edgepipe.tflite.model import Model
from edgepipe.tflite.reader import read
from edgepipe.tflite.split_outputs import SPLIT_OUTPUTS_NAME, read_split_outputs

IMAGES = np.random.RandomState(0).uniform(0, 3, (40, 8, 8, 3)).astype(np.float32)
CELLS = 16


def _detector(finish: Callable[[Any, Any, Any], Any]) -> Any:
    """A network with boxes from 0 to 320 and scores from 0 to 1 for each of 16 cells; `finish` makes its outputs."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(8, 3, strides=2, activation="relu", padding="same")(image)
    boxes = layers.Rescaling(320.0)(layers.Conv2D(4, 1, activation="sigmoid")(x))
    scores = layers.Conv2D(3, 1, activation="sigmoid")(x)
    return keras.Model(image, finish(x, layers.Reshape((CELLS, 4))(boxes), layers.Reshape((CELLS, 3))(scores)))


def _join(boxes: Any, scores: Any) -> Any:
    return layers.Concatenate(name="detections")([boxes, scores])


def _read_join(join: Any) -> dict[str, Any]:
    return {"all": join, "sum": layers.Dense(2)(join)}


def _one_join(first: Any, second: Any) -> Any:
    return layers.Concatenate()([first, second])


def _join_levels(joins: list[Any]) -> Any:
    return layers.Concatenate(axis=1, name="levels")(joins)


# what the model gives, and the names of its outputs after the split
SPLITS: dict[str, tuple[Callable[[Any, Any, Any], Any], list[str]]] = {
    "joined": (lambda x, b, s: _join(b, s), ["detections_0", "detections_1"]),
    "reshaped": (lambda x, b, s: layers.Reshape((4, 4, 7), name="grid")(_join(b, s)), ["grid_0", "grid_1"]),
    "beside another": (
        lambda x, b, s: {"all": _join(b, s), "mean": layers.GlobalAveragePooling2D()(x)},
        ["all_0", "all_1", "mean"],
    ),
    "read inside too": (lambda x, b, s: _read_join(_join(b, s)), ["all_0", "all_1", "sum"]),
    "levels": (
        lambda x, b, s: _join_levels([_join(b, s), _one_join(b[:, :6], s[:, :6])]),
        ["levels_0", "levels_1"],
    ),
    "taken names": (lambda x, b, s: {"all": _join(b, s), "all_0": layers.ReLU()(s)}, ["all_0_part", "all_1", "all_0"]),
}


def _convert(finish: Callable[[Any, Any, Any], Any], **options: Any) -> tuple[Any, QuantizedModel]:
    model = _detector(finish)
    request = QuantizationRequest(**{"scheme": "int8", "split_outputs": True, **options})
    return model, convert_keras(model, request, IMAGES, IMAGES)


def _write(content: bytes, folder: Path) -> Model:
    path = folder / "split.tflite"
    path.write_bytes(content)
    return read(path)


@pytest.mark.parametrize("name", SPLITS)
def test_parts_become_outputs_with_scales_of_their_own(name: str, tmp_path: Path) -> None:
    finish, output_names = SPLITS[name]
    model, quantized_model = _convert(finish)
    lite = _write(quantized_model.content, tmp_path)
    assert list(lite.outputs_by_name) == output_names
    assert [tensor.name for tensor in lite.outputs] == output_names
    assert not check_integer_only(lite)
    boxes, scores = (lite.outputs_by_name[part].quantization for part in read_split_outputs(lite)[0].parts)
    assert boxes is not None
    assert scores is not None
    assert boxes.scales[0] > 100 * scores.scales[0]
    (note,) = [note for note in quantized_model.notes if note.startswith("split_outputs: ")]
    assert f"is now '{output_names[0]}' (" in note
    assert not any("joins very different ranges" in note for note in quantized_model.notes)
    outputs, expected_outputs = predict(lite.path, IMAGES).real_values, model(IMAGES)
    pairs = (
        [(outputs[key], expected_outputs[key]) for key in expected_outputs]
        if isinstance(outputs, dict)
        else [(outputs, expected_outputs)]
    )
    for array, expected_array in pairs:
        assert array.shape == expected_array.shape
    cells = np.asarray(pairs[0][0]).reshape(-1, 7), np.asarray(pairs[0][1]).reshape(-1, 7)
    np.testing.assert_allclose(cells[0][:, :4], cells[1][:, :4], atol=12)
    np.testing.assert_allclose(cells[0][:, 4:], cells[1][:, 4:], atol=0.04)


def test_fidelity_is_that_of_each_part(tmp_path: Path) -> None:
    _, split_model = _convert(SPLITS["joined"][0])
    assert split_model.fidelity is not None
    assert [output.name for output in split_model.fidelity.outputs] == ["detections_0", "detections_1"]
    for output in split_model.fidelity.outputs:
        assert output.decibels is not None
        assert output.decibels > 20


def test_tflite_micro_gives_the_joined_output(tmp_path: Path) -> None:
    _, split_model = _convert(SPLITS["reshaped"][0])
    lite = _write(split_model.content, tmp_path)
    reference = predict(lite.path, IMAGES[:4], Runtime.REFERENCE)
    micro = tflm_runtime.predict(lite.path, IMAGES[:4])
    assert np.asarray(micro.real_values).shape == (4, 4, 4, 7)
    np.testing.assert_allclose(np.asarray(micro.real_values), np.asarray(reference.real_values), atol=4)


KEPT: dict[str, tuple[Callable[[Any, Any, Any], Any], dict[str, Any]]] = {
    "16 bits": (SPLITS["joined"][0], {"scheme": "int16x8"}),
    "alike": (lambda x, b, s: _join(s, ops.tanh(s)), {}),
    "levels of other parts": (lambda x, b, s: _join_levels([_join(b, s), _one_join(s, b)]), {}),
    "no join": (lambda x, b, s: s, {}),
    "computed on": (lambda x, b, s: layers.Dense(3)(_join(b, s)), {}),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_is_not_split_is_said(name: str, tmp_path: Path) -> None:
    finish, options = KEPT[name]
    _, quantized_model = _convert(finish, **options)
    lite = _write(quantized_model.content, tmp_path)
    assert len(lite.outputs) == 1
    assert not read_split_outputs(lite)
    assert any(
        note.startswith("split_outputs: nothing is split: no output is a conc") for note in quantized_model.notes
    )


REFUSALS: dict[str, tuple[Any, int | None, str]] = {
    "no scale": ("dynamic", None, "scheme dynamic gives outputs no scale; use scheme int8, or drop split_outputs"),
    "mixed": ("mixed", None, "scheme mixed searches bits for each layer instead; use scheme int8"),
    "streaming": ("int8", 1, "split_outputs and streaming: a stream keeps its outputs; make the parts outputs"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_outputs_that_cannot_be_split_are_refused(name: str) -> None:
    scheme, streaming, message = REFUSALS[name]
    with pytest.raises(InputError, match=message):
        check_split_outputs(scheme, True, streaming)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (b"{", "metadata 'edgepipe.split_outputs' cannot be read: Invalid JSON"),
        (
            b'{"outputs": [{"name": "a", "parts": ["x", "y"], "axis": 1, "shape": [1, 2]}]}',
            "names 'x', which is no outp",
        ),
    ],
)
def test_damaged_metadata_is_refused(entry: bytes, message: str, tmp_path: Path) -> None:
    _, quantized_model = _convert(KEPT["no join"][0])
    lite = _write(add_metadata(quantized_model.content, SPLIT_OUTPUTS_NAME, entry), tmp_path)
    with pytest.raises(InputError, match=message):
        predict(lite.path, IMAGES[:1])
