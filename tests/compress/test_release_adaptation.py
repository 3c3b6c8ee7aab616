"""Models converted for one release of a runtime, run there.

`EDGEPIPE_RUNTIMES="litert==1.0:FOLDER/bin/python tflite-micro==2023-10-10:.."` tries other releases in environments of
their own.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import edgepipe
from edgepipe import api
from edgepipe.core.errors import InputError
from edgepipe.devices.runtimes.release_check import check_release
from edgepipe.devices.runtimes.releases import parse_release
from edgepipe.tflite.model import Model
from edgepipe.tflite.reader import read

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))
from runtime_abilities import pack, reference_outputs

ROOT = Path(__file__).resolve().parents[2]
DEVICE_PYTHON = ROOT / ".venv-device" / "bin" / "python"
NO_DEVICE_RUNTIME = "no .venv-device: `make test` makes it where there is a Python 3.11"
needs_device_runtime = pytest.mark.skipif(not DEVICE_PYTHON.exists(), reason=NO_DEVICE_RUNTIME)
RELEASE = "tflite-runtime==2.14"
MICRO_2023 = "tflite-micro==2023-10-10"
PYTHON_BY_RELEASE = {
    RELEASE: str(DEVICE_PYTHON),
    **dict(pair.split(":", 1) for pair in os.environ.get("EDGEPIPE_RUNTIMES", "").split()),
}
MAX_STEPS = {"gates int8": 4}  # ten recurrent steps add up what kernels round differently
L = keras.layers
SAMPLES = 8


def _dense() -> keras.Model:
    return keras.Sequential(
        [keras.Input((48,)), L.Dense(64, activation="relu"), L.Dense(32), L.Dense(5, activation="softmax")]
    )


def _convolutions() -> keras.Model:
    inputs = keras.Input((12, 12, 3))
    x = L.Conv2D(8, 3, strides=2, activation="relu", padding="same")(inputs)
    x = L.Add()([x, L.DepthwiseConv2D(3, padding="same", activation="relu")(x)])
    return keras.Model(inputs, L.Dense(4, activation="softmax")(L.GlobalAveragePooling2D()(x)))


def _causal() -> keras.Model:
    inputs = keras.Input((16, 4))
    x = L.Conv1D(8, 3, padding="causal", dilation_rate=2, activation="relu")(inputs)
    return keras.Model(inputs, L.Dense(3)(L.Flatten()(L.MaxPooling1D(2)(x))))


def _upsampling() -> keras.Model:
    inputs = keras.Input((6, 6, 16))
    return keras.Model(inputs, L.Conv2DTranspose(8, 3, strides=2)(L.Conv2D(16, 3, activation="relu")(inputs)))


def _gates() -> keras.Model:
    inputs = keras.Input((10, 6))
    return keras.Model(inputs, L.Dense(3)(L.LSTM(8, unroll=True)(inputs)))


MODELS: dict[str, tuple[Callable[[], keras.Model], Any]] = {
    "dense int8": (_dense, "int8"),
    "dense int16x8": (_dense, "int16x8"),
    "dense dynamic": (_dense, "dynamic"),
    "convolutions int8": (_convolutions, "int8"),
    "convolutions int16x8": (_convolutions, "int16x8"),
    "causal int8": (_causal, "int8"),
    "upsampling dynamic": (_upsampling, "dynamic"),
    "gates int8": (_gates, "int8"),
}


def _convert(name: str, runtime: str | None, folder: Path) -> tuple[Model, tuple[str, ...]]:
    build, scheme = MODELS[name]
    keras.utils.clear_session()  # so that layers have the same names each time
    keras.utils.set_random_seed(2)
    model, path = build(), folder / "source.keras"
    # filters of very different size: one scale for all of them is not one for each
    for layer in model.layers:
        layer.set_weights([w * np.logspace(0, -1.2, w.shape[-1]) if w.ndim > 1 else w for w in layer.get_weights()])
    model.save(path)
    samples = np.random.default_rng(1).normal(size=(SAMPLES, *model.input_shape[1:])).astype("float32")
    data = samples if scheme.startswith("int") else None
    out = folder / f"{name}.tflite"
    conversion = api.convert(path, data=data, scheme=scheme, out=out, runtime=runtime)
    return read(out), conversion.notes


def _difference(model: Model, python: Path, folder: Path) -> float:
    """The largest difference of outputs in a runtime from those of the newest one here; floats in shares."""
    samples = [[_sample(tensor, seed) for tensor in model.inputs] for seed in range(4)]
    np.savez(model.path.with_suffix(".npz"), **pack(samples, reference_outputs(model.path, samples)))
    command = [str(python), str(ROOT / "tools" / "runtime_probe.py"), str(folder)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    (result,) = (json.loads(line) for line in lines)
    assert all(way["result"] == "runs" for way in result["ways"]), result
    return float(max(way["difference"] for way in result["ways"]))


def _sample(tensor: Any, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=tensor.shape)
    if tensor.quantization is None:
        return values.astype(tensor.dtype)
    limits = np.iinfo(tensor.dtype)
    codes = np.round(values / tensor.quantization.scales[0]) + tensor.quantization.zero_points[0]
    return np.clip(codes, limits.min, limits.max).astype(tensor.dtype)


@pytest.mark.slow
@needs_device_runtime
@pytest.mark.parametrize("release", list(PYTHON_BY_RELEASE))
@pytest.mark.parametrize("name", list(MODELS))
def test_what_is_converted_for_a_release_runs_there(name: str, release: str, tmp_path: Path) -> None:
    model, _ = _convert(name, release, tmp_path)
    assert check_release(parse_release(release), model) == []
    difference = _difference(model, Path(PYTHON_BY_RELEASE[release]), tmp_path)
    assert difference <= (0.02 if model.outputs[0].dtype == "float32" else MAX_STEPS.get(name, 1)), difference


@pytest.mark.slow
@needs_device_runtime
def test_the_verdict_on_a_model_for_newer_releases_is_true(tmp_path: Path) -> None:
    model, _ = _convert("dense dynamic", None, tmp_path)
    assert check_release(parse_release(RELEASE), model)
    with pytest.raises(AssertionError, match="refuses"):
        _difference(model, DEVICE_PYTHON, tmp_path)


def _weight_scales(model: Model) -> list[int]:
    dense = [operator for operator in model.operators if operator.name == "FULLY_CONNECTED"]
    weights = [operator.inputs[1] for operator in dense]
    return [len(tensor.quantization.scales) for tensor in weights if tensor is not None and tensor.quantization]


@pytest.mark.slow
def test_dense_layers_get_one_scale_where_a_release_reads_one(tmp_path: Path) -> None:
    """TensorFlow Lite Micro of 2023 reads the first scale for all filters of a dense layer."""
    plain, _ = _convert("dense int8", None, tmp_path)
    assert _weight_scales(plain) == [64, 32, 5]
    assert check_release(parse_release(MICRO_2023), plain)
    adapted, notes = _convert("dense int8", MICRO_2023, tmp_path)
    assert _weight_scales(adapted) == [1, 1, 1]
    assert check_release(parse_release(MICRO_2023), adapted) == []
    assert any("one scale for all its weights" in note for note in notes)


@pytest.mark.slow
def test_a_release_that_runs_everything_changes_nothing(tmp_path: Path) -> None:
    plain, _ = _convert("dense dynamic", None, tmp_path)
    adapted, notes = _convert("dense dynamic", "litert==2.3", tmp_path)
    assert plain.content == adapted.content
    assert not [note for note in notes if "2.3" in note]


def test_what_a_release_cannot_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "logarithm.keras"
    inputs = keras.Input((4, 4))
    keras.Model(inputs, keras.ops.log(keras.ops.relu(inputs) + 1.0)).save(path)
    x = np.random.default_rng(0).random((8, 4, 4)).astype("float32")
    with pytest.raises(
        InputError, match=r"tflite-runtime 2\.14 does not run .* LOG .*--keep-float-types LOG"
    ) as refusal:
        api.convert(path, data=x, out=tmp_path / "o.tflite", runtime=RELEASE)
    assert not (tmp_path / "o.tflite").exists()
    assert "\n" not in str(refusal.value)
    api.convert(path, data=x, out=tmp_path / "o.tflite", runtime=RELEASE, keep_float_types=["LOG"])


@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        ("tflite-runtme==2.14", "unknown package 'tflite-runtme'; did you mean 'tflite-runtime'"),
        ("tflite-runtime", "the version must be numbers with points between them; for example tflite-runtime==2.14"),
        ("litert==two", "runtime 'litert==two': the version must be numbers"),
        ("tflite-micro==2.1", "the version must be the date of a snapshot"),
    ],
)
def test_a_runtime_that_is_none(runtime: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        api.convert(tmp_path / "missing.keras", runtime=runtime)


@pytest.mark.slow
def test_the_stage_takes_a_release_too(tmp_path: Path) -> None:
    inputs = keras.Input((6,))
    keras.Model(inputs, keras.layers.Dense(40)(keras.layers.Dense(40)(inputs))).save(tmp_path / "m.keras")
    pipeline = {
        "name": "old",
        "model": str(tmp_path / "m.keras"),
        "stages": [{"convert": {"scheme": "dynamic", "runtime": "tflite-runtime==2.14"}}],
    }
    report = edgepipe.run(pipeline, output_dir=tmp_path / "out", cache_dir=tmp_path / "cache")
    assert any("for tflite-runtime 2.14" in note for note in report.stages[-1].outcome.notes)
    (path,) = (tmp_path / "out" / "artifacts").glob("*convert.tflite")
    assert check_release(parse_release("tflite-runtime==2.14"), read(path)) == []
