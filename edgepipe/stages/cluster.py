"""`cluster`: let each kernel share few distinct values."""

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
COLUMNS = (
    "layer",
    "kind",
    "weights",
    "zeros",
    "distinct non-zero",
    "most in a channel",
    "clusters",
    "left alone because",
)


@final
class ClusterLayerOptions(Options):
    """What can be said for some layers only."""

    clusters: Clusters


@final
class Cluster(TrainingStage):
    """Let the weights of each kernel share few distinct values, trained as they are shared (tfmot)."""

    accepts: ClassVar = {ArtifactKind.KERAS: ArtifactKind.FLOAT, ArtifactKind.FLOAT: ArtifactKind.FLOAT}
    tools: ClassVar = ("tensorflow", "keras", "tf_keras", "tensorflow-model-optimization", "numpy")

    clusters: Clusters = Field(default=16, description="distinct values that a kernel may have, zero included")
    init: Literal["density", "linear", "kmeans++", "random"] = Field(
        default="kmeans++", description="where the centroids start: by the density of the weights, evenly spaced, .."
    )
    preserve_sparsity: bool = Field(default=True, description="keep the zeros of layers that were pruned at zero")
    per_channel: bool = Field(
        default=False, description="that many values for each output channel of a Conv2D, instead of in all"
    )
    exclude_last: bool = Field(
        default=True, description="leave the last convolution or dense layer alone, unless `layers` names it"
    )
    types: dict[str, ClusterLayerOptions | None] = Field(
        default_factory=dict, description="by layer class: `{Dense: {clusters: 32}}`; null leaves it alone"
    )
    layers: dict[Expression, ClusterLayerOptions | None] = Field(
        default_factory=dict, description='by layer name, a regular expression: `{"conv1": null}`; over `types`'
    )

    @model_validator(mode="after")
    def _room_for_zero(self) -> "Cluster":
        overrides = [*self.types.values(), *self.layers.values()]
        fewest = min([self.clusters, *(given.clusters for given in overrides if given is not None)])
        if self.preserve_sparsity and fewest < 3:
            raise ValueError(f"clusters ({fewest}) must be at least 3: zero is one of them (preserve_sparsity: true)")
        return self

    def run(self, context: StageContext) -> tuple[Artifact, Outcome]:
        """Wrap, train, strip; the distinct values of every kernel are counted afterwards."""
        from edgepipe.compress import clustering
        from edgepipe.training.training_loop import fit, set_seeds

        set_seeds(context.seed)
        model, notes = model_io.open_float(context)
        lesson, plan = self.training_setup(context), self._plan()
        choice = clustering.select_layers(model, plan)
        held = clustering.build_callbacks(model, choice, self.preserve_sparsity)
        wrapped = clustering.wrap(model, choice, self.init)
        fit(wrapped, lesson, self.fit_schedule(context), context.progress.epoch, held)
        stripped = clustering.strip(wrapped)
        layers = clustering.check_clusters(stripped, choice, plan)
        artifact = model_io.write_float(stripped, context.output_folder)
        metrics = (*model_metrics.keras_metrics(stripped, artifact, context), *_metrics(layers))
        return artifact, Outcome(
            metrics=metrics, notes=(*notes, *lesson.notes, *_notes(layers)), tables=(_table(layers),)
        )

    def _plan(self) -> "ClusteringPlan":
        from edgepipe.compress.clustering import ClusteringPlan
        from edgepipe.compress.overrides import Overrides

        types, layers = _numbers(self.types), _numbers(self.layers)
        return ClusteringPlan(
            clusters=self.clusters,
            init=self.init,
            preserve_sparsity=self.preserve_sparsity,
            per_channel=self.per_channel,
            exclude_last=self.exclude_last,
            overrides=Overrides(types, layers),
        )


def _numbers(given: dict[str, ClusterLayerOptions | None]) -> dict[str, int | None]:
    return {name: None if options is None else options.clusters for name, options in given.items()}


def _metrics(layers: "list[LayerClusters]") -> list[Metric]:
    clustered = [layer for layer in layers if layer.target is not None]
    zeros, elements = sum(layer.zeros for layer in clustered), sum(layer.elements for layer in clustered)
    alone = ", ".join(layer.name for layer in layers if layer.target is None) or "none"
    which = f"the kernels of {len(clustered)} clustered layers; left alone: {alone}"
    most = max(layer.distinct_count for layer in clustered)
    return [
        exact_metric("distinct_weights", most, Dimension.COUNT, f"the most distinct values, zero included, in {which}"),
        exact_metric("sparsity", zeros / elements, Dimension.FRACTION, f"exact zeros in {which}"),
    ]


def _notes(layers: "list[LayerClusters]") -> list[str]:
    alone = [
        f"layer '{layer.name}' is left alone: {layer.exclusion_reason}" for layer in layers if layer.exclusion_reason
    ]
    fell_back = [(layer.name, layer.target.per_tensor_reason) for layer in layers if layer.target is not None]
    return alone + [f"layer '{name}' is clustered as a whole: {reason}" for name, reason in fell_back if reason]


def _table(layers: "list[LayerClusters]") -> Table:
    return Table(
        title="Distinct weights by layer, zeros told apart",
        columns=COLUMNS,
        rows=tuple(_row(layer) for layer in layers),
    )


def _row(layer: "LayerClusters") -> tuple[Any, ...]:
    allowed = "" if layer.target is None else f"{layer.target.clusters}{' a channel' * layer.target.per_channel}"
    counted = (layer.elements, layer.zeros, layer.distinct_values, layer.max_in_channel)
    return (layer.name, layer.kind, *counted, allowed, layer.exclusion_reason)
