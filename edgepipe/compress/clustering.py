"""Weight clustering with tfmot: a kernel keeps few distinct values; training moves weights between clusters.

Han et al. 2016, "Deep Compression" (arXiv 1510.00149): shared weights. Each weight of a kernel takes the value of the
nearest centroid; the gradient moves the centroids, and the weights between them. tfmot's wrapper does that. This module
adds what it lacks: tfmot silently skips convolutions without bias and frozen layers, crashes on a channel of zeros, and
lets layers that are not clustered lose the zeros and clusters they started with.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import tensorflow_model_optimization as tfmot
import tf_keras
from tensorflow_model_optimization.python.core.clustering.keras.cluster_wrapper import ClusterWeights

from edgepipe.compress.overrides import Overrides
from edgepipe.compress.qat.quantizers import MIN_CLUSTER_MEMBERS, KernelStructure, WeightQuantizer, detect_structure
from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError
from edgepipe.core.units import plural
from edgepipe.models.port_names import output_names

K = tf_keras.layers
KERNEL_ATTRIBUTES = {
    K.Conv1D: "kernel", K.Conv1DTranspose: "kernel", K.Conv2D: "kernel", K.Conv2DTranspose: "kernel",
    K.Conv3D: "kernel", K.Conv3DTranspose: "kernel", K.Dense: "kernel",
    K.SeparableConv1D: "pointwise_kernel", K.SeparableConv2D: "pointwise_kernel",
}  # fmt: skip
DEPTHWISE_LAYERS = (K.DepthwiseConv1D, K.DepthwiseConv2D)
_INIT = tfmot.clustering.keras.CentroidInitialization
CENTROID_INITS = {
    "density": _INIT.DENSITY_BASED,
    "linear": _INIT.LINEAR,
    "kmeans++": _INIT.KMEANS_PLUS_PLUS,
    "random": _INIT.RANDOM,
}


@dataclass(frozen=True)
class ClusteringPlan:
    """The number of clusters, their initial centroids, and the layers that are excluded."""

    cluster_count: int
    init: Literal["density", "linear", "kmeans++", "random"] = "kmeans++"
    preserve_sparsity: bool = True
    per_channel: bool = False
    exclude_last: bool = True
    overrides: Overrides[int] = field(default_factory=Overrides)


@dataclass(frozen=True)
class ClusterTarget:
    """How one kernel is clustered: its number of values, zero included, in total or in each output channel."""

    cluster_count: int
    per_channel: bool
    keeps_zeros: bool
    per_tensor_reason: str = ""  # why the kernel is clustered per tensor, although the plan says per channel


@dataclass(frozen=True)
class ClusterSelection:
    """By layer path: how it is clustered, or why it is excluded; and each kernel before clustering."""

    target_by_path: dict[str, ClusterTarget]
    exclusion_reasons: dict[str, str]
    original_kernel_by_path: dict[str, Array]


@dataclass(frozen=True)
class LayerClusters:
    """The distinct values of a kernel after clustering, counted exactly."""

    name: str
    kind: str
    elements: int
    zeros: int
    revived_zero_count: int  # weights that were zero before clustering and are not now
    nonzero_distinct_count: int  # distinct values, zero excluded
    max_distinct_in_channel: int  # the largest number of distinct values in an output channel, zero excluded
    target: ClusterTarget | None
    exclusion_reason: str = ""

    @property
    def distinct_count(self) -> int:
        """The number of distinct values that `target` limits, zero included."""
        by_channel = self.target is not None and self.target.per_channel
        return (self.max_distinct_in_channel if by_channel else self.nonzero_distinct_count) + (self.zeros > 0)


def iterate_layers(model: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every layer with its path, `outer/inner` in a nested model."""
    for layer in model.layers:
        if isinstance(layer, tf_keras.Model):
            yield from iterate_layers(layer, f"{prefix}{layer.name}/")
        else:
            yield f"{prefix}{layer.name}", layer


