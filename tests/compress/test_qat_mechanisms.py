"""Each mechanism of quantization-aware training: lowered without loss, all tensors trained, all int8, in agreement."""

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
    found = {}
    for tensor in model.inputs:
        shape = (SAMPLES, *tensor.shape[1:])
        is_index = any(type(layer).__name__ == "Embedding" for layer in model.layers)
        values = generator.integers(0, 20, shape) if is_index else generator.normal(0, spread, shape)
        found[tensor.name] = values.astype("float32")
    return found if len(found) > 1 else next(iter(found.values()))


def _made(name: str) -> tuple[Any, FakeQuantModel, Any]:
    set_seeds(1)
    base = COVERED[name]()
    perturb(base)
    x = _inputs(base)
    made = build_fake_quant(base, QatRecipe(), x)
    range_initialization.initialize_ranges(made.model, x, seed=0, batch_statistics=False)
    return base, made, x


def _names(model: Any) -> list[str]:
    """Those of all layers that compute, nested ones too."""
    inner = [_names(layer) if isinstance(layer, tf_keras.Model) else [layer.name] for layer in model.layers]
    return sorted({name for names in inner for name in names} - set(getattr(model, "input_names", ())))


def _nameless(data: bytes) -> bytes:
    # TensorFlow numbers the tables of embeddings by a counter of the process
    return re.sub(rb"embedding_lookup/\d+", b"embedding_lookup/", data)


@pytest.mark.slow
@pytest.mark.parametrize("name", COVERED)
def test_mechanism(name: str, tmp_path: Path) -> None:
    base, made, x = _made(name)
    assert made.difference is not None
    assert made.difference < 1e-5
    assert {entry.quantized_by for entry in made.coverage} == {"training"}, made.coverage
    assert sorted(entry.layer for entry in made.coverage) == _names(base)
    data = convert(made.model, samples=x)
    (tmp_path / "m.tflite").write_bytes(data)
    lite = read(tmp_path / "m.tflite")
    assert check_integer_only(lite) == []
    # samples of another size only change what nobody gave a range
    assert _nameless(convert(made.model, samples=_inputs(base, spread=9.0))) == _nameless(data)
    found = measure_agreement(made.model, lite, x).tensors
    assert [entry for entry in found if entry.missing_reason] == []
    worst = max(found, key=lambda entry: entry.p99_lsb)
    assert worst.p99_lsb <= 4, worst  # random weights amplify rounding


@pytest.mark.slow
def test_a_gap_in_coverage_shows_in_the_bytes() -> None:
    """The proof above has teeth: without fake-quant on one layer the representative samples decide."""
    set_seeds(1)
    base = COVERED["three summands"]()
    perturb(base)
    x = _inputs(base)
    made = build_fake_quant(base, QatRecipe(leave=("part0",)), x)
    range_initialization.initialize_ranges(made.model, x, seed=0, batch_statistics=False)
    assert [entry.layer for entry in made.coverage if entry.quantized_by == "calibration"] == ["part0"]
    assert convert(made.model, samples=x) != convert(made.model, samples=_inputs(base, spread=9.0))
    assert isinstance(made.model, tf_keras.Model)
