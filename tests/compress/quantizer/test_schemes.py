"""Every scheme on every architecture of the zoo and on published ones: converted, run, checked to be integer-only."""

from pathlib import Path
from typing import Any

import hard_models as hm
import keras
import numpy as np
import pytest
from dequantized_models import dequantize_tflite
from tflite_published import FILES, MISSING

from edgepipe import zoo
from edgepipe.compress.keras_to_tflite import convert_keras
from edgepipe.compress.quantizer.quantization import QuantizationRequest, quantize_tflite
from edgepipe.compress.schemes import SCHEMES, ActivationCalibration, SchemeName
from edgepipe.core.errors import InputError
from edgepipe.models.perturb import perturb
from edgepipe.tflite.integer_check import check_integer_only
from edgepipe.tflite.interpreter import Runtime, predict
from edgepipe.tflite.model import FLOAT_TYPES
from edgepipe.tflite.reader import read
from edgepipe.tflite.sample_conversion import convert_samples

ALL_SCHEMES: tuple[SchemeName, ...] = (
    "int8", "int16x8", "dynamic", "weight_only_int8", "weight_only_int4", "float16", "float32",
)  # fmt: skip
ZOO: list[tuple[str, tuple[int, ...]]] = [
    ("small_cnn", (28, 28, 1)), ("ds_cnn", (49, 10, 1)), ("mobilenet_v1", (32, 32, 3)), ("mobilenet_v2", (32, 32, 3)),
    ("resnet8", (32, 32, 3)), ("temporal_cnn", (29, 12)), ("attention", (28, 28, 1)), ("autoencoder", (64,)),
]  # fmt: skip
# the largest difference of an output on random weights, over the largest output
MAX_ERRORS = {"int8": 0.2, "int16x8": 0.05, "dynamic": 0.05, "weight_only_int8": 0.05, "weight_only_int4": 0.8,
        "float16": 2e-3, "float32": 1e-5}  # fmt: skip