def find_kernel(layer: Any) -> Any:
    """The variable that is clustered, or the kernel of a layer that clustering does not support; None without one."""
    attribute = KERNEL_ATTRIBUTES.get(type(layer))
    if attribute:
        return getattr(layer, attribute)
    return next((weight for weight in layer.weights if "kernel" in weight.name.rsplit("/", 1)[-1]), None)


def select_layers(model: Any, plan: ClusteringPlan) -> ClusterSelection:
    """Decide for each layer of `model` with a kernel how it is clustered, or why not.

    Raises:
        InputError: nothing to cluster, or an override for a layer that does not exist.
    """
    layer_by_path = dict(iterate_layers(model))
    plan.overrides.check(list(layer_by_path.values()))
    kernel_layers = {path: layer for path, layer in layer_by_path.items() if find_kernel(layer) is not None}
    last_path = next((path for path in reversed(kernel_layers) if type(kernel_layers[path]) in KERNEL_ATTRIBUTES), None)
    decisions = {path: _decide_layer(layer, plan, is_last=path == last_path) for path, layer in kernel_layers.items()}
    target_by_path = {path: decision for path, decision in decisions.items() if isinstance(decision, ClusterTarget)}
    exclusion_reasons = {path: decision for path, decision in decisions.items() if isinstance(decision, str)}
    if not target_by_path:
        reason_text = (
            "; ".join(f"{path}: {reason}" for path, reason in exclusion_reasons.items()) or "no layer has a kernel"
        )
        raise InputError(f"nothing to cluster in '{model.name}': {reason_text}")
    return ClusterSelection(
        target_by_path, exclusion_reasons, {path: np.array(find_kernel(layer)) for path, layer in kernel_layers.items()}
    )


def _decide_layer(layer: Any, plan: ClusteringPlan, is_last: bool) -> ClusterTarget | str:
    exclusion_reason = _unclusterable_reason(layer) or _plan_exclusion_reason(layer, plan, is_last)
    if exclusion_reason:
        return exclusion_reason
    cluster_count = _cluster_count(layer, plan)
    kernel = np.asarray(find_kernel(layer))
    distinct_count, nonzero_count = np.unique(kernel).size, int(np.count_nonzero(kernel))
    if distinct_count <= cluster_count:
        return f"it already holds {plural(distinct_count, 'distinct value')}"
    if nonzero_count < MIN_CLUSTER_MEMBERS * cluster_count:
        return (
            f"too few weights: {nonzero_count} that are not zero, for {cluster_count} clusters "
            f"(at least {MIN_CLUSTER_MEMBERS} each)"
        )
    keeps_zeros = plan.preserve_sparsity and detect_structure(kernel, (kernel.ndim - 1,)).zero_mask is not None
    per_tensor_reason = _per_tensor_reason(layer, kernel, cluster_count) if plan.per_channel else ""
    return ClusterTarget(cluster_count, plan.per_channel and not per_tensor_reason, keeps_zeros, per_tensor_reason)


def _unclusterable_reason(layer: Any) -> str:
    """Why tfmot cannot or should not cluster `layer`; empty if it can."""
    kind = type(layer).__name__
    if isinstance(layer, DEPTHWISE_LAYERS):
        return f"{kind} is not clustered: few weights, each used at many positions"
    if type(layer) not in KERNEL_ATTRIBUTES:
        return f"{kind} is not clustered: only convolutions and dense layers are"
    if not layer.trainable_weights:
        return "it is frozen (trainable: false), and clustering trains"
    kernel = np.asarray(find_kernel(layer))
    if getattr(layer, "groups", 1) > 1 and kernel.shape[-2] == 1:
        return f"{kind} with one channel per group is not clustered: few weights, each used at many positions"
    return "" if np.isfinite(kernel).all() else "its kernel holds NaN or infinity"


