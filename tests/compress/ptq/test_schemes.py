"""Every scheme on every architecture of the zoo and on published ones: made, run, proven integer where it says so."""

from pathlib import Path
from typing import Any

import hard_models as hm
import keras
import numpy as np
import pytest
from float_again import float_again
from tflite_published import FILES, MISSING

from edgepipe import zoo
from edgepipe.compress.keras_to_tflite import convert_keras
from edgepipe.compress.quantizer.quantization import QuantizationRequest, quantize_tflite
from edgepipe.compress.schemes import SCHEMES, ActivationCalibration, SchemeName
from edgepipe.core.errors import InputError
from edgepipe.models.perturb import perturb
from edgepipe.tflite.integer_check import check_integer_only
from edgepipe.tflite.interpreter import Runtime, predict
from edgepipe.tflite.model import FLOATS
from edgepipe.tflite.reader import read
from edgepipe.tflite.sample_conversion import convert_samples

WHOLE: tuple[SchemeName, ...] = (
    "int8", "int16x8", "dynamic", "weight_only_int8", "weight_only_int4", "float16", "float32",
)  # fmt: skip
ZOO: list[tuple[str, tuple[int, ...]]] = [
    ("small_cnn", (28, 28, 1)), ("ds_cnn", (49, 10, 1)), ("mobilenet_v1", (32, 32, 3)), ("mobilenet_v2", (32, 32, 3)),
    ("resnet8", (32, 32, 3)), ("temporal_cnn", (29, 12)), ("attention", (28, 28, 1)), ("autoencoder", (64,)),
]  # fmt: skip
# the largest difference of an output on random weights, over the largest output
LOST = {"int8": 0.2, "int16x8": 0.05, "dynamic": 0.05, "weight_only_int8": 0.05, "weight_only_int4": 0.8,
        "float16": 2e-3, "float32": 1e-5}  # fmt: skip


def lost(found: Any, wanted: Any) -> float:
    return float(np.abs(np.asarray(found).reshape(wanted.shape) - wanted).max() / np.abs(wanted).max())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape"), ZOO)