def relative_error(outputs: Any, expected: Any) -> float:
    return float(np.abs(np.asarray(outputs).reshape(expected.shape) - expected).max() / np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape"), ZOO)
def test_every_scheme_on_the_zoo(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    model = getattr(zoo, name)(input_shape=shape, **({} if name == "autoencoder" else {"classes": 10}))
    perturb(model)
    x = np.random.RandomState(0).rand(24, *shape).astype("float32")
    expected = model.predict(x, verbose=0)
    for scheme in ALL_SCHEMES:
        path = tmp_path / f"{scheme}.tflite"
        path.write_bytes(convert_keras(model, QuantizationRequest(scheme), x).content)
        lite = read(path)
        assert (check_integer_only(lite) == []) == SCHEMES[scheme].integer_only, scheme
        for runtime in (Runtime.XNNPACK, Runtime.REFERENCE):
            assert relative_error(predict(path, x, runtime).real_values, expected) < MAX_ERRORS[scheme], (
                scheme,
                runtime,
            )


PUBLISHED_PREFIXES = (
    "anomaly_detection__ad01", "fdmobilenet_0.25_224_int8", "image_classification__pretrained", "keyword_spotting",
    "miniresnet_1stacks_64x50_int8", "mobilenet_v1_0.25_96_int8", "mobilenet_v2_0.35_128_int8", "stmnist_v1",
    "visual_wake_words", "st_yolo_lc_v1_192", "st_efficientnet_lc_v1_128_tfs_int8.a78", "yamnet_256_64x96_int8",
)  # fmt: skip
PUBLISHED_FILES = (
    [next(file for file in FILES if file.name.startswith(name)) for name in PUBLISHED_PREFIXES] if FILES else []
)


@pytest.mark.slow
@pytest.mark.skipif(not FILES, reason=MISSING)
@pytest.mark.parametrize("file", PUBLISHED_FILES, ids=PUBLISHED_PREFIXES if FILES else [])
def test_every_scheme_on_published_architectures(file: Path, tmp_path: Path) -> None:
    """Their trained weights, dequantized: dead filters, old operator codes, clipped weights."""
    path = tmp_path / "float.tflite"
    path.write_bytes(dequantize_tflite(file))
    lite = read(path)
    x = np.random.RandomState(0).rand(6, *lite.inputs[0].shape[1:]).astype("float32")
    expected = predict(path, x).real_values
    expected = next(iter(expected.values())) if isinstance(expected, dict) else expected
    for scheme in ALL_SCHEMES[:-1]:
        quantized_path = tmp_path / f"{scheme}.tflite"
        quantized_path.write_bytes(quantize_tflite(lite, QuantizationRequest(scheme), convert_samples(lite, x)).content)
        quantized = read(quantized_path)
        if SCHEMES[scheme].integer_only:
            assert check_integer_only(quantized) == []
        else:
            assert quantized.bytes < 0.75 * lite.bytes  # something was quantized
        quantized_outputs = predict(quantized_path, x).real_values
        quantized_outputs = (
            next(iter(quantized_outputs.values())) if isinstance(quantized_outputs, dict) else quantized_outputs
        )
        if scheme in ("int16x8", "weight_only_int8", "float16"):
            assert np.abs(quantized_outputs - expected).max() < 0.13 * np.abs(expected).max(), scheme


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "inputs", "outputs"),
    [
        (name, input_type, output_type)
        for name in ("int8", "int16x8")
        for input_type in SCHEMES[name].allowed_interface_types
        for output_type in SCHEMES[name].allowed_interface_types
    ],
)
def test_interfaces(scheme: SchemeName, inputs: Any, outputs: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    x = hm.data()[0][:20]
    path.write_bytes(convert_keras(hm.depthwise(1), QuantizationRequest(scheme, inputs, outputs), x).content)
    lite = read(path)
    assert (lite.inputs[0].dtype, lite.outputs[0].dtype) == (inputs, outputs)
    assert check_integer_only(lite, allow_float_interface="float32" in (inputs, outputs)) == []


@pytest.mark.slow
@pytest.mark.parametrize("method", ["min_max", "moving_average", "percentile", "mse"])
@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
def test_every_calibration_keeps_a_trained_model(method: Any, scheme: SchemeName, tmp_path: Path) -> None:
    x, _, held_out, truth = hm.data()
    model, path = hm.soft(), tmp_path / "m.tflite"
    path.write_bytes(
        convert_keras(model, QuantizationRequest(scheme, calibration=ActivationCalibration(method)), x[:200]).content
    )
    expected = hm.accuracy(model.predict(held_out, verbose=0), truth)
    assert hm.accuracy(predict(path, held_out).real_values, truth) > expected - 0.02
    assert check_integer_only(read(path)) == []


@pytest.mark.slow
def test_ranges_decide_the_scales(tmp_path: Path) -> None:
    """Each calibration method gives different scales, in 8 bits and in 16."""
    x, distinct_scales = hm.data()[0][:100], set()
    for scheme in ("int8", "int16x8"):
        for method in ("min_max", "moving_average", "percentile", "mse"):
            request = QuantizationRequest(scheme, calibration=ActivationCalibration(method, 99.0))  # type: ignore[arg-type]
            path = tmp_path / "m.tflite"
            path.write_bytes(convert_keras(hm.soft(), request, x).content)
            distinct_scales.add((scheme, read(path).operators[0].outputs[0].quantization.scales))  # type: ignore[union-attr]
    assert len(distinct_scales) >= 6  # the least error may be that of the whole range


def test_int4_weights_are_packed_and_depthwise_ones_stay_float(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(convert_keras(hm.soft(), QuantizationRequest("weight_only_int4")).content)
    lite = read(path)
    kernels = {op.name: op.inputs[1] for op in lite.operators if op.name in ("CONV_2D", "DEPTHWISE_CONV_2D")}
    assert lite.packed_tensors
    assert kernels["DEPTHWISE_CONV_2D"].dtype in FLOAT_TYPES  # type: ignore[union-attr]


def test_a_float_tflite_gives_the_same_bytes_as_its_keras_model(tmp_path: Path) -> None:
    x = hm.data()[0][:50]
    path = tmp_path / "m.tflite"
    path.write_bytes(convert_keras(hm.soft(), QuantizationRequest("float32")).content)
    lite = read(path)
    for scheme in ("int8", "int16x8", "weight_only_int8"):
        request = QuantizationRequest(scheme)  # type: ignore[arg-type]
        assert (
            quantize_tflite(lite, request, convert_samples(lite, x)).content
            == convert_keras(hm.soft(), request, x).content
        )


def test_several_inputs_are_calibrated_by_name() -> None:
    zulu, alpha = keras.Input((4,), name="zulu"), keras.Input((3,), name="alpha")
    features = keras.layers.Concatenate()([keras.layers.Dense(5)(zulu), keras.layers.Dense(5)(alpha)])
    model = keras.Model([zulu, alpha], keras.layers.Dense(2)(features))
    x = {"alpha": np.random.RandomState(0).rand(9, 3) * 100, "zulu": np.random.RandomState(1).rand(9, 4)}
    for scheme in ("int8", "int16x8"):
        assert convert_keras(model, QuantizationRequest(scheme), x).content  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the samples are named"):
        convert_keras(model, QuantizationRequest("int16x8"), {"alpha": x["alpha"], "zullu": x["zulu"]})