def _plan_exclusion_reason(layer: Any, plan: ClusteringPlan, is_last: bool) -> str:
    """Why the plan excludes `layer`; naming the last layer in `layers` overrides `exclude_last`."""
    if plan.overrides.is_excluded(layer):
        return "excluded by the pipeline"
    name_overrides = Overrides(override_by_pattern=plan.overrides.override_by_pattern).for_layer(layer)
    return (
        "the last layer is excluded (exclude_last: true)"
        if is_last and plan.exclude_last and not name_overrides
        else ""
    )


def _cluster_count(layer: Any, plan: ClusteringPlan) -> int:
    return next(
        (override for override in reversed(plan.overrides.for_layer(layer)) if override is not None), plan.cluster_count
    )


def _per_tensor_reason(layer: Any, kernel: Array, cluster_count: int) -> str:
    """Why `layer` cannot be clustered per channel; empty if it can.

    tfmot supports only Conv2D; for its subclass Conv2DTranspose it would use the input channels.
    """
    if type(layer) is not K.Conv2D:
        return f"per channel is for Conv2D only, not {type(layer).__name__}"
    min_nonzero = int(np.count_nonzero(kernel.reshape(-1, kernel.shape[-1]), axis=0).min())
    return (
        f"a channel has {plural(min_nonzero, 'nonzero weight')}"
        if min_nonzero < MIN_CLUSTER_MEMBERS * cluster_count
        else ""
    )


def wrap(model: Any, selection: ClusterSelection, init: str) -> Any:
    """`model` with clustering wrappers around the target layers of `selection`, inside nested models too."""
    return _clone_model(model, selection.target_by_path, init, "")


def _clone_model(model: Any, target_by_path: dict[str, ClusterTarget], init: str, prefix: str) -> Any:
    def clone_layer(layer: Any) -> Any:
        if isinstance(layer, tf_keras.Model):
            return _clone_model(layer, target_by_path, init, f"{prefix}{layer.name}/")
        target = target_by_path.get(f"{prefix}{layer.name}")
        return layer if target is None else _build_wrapper(layer, target, init)

    wrapped_model = tf_keras.models.clone_model(model, clone_function=clone_layer)
    wrapped_model.output_names = output_names(model)
    return wrapped_model


class _ClusterWrapper(ClusterWeights):  # type: ignore[misc]  # tfmot carries no types
    """tfmot's wrapper, fixed for inputs with a mask: tfmot's own passes the mask to a `call` that takes none."""

    def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        """The layer's output with each weight at its centroid."""
        self.update_clustered_weights_associations()
        return self.layer.call(inputs)


def _build_wrapper(layer: Any, target: ClusterTarget, init: str) -> Any:
    # tfmot's `cluster_weights` counts the channels of a Conv2D by its last weight, the kernel if there is no bias, and
    # then skips the layer as too small: the wrapper itself has no such check.
    wrapper = _ClusterWrapper(
        layer,
        target.cluster_count,
        CENTROID_INITS[init],
        preserve_sparsity=target.keeps_zeros,
        cluster_per_channel=target.per_channel,
    )
    wrapper.supports_masking = layer.supports_masking
    return wrapper


def build_callbacks(model: Any, selection: ClusterSelection, preserve_sparsity: bool) -> list[Any]:
    """Training callbacks that keep the zeros and clusters of the layers of `model` that are not clustered."""
    structured_kernels = []
    for path, layer in iterate_layers(model):
        if path in selection.exclusion_reasons:
            kernel_structure = detect_structure(
                selection.original_kernel_by_path[path], (selection.original_kernel_by_path[path].ndim - 1,)
            )
            kernel_structure = KernelStructure(
                kernel_structure.zero_mask if preserve_sparsity else None, kernel_structure.cluster_indices
            )
            structured_kernels += (
                [(find_kernel(layer), kernel_structure)]
                if kernel_structure.zero_mask is not None or kernel_structure.cluster_indices is not None
                else []
            )
    return [_KernelStructureCallback(structured_kernels)] if structured_kernels else []