def test_every_scheme_on_the_zoo(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    model = getattr(zoo, name)(input_shape=shape, **({} if name == "autoencoder" else {"classes": 10}))
    perturb(model)
    x = np.random.RandomState(0).rand(24, *shape).astype("float32")
    wanted = model.predict(x, verbose=0)
    for scheme in WHOLE:
        path = tmp_path / f"{scheme}.tflite"
        path.write_bytes(convert_keras(model, QuantizationRequest(scheme), x).content)
        lite = read(path)
        assert (check_integer_only(lite) == []) == SCHEMES[scheme].integer_only, scheme
        for runtime in (Runtime.XNNPACK, Runtime.REFERENCE):
            assert lost(predict(path, x, runtime).real_values, wanted) < LOST[scheme], (scheme, runtime)


PUBLISHED = (
    "anomaly_detection__ad01", "fdmobilenet_0.25_224_int8", "image_classification__pretrained", "keyword_spotting",
    "miniresnet_1stacks_64x50_int8", "mobilenet_v1_0.25_96_int8", "mobilenet_v2_0.35_128_int8", "stmnist_v1",
    "visual_wake_words", "st_yolo_lc_v1_192", "st_efficientnet_lc_v1_128_tfs_int8.a78", "yamnet_256_64x96_int8",
)  # fmt: skip
CHOSEN = [next(file for file in FILES if file.name.startswith(name)) for name in PUBLISHED] if FILES else []


@pytest.mark.slow
@pytest.mark.skipif(not FILES, reason=MISSING)
@pytest.mark.parametrize("file", CHOSEN, ids=PUBLISHED if FILES else [])
def test_every_scheme_on_published_architectures(file: Path, tmp_path: Path) -> None:
    """Their trained weights, taken back to float: dead filters, old operator codes, weights that were clipped."""
    path = tmp_path / "float.tflite"
    path.write_bytes(float_again(file))
    lite = read(path)
    x = np.random.RandomState(0).rand(6, *lite.inputs[0].shape[1:]).astype("float32")
    wanted = predict(path, x).real_values
    wanted = next(iter(wanted.values())) if isinstance(wanted, dict) else wanted
    for scheme in WHOLE[:-1]:
        aside = tmp_path / f"{scheme}.tflite"
        aside.write_bytes(quantize_tflite(lite, QuantizationRequest(scheme), convert_samples(lite, x)).content)
        made = read(aside)
        if SCHEMES[scheme].integer_only:
            assert check_integer_only(made) == []
        else:
            assert made.bytes < 0.75 * lite.bytes  # something was quantized
        found = predict(aside, x).real_values
        found = next(iter(found.values())) if isinstance(found, dict) else found
        if scheme in ("int16x8", "weight_only_int8", "float16"):
            assert np.abs(found - wanted).max() < 0.13 * np.abs(wanted).max(), scheme


@pytest.mark.parametrize(
    ("scheme", "inputs", "outputs"),
    [(name, first, second) for name in ("int8", "int16x8") for first in SCHEMES[name].interfaces
     for second in SCHEMES[name].interfaces],
)  # fmt: skip
def test_interfaces(scheme: SchemeName, inputs: Any, outputs: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    x = hm.data()[0][:20]
    path.write_bytes(convert_keras(hm.depthwise(1), QuantizationRequest(scheme, inputs, outputs), x).content)
    lite = read(path)
    assert (lite.inputs[0].dtype, lite.outputs[0].dtype) == (inputs, outputs)
    assert check_integer_only(lite, allow_float_interface="float32" in (inputs, outputs)) == []


@pytest.mark.parametrize("method", ["min_max", "moving_average", "percentile", "mse"])
@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
def test_every_calibration_keeps_a_trained_model(method: Any, scheme: SchemeName, tmp_path: Path) -> None:
    x, _, held, truth = hm.data()
    model, path = hm.soft(), tmp_path / "m.tflite"
    path.write_bytes(
        convert_keras(model, QuantizationRequest(scheme, calibration=ActivationCalibration(method)), x[:200]).content
    )
    wanted = hm.accuracy(model.predict(held, verbose=0), truth)
    assert hm.accuracy(predict(path, held).real_values, truth) > wanted - 0.02
    assert check_integer_only(read(path)) == []


def test_ranges_decide_the_scales(tmp_path: Path) -> None:
    """Calibrations give models of their own, in 8 bits and in 16."""
    x, made = hm.data()[0][:100], set()
    for scheme in ("int8", "int16x8"):
        for method in ("min_max", "moving_average", "percentile", "mse"):
            request = QuantizationRequest(scheme, calibration=ActivationCalibration(method, 99.0))  # type: ignore[arg-type]
            path = tmp_path / "m.tflite"
            path.write_bytes(convert_keras(hm.soft(), request, x).content)
            made.add((scheme, read(path).operators[0].outputs[0].quantization.scales))  # type: ignore[union-attr]
    assert len(made) >= 6  # the least error may be that of the whole range


def test_int4_weights_are_four_bits_and_the_rest_is_told(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(convert_keras(hm.soft(), QuantizationRequest("weight_only_int4")).content)
    lite = read(path)
    kernels = {op.name: op.inputs[1] for op in lite.operators if op.name in ("CONV_2D", "DEPTHWISE_CONV_2D")}
    assert lite.packed_tensors
    assert kernels["DEPTHWISE_CONV_2D"].dtype in FLOATS  # type: ignore[union-attr]


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
    first, second = keras.Input((4,), name="zulu"), keras.Input((3,), name="alpha")
    joined = keras.layers.Concatenate()([keras.layers.Dense(5)(first), keras.layers.Dense(5)(second)])
    model = keras.Model([first, second], keras.layers.Dense(2)(joined))
    x = {"alpha": np.random.RandomState(0).rand(9, 3) * 100, "zulu": np.random.RandomState(1).rand(9, 4)}
    for scheme in ("int8", "int16x8"):
        assert convert_keras(model, QuantizationRequest(scheme), x).content  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the samples are named"):
        convert_keras(model, QuantizationRequest("int16x8"), {"alpha": x["alpha"], "zullu": x["zulu"]})
