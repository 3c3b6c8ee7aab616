"""Weight clustering with tfmot: a kernel keeps few distinct values, trained while each weight may go over to another.

Han et al. 2016, "Deep Compression" (arXiv 1510.00149): shared weights. Each weight of a kernel takes the value of the
nearest centroid; the gradient moves the centroids, and the weights between them. tfmot's wrapper does that. Built here
is what it lacks: it passes over biasless convolutions and frozen layers without a word, crashes on a channel of zeros,
and lets the layers that are not clustered lose the zeros and clusters they came with.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import tensorflow_model_optimization as tfmot
import tf_keras
from tensorflow_model_optimization.python.core.clustering.keras.cluster_wrapper import ClusterWeights

from edgepipe.compress.overrides import Overrides
from edgepipe.compress.qat.quantizers import MEMBERS, Ties, WeightQuantizer, ties
from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError

K = tf_keras.layers
CLUSTERED = {
    K.Conv1D: "kernel", K.Conv1DTranspose: "kernel", K.Conv2D: "kernel", K.Conv2DTranspose: "kernel",
    K.Conv3D: "kernel", K.Conv3DTranspose: "kernel", K.Dense: "kernel",
    K.SeparableConv1D: "pointwise_kernel", K.SeparableConv2D: "pointwise_kernel",
}  # fmt: skip
DEPTHWISE = (K.DepthwiseConv1D, K.DepthwiseConv2D)
_START = tfmot.clustering.keras.CentroidInitialization
STARTS = {"density": _START.DENSITY_BASED, "linear": _START.LINEAR, "kmeans++": _START.KMEANS_PLUS_PLUS,
          "random": _START.RANDOM}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """How many clusters, where their centroids start, and what is left alone."""

    clusters: int
    init: Literal["density", "linear", "kmeans++", "random"] = "kmeans++"
    preserve_sparsity: bool = True
    per_channel: bool = False
    exclude_last: bool = True
    overrides: Overrides[int] = field(default_factory=Overrides)


@dataclass(frozen=True)
class Target:
    """How one kernel is clustered: its number of values, zero included, in all or in each output channel."""

    clusters: int
    per_channel: bool
    keeps_zeros: bool
    whole_because: str = ""  # why the kernel is clustered as a whole, although the plan says per channel


@dataclass(frozen=True)
class Choice:
    """Path of a layer -> how it is clustered, or why it is left alone; and each kernel as it was."""

    targets: dict[str, Target]
    alone: dict[str, str]
    before: dict[str, Array]


@dataclass(frozen=True)
class LayerClusters:
    """The distinct values of a kernel after clustering, exactly counted."""

    name: str
    kind: str
    elements: int
    zeros: int
    revived: int  # weights that were zero before and are not now
    values: int  # distinct, zero left out
    in_channel: int  # the most distinct values that an output channel has, zero left out
    target: Target | None
    left_alone: str = ""

    @property
    def most(self) -> int:
        """The distinct values that `target` limits, zero counted."""
        by_channel = self.target is not None and self.target.per_channel
        return (self.in_channel if by_channel else self.values) + (self.zeros > 0)


def walk(model: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every layer with its path, `outer/inner` for one inside a nested model."""
    for layer in model.layers:
        if isinstance(layer, tf_keras.Model):
            yield from walk(layer, f"{prefix}{layer.name}/")
        else:
            yield f"{prefix}{layer.name}", layer


def weights(layer: Any) -> Any:
    """The variable that is clustered, or the kernel of a layer that clustering leaves alone; None without one."""
    attribute = CLUSTERED.get(type(layer))
    if attribute:
        return getattr(layer, attribute)
    return next((weight for weight in layer.weights if "kernel" in weight.name.rsplit("/", 1)[-1]), None)


