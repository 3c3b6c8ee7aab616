"""Quantization-aware training on trained networks: `python benchmarks/quantization.py agreement|stock [DATA]`.

`agreement`: how far the int8 model is from the fake-quant model it came from, on the test set.
`stock`: accuracy after conversion, over five seeds, of post-training int8, tfmot's own quantization-aware training
behind the same bridge, and edgepipe's with its batch norms live and frozen; equal steps, equal learning rate.
Fashion-MNIST is Debian's dataset-fashion-mnist (see docs/data.md).
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import keras
import networks
import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras

from edgepipe.compress.agreement import TensorAgreement
from edgepipe.compress.keras_to_tflite import convert, convert_keras
from edgepipe.compress.qat import bias_limits, range_initialization
from edgepipe.compress.qat.fake_quant import QatRecipe, build_fake_quant, freeze_batch_norms
from edgepipe.compress.quantizer.quantization import QuantizationRequest
from edgepipe.core.arrays import Array
from edgepipe.models.bridge import bridge
from edgepipe.tflite.interpreter import Runtime, predict
from edgepipe.training.training_loop import set_seeds

SEEDS = 5
RATE = 5e-4
NETWORKS = {
    "digits, small CNN": (networks.small, networks.digits, 40),
    "digits, depthwise": (networks.depthwise, networks.digits, 30),
    "fashion, depthwise": (networks.depthwise, lambda: networks.fashion(28, 12_000), 5),
    "fashion, ResNet-8": (networks.resnet8, lambda: networks.fashion(28, 12_000), 4),
    "fashion, MobileNetV2 0.35": (networks.mobilenet_v2, lambda: networks.fashion(32, 12_000), 5),
}


def trained(build: Any, data: networks.Data, epochs: int, seed: int) -> Any:
    """A float Keras 3 model, its learning rate down to zero along a cosine."""
    set_seeds(seed)
    model = build(data.train[0].shape[1:])
    steps = epochs * -(-len(data.train[0]) // 64)
    rate = keras.optimizers.schedules.CosineDecay(2e-3, steps)
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
    model.fit(*data.train, batch_size=64, epochs=epochs, verbose=0)
    return model


def fit(model: Any, data: networks.Data, epochs: int) -> None:
    """The same training for every fake-quant model."""
    steps = epochs * -(-len(data.train[0]) // 64)
    rate = tf_keras.optimizers.schedules.CosineDecay(RATE, steps)
    model.compile(tf_keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
    model.fit(*data.train, batch_size=64, epochs=epochs, verbose=0)


def ours(base: Any, data: networks.Data, epochs: int, live: bool = True) -> Any:
    """edgepipe's fake-quant model of `base`, trained."""
    model = build_fake_quant(base, QatRecipe(), data.train[0][:2]).model
    range_initialization.initialize_ranges(model, data.train[0], 0, use_batch_statistics=live)
    if not live:
        freeze_batch_norms(model)
    fit(model, data, epochs)
    bias_limits.round_biases(model)
    return model


def lite(model: Any, data: networks.Data, folder: str) -> Path:
    """`model` as full int8, calibrated on 200 training samples."""
    path = Path(folder) / "m.tflite"
    path.write_bytes(convert(model, samples=data.train[0][:200]))
    return path


def accuracy(labels: Array, truth: Array) -> float:
    """In per cent."""
    return float((labels == truth).mean() * 100)


def compare(name: str) -> None:
    """One line of the table of agreement."""
    build, source, epochs = NETWORKS[name]
    data = source()
    model = trained(build, data, epochs, 0)
    fake = ours(bridge(model).model, data, max(1, epochs // 4))
    x, y = data.test
    with TemporaryDirectory() as folder:
        quantized_model = convert_keras(fake, QuantizationRequest(), data.train[0][:200], x[:64])
        path = Path(folder) / "m.tflite"
        path.write_bytes(quantized_model.content)
        values = fake.predict(x, batch_size=256, verbose=0)
        runs = {
            runtime: np.asarray(predict(path, x, runtime).real_values)
            for runtime in (Runtime.REFERENCE, Runtime.XNNPACK)
        }
        found = quantized_model.agreement.tensors
    labels = [part.argmax(axis=1) for part in (values, *runs.values())]
    logits = found[-2]
    equal = [f"{(labels[0] == other).mean():.2%}" for other in labels[1:]]
    floats = accuracy(model.predict(x, verbose=0).argmax(axis=1), y)
    print(
        f"| {name} | {len(found)} | {floats:.2f} | {accuracy(labels[0], y):.2f} | {accuracy(labels[1], y):.2f} | "
        f"{equal[0]} | {equal[1]} | "
        f"{logits.p99_lsb:.0f} | {_worst(found)} |",
        flush=True,
    )


def _worst(found: tuple[TensorAgreement, ...]) -> str:
    worst = max(found, key=lambda entry: entry.p99_lsb)
    return f"{worst.p99_lsb:.0f} ({worst.layer})"


def against_stock(name: str) -> None:
    """Accuracy of each way for each seed, then their means."""
    build, source, epochs = NETWORKS[name]
    data = source()
    rows = [_ways(build, data, epochs, seed) for seed in range(SEEDS)]
    for way in rows[0]:
        values = [row[way] for row in rows]
        shown = " ".join(f"{value:.2f}" for value in values)
        print(f"| {name} | {way} | {shown} | {np.mean(values):.2f} |", flush=True)


def _ways(build: Any, data: networks.Data, epochs: int, seed: int) -> dict[str, float]:
    base = bridge(trained(build, data, epochs, seed)).model
    steps = max(1, epochs // 4)
    x, y = data.test
    tf.random.set_seed(seed)
    stock = tfmot.quantization.keras.quantize_model(base)
    fit(stock, data, steps)
    models = {
        "post-training int8": base,
        "QAT by tfmot": stock,
        "QAT by edgepipe": ours(base, data, steps),
        "QAT by edgepipe, batch norms frozen": ours(base, data, steps, live=False),
    }
    found = {"float": accuracy(base.predict(x, verbose=0).argmax(axis=1), y)}
    for way, model in models.items():
        with TemporaryDirectory() as folder:
            values = np.asarray(predict(lite(model, data, folder), x).real_values)
        found[way] = accuracy(values.argmax(axis=1), y)
    print(f"seed {seed}: {found}", file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    work = {"agreement": compare, "stock": against_stock}[sys.argv[1]]
    for wanted in sys.argv[2:] or NETWORKS:
        work(wanted)
