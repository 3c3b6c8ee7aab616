"""Each mechanism of quantization-aware training: lowered exactly, all tensors trained, all int8, in agreement."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tf_keras
from qat_models import COVERED

from edgepipe.compress.keras_to_tflite import convert
from edgepipe.compress.qat import range_initialization
from edgepipe.compress.qat.agreement import measure_agreement
from edgepipe.compress.qat.fake_quant import FakeQuantModel, QatRecipe, build_fake_quant
from edgepipe.models.perturb import perturb
from edgepipe.tflite.integer_check import check_integer_only
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
    tflite_bytes = convert(fake_quant.model, samples=x)
    (tmp_path / "m.tflite").write_bytes(tflite_bytes)
    lite = read(tmp_path / "m.tflite")
    assert check_integer_only(lite) == []
    # samples of another magnitude only change tensors without a trained range
    assert _without_counters(convert(fake_quant.model, samples=_inputs(base, spread=9.0))) == _without_counters(
        tflite_bytes
    )
    tensors = measure_agreement(fake_quant.model, lite, x).tensors
    assert [entry for entry in tensors if entry.missing_reason] == []
    worst = max(tensors, key=lambda entry: entry.p99_lsb)
    assert worst.p99_lsb <= 4, worst  # random weights amplify rounding


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
