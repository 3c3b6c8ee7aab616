"""`cluster`: let the weights of each kernel share a few distinct values."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, final

from pydantic import Field, model_validator

from edgepipe.core.artifact import Artifact, ArtifactKind
from edgepipe.core.config import Options
from edgepipe.core.metric import Metric, exact_metric
from edgepipe.core.outcome import Outcome, Table
from edgepipe.core.units import Dimension
from edgepipe.stages import model_io, model_metrics
from edgepipe.stages.base import RegularExpression
from edgepipe.stages.context import StageContext
from edgepipe.stages.training import TrainingStage

if TYPE_CHECKING:
    from edgepipe.compress.clustering import ClusteringPlan, LayerClusters

ClusterCount = Annotated[int, Field(ge=2, le=256)]  # int8 has 256 values
TABLE_COLUMNS = ("layer", "kind", "weights", "zeros", "distinct non-zero", "most in a channel", "clusters", "reason")


@final
class ClusterLayerOptions(Options):
    """Options of single layers or layer classes."""

    clusters: ClusterCount


@final
class Cluster(TrainingStage):
    """Let the weights of each kernel share a few distinct values, and train those values (tfmot)."""

    accepts: ClassVar = {ArtifactKind.KERAS: ArtifactKind.FLOAT, ArtifactKind.FLOAT: ArtifactKind.FLOAT}
    compresses: ClassVar = True
    tools: ClassVar = ("tensorflow", "keras", "tf_keras", "tensorflow-model-optimization", "numpy")

    clusters: ClusterCount = Field(default=16, description="distinct values that a kernel may have, zero included")
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
    layers: dict[RegularExpression, ClusterLayerOptions | None] = Field(
        default_factory=dict, description='by layer name, a regular expression: `{"conv1": null}`; overrides `types`'
    )

    @model_validator(mode="after")
    def _check_room_for_zero(self) -> "Cluster":
        overrides = [*self.types.values(), *self.layers.values()]
        min_clusters = min([self.clusters, *(options.clusters for options in overrides if options is not None)])
        if self.preserve_sparsity and min_clusters < 3:
            raise ValueError(
                f"clusters ({min_clusters}) must be at least 3: zero is one of them (preserve_sparsity: true)"
            )
        return self

    def run(self, context: StageContext) -> tuple[Artifact, Outcome]:
        """Wrap, train and strip the model, then count the distinct values of every kernel."""
        from edgepipe.compress import clustering
        from edgepipe.training.training_loop import fit, set_seeds

        set_seeds(context.seed)
        model, notes = model_io.open_float(context)
        setup, plan = self.training_setup(context), self._clustering_plan()
        selection = clustering.select_layers(model, plan)
        callbacks = clustering.build_callbacks(model, selection, self.preserve_sparsity)
        wrapped_model = clustering.wrap(model, selection, self.init)
        fit(wrapped_model, setup, self.fit_schedule(context), context.progress.epoch, callbacks)
        stripped_model = clustering.strip(wrapped_model)
        layer_clusters = clustering.check_clusters(stripped_model, selection, plan)
        artifact = model_io.write_float(stripped_model, context.output_folder)
        metrics = (*model_metrics.keras_metrics(stripped_model, artifact, context), *_cluster_metrics(layer_clusters))
        return artifact, Outcome(
            metrics=metrics,
            notes=(*notes, *setup.notes, *_layer_notes(layer_clusters)),
            tables=(_layer_table(layer_clusters),),
        )

    def _clustering_plan(self) -> "ClusteringPlan":
        from edgepipe.compress.clustering import ClusteringPlan
        from edgepipe.compress.overrides import Overrides

        count_by_type, count_by_layer = _cluster_counts(self.types), _cluster_counts(self.layers)
        return ClusteringPlan(
            cluster_count=self.clusters,
            init=self.init,
            preserve_sparsity=self.preserve_sparsity,
            per_channel=self.per_channel,
            exclude_last=self.exclude_last,
            overrides=Overrides(count_by_type, count_by_layer),
        )


def _cluster_counts(options_by_name: dict[str, ClusterLayerOptions | None]) -> dict[str, int | None]:
    return {name: None if options is None else options.clusters for name, options in options_by_name.items()}


def _cluster_metrics(layer_clusters: "list[LayerClusters]") -> list[Metric]:
    clustered_layers = [layer for layer in layer_clusters if layer.target is not None]
    zeros, elements = sum(layer.zeros for layer in clustered_layers), sum(layer.elements for layer in clustered_layers)
    excluded_names = ", ".join(layer.name for layer in layer_clusters if layer.target is None) or "none"
    scope_text = f"the kernels of {len(clustered_layers)} clustered layers; excluded: {excluded_names}"
    max_distinct_count = max(layer.distinct_count for layer in clustered_layers)
    return [
        exact_metric(
            "distinct_weights",
            max_distinct_count,
            Dimension.COUNT,
            f"the most distinct values, zero included, in {scope_text}",
        ),
        exact_metric("sparsity", zeros / elements, Dimension.FRACTION, f"exact zeros in {scope_text}"),
    ]


def _layer_notes(layer_clusters: "list[LayerClusters]") -> list[str]:
    exclusion_notes = [
        f"layer '{layer.name}' is excluded: {layer.exclusion_reason}"
        for layer in layer_clusters
        if layer.exclusion_reason
    ]
    per_tensor_reasons = [
        (layer.name, layer.target.per_tensor_reason) for layer in layer_clusters if layer.target is not None
    ]
    return exclusion_notes + [
        f"layer '{name}' is clustered as a whole: {reason}" for name, reason in per_tensor_reasons if reason
    ]


def _layer_table(layer_clusters: "list[LayerClusters]") -> Table:
    return Table(
        title="Distinct weights by layer, zeros counted separately",
        columns=TABLE_COLUMNS,
        rows=tuple(_layer_row(layer) for layer in layer_clusters),
    )


def _layer_row(layer: "LayerClusters") -> tuple[Any, ...]:
    clusters = (
        "" if layer.target is None else f"{layer.target.cluster_count}{' per channel' * layer.target.per_channel}"
    )
    counts = (layer.elements, layer.zeros, layer.nonzero_distinct_count, layer.max_distinct_in_channel)
    return (layer.name, layer.kind, *counts, clusters, layer.exclusion_reason)
