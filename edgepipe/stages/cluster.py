"""`cluster`: let the weights of each kernel share a few distinct values."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, final

from pydantic import Field, model_validator

from edgepipe.core.artifact import Artifact, ArtifactKind
from edgepipe.core.config import Options
from edgepipe.core.metric import Metric, exact_metric
from edgepipe.core.outcome import Outcome, Table
from edgepipe.core.units import Dimension
from edgepipe.stages import model_io, model_metrics
from edgepipe.stages.base import Expression
from edgepipe.stages.context import StageContext
from edgepipe.stages.training import TrainingStage

if TYPE_CHECKING:
    from edgepipe.compress.clustering import ClusteringPlan, LayerClusters

Clusters = Annotated[int, Field(ge=2, le=256)]  # int8 has 256 values
COLUMNS = ("layer", "kind", "weights", "zeros", "distinct non-zero", "most in a channel", "clusters", "reason")


@final
class ClusterLayerOptions(Options):
    """Options of single layers or layer classes."""

    clusters: Clusters


@final
class Cluster(TrainingStage):
    """Let the weights of each kernel share a few distinct values, and train those values (tfmot)."""

    accepts: ClassVar = {ArtifactKind.KERAS: ArtifactKind.FLOAT, ArtifactKind.FLOAT: ArtifactKind.FLOAT}
    tools: ClassVar = ("tensorflow", "keras", "tf_keras", "tensorflow-model-optimization", "numpy")

    clusters: Clusters = Field(default=16, description="distinct values that a kernel may have, zero included")
    init: Literal["density", "linear", "kmeans++", "random"] = Field(
        default="kmeans++", description="initial centroids: by weight density, evenly spaced, k-means++ or random"
    )
    preserve_sparsity: bool = Field(default=True, description="keep the zeros of pruned layers")
    per_channel: bool = Field(
        default=False, description="count the values for each output channel of a Conv2D instead of for the kernel"
    )
    exclude_last: bool = Field(
        default=True, description="exclude the last convolution or dense layer, unless `layers` names it"
    )
    types: dict[str, ClusterLayerOptions | None] = Field(
        default_factory=dict, description="by layer class: `{Dense: {clusters: 32}}`; null excludes it"
    )
    layers: dict[Expression, ClusterLayerOptions | None] = Field(
        default_factory=dict, description='by layer name, a regular expression: `{"conv1": null}`; overrides `types`'
    )

    @model_validator(mode="after")
    def _check_room_for_zero(self) -> "Cluster":
        overrides = [*self.types.values(), *self.layers.values()]
        fewest = min([self.clusters, *(options.clusters for options in overrides if options is not None)])
        if self.preserve_sparsity and fewest < 3:
            raise ValueError(f"clusters ({fewest}) must be at least 3: zero is one of them (preserve_sparsity: true)")
        return self

    def run(self, context: StageContext) -> tuple[Artifact, Outcome]:
        """Wrap, train and strip the model, then count the distinct values of every kernel."""
        from edgepipe.compress import clustering
        from edgepipe.training.training_loop import fit, set_seeds

        set_seeds(context.seed)
        model, notes = model_io.open_float(context)
        setup, plan = self.training_setup(context), self._plan()
        selection = clustering.select_layers(model, plan)
        callbacks = clustering.build_callbacks(model, selection, self.preserve_sparsity)
        wrapped_model = clustering.wrap(model, selection, self.init)
        fit(wrapped_model, setup, self.fit_schedule(context), context.progress.epoch, callbacks)
        stripped_model = clustering.strip(wrapped_model)
        layers = clustering.check_clusters(stripped_model, selection, plan)
        artifact = model_io.write_float(stripped_model, context.output_folder)
        metrics = (*model_metrics.keras_metrics(stripped_model, artifact, context), *_cluster_metrics(layers))
        return artifact, Outcome(
            metrics=metrics, notes=(*notes, *setup.notes, *_layer_notes(layers)), tables=(_layer_table(layers),)
        )

    def _plan(self) -> "ClusteringPlan":
        from edgepipe.compress.clustering import ClusteringPlan
        from edgepipe.compress.overrides import Overrides

        types, layers = _cluster_counts(self.types), _cluster_counts(self.layers)
        return ClusteringPlan(
            clusters=self.clusters,
            init=self.init,
            preserve_sparsity=self.preserve_sparsity,
            per_channel=self.per_channel,
            exclude_last=self.exclude_last,
            overrides=Overrides(types, layers),
        )


def _cluster_counts(options_by_name: dict[str, ClusterLayerOptions | None]) -> dict[str, int | None]:
    return {name: None if options is None else options.clusters for name, options in options_by_name.items()}


def _cluster_metrics(layers: "list[LayerClusters]") -> list[Metric]:
    clustered_layers = [layer for layer in layers if layer.target is not None]
    zeros, elements = sum(layer.zeros for layer in clustered_layers), sum(layer.elements for layer in clustered_layers)
    excluded_names = ", ".join(layer.name for layer in layers if layer.target is None) or "none"
    scope = f"the kernels of {len(clustered_layers)} clustered layers; excluded: {excluded_names}"
    max_distinct = max(layer.distinct_count for layer in clustered_layers)
    return [
        exact_metric(
            "distinct_weights", max_distinct, Dimension.COUNT, f"the most distinct values, zero included, in {scope}"
        ),
        exact_metric("sparsity", zeros / elements, Dimension.FRACTION, f"exact zeros in {scope}"),
    ]


def _layer_notes(layers: "list[LayerClusters]") -> list[str]:
    exclusion_notes = [
        f"layer '{layer.name}' is excluded: {layer.exclusion_reason}" for layer in layers if layer.exclusion_reason
    ]
    per_tensor_reasons = [(layer.name, layer.target.per_tensor_reason) for layer in layers if layer.target is not None]
    return exclusion_notes + [
        f"layer '{name}' is clustered as a whole: {reason}" for name, reason in per_tensor_reasons if reason
    ]


def _layer_table(layers: "list[LayerClusters]") -> Table:
    return Table(
        title="Distinct weights by layer, zeros counted separately",
        columns=COLUMNS,
        rows=tuple(_layer_row(layer) for layer in layers),
    )


def _layer_row(layer: "LayerClusters") -> tuple[Any, ...]:
    clusters = "" if layer.target is None else f"{layer.target.clusters}{' per channel' * layer.target.per_channel}"
    counts = (layer.elements, layer.zeros, layer.distinct_values, layer.max_in_channel)
    return (layer.name, layer.kind, *counts, clusters, layer.exclusion_reason)
