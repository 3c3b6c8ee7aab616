"""How much faster conversion is than stock, and how close both are to the float model: `python benchmarks/convert.py`.

Each line converts one model twice, by the stock `TFLiteConverter.from_keras_model` and by edgepipe. `ratio` is stock
time / edgepipe time, without edgepipe's comparison with the float model, which stock does not have; `check` is the time
of that comparison as a share of the conversion. `dB` is the signal-to-noise ratio against the float model, `LSB` the
largest difference of the two int8 models. The last lines quantize a chain of many operators.
"""

import contextlib
import io
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import keras
import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot

from edgepipe.compress.fidelity import measure_fidelity
from edgepipe.compress.keras_to_tflite import convert, float_model
from edgepipe.compress.quantizer.quantization import QuantizationRequest, quantize_tflite
from edgepipe.core.arrays import Array
from edgepipe.models.bridge import bridge
from edgepipe.models.native_stderr import capture_stderr
from edgepipe.models.perturb import perturb
from edgepipe.tflite.interpreter import predict
from edgepipe.tflite.reader import read
from edgepipe.tflite.sample_conversion import ModelOutputs

T = TypeVar("T")

SHAPE = (96, 96, 3)
RUNS = 20
RATIO_GOALS = {"bridged float -> int8": 3.0, "bridged QAT -> int8": 6.0}
MAX_SNR_LOSS = 0.5  # dB that edgepipe's model may be below the stock one
MIN_FLOAT16_SNR = 60.0  # dB: 11 bits
CHAIN_LENGTH = 5_000
CHAIN_WIDTH = 8
CHAIN_SECONDS = 20.0
CHAIN_SCHEMES: tuple[Any, ...] = ("int8", "int16x8")


def main() -> int:
    """Run all comparisons; 1 if a goal is missed."""
    warnings.simplefilter("ignore")
    samples, held_out = _patches(0, 100), _patches(1, RUNS)
    original, bridged, fake_quant = _build_models(samples)
    goals_met = [
        compare_int8("bridged float -> int8", bridged, samples, held_out),
        compare_int8("bridged QAT -> int8", fake_quant, samples, held_out),
        compare_float16("Keras 3 -> float16", original, held_out),
        *(time_chain(scheme) for scheme in CHAIN_SCHEMES),
    ]
    return 0 if all(goals_met) else 1


def compare_int8(name: str, model: Any, samples: Array, held_out: Array) -> bool:
    """Print one line; whether the speed and the quality reach their goals."""
    ours, seconds = _time(lambda: convert(model, "int8", samples))
    stock, stock_seconds = _time(lambda: convert_stock(model, samples))
    with float_model(model, samples, requires_samples=True) as (lite, _):
        check_seconds = _time(lambda: measure_fidelity(lite, ours, {lite.inputs[0].name: held_out}))[1]
        float_values = predict(lite.path, held_out).real_values
    outputs = [_run(content, held_out) for content in (ours, stock)]
    decibels, stock_decibels = (_snr(output.real_values, float_values) for output in outputs)
    codes = [np.asarray(output.stored_values, np.int64) for output in outputs]
    ratio, goal = stock_seconds / seconds, RATIO_GOALS[name]
    print(
        f"{_speed_text(name, stock_seconds, seconds)}  goal {goal:g}x {_goal_text(ratio >= goal)}  "
        f"check {check_seconds / seconds:4.0%}  {decibels:.1f} dB, stock {stock_decibels:.1f} dB  "
        f"LSB {np.abs(codes[0] - codes[1]).max()} ({RUNS} inputs, {len(np.unique(codes[1]))} different values)",
        flush=True,
    )
    return ratio >= goal and decibels >= stock_decibels - MAX_SNR_LOSS


def compare_float16(name: str, model: Any, held_out: Array) -> bool:
    """Print one line; whether the numbers are those of half precision."""
    ours, seconds = _time(lambda: convert(model, "float16"))
    stock, stock_seconds = _time(lambda: convert_stock(model, None))
    float_values, *outputs = (
        _run(content, held_out).real_values for content in (convert(model, "float32"), ours, stock)
    )
    decibels, stock_decibels = (_snr(values, float_values) for values in outputs)
    speed_text = _speed_text(name, stock_seconds, seconds)
    print(f"{speed_text}  {decibels:.1f} dB, stock {stock_decibels:.1f} dB", flush=True)
    return decibels >= MIN_FLOAT16_SNR


