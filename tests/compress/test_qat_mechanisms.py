"""Each mechanism of quantization-aware training: lowered exactly, all tensors trained, all int8, in agreement."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from qat_models import COVERED

from edgepipe.compress.keras_to_tflite import convert, convert_keras
from edgepipe.compress.qat import range_initialization
from edgepipe.compress.qat.fake_quant import FakeQuantModel, QatRecipe, build_fake_quant
from edgepipe.compress.quantizer.quantization import QuantizationRequest
from edgepipe.models.perturb import perturb
from edgepipe.tflite.integer_check import check_integer_only
from edgepipe.tflite.interpreter import predict
from edgepipe.tflite.model import Model
from edgepipe.tflite.reader import read
from edgepipe.training.training_loop import set_seeds

SAMPLES = 24


def _inputs(model: Any, spread: float = 1.0) -> Any:
    generator = np.random.default_rng(3)
    inputs = {}
    for tensor in model.inputs:
        shape = (SAMPLES, *tensor.shape[1:])
        is_index = any(type(layer).__name__ == "Embedding" for layer in model.layers)
        array = generator.integers(0, 20, shape) if is_index else generator.normal(0, spread, shape)
        inputs[tensor.name] = array.astype("float32")
    return inputs if len(inputs) > 1 else next(iter(inputs.values()))


def _build(name: str) -> tuple[Any, FakeQuantModel, Any]:
    set_seeds(1)
    base = COVERED[name]()
    perturb(base)
    x = _inputs(base)
    fake_quant = build_fake_quant(base, QatRecipe(), x)
    range_initialization.initialize_ranges(fake_quant.model, x, seed=0, use_batch_statistics=False)
    return base, fake_quant, x


def _layer_names(model: Any) -> list[str]:
    """The names of all layers that compute, nested ones included."""
    inner = [_layer_names(layer) if isinstance(layer, tf_keras.Model) else [layer.name] for layer in model.layers]
    return sorted({name for names in inner for name in names} - set(getattr(model, "input_names", ())))


def _without_counters(data: bytes) -> bytes:
    # TensorFlow numbers the tables of embeddings by a counter of the process
    return re.sub(rb"embedding_lookup/\d+", b"embedding_lookup/", data)


@pytest.mark.slow
@pytest.mark.parametrize("name", COVERED)
def test_mechanism(name: str, tmp_path: Path) -> None:
    base, fake_quant, x = _build(name)
    assert fake_quant.difference is not None
    assert fake_quant.difference < 1e-5
    assert {entry.quantized_by for entry in fake_quant.layer_coverages} == {"training"}, fake_quant.layer_coverages
    assert sorted(entry.layer for entry in fake_quant.layer_coverages) == _layer_names(base)
    quantized_model = convert_keras(fake_quant.model, QuantizationRequest(), x, x)
    tflite_bytes = quantized_model.content
    (tmp_path / "m.tflite").write_bytes(tflite_bytes)
    lite = read(tmp_path / "m.tflite")
    assert check_integer_only(lite) == []
    # samples of another magnitude only change tensors without a trained range
    assert _without_counters(convert(fake_quant.model, samples=_inputs(base, spread=9.0))) == _without_counters(
        tflite_bytes
    )
    assert quantized_model.agreement is not None
    tensors = quantized_model.agreement.tensors
    assert [entry for entry in tensors if entry.missing_reason] == []
    worst = max(tensors, key=lambda entry: entry.p99_lsb)
    assert worst.p99_lsb <= 5, worst  # random weights amplify rounding
    assert _output_steps(fake_quant.model, lite, x) <= 4


def _output_steps(model: Any, lite: Model, x: Any) -> float:
    """The 99th percentile of the difference between the outputs of the fake-quant and the int8 model, in steps."""
    outputs, int8_outputs = model.predict(x, verbose=0), predict(lite.path, x).real_values
    pairs = zip(
        tf.nest.flatten(outputs),
        int8_outputs.values() if isinstance(int8_outputs, dict) else [int8_outputs],
        strict=True,
    )
    return max(
        float(np.percentile(np.abs(output - int8_output), 99) / tensor.quantization.scales[0])
        for tensor, (output, int8_output) in zip(lite.outputs, pairs, strict=True)
        if tensor.quantization is not None
    )


@pytest.mark.slow
def test_a_gap_in_coverage_shows_in_the_bytes() -> None:
    """Counter-check of the test above: without fake-quant on one layer the representative samples set its range."""
    set_seeds(1)
    base = COVERED["three summands"]()
    perturb(base)
    x = _inputs(base)
    fake_quant = build_fake_quant(base, QatRecipe(excluded_layers=("part0",)), x)
    range_initialization.initialize_ranges(fake_quant.model, x, seed=0, use_batch_statistics=False)
    assert [entry.layer for entry in fake_quant.layer_coverages if entry.quantized_by == "calibration"] == ["part0"]
    assert convert(fake_quant.model, samples=x) != convert(fake_quant.model, samples=_inputs(base, spread=9.0))
    assert isinstance(fake_quant.model, tf_keras.Model)