class _KernelStructureCallback(tf_keras.callbacks.Callback):  # type: ignore[misc]  # tf_keras carries no types
    """Projects kernels back onto their zeros and clusters after each batch: projected gradient descent."""

    def __init__(self, structured_kernels: list[tuple[Any, KernelStructure]]) -> None:
        super().__init__()
        self.kernel_quantizers = [
            (variable, WeightQuantizer((), kernel_structure)) for variable, kernel_structure in structured_kernels
        ]

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        for variable, weight_quantizer in self.kernel_quantizers:
            variable.assign(weight_quantizer.apply_structure(variable))


def strip(model: Any) -> Any:
    """The clustered model without its wrappers: each weight is its cluster's centroid."""
    stripped_model = tfmot.clustering.keras.strip_clustering(model)
    stripped_model.output_names = output_names(model)
    return stripped_model


def measure_clusters(model: Any, selection: ClusterSelection) -> list[LayerClusters]:
    """The number of distinct values of every kernel of the stripped `model`, with the reason why it was excluded."""
    return [
        _measure_layer(path, layer, selection)
        for path, layer in iterate_layers(model)
        if path in selection.original_kernel_by_path
    ]


def _measure_layer(path: str, layer: Any, selection: ClusterSelection) -> LayerClusters:
    kernel, original_kernel = np.asarray(find_kernel(layer)), selection.original_kernel_by_path[path]
    zero_mask = kernel == 0
    weights_by_channel = kernel.reshape(-1, kernel.shape[-1]).T
    return LayerClusters(
        name=path,
        kind=type(layer).__name__,
        elements=kernel.size,
        zeros=int(zero_mask.sum()),
        revived_zero_count=int(((original_kernel == 0) & ~zero_mask).sum()),
        nonzero_distinct_count=_count_distinct(kernel),
        max_distinct_in_channel=max(_count_distinct(channel_weights) for channel_weights in weights_by_channel),
        target=selection.target_by_path.get(path),
        exclusion_reason=selection.exclusion_reasons.get(path, ""),
    )


def _count_distinct(array: Array) -> int:
    return int(np.unique(array[array != 0]).size)


def check_clusters(model: Any, selection: ClusterSelection, plan: ClusteringPlan) -> list[LayerClusters]:
    """`measure_clusters`, checked against the plan.

    Raises:
        InputError: a layer has more distinct values than clusters, lost a zero it had to keep, or is no longer finite.
    """
    layer_clusters, layer_by_path = measure_clusters(model, selection), dict(iterate_layers(model))
    for clusters_of_layer in layer_clusters:
        kernel = np.asarray(find_kernel(layer_by_path[clusters_of_layer.name]))
        original_kernel = selection.original_kernel_by_path[clusters_of_layer.name]
        if not np.isfinite(kernel).all():
            raise InputError(
                f"layer '{clusters_of_layer.name}' holds NaN or infinity after clustering; lower learning_rate"
            )
        if (
            clusters_of_layer.target is not None
            and clusters_of_layer.distinct_count > clusters_of_layer.target.cluster_count
        ):
            scope_text = "a channel" if clusters_of_layer.target.per_channel else "the kernel"
            raise InputError(
                f"layer '{clusters_of_layer.name}': {scope_text} holds "
                f"{clusters_of_layer.distinct_count} distinct values after clustering, "
                f"more than the {clusters_of_layer.target.cluster_count} requested"
            )
        if (
            plan.preserve_sparsity
            and clusters_of_layer.revived_zero_count
            and detect_structure(original_kernel, (original_kernel.ndim - 1,)).zero_mask is not None
        ):
            revived_zeros_text = plural(clusters_of_layer.revived_zero_count, "zero weight")
            raise InputError(f"layer '{clusters_of_layer.name}': {revived_zeros_text} became nonzero in clustering")
    return layer_clusters
