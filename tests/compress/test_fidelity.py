"""The fidelity gate: raised where a conversion has collapsed, with the first wrong tensor; never for healthy ones."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from edgepipe.commands.convert import convert as convert_file
from edgepipe.compress.fidelity import OutputFidelity, labels_equal, measure_fidelity
from edgepipe.compress.keras_to_tflite import convert
from edgepipe.tflite.model import Model
from edgepipe.tflite.reader import read

sys.path.append(str(Path(__file__).parent / "quantizer"))
from reference_quantizers import quantize_with_tensorflow

X = np.random.default_rng(0).normal(size=(100, 6)).astype("float32")


def _lost_part() -> Any:
    """A small tensor in one scale with a thousand times larger one: nothing of it is left in 8 bits."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,), name="x")
    both = keras.layers.Concatenate(name="both")([inputs * 5_000.0, inputs])
    return keras.Model(inputs, keras.layers.Dense(3, name="scores")(both[:, 6:]))


def _healthy() -> Any:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,), name="x")
    return keras.Model(inputs, keras.layers.Dense(3, name="scores")(keras.layers.Dense(8, activation="relu")(inputs)))


def _save(model: Any, folder: Path) -> Path:
    path = folder / "m.keras"
    model.save(path)
    return path


def _convert(source: Path, **options: Any) -> Any:
    arguments = {"scheme": "int8", "input_type": None, "output_type": None, "allow_code": False, **options}
    return convert_file(source, data=X, out=source.with_suffix(".tflite"), **arguments)


def test_a_collapse_is_a_finding_and_the_file_is_written(tmp_path: Path) -> None:
    conversion = _convert(_save(_lost_part(), tmp_path))
    (finding,) = conversion.findings
    assert finding.rule == "fidelity"
    assert "20 samples that did not calibrate; the first wrong tensor is '" in finding.observed
    assert "allow_low_fidelity" in finding.suggestion
    assert (tmp_path / "m.tflite").exists()


def test_it_can_be_accepted_which_is_a_note(tmp_path: Path) -> None:
    conversion = _convert(_save(_lost_part(), tmp_path), allow_low_fidelity=True)
    assert conversion.findings == ()
    assert sum(note.startswith("accepted by allow_low_fidelity: fidelity: output") for note in conversion.notes) == 1


@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
def test_a_healthy_model_passes(scheme: str, tmp_path: Path) -> None:
    assert _convert(_save(_healthy(), tmp_path), scheme=scheme).findings == ()


def test_sixteen_bits_hold_what_eight_do_not(tmp_path: Path) -> None:
    assert _convert(_save(_lost_part(), tmp_path), scheme="int16x8").findings == ()


def _float_model(model: Any, folder: Path) -> Model:
    path = folder / "float.tflite"
    path.write_bytes(convert(model, "float32"))
    return read(path)


def test_another_quantizers_collapse_is_seen_where_it_arises(tmp_path: Path) -> None:
    inputs = keras.Input((6,), name="x")
    masked = keras.layers.Lambda(lambda x: tf.where(x > 0.0, x, -1e9), name="masked")(inputs)
    model = keras.Model(inputs, keras.layers.Softmax(name="weights")(masked))
    lite = _float_model(model, tmp_path)
    content = quantize_with_tensorflow(lite.content, [X[:50]], ("int8", "int8"))
    fidelity = measure_fidelity(lite, content, X[50:])
    assert fidelity.findings()
    assert fidelity.first_wrong_tensor == "x"  # it got the scale of the mask fill


@pytest.mark.parametrize("kind", ["LOG", "ADD"])
@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
def test_sixteen_bits_are_no_advice_for_sixteen_bits(scheme: Any, kind: str, tmp_path: Path) -> None:
    model = _healthy()
    measured = measure_fidelity(_float_model(model, tmp_path), convert(model, scheme, X), X)
    collapsed = replace(measured, outputs=(OutputFidelity("y", 10.0),), first_wrong_kind=kind)
    (finding,) = collapsed.findings()
    assert ("or scheme mixed or int16x8" in finding.suggestion) is (scheme == "int8")
    assert ("a logarithm shows decades" in finding.suggestion) is (kind == "LOG")


def test_an_output_that_does_not_vary_is_not_judged(tmp_path: Path) -> None:
    inputs = keras.Input((6,), name="x")
    model = keras.Model(
        inputs, keras.layers.Dense(2, kernel_initializer="zeros", bias_initializer="ones", name="constant")(inputs)
    )
    lite = _float_model(model, tmp_path)
    fidelity = measure_fidelity(lite, convert(model, "int8", X), X)
    assert [output.relative_noise for output in fidelity.outputs] == [None]
    assert fidelity.findings() == []
    assert [metric.value for metric in fidelity.metrics()] == [None, 1.0]
    assert fidelity.metrics()[0].how.startswith("dB, 'constant' not judged, varies by less than two steps, on 100 ")


def test_the_report_has_the_ratio_and_the_labels(tmp_path: Path) -> None:
    metrics = {metric.name: metric for metric in _convert(_save(_healthy(), tmp_path)).metrics}
    assert 10 < metrics["signal_to_noise"].value < 80  # one sample lies beyond what calibrated
    assert 0.8 <= metrics["float_labels_equal"].value <= 1
    assert "on 20 samples that did not calibrate" in metrics["signal_to_noise"].how


def test_without_enough_samples_it_is_unavailable(tmp_path: Path) -> None:
    path = _save(_healthy(), tmp_path)
    arguments = {"scheme": "int8", "input_type": None, "output_type": None, "allow_code": False}
    conversion = convert_file(path, data=X[:40], out=tmp_path / "m.tflite", **arguments)
    metric = next(metric for metric in conversion.metrics if metric.name == "signal_to_noise")
    assert metric.value is None
    assert metric.how.startswith("all 40 samples calibrate; from 50 on, ")


def test_labels_of_positions_and_of_masks() -> None:
    scores = np.array([[[0.9, 0.1], [0.4, 0.6]]])
    fidelity = OutputFidelity("y", 0.01, labels_equal(scores[..., ::-1], scores))
    assert fidelity.equal_fraction == 0
    masks = np.array([[[0.9], [0.2]], [[0.6], [0.7]]])
    assert labels_equal(masks - 0.15, masks) == 0.75
    assert labels_equal(masks, masks * 40) is None


def test_a_constant_output_and_an_absurd_scale_are_named(tmp_path: Path) -> None:
    inputs = keras.Input((6,), name="x")
    wide = keras.layers.Dense(3, name="wide")(inputs * 1e9)
    model = keras.Model(inputs, keras.layers.Concatenate()([wide, inputs]))
    lite = _float_model(model, tmp_path)
    findings = measure_fidelity(lite, convert(model, "int8", X), X).findings()
    assert any(finding.observed.startswith("one step is ") for finding in findings)
