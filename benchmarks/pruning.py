"""Pruning compared: `python benchmarks/pruning.py saliency|channels [NAME]`.

`saliency`: iterative pruning, the saliency taken anew in each round, over ten seeds: mean test accuracy and its 95 %
confidence interval at 80, 90 and 95 % zeros, for every saliency with the same steps of training.
`channels`: five large graphs at half of their MACs: the shrunk model against the masked one, and its latency on this
host against the original's.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import keras
import networks
import numpy as np
import tf_keras
from scipy import stats

from edgepipe.compress.keras_to_tflite import convert
from edgepipe.compress.overrides import Overrides
from edgepipe.compress.pruning.channels.channel_groups import find_channel_groups
from edgepipe.compress.pruning.channels.channel_pool import ChannelPool
from edgepipe.compress.pruning.channels.shrink import shrink_model
from edgepipe.compress.pruning.granularity import WeightGranularity
from edgepipe.compress.pruning.masking import MaskCallback, PruningMasks
from edgepipe.compress.pruning.prunable_kernels import find_prunable_kernels
from edgepipe.compress.pruning.pruner import KernelPruner
from edgepipe.compress.pruning.saliency import SaliencySettings
from edgepipe.compress.pruning.saliency import compute_saliency as smallest
from edgepipe.compress.pruning.saliency_loss import Objective, build_objective
from edgepipe.compress.pruning.weight_pool import WeightPool
from edgepipe.data.splits import SplitData
from edgepipe.models.bridge import bridge, relative_difference
from edgepipe.models.perturb import perturbed_weights
from edgepipe.tasks.quality import Measure, Task
from edgepipe.tflite import host_latency
from edgepipe.tflite.reader import read
from edgepipe.training.training_loop import set_seeds

SEEDS = 10
BATCH = 64
RATE = 1e-3
ROUNDS = (0.4152, 0.658, 0.8, 0.9, 0.95)  # zeros after each; each removes a like share of what is left
SHOWN = (0.8, 0.9, 0.95)
SALIENCIES = ("obd", "taylor2", "taylor", "magnitude", "random")
TASK = Task("auto", {"accuracy": Measure(lambda truth, scores: 0.0)}, "classification")
K = tf_keras.layers


def perceptron(shape: tuple[int, ...]) -> Any:
    """Three dense layers, 3,000 weights: the Hessian's diagonal is exact."""
    layers = [K.Dense(32, "relu"), K.Dense(24, "relu"), K.Dense(10, "softmax")]
    return tf_keras.Sequential([tf_keras.Input(shape), K.Flatten(), *layers])


def convolutional(shape: tuple[int, ...]) -> Any:
    """Two convolutions and two dense layers after LeCun et al. 1998, 44,000 weights: Gauss-Newton estimates."""
    seen = [K.Conv2D(6, 5, activation="relu"), K.MaxPooling2D(), K.Conv2D(16, 5, activation="relu"), K.MaxPooling2D()]
    told = [K.Flatten(), K.Dense(120, "relu"), K.Dense(84, "relu"), K.Dense(10, "softmax")]
    return tf_keras.Sequential([tf_keras.Input(shape), *seen, *told])


COMPARED = {
    "digits, perceptron": (perceptron, networks.digits, 60, 10),
    "fashion, LeNet-5": (convolutional, lambda: networks.fashion(28, 6_000), 15, 3),
}