def time_chain(scheme: Any) -> bool:
    """Print the CPU time in which a chain of `CHAIN_LENGTH` operators is quantized; whether it is below the limit."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chain.tflite"
        path.write_bytes(_chain_content())
        lite, feeds = read(path), [_uniform((4, CHAIN_WIDTH))]
        start = time.process_time()
        quantize_tflite(lite, QuantizationRequest(scheme), feeds)
        seconds = time.process_time() - start
    is_fast = seconds <= CHAIN_SECONDS
    name = f"{len(lite.operators):,} operators -> {scheme}"
    print(f"{name:29} {seconds:6.2f} s of CPU time  limit {CHAIN_SECONDS:g} s {_goal_text(is_fast)}", flush=True)
    return is_fast


def convert_stock(model: Any, samples: Array | None) -> bytes:
    """`model` by TensorFlow's own converter, in int8 with `samples`, in float16 without."""
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if samples is None:
        converter.target_spec.supported_types = [tf.float16]
    else:
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.representative_dataset = lambda: ([sample[None]] for sample in samples)
        converter.inference_input_type = converter.inference_output_type = tf.int8
    with capture_stderr(), contextlib.redirect_stdout(io.StringIO()):  # the stock export prints every variable
        content: bytes = converter.convert()
    return content


def _build_models(samples: Array) -> tuple[Any, Any, Any]:
    """A Keras 3 model, the same in tf_keras, and with fake-quant."""
    # logits: a softmax of random weights saturates, and equal zeros would prove little
    original = keras.applications.MobileNet(SHAPE, alpha=0.25, weights=None, classes=10, classifier_activation=None)
    perturb(original)
    for weight in original.weights:  # louder than `perturb` leaves it, so that int8 logits tell the inputs apart
        if len(weight.shape) > 1:
            weight.assign(weight * 1.2)
    with capture_stderr():
        # first-call costs, for neither
        convert(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]), "float32")
        bridged = bridge(original).model
        fake_quant = tfmot.quantization.keras.quantize_model(bridged)
        for _ in range(3):  # gives the fake-quant ranges real values
            fake_quant(samples[:32], training=True)
    return original, bridged, fake_quant


class DenseChain(keras.layers.Layer):  # type: ignore[misc]  # keras is not typed
    """Dense layers, additions and activations, one after another."""

    def build(self, _: tuple[int | None, ...]) -> None:
        shape = (CHAIN_LENGTH // 4, CHAIN_WIDTH, CHAIN_WIDTH)
        self.kernels = self.add_weight(shape=shape, initializer="orthogonal")

    def call(self, inputs: Any) -> Any:
        for kernel in tf.unstack(self.kernels):
            inputs = tf.nn.leaky_relu(inputs + tf.tanh(inputs @ kernel))
        return inputs


def _chain_content() -> bytes:
    model = keras.Sequential([keras.Input((CHAIN_WIDTH,)), DenseChain()])
    with float_model(model, None, requires_samples=False) as (lite, _):
        return lite.content


def _patches(seed: int, count: int) -> Array:
    """Patches, not pixels: a deep network averages white noise away and would give one output for all inputs."""
    generator = np.random.default_rng(seed)
    patches: Array = np.kron(generator.uniform(-1, 1, (count, 6, 6, 3)), np.ones((1, 16, 16, 1))).astype(np.float32)
    return patches


def _uniform(shape: tuple[int, ...]) -> Array:
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def _run(content: bytes, samples: Array) -> ModelOutputs:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        path.write_bytes(content)
        return predict(path, samples)


def _snr(values: Any, float_values: Any) -> float:
    noise = np.square(values - float_values).sum()
    return float(10 * np.log10(np.square(float_values - float_values.mean()).sum() / noise))


def _time(function: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def _speed_text(name: str, stock_seconds: float, seconds: float) -> str:
    return f"{name:24} stock {stock_seconds:6.2f} s  edgepipe {seconds:6.2f} s  ratio {stock_seconds / seconds:5.1f}x"


def _goal_text(is_met: bool) -> str:
    return "reached" if is_met else "MISSED"


if __name__ == "__main__":
    sys.exit(main())
