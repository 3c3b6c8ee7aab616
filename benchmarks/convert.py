"""How much faster freezing makes conversion, and that it changes no output: `python benchmarks/convert.py`.

Each line converts one model twice, through the stock `TFLiteConverter.from_keras_model` and through edgepipe, and
runs both results on LiteRT with the same random inputs. `ratio` is stock time / edgepipe time; `equal` says whether
all outputs have the same bits. Seconds depend on the machine, ratios little.
"""

import contextlib
import io
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
from ai_edge_litert.interpreter import Interpreter

from edgepipe.compress.keras_to_tflite import convert
from edgepipe.core.arrays import Array
from edgepipe.models.bridge import bridge
from edgepipe.models.native_stderr import capture_stderr
from edgepipe.models.perturb import perturb

SHAPE = (96, 96, 3)
SAMPLES = np.random.default_rng(0).uniform(-1, 1, (100, *SHAPE)).astype("float32")
RUNS = 20
GOALS = {"bridged float -> int8": 3.0, "bridged QAT -> int8": 6.0}


def stock(model: Any, scheme: str) -> bytes:
    """`model` as TensorFlow's own converter makes it."""
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if scheme == "float16":
        converter.target_spec.supported_types = [tf.float16]
    else:
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.representative_dataset = lambda: ([sample[None]] for sample in SAMPLES)
        converter.inference_input_type = converter.inference_output_type = tf.int8
    data: bytes = converter.convert()
    return data


def outputs(data: bytes) -> Array:
    """What the model in `data` gives for `RUNS` random inputs of its own type."""
    interpreter = Interpreter(model_content=data)
    interpreter.allocate_tensors()
    taken, given = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    results = []
    generator = np.random.default_rng(1)
    for _ in range(RUNS):
        # patches, not pixels: a deep network averages white noise away and would give one output for all inputs
        integer = np.kron(generator.integers(-128, 128, (1, 6, 6, 3), dtype=np.int8), np.ones((1, 16, 16, 1), np.int8))
        value = integer if taken["dtype"] is np.int8 else (integer / 128).astype(np.float32)
        interpreter.set_tensor(taken["index"], value)
        interpreter.invoke()
        results.append(interpreter.get_tensor(given["index"]))
    return np.concatenate(results)


def timed(function: Callable[[], bytes]) -> tuple[float, bytes]:
    """Seconds and result."""
    start = time.perf_counter()
    data = function()
    return time.perf_counter() - start, data


def compare(name: str, model: Any, scheme: Any) -> bool:
    """Print one line; whether the outputs are equal and the goal, if there is one, is reached."""
    with capture_stderr(), contextlib.redirect_stdout(io.StringIO()):  # the stock export prints every variable
        ours, fast = timed(lambda: convert(model, scheme, SAMPLES if scheme == "int8" else None))
        theirs, slow = timed(lambda: stock(model, scheme))
        a, b = outputs(slow), outputs(fast)
    equal, ratio, goal = np.array_equal(a, b), theirs / ours, GOALS.get(name)
    told = f"  goal {goal:g}x {'reached' if ratio >= goal else 'MISSED'}" if goal else ""
    print(
        f"{name:24} stock {theirs:6.2f} s  edgepipe {ours:6.2f} s  ratio {ratio:5.1f}x{told}  "
        f"equal: {'yes' if equal else 'NO'} ({RUNS} inputs, {len(np.unique(a))} different values)",
        flush=True,
    )
    return equal and (goal is None or ratio >= goal)


def main() -> int:
    """Run all comparisons; 1 if outputs differ or a goal is missed."""
    warnings.simplefilter("ignore")
    # logits: a softmax of random weights saturates, and equal zeros would prove little
    original = keras.applications.MobileNet(SHAPE, alpha=0.25, weights=None, classes=10, classifier_activation=None)
    perturb(original)
    for weight in original.weights:  # louder than `perturb` leaves it, so that int8 logits tell the inputs apart
        if len(weight.shape) > 1:
            weight.assign(weight * 1.2)
    with capture_stderr():
        convert(
            keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]), "float32"
        )  # first-call costs, for neither
        bridged = bridge(original).model
        fake_quant = tfmot.quantization.keras.quantize_model(bridged)
        for _ in range(3):  # gives the fake-quant ranges real values
            fake_quant(SAMPLES[:32], training=True)
    good = [
        compare("bridged float -> int8", bridged, "int8"),
        compare("bridged QAT -> int8", fake_quant, "int8"),
        compare("Keras 3 -> float16", original, "float16"),
    ]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