def choose(model: Any, plan: Plan) -> Choice:
    """What happens to each layer of `model` that has a kernel.

    Raises:
        InputError: nothing to cluster, or an override for a layer that is not there.
    """
    layers = dict(walk(model))
    plan.overrides.check(list(layers.values()))
    held = {path: layer for path, layer in layers.items() if weights(layer) is not None}
    last = next((path for path in reversed(held) if type(held[path]) in CLUSTERED), None)
    found = {path: _chosen(layer, plan, is_last=path == last) for path, layer in held.items()}
    targets = {path: chosen for path, chosen in found.items() if isinstance(chosen, Target)}
    alone = {path: chosen for path, chosen in found.items() if isinstance(chosen, str)}
    if not targets:
        named = "; ".join(f"{path}: {reason}" for path, reason in alone.items()) or "no layer has a kernel"
        raise InputError(f"nothing to cluster in '{model.name}': {named}")
    return Choice(targets, alone, {path: np.array(weights(layer)) for path, layer in held.items()})


def _chosen(layer: Any, plan: Plan, is_last: bool) -> Target | str:
    reason = _unfit(layer) or _unwanted(layer, plan, is_last)
    if reason:
        return reason
    clusters = _clusters(layer, plan)
    values = np.asarray(weights(layer))
    distinct, nonzero = np.unique(values).size, int(np.count_nonzero(values))
    if distinct <= clusters:
        return f"it holds {distinct} distinct values already"
    if nonzero < MEMBERS * clusters:
        return f"too few weights: {nonzero} that are not zero, for {clusters} clusters ({MEMBERS} each at least)"
    keeps_zeros = plan.preserve_sparsity and ties(values, (values.ndim - 1,)).zero is not None
    whole = _whole_because(layer, values, clusters) if plan.per_channel else ""
    return Target(clusters, plan.per_channel and not whole, keeps_zeros, whole)


def _unfit(layer: Any) -> str:
    """Why tfmot cannot cluster `layer`, or should not."""
    kind = type(layer).__name__
    if isinstance(layer, DEPTHWISE):
        return f"{kind} is not clustered: few weights, each used at many places"
    if type(layer) not in CLUSTERED:
        return f"{kind} is not clustered: only convolutions and dense layers are"
    if not layer.trainable_weights:
        return "it is frozen (trainable: false), and clustering trains"
    values = np.asarray(weights(layer))
    if getattr(layer, "groups", 1) > 1 and values.shape[-2] == 1:
        return f"{kind} of one channel a group is not clustered: few weights, each used at many places"
    return "" if np.isfinite(values).all() else "its kernel holds NaN or infinity"


def _unwanted(layer: Any, plan: Plan, is_last: bool) -> str:
    """Why the plan leaves `layer` alone; naming the last layer in `layers` is stronger than `exclude_last`."""
    if plan.overrides.left_alone(layer):
        return "as the pipeline says"
    named = Overrides(layers=plan.overrides.layers).of(layer)
    return "the last layer is excluded (exclude_last: true)" if is_last and plan.exclude_last and not named else ""


def _clusters(layer: Any, plan: Plan) -> int:
    return next((found for found in reversed(plan.overrides.of(layer)) if found is not None), plan.clusters)


def _whole_because(layer: Any, values: Array, clusters: int) -> str:
    """Why `layer` cannot be clustered by channel. tfmot does so for Conv2D only; of its subclass Conv2DTranspose it
    would take the input channels."""
    if type(layer) is not K.Conv2D:
        return f"per channel is for Conv2D, not {type(layer).__name__}"
    fewest = int(np.count_nonzero(values.reshape(-1, values.shape[-1]), axis=0).min())
    return f"a channel has {fewest} weights that are not zero" if fewest < MEMBERS * clusters else ""


def wrap(model: Any, choice: Choice, init: str) -> Any:
    """`model` with clustering wrappers around the layers that `choice` targets, inside nested models too."""
    return _cloned(model, choice.targets, init, "")


def _cloned(model: Any, targets: dict[str, Target], init: str, prefix: str) -> Any:
    def clone(layer: Any) -> Any:
        if isinstance(layer, tf_keras.Model):
            return _cloned(layer, targets, init, f"{prefix}{layer.name}/")
        target = targets.get(f"{prefix}{layer.name}")
        return layer if target is None else _wrapper(layer, target, init)

    return tf_keras.models.clone_model(model, clone_function=clone)


