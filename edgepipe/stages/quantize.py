"""`quantize`: quantization-aware training."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from pydantic import Field

from edgepipe.core.artifact import Artifact, Kind
from edgepipe.core.metric import exact
from edgepipe.core.outcome import Outcome, Table
from edgepipe.core.units import Dimension
from edgepipe.stages import model_io, model_metrics
from edgepipe.stages.base import Expression
from edgepipe.stages.context import StageContext
from edgepipe.stages.training import TrainingStage

if TYPE_CHECKING:
    from edgepipe.compress.qat.fake_quant import FakeQuant, Recipe


@final
class Quantize(TrainingStage):
    """Train with fake-quant on weights and activations, so that the model learns to live with 8 bits."""

    accepts: ClassVar = {Kind.KERAS: Kind.QAT, Kind.FLOAT: Kind.QAT}
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
        from edgepipe.compress.qat.fake_quant import fake_quant, freeze_batch_norms
        from edgepipe.core.arrays import take
        from edgepipe.training.training_loop import fit, seeded

        seeded(context.seed)
        base, notes = model_io.open_float(context)
        recipe, x = self._recipe(), context.data.train.x
        made = fake_quant(base, recipe, take(x, slice(2)))
        dead = range_initialization.initialise(made.model, x, context.seed, batch_statistics=self.batch_norm == "live")
        if self.batch_norm == "frozen":
            freeze_batch_norms(made.model)
        lesson = self.training_setup(context)
        fit(made.model, lesson, self.fit_schedule(context), context.progress.epoch)
        settled = bias_limits.settle(made.model)
        qat_store.save(made.model, base, recipe, context.output_folder / "model")
        artifact = Artifact.of(Kind.QAT, context.output_folder / "model")
        metrics = [*model_metrics.keras_metrics(made.model, artifact, context), *_counted(made)]
        notes += [*lesson.notes, f"{settled} biases moved to the int32 steps that TFLite stores them in", *_held(made)]
        notes += [*_exceptions(made), *(f"'{name}' is always zero on the samples" for name in dead)]
        return artifact, Outcome(metrics=tuple(metrics), notes=tuple(notes), tables=(_coverage(made),))

    def _recipe(self) -> "Recipe":
        from edgepipe.compress.qat.fake_quant import Recipe

        return Recipe(self.preserve_sparsity, self.preserve_clusters, tuple(self.layers), tuple(self.types))


def _counted(made: "FakeQuant") -> list[Any]:
    from edgepipe.compress.qat.coverage import counts

    found = counts(made.coverage)
    how = {"training": "whose tensors are all fake-quantized", "calibration": "quantized by calibration only",
           "float": "that TFLite has no int8 operator for"}  # fmt: skip
    return [
        exact(f"layers_by_{by}", found[by], Dimension.COUNT, f"layers of the model {text}") for by, text in how.items()
    ]


def _coverage(made: "FakeQuant") -> Table:
    """By class, and each exception by name."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for entry in made.coverage:
        rows.setdefault((entry.cls, entry.by, entry.reason), []).append(entry.layer)
    return Table(
        title="coverage of quantization",
        columns=("class", "layers", "quantized by", "why not by training"),
        rows=tuple((cls, len(names), by, reason) for (cls, by, reason), names in rows.items()),
    )


def _exceptions(made: "FakeQuant") -> list[str]:
    by = {"calibration": "is quantized by calibration only", "float": "stays float"}
    return [f"layer '{c.layer}' ({c.cls}) {by[c.by]}: {c.reason}" for c in made.coverage if c.by != "training"]


def _held(made: "FakeQuant") -> list[str]:
    zero = [name for name, ties in made.held.items() if ties.zero is not None]
    clustered = [f"{name} ({ties.clusters})" for name, ties in made.held.items() if ties.cluster is not None]
    told = [f"zeros are kept in {len(zero)} of {len(made.held)} kernels: {', '.join(zero)}"] if zero else []
    return told + ([f"equal weights are kept equal in {', '.join(clustered)}"] if clustered else [])
