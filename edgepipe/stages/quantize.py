"""`quantize`: quantization-aware training."""

from typing import TYPE_CHECKING, ClassVar, Literal, final

from pydantic import Field

from edgepipe.core.artifact import Artifact, ArtifactKind
from edgepipe.core.metric import Metric, exact_metric
from edgepipe.core.outcome import Outcome, Table
from edgepipe.core.units import Dimension, plural
from edgepipe.stages import model_io, model_metrics
from edgepipe.stages.base import RegularExpression
from edgepipe.stages.context import StageContext
from edgepipe.stages.training import TrainingStage

if TYPE_CHECKING:
    from edgepipe.compress.qat.fake_quant import FakeQuantModel, QatRecipe


@final
class Quantize(TrainingStage):
    """Train with fake-quant on weights and activations, so that the model adapts to 8 bits."""

    accepts: ClassVar = {ArtifactKind.KERAS: ArtifactKind.QAT, ArtifactKind.FLOAT: ArtifactKind.QAT}
    compresses: ClassVar = True
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
    keep_float_layers: dict[RegularExpression, None] = Field(
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
        base_model, notes = model_io.open_float(context)
        recipe, x = self._recipe(), context.data.train.x
        fake_quant_model = build_fake_quant(base_model, recipe, take_samples(x, slice(2)))
        dead_tensor_names = range_initialization.initialize_ranges(
            fake_quant_model.model, x, context.seed, use_batch_statistics=self.batch_norm == "live"
        )
        if self.batch_norm == "frozen":
            freeze_batch_norms(fake_quant_model.model)
        setup = self.training_setup(context)
        fit(fake_quant_model.model, setup, self.fit_schedule(context), context.progress.epoch)
        rounded_bias_count = bias_limits.round_biases(fake_quant_model.model)
        qat_store.save(fake_quant_model.model, base_model, recipe, context.output_folder / "model")
        artifact = Artifact.from_path(ArtifactKind.QAT, context.output_folder / "model")
        metrics = [
            *model_metrics.keras_metrics(fake_quant_model.model, artifact, context),
            *_coverage_metrics(fake_quant_model),
        ]
        notes += [
            *setup.notes,
            f"{plural(rounded_bias_count, 'bias', 'biases')} rounded to the int32 steps that TFLite stores",
        ]
        notes += [*_kernel_notes(fake_quant_model), *_exception_notes(fake_quant_model)]
        notes += [f"'{name}' is always zero on the samples" for name in dead_tensor_names]
        return artifact, Outcome(
            metrics=tuple(metrics), notes=tuple(notes), tables=(_coverage_table(fake_quant_model),)
        )

    def _recipe(self) -> "QatRecipe":
        from edgepipe.compress.qat.fake_quant import QatRecipe

        layer_patterns, layer_types = tuple(self.keep_float_layers), tuple(self.keep_float_types)
        return QatRecipe(self.preserve_sparsity, self.preserve_clusters, layer_patterns, layer_types)


_COVERAGE_TEXTS = {
    "training": "whose tensors are all fake-quantized",
    "calibration": "quantized by calibration only",
    "float": "that TFLite has no int8 operator for",
}


def _coverage_metrics(fake_quant_model: "FakeQuantModel") -> list[Metric]:
    from edgepipe.compress.qat.coverage import count_coverage

    count_by_method = count_coverage(fake_quant_model.layer_coverages)
    return [
        exact_metric(f"layers_by_{method}", count_by_method[method], Dimension.COUNT, f"layers of the model {meaning}")
        for method, meaning in _COVERAGE_TEXTS.items()
    ]


def _coverage_table(fake_quant_model: "FakeQuantModel") -> Table:
    """By class, and each exception by name."""
    layer_names_by_case: dict[tuple[str, str, str], list[str]] = {}
    for layer in fake_quant_model.layer_coverages:
        layer_names_by_case.setdefault((layer.cls, layer.quantized_by, layer.reason), []).append(layer.layer)
    return Table(
        title="coverage of quantization",
        columns=("class", "layers", "quantized by", "why not by training"),
        rows=tuple((cls, len(layers), method, reason) for (cls, method, reason), layers in layer_names_by_case.items()),
    )


def _exception_notes(fake_quant_model: "FakeQuantModel") -> list[str]:
    outcome_by_method = {"calibration": "is quantized by calibration only", "float": "stays float"}
    return [
        f"layer '{layer.layer}' ({layer.cls}) {outcome_by_method[layer.quantized_by]}: {layer.reason}"
        for layer in fake_quant_model.layer_coverages
        if layer.quantized_by != "training"
    ]


def _kernel_notes(fake_quant_model: "FakeQuantModel") -> list[str]:
    """Which kernels keep their zeros, and which their equal weights."""
    kernel_structures = fake_quant_model.kernel_structures
    pruned_kernel_names = [name for name, structure in kernel_structures.items() if structure.zero_mask is not None]
    clustered_texts = [
        f"{name} ({structure.cluster_count})"
        for name, structure in kernel_structures.items()
        if structure.cluster_indices is not None
    ]
    notes = (
        [
            f"zeros are kept in {len(pruned_kernel_names)} of {plural(len(kernel_structures), 'kernel')}: "
            f"{', '.join(pruned_kernel_names)}"
        ]
        if pruned_kernel_names
        else []
    )
    return notes + ([f"equal weights are kept equal in {', '.join(clustered_texts)}"] if clustered_texts else [])
