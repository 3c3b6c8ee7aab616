"""`quantize`: quantization-aware training."""

from typing import TYPE_CHECKING, ClassVar, Literal, final

from pydantic import Field

from edgepipe.core.artifact import Artifact, ArtifactKind
from edgepipe.core.metric import Metric, exact_metric
from edgepipe.core.outcome import Outcome, Table
from edgepipe.core.units import Dimension, plural
from edgepipe.stages import model_io, model_metrics
from edgepipe.stages.base import Expression
from edgepipe.stages.context import StageContext
from edgepipe.stages.training import TrainingStage

if TYPE_CHECKING:
    from edgepipe.compress.qat.fake_quant import FakeQuantModel, QatRecipe


@final
class Quantize(TrainingStage):
    """Train with fake-quant on weights and activations, so that the model adapts to 8 bits."""

    accepts: ClassVar = {ArtifactKind.KERAS: ArtifactKind.QAT, ArtifactKind.FLOAT: ArtifactKind.QAT}
    tools: ClassVar = ("tensorflow", "keras", "tf_keras", "tensorflow-model-optimization", "numpy")
    former_names: ClassVar = {"types": "keep_float_types", "layers": "keep_float_layers"}

    preserve_sparsity: bool = Field(default=True, description="keep the zeros of pruned layers")
    preserve_clusters: bool = Field(default=True, description="keep equal weights of clustered layers equal")
    batch_norm: Literal["frozen", "live"] = Field(
        default="live",
        description="live: train with the statistics of each batch; frozen: with the moving ones, as on the device",
    )
    keep_float_types: dict[str, None] = Field(
        default_factory=dict,
        description="layer classes that train in float, without fake-quant: `{LayerNormalization: null}`",
    )
    keep_float_layers: dict[Expression, None] = Field(
        default_factory=dict,
        description='layers that train in float, by regular expression: `{"block_1_.*": null}`',
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
        fake_quant = build_fake_quant(base, recipe, take_samples(x, slice(2)))
        dead_tensors = range_initialization.initialize_ranges(
            fake_quant.model, x, context.seed, batch_statistics=self.batch_norm == "live"
        )
        if self.batch_norm == "frozen":
            freeze_batch_norms(fake_quant.model)
        setup = self.training_setup(context)
        fit(fake_quant.model, setup, self.fit_schedule(context), context.progress.epoch)
        biases = bias_limits.round_biases(fake_quant.model)
        qat_store.save(fake_quant.model, base, recipe, context.output_folder / "model")
        artifact = Artifact.from_path(ArtifactKind.QAT, context.output_folder / "model")
        metrics = [*model_metrics.keras_metrics(fake_quant.model, artifact, context), *_coverage_metrics(fake_quant)]
        notes += [*setup.notes, f"{plural(biases, 'bias', 'biases')} rounded to the int32 steps that TFLite stores"]
        notes += [*_kernel_notes(fake_quant), *_exception_notes(fake_quant)]
        notes += [f"'{name}' is always zero on the samples" for name in dead_tensors]
        return artifact, Outcome(metrics=tuple(metrics), notes=tuple(notes), tables=(_coverage_table(fake_quant),))

    def _recipe(self) -> "QatRecipe":
        from edgepipe.compress.qat.fake_quant import QatRecipe

        layers, types = tuple(self.keep_float_layers), tuple(self.keep_float_types)
        return QatRecipe(self.preserve_sparsity, self.preserve_clusters, layers, types)


_COVERAGE = {
    "training": "whose tensors are all fake-quantized",
    "calibration": "quantized by calibration only",
    "float": "that TFLite has no int8 operator for",
}


def _coverage_metrics(fake_quant: "FakeQuantModel") -> list[Metric]:
    from edgepipe.compress.qat.coverage import count_coverage

    counts = count_coverage(fake_quant.coverage)
    return [
        exact_metric(f"layers_by_{method}", counts[method], Dimension.COUNT, f"layers of the model {meaning}")
        for method, meaning in _COVERAGE.items()
    ]


def _coverage_table(fake_quant: "FakeQuantModel") -> Table:
    """By class, and each exception by name."""
    names: dict[tuple[str, str, str], list[str]] = {}
    for layer in fake_quant.coverage:
        names.setdefault((layer.cls, layer.quantized_by, layer.reason), []).append(layer.layer)
    return Table(
        title="coverage of quantization",
        columns=("class", "layers", "quantized by", "why not by training"),
        rows=tuple((cls, len(layers), method, reason) for (cls, method, reason), layers in names.items()),
    )


def _exception_notes(fake_quant: "FakeQuantModel") -> list[str]:
    outcome = {"calibration": "is quantized by calibration only", "float": "stays float"}
    return [
        f"layer '{layer.layer}' ({layer.cls}) {outcome[layer.quantized_by]}: {layer.reason}"
        for layer in fake_quant.coverage
        if layer.quantized_by != "training"
    ]


def _kernel_notes(fake_quant: "FakeQuantModel") -> list[str]:
    """Which kernels keep their zeros, and which their equal weights."""
    structures = fake_quant.kernel_structures
    zeros = [name for name, structure in structures.items() if structure.zero_mask is not None]
    clusters = [
        f"{name} ({structure.cluster_count})"
        for name, structure in structures.items()
        if structure.cluster_index is not None
    ]
    notes = (
        [f"zeros are kept in {len(zeros)} of {plural(len(structures), 'kernel')}: {', '.join(zeros)}"] if zeros else []
    )
    return notes + ([f"equal weights are kept equal in {', '.join(clusters)}"] if clusters else [])