class _Wrapper(ClusterWeights):  # type: ignore[misc]  # tfmot carries no types
    """tfmot's wrapper, behind a layer that gives a mask too: tfmot's own hands the mask to a `call` that takes none."""

    def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        """What the layer gives with each weight at its centroid."""
        self.update_clustered_weights_associations()
        return self.layer.call(inputs)


def _wrapper(layer: Any, target: Target, init: str) -> Any:
    # tfmot's `cluster_weights` counts the channels of a Conv2D by its last weight, the kernel if there is no bias, and
    # then passes the layer over as too small: the wrapper itself has no such test.
    wrapper = _Wrapper(
        layer,
        target.clusters,
        STARTS[init],
        preserve_sparsity=target.keeps_zeros,
        cluster_per_channel=target.per_channel,
    )
    wrapper.supports_masking = layer.supports_masking
    return wrapper


def callbacks(model: Any, choice: Choice, preserve_sparsity: bool) -> list[Any]:
    """What the training loop must call so that layers of `model` that are left alone keep their zeros and clusters."""
    held = []
    for path, layer in walk(model):
        if path in choice.alone:
            found = ties(choice.before[path], (choice.before[path].ndim - 1,))
            found = Ties(found.zero if preserve_sparsity else None, found.cluster)
            held += [(weights(layer), found)] if found.zero is not None or found.cluster is not None else []
    return [_Hold(held)] if held else []


class _Hold(tf_keras.callbacks.Callback):  # type: ignore[misc]  # tf_keras carries no types
    """After each batch, set kernels back to where their ties allow: projected gradient descent."""

    def __init__(self, held: list[tuple[Any, Ties]]) -> None:
        super().__init__()
        self.held = [(variable, WeightQuantizer((), found)) for variable, found in held]

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        for variable, quantizer in self.held:
            variable.assign(quantizer.held(variable))


def strip(model: Any) -> Any:
    """The clustered model without its wrappers: each weight is the centroid it belongs to."""
    return tfmot.clustering.keras.strip_clustering(model)


def measure(model: Any, choice: Choice) -> list[LayerClusters]:
    """The distinct values of every kernel of the stripped `model`, counted, beside the reason it was left alone."""
    return [_counted(path, layer, choice) for path, layer in walk(model) if path in choice.before]


def _counted(path: str, layer: Any, choice: Choice) -> LayerClusters:
    values, before = np.asarray(weights(layer)), choice.before[path]
    zero = values == 0
    channels = values.reshape(-1, values.shape[-1]).T
    return LayerClusters(
        name=path,
        kind=type(layer).__name__,
        elements=values.size,
        zeros=int(zero.sum()),
        revived=int(((before == 0) & ~zero).sum()),
        values=_distinct(values),
        in_channel=max(_distinct(channel) for channel in channels),
        target=choice.targets.get(path),
        left_alone=choice.alone.get(path, ""),
    )


def _distinct(values: Array) -> int:
    return int(np.unique(values[values != 0]).size)


def check(model: Any, choice: Choice, plan: Plan) -> list[LayerClusters]:
    """`measure`, and that the plan was kept to.

    Raises:
        InputError: a layer has more distinct values than clusters, lost a zero it had to keep, or is no longer finite.
    """
    layers, made = measure(model, choice), dict(walk(model))
    for layer in layers:
        values, before = np.asarray(weights(made[layer.name])), choice.before[layer.name]
        if not np.isfinite(values).all():
            raise InputError(f"layer '{layer.name}' holds NaN or infinity after clustering; lower learning_rate")
        if layer.target is not None and layer.most > layer.target.clusters:
            where = "a channel" if layer.target.per_channel else "the kernel"
            raise InputError(f"layer '{layer.name}': {where} holds {layer.most} distinct values after clustering, over "
                             f"the {layer.target.clusters} that were asked for")  # fmt: skip
        if plan.preserve_sparsity and layer.revived and ties(before, (before.ndim - 1,)).zero is not None:
            raise InputError(f"layer '{layer.name}': {layer.revived} weights that were zero are not after clustering")
    return layers
