"""What `techniques.py` holds edgepipe against: the same network by plain tfmot and `TFLiteConverter.from_keras_model`.

tfmot takes tf_keras models only, so the network passes edgepipe's bridge, unchanged, before anything is done to it.
Each way is given the float model, the training samples and `Steps`, and gives the model to convert.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import networks
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from tensorflow_model_optimization.python.core.clustering.keras.experimental import cluster as zero_keeping

sparse, shared, quantized = tfmot.sparsity.keras, tfmot.clustering.keras, tfmot.quantization.keras
KeepsZeros = tfmot.experimental.combine.Default8BitPrunePreserveQuantizeScheme
KeepsClusters = tfmot.experimental.combine.Default8BitClusterPreserveQuantizeScheme
OPS = tf.lite.OpsSet


@dataclass(frozen=True)
class Steps:
    """What both sides train with after the float model: epochs, batch size, learning rates, and how far they go."""

    epochs: int = 8
    longer: int = 16  # epochs of further float training: what the teacher of the other side costs
    batch: int = 64
    float_rate: float = 4e-3
    rate: float = 2e-3  # of what comes after; constant, but for the last stage of a row
    ramp: float = 0.5  # of the steps of pruning, in which zeros grow
    sparsity: float = 0.75
    channels: float = 0.5  # share that goes where whole channels do; the stock side has no such thing
    clusters: int = 16


def fit(
    model: Any, data: networks.Data, epochs: int, rate: float, batch: int, last: bool, callbacks: tuple[Any, ...] = ()
) -> None:
    """Adam; in the `last` stage of a row its learning rate goes down to zero along a cosine."""
    steps = epochs * -(-len(data.train[0]) // batch)
    schedule = tf_keras.optimizers.schedules.CosineDecay(rate, steps) if last else rate
    model.compile(tf_keras.optimizers.Adam(schedule), "sparse_categorical_crossentropy")
    model.fit(*data.train, batch_size=batch, epochs=epochs, verbose=0, callbacks=list(callbacks))


def pruned(model: Any, data: networks.Data, steps: Steps, epochs: int, last: bool = False) -> Any:
    """`prune_low_magnitude` with tfmot's polynomial schedule over `steps.ramp` of the steps; then stripped."""
    ramp = int(steps.ramp * epochs * -(-len(data.train[0]) // steps.batch))
    schedule = sparse.PolynomialDecay(0.0, steps.sparsity, 0, ramp, frequency=10)
    wrapped = sparse.prune_low_magnitude(model, schedule)
    fit(wrapped, data, epochs, steps.rate, steps.batch, last, (sparse.UpdatePruningStep(),))
    return sparse.strip_pruning(wrapped)


def clustered(
    model: Any, data: networks.Data, steps: Steps, epochs: int, last: bool = False, keep_zeros: bool = False
) -> Any:
    """`cluster_weights` from k-means++; then stripped."""
    given = {
        "number_of_clusters": steps.clusters,
        "cluster_centroids_init": shared.CentroidInitialization.KMEANS_PLUS_PLUS,
    }
    if keep_zeros:
        wrapped = zero_keeping.cluster_weights(model, preserve_sparsity=True, **given)
    else:
        wrapped = shared.cluster_weights(model, **given)
    fit(wrapped, data, epochs, steps.rate, steps.batch, last)
    return shared.strip_clustering(wrapped)


def aware(model: Any, data: networks.Data, steps: Steps, epochs: int, scheme: Any = None) -> Any:
    """`quantize_model`, or `quantize_apply` with one of tfmot's schemes that preserve what was done before."""
    if scheme is None:
        made = quantized.quantize_model(model)
    else:
        made = quantized.quantize_apply(quantized.quantize_annotate_model(model), scheme)
    fit(made, data, epochs, steps.rate, steps.batch, last=True)
    return made


def _prune_aware(model: Any, data: networks.Data, steps: Steps) -> Any:
    half = steps.epochs // 2
    return aware(pruned(model, data, steps, steps.epochs - half), data, steps, half, KeepsZeros())


def _cluster_aware(model: Any, data: networks.Data, steps: Steps) -> Any:
    half = steps.epochs // 2
    made = clustered(model, data, steps, steps.epochs - half)
    return aware(made, data, steps, half, KeepsClusters(preserve_sparsity=False))


def _all_aware(model: Any, data: networks.Data, steps: Steps) -> Any:
    last = steps.epochs // 4
    made = pruned(model, data, steps, steps.epochs - 2 * last)
    made = clustered(made, data, steps, last, keep_zeros=True)
    return aware(made, data, steps, last, KeepsClusters(preserve_sparsity=True))


def _longer(then: "Way") -> "Way":
    """Further training in float first."""

    def way(model: Any, data: networks.Data, steps: Steps) -> Any:
        fit(model, data, steps.longer, steps.float_rate, steps.batch, last=True)
        return then(model, data, steps)

    return way


def _quantized(model: Any, data: networks.Data, steps: Steps) -> Any:
    return aware(model, data, steps, steps.epochs)


Way = Callable[[Any, networks.Data, Steps], Any]


def _as_it_is(model: Any, data: networks.Data, steps: Steps) -> Any:
    return model


WAYS: dict[str, tuple[Way, str]] = {  # name -> what is done to the float model, and how it is converted
    "float": (_as_it_is, "float32"),
    "PTQ": (_as_it_is, "int8"),
    "PTQ, 16-bit activations": (_as_it_is, "int16x8"),
    "QAT": (_quantized, "int8"),
    "prune, PTQ": (lambda model, data, steps: pruned(model, data, steps, steps.epochs, last=True), "int8"),
    "prune + QAT (PQAT)": (_prune_aware, "int8"),
    "cluster, PTQ": (lambda model, data, steps: clustered(model, data, steps, steps.epochs, last=True), "int8"),
    "cluster + QAT (CQAT)": (_cluster_aware, "int8"),
    "prune + cluster + QAT (PCQAT)": (_all_aware, "int8"),
    "longer float, QAT": (_longer(_quantized), "int8"),
    "longer float, PQAT": (_longer(_prune_aware), "int8"),
    "longer float, CQAT": (_longer(_cluster_aware), "int8"),
}


def converted(model: Any, scheme: str, data: networks.Data, samples: int) -> bytes:
    """By `TFLiteConverter.from_keras_model`, calibrated on the first `samples` of the training split."""
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if scheme == "float32":
        return bytes(converter.convert())
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([data.train[0][at : at + 1]] for at in range(samples))
    ops, number = {
        "int8": (OPS.TFLITE_BUILTINS_INT8, tf.int8),
        "int16x8": (OPS.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8, tf.int16),
    }[scheme]
    converter.target_spec.supported_ops = [ops]
    converter.inference_input_type = converter.inference_output_type = number
    return bytes(converter.convert())
