"""`quantize`: quantization-aware training."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from pydantic import Field

from edgepipe.core.artifact import Artifact, ArtifactKind
from edgepipe.core.metric import exact_metric
from edgepipe.core.outcome import Outcome, Table
from edgepipe.core.units import Dimension
from edgepipe.stages import model_io, model_metrics
from edgepipe.stages.base import Expression
from edgepipe.stages.context import StageContext
from edgepipe.stages.training import TrainingStage

if TYPE_CHECKING:
    from edgepipe.compress.qat.fake_quant import FakeQuantModel, QatRecipe


@final
class Quantize(TrainingStage):
    """Train with fake-quant on weights and activations, so that the model learns to live with 8 bits."""

    accepts: ClassVar = {ArtifactKind.KERAS: ArtifactKind.QAT, ArtifactKind.FLOAT: ArtifactKind.QAT}
    tools: ClassVar = ("tensorflow", "keras", "tf_keras", "tensorflow-model-optimization", "numpy")

    preserve_sparsity: bool = Field(default=True, description="keep the zeros of layers that were pruned at zero")
    preserve_clusters: bool = Field(default=True, description="keep equal weights of layers that were clustered equal")
    batch_norm: Literal["frozen", "live"] = Field(
        default="live",
        description="live: train with the statistics of each batch; frozen: with the moving ones, as a device does",
    )
    types: dict[str, None] = Field(
        default_factory=dict, description="layer classes to leave alone: `{LayerNormalization: null}`"
    )
    layers: dict[Expression, None] = Field(
        default_factory=dict, description='layers to leave alone, by regular expression: `{"block_1_.*": null}`'
    )

    def run(self, context: StageContext) -> tuple[Artifact, Outcome]:
        """Apply fake-quant, train, store base model, recipe and weights."""
        from edgepipe.compress.qat import bias_limits, qat_store, range_initialization
        from edgepipe.compress.qat.fake_quant import build_fake_quant, freeze_batch_norms
        from edgepipe.core.arrays import take_samples
        from edgepipe.training.training_loop import fit, set_seeds

        set_seeds(context.seed)
        base, notes = model_io.open_float(context)
        recipe, x = self._recipe(), context.data.train.x
        made = build_fake_quant(base, recipe, take_samples(x, slice(2)))
        dead = range_initialization.initialize_ranges(
            made.model, x, context.seed, batch_statistics=self.batch_norm == "live"
        )
        if self.batch_norm == "frozen":
            freeze_batch_norms(made.model)
        lesson = self.training_setup(context)
        fit(made.model, lesson, self.fit_schedule(context), context.progress.epoch)
        settled = bias_limits.round_biases(made.model)
        qat_store.save(made.model, base, recipe, context.output_folder / "model")
        artifact = Artifact.from_path(ArtifactKind.QAT, context.output_folder / "model")
        metrics = [*model_metrics.keras_metrics(made.model, artifact, context), *_counted(made)]
        notes += [*lesson.notes, f"{settled} biases moved to the int32 steps that TFLite stores them in", *_held(made)]
        notes += [*_exceptions(made), *(f"'{name}' is always zero on the samples" for name in dead)]
        return artifact, Outcome(metrics=tuple(metrics), notes=tuple(notes), tables=(_coverage(made),))

    def _recipe(self) -> "QatRecipe":
        from edgepipe.compress.qat.fake_quant import QatRecipe

        return QatRecipe(self.preserve_sparsity, self.preserve_clusters, tuple(self.layers), tuple(self.types))


def _counted(made: "FakeQuantModel") -> list[Any]:
    from edgepipe.compress.qat.coverage import count_coverage

    found = count_coverage(made.coverage)
    how = {"training": "whose tensors are all fake-quantized", "calibration": "quantized by calibration only",
           "float": "that TFLite has no int8 operator for"}  # fmt: skip
    return [
        exact_metric(f"layers_by_{by}", found[by], Dimension.COUNT, f"layers of the model {text}")
        for by, text in how.items()
    ]


def _coverage(made: "FakeQuantModel") -> Table:
    """By class, and each exception by name."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for entry in made.coverage:
        rows.setdefault((entry.cls, entry.quantized_by, entry.reason), []).append(entry.layer)
    return Table(
        title="coverage of quantization",
        columns=("class", "layers", "quantized by", "why not by training"),
        rows=tuple((cls, len(names), by, reason) for (cls, by, reason), names in rows.items()),
    )


def _exceptions(made: "FakeQuantModel") -> list[str]:
    by = {"calibration": "is quantized by calibration only", "float": "stays float"}
    return [
        f"layer '{c.layer}' ({c.cls}) {by[c.quantized_by]}: {c.reason}"
        for c in made.coverage
        if c.quantized_by != "training"
    ]


def _held(made: "FakeQuantModel") -> list[str]:
    zero = [name for name, ties in made.kernel_structures.items() if ties.zero_mask is not None]
    clustered = [
        f"{name} ({ties.cluster_count})"
        for name, ties in made.kernel_structures.items()
        if ties.cluster_index is not None
    ]
    told = (
        [f"zeros are kept in {len(zero)} of {len(made.kernel_structures)} kernels: {', '.join(zero)}"] if zero else []
    )
    return told + ([f"equal weights are kept equal in {', '.join(clustered)}"] if clustered else [])