def fit(model: Any, data: networks.Data, epochs: int, callbacks: list[Any]) -> None:
    """The same training for all, its learning rate down to zero along a cosine."""
    steps = epochs * -(-len(data.train[0]) // BATCH)
    rate = tf_keras.optimizers.schedules.CosineDecay(RATE, steps)
    model.compile(tf_keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
    model.fit(*data.train, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=callbacks)


def accuracy(model: Any, data: networks.Data) -> float:
    """On the test split, in per cent."""
    x, y = data.test
    return float((model.predict(x, batch_size=512, verbose=0).argmax(axis=1) == y).mean() * 100)


def pruned(model: Any, data: networks.Data, kind: Any, epochs: int, seed: int) -> Iterator[float]:
    """Test accuracy after each round."""
    objective: Objective = build_objective(model, TASK, SplitData(*data.train), 512, seed)
    kernels = find_prunable_kernels(model, Overrides(), exclude_last=False).kernels
    pool = WeightPool(kernels, WeightGranularity(), "global", {})
    pruner = KernelPruner.from_settings(pool, 1.0, SaliencySettings(kind, probe_count=16), objective, seed)
    masks = PruningMasks(pruner.weights, pruner.zero_masks)
    for share in ROUNDS:
        masks.set_zeros(pruner.advance(share))
        fit(model, data, epochs, [MaskCallback(masks, {})])
        yield accuracy(model, data)


def saliency(name: str) -> None:
    """The rows of one network."""
    build, source, epochs, each = COMPARED[name]
    data = source()
    found: dict[str, list[list[float]]] = {kind: [] for kind in SALIENCIES}
    dense = []
    for seed in range(SEEDS):
        set_seeds(seed)
        model = build(data.train[0].shape[1:])
        fit(model, data, epochs, [])
        dense.append(accuracy(model, data))
        weights = model.get_weights()
        for kind in SALIENCIES:
            set_seeds(seed)
            model = build(data.train[0].shape[1:])
            model.set_weights(weights)
            found[kind].append(list(pruned(model, data, kind, each, seed)))
            print(f"{name}, seed {seed}, {kind}: {found[kind][-1]}", file=sys.stderr, flush=True)
    print(f"| {name} | not pruned | {interval(dense)} | | |")
    for kind, runs in found.items():
        columns = [interval([run[ROUNDS.index(share)] for run in runs]) for share in SHOWN]
        print(f"| {name} | {kind} | {' | '.join(columns)} |", flush=True)


def interval(values: list[float]) -> str:
    """Mean and half the width of its 95 % confidence interval (Student's t)."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{np.mean(values):.2f} ± {half:.2f}"


GRAPHS = ("MobileNetV2", "ResNet50", "ResNet50V2", "DenseNet121", "EfficientNetB0")
SIZE = 224


def channels(name: str) -> None:
    """One row: MACs, the difference from the masked model, and how much faster one thread is, in float32 and int8."""
    set_seeds(0)
    original = getattr(keras.applications, name)(weights=None, input_shape=(SIZE, SIZE, 3))
    with perturbed_weights(original):
        model = bridge(original).model
    groups = find_channel_groups(model, Overrides())
    pool = ChannelPool(groups, groups.count_macs, ("uniform",), channel_multiple=16)
    found = smallest(SaliencySettings(), pool.weights, None, 0)
    gone = pool.candidate_masks(
        found, ("uniform",), groups.count_macs(groups.empty_removal_mask) / 2, 1.0, pool.initial_removal_mask()
    )["uniform"]
    smaller = shrink_model(model, groups, gone)
    macs, before = measured(model)
    left, after = measured(smaller)
    times = " | ".join(f"{before[s] * 1e3:.2f} -> {after[s] * 1e3:.2f} ms, {before[s] / after[s]:.2f}x" for s in before)
    for cut, zero in zip(groups.labeled_weights, groups.zero_masks(gone), strict=True):
        cut.weight.assign(np.where(zero, 0, cut.weight.numpy()))
    x = np.random.default_rng(0).normal(0, 1, (4, SIZE, SIZE, 3)).astype("float32")
    difference = relative_difference(scores(model)(x), scores(smaller)(x))
    print(f"| {name} | {macs / 1e6:.0f} M | {left / macs:.1%} | {difference:.1e} | {times} |", flush=True)


def scores(model: Any) -> Any:
    """`model` before its softmax, through which nothing small would show."""
    model.layers[-1].activation = tf_keras.activations.linear
    return model


def measured(model: Any) -> tuple[int, dict[str, float]]:
    """MACs, and the median seconds of one inference by scheme."""
    samples = np.random.default_rng(0).normal(0, 1, (4, SIZE, SIZE, 3)).astype("float32")
    times = {}
    with TemporaryDirectory() as folder:
        for scheme, given in (("float32", None), ("int8", samples)):
            path = Path(folder) / f"{scheme}.tflite"
            path.write_bytes(convert(model, scheme=scheme, samples=given))
            times[scheme] = host_latency.measure(path, threads=1).p50
        return read(path).macs, times


if __name__ == "__main__":
    work: Any = {"saliency": (saliency, COMPARED), "channels": (channels, GRAPHS)}[sys.argv[1]]
    for wanted in sys.argv[2:] or work[1]:
        work[0](wanted)
