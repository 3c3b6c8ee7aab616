"""Int8 with and without equalization and bias correction: `python benchmarks/equalization.py hard|healthy [NETWORK]`.

`hard`: trained networks whose neighbouring layers are rescaled, so that the ranges of channels are spread 100 times;
the float function stays. `healthy`: the same on untouched networks. Each of the two alone and together, by the weights
and batch norms alone ("data-free") and on 200 training samples, without labels; accuracy on the whole test set.
Fashion-MNIST is Debian's dataset-fashion-mnist (see docs/data.md).
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import keras
import networks
import numpy as np
from quantization import accuracy, trained

from edgepipe import zoo
from edgepipe.compress.equalization.batch_norm_folding import FoldedModel, fold_batch_norms
from edgepipe.compress.equalization.bias_correction import correct_biases
from edgepipe.compress.equalization.cross_layer import equalize_channels
from edgepipe.compress.keras_to_tflite import convert
from edgepipe.core.arrays import Array
from edgepipe.models.bridge import bridge
from edgepipe.tflite.interpreter import predict

L = keras.layers
SAMPLES = 200
SPREAD = 100.0


def unlimited(shape: tuple[int, ...]) -> Any:
    """Depthwise-separable blocks as in `networks.depthwise`, with ReLU."""
    return networks.depthwise(shape, limit=None)


def mobilenet(shape: tuple[int, ...]) -> Any:
    """The zoo's MobileNetV2, a third wide."""
    return zoo.mobilenet_v2(input_shape=shape, classes=10, alpha=0.35)


HARD = {
    "digits, depthwise, ReLU": (unlimited, networks.digits, 30),
    "fashion, depthwise, ReLU": (unlimited, lambda: networks.fashion(28, 12_000), 5),
}
HEALTHY = {
    "digits, small CNN": (networks.small, networks.digits, 40),
    **HARD,
    "digits, depthwise, ReLU6": (networks.depthwise, networks.digits, 30),
    "fashion, depthwise, ReLU6": (networks.depthwise, lambda: networks.fashion(28, 12_000), 5),
    "fashion, ResNet-8": (networks.resnet8, lambda: networks.fashion(28, 12_000), 4),
    "fashion, MobileNetV2 0.35": (mobilenet, lambda: networks.fashion(32, 12_000), 5),
}


def rescale(model: Any, spread: float = SPREAD, seed: int = 0) -> None:
    """Multiply channels that one layer alone reads by random factors, log-uniform over `spread`, and divide there.

    Goes along the chain Conv2D or DepthwiseConv2D, BatchNormalization, ReLU; the factors go into gamma and beta.
    """
    generator = np.random.default_rng(seed)
    chain = [layer for layer in model.layers if isinstance(layer, (L.Conv2D, L.DepthwiseConv2D, L.Dense))]
    norms = [layer for layer in model.layers if isinstance(layer, L.BatchNormalization)]
    for norm, reader in zip(norms, chain[1:], strict=True):
        factors = np.exp(generator.uniform(-0.5, 0.5, norm.gamma.shape[0]) * np.log(spread)).astype("float32")
        norm.gamma.assign(norm.gamma * factors)
        norm.beta.assign(norm.beta * factors)
        wide = factors if isinstance(reader, L.Dense) else factors.reshape(1, 1, -1)
        reader.kernel.assign(reader.kernel / wide[..., None])


def variants(base: Any, samples: Array) -> dict[str, FoldedModel | Any]:
    """The model of each way, by its name."""
    plain = fold_batch_norms(base, samples)
    found: dict[str, Any] = {"plain": base, "folded": plain.model}
    for told, given in (("data-free", None), ("samples", samples)):
        equal = equalize_channels(plain, given)
        found[f"equalized, {told}"] = equal.model
        found[f"corrected, {told}"] = correct_biases(plain, given).model
        found[f"both, {told}"] = correct_biases(equal.folded_model, given).model
    return found


def int8(model: Any, data: networks.Data) -> float:
    """Accuracy of `model` as full int8, calibrated on 200 training samples, on the test set."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "m.tflite"
        path.write_bytes(convert(model, samples=data.train[0][:SAMPLES]))
        values = np.asarray(predict(path, data.test[0]).real_values)
    return accuracy(values.argmax(axis=1), data.test[1])


def row(name: str, hard: bool) -> None:
    """One line a network: float, then each way; its number of test samples."""
    build, source, epochs = HEALTHY[name]
    data = source()
    model = trained(build, data, epochs, 0)
    before = model.predict(data.test[0], verbose=0)
    if hard:
        rescale(model)
        after = model.predict(data.test[0], verbose=0)
        print(f"{name}: rescaling changed the float outputs by {np.abs(after - before).max():.1e}", file=sys.stderr)
    found = {"float": accuracy(before.argmax(axis=1), data.test[1])}
    for way, made in variants(bridge(model).model, data.train[0][:SAMPLES]).items():
        found[way] = int8(made, data)
    print(
        f"| {name} | {len(data.test[1])} | " + " | ".join(f"{value:.2f}" for value in found.values()) + " |", flush=True
    )
    print(f"  {list(found)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    hard = sys.argv[1] == "hard"
    print(
        "the columns are named on stderr, in order, behind the network and its number of test samples", file=sys.stderr
    )
    for wanted in sys.argv[2:] or (HARD if hard else HEALTHY):
        row(wanted, hard)
