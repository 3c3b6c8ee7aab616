"""The model a pipeline starts from: a `module:function` or a file. Always the first step of a run."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

from pydantic import Field

from edgepipe.core import module_sources, references
from edgepipe.core.arrays import sole_array
from edgepipe.core.artifact import Artifact, ArtifactKind, copy_atomically
from edgepipe.core.config import Document, KeyPath, describe_value, validate
from edgepipe.core.errors import EdgepipeError, InputError
from edgepipe.core.file_memo import active_memo
from edgepipe.core.metric import Finding, Metric, unavailable_metric
from edgepipe.core.outcome import Outcome
from edgepipe.data.split_names import FITTING_SPLITS
from edgepipe.models.dtype_policies import check_not_quantized, describe_float_policies
from edgepipe.models.file_kind import detect_kind, find_code_layers, read_config
from edgepipe.models.input_shapes import parse_input_shapes
from edgepipe.models.model_description import describe as describe_model
from edgepipe.stages import model_io, model_metrics
from edgepipe.stages.base import Stage
from edgepipe.stages.context import PipelineInfo, StageContext

if TYPE_CHECKING:
    from edgepipe.data.splits import SplitData
    from edgepipe.stages.preprocessing_check import QualityMeasurement

_DESCRIBED_KINDS = (ArtifactKind.KERAS, ArtifactKind.FLOAT)  # whose file describes their layers


@final
class Source(Stage):
    """The model a pipeline starts from: a file, or a function that builds it."""

    accepts: ClassVar = {kind: kind for kind in ArtifactKind}
    splits: ClassVar = FITTING_SPLITS
    tools: ClassVar = ("tensorflow", "keras", "tf_keras", "ai-edge-litert", "numpy", "scikit-learn")

    path: str | None = Field(default=None, description=".keras, .h5 or .tflite file, or SavedModel folder")
    function: str | None = Field(default=None, description="module:function that returns a Keras 3 model")
    args: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the function")
    custom_objects: str | None = Field(
        default=None, description="module:attribute, a dictionary of the model's own classes, or one class"
    )
    input_shape: str | None = Field(
        default=None,
        description="sizes of open input dimensions: `224x224x3`, or `name=224x224x3, ..` for several inputs",
    )
    trained_range: tuple[float, float] | None = Field(
        default=None, description="values that the model was trained on, as [0, 1]; null: as its first layers tell"
    )
    allow_code: bool = Field(default=False, description="load models that carry code: Lambda layers, SavedModels")

    def kind(self, base_folder: Path) -> ArtifactKind:
        """The kind of its artifact, detected without loading the file."""
        return ArtifactKind.KERAS if self.path is None else detect_kind(base_folder / self.path)

    def notes(self, base_folder: Path) -> tuple[str, ...]:
        """What happens to the model file that the user may not expect; read without TensorFlow."""
        if self.path is None or self.kind(base_folder) not in _DESCRIBED_KINDS:
            return ()
        policies_text = describe_float_policies(read_config(base_folder / self.path))
        return (f"{self.path}: {policies_text}: rebuilt in float32 when it is loaded",) if policies_text else ()

    @property
    def uses_tensorflow(self) -> bool:
        """Not for a .tflite, which is only copied."""
        return self.path is None or not self.path.endswith(".tflite")

    def key(self, pipeline: PipelineInfo) -> dict[str, Any]:
        """The file's content, or the source of the function."""
        module_names = [reference.partition(":")[0] for reference in (self.function, self.custom_objects) if reference]
        return {
            "content": active_memo().content_digest_of(pipeline.base_folder / self.path)
            if self.path is not None
            else None,
            "source": [module_sources.source_digest(module, pipeline.base_folder) for module in module_names],
        }

    def run(self, context: StageContext) -> tuple[Artifact, Outcome]:
        """Copy the file or build the model, so that the run no longer depends on the original.

        A model that computes in other floats is stored rebuilt in float32: all later stages work on that.
        """
        artifact, notes = self._copy_file(context) if self.path is not None else self._build_model(context)
        outcome = _judge_model(artifact, context, self.trained_range)
        return artifact, outcome.model_copy(update={"notes": (*notes, *outcome.notes)})

    def _copy_file(self, context: StageContext) -> tuple[Artifact, tuple[str, ...]]:
        source = context.base_folder / str(self.path)
        kind = detect_kind(source)
        target = context.output_folder / f"model{source.suffix}"
        copy_atomically(source, target)
        if kind not in _DESCRIBED_KINDS or not (self.input_shape or describe_float_policies(read_config(target))):
            return Artifact.from_path(kind, target), ()
        from edgepipe.models.model_files import load_in_float32

        float32_model = load_in_float32(target, kind, allow_code=self.allow_code)
        target.unlink()
        write = model_io.write_keras if kind is ArtifactKind.KERAS else model_io.write_float
        return write(self._fix_inputs(float32_model.model), context.output_folder), _float32_notes(float32_model.notes)

    def _fix_inputs(self, model: Any) -> Any:
        from edgepipe.models.fixed_inputs import fix_input_shapes

        return fix_input_shapes(model, parse_input_shapes(self.input_shape or ()))

    def _build_model(self, context: StageContext) -> tuple[Artifact, tuple[str, ...]]:
        from edgepipe.models.model_function import build_model
        from edgepipe.training.training_loop import set_seeds

        set_seeds(context.seed)
        float32_model = build_model(str(self.function), dict(self.args), context.base_folder, context.splits)
        artifact = model_io.write_keras(self._fix_inputs(float32_model.model), context.output_folder)
        return artifact, _float32_notes(float32_model.notes)


def _float32_notes(notes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{note}; training and compression go on in float32" for note in notes)


def parse_source(document: Document, path: KeyPath, raw_source: Any, base_folder: Path) -> Source | None:
    """Parse `model:`: a file, `module:function`, or a mapping of options.

    Args:
        document: collects the problems.
        path: of `model` in the document.
        raw_source: its value.
        base_folder: what relative paths and modules start from.
    """
    if isinstance(raw_source, str):
        raw_source = {"function": raw_source} if references.is_reference(raw_source) else {"path": raw_source}
    elif not isinstance(raw_source, dict):
        document.add_problem(path, f"must be a file, module:function or a mapping; found {describe_value(raw_source)}")
        return None
    source = validate(document, path, raw_source, Source)
    if source is not None and (problem_text := find_problem(source, base_folder)):
        document.add_problem(path, problem_text)
        return None
    return source


def find_problem(source: Source, base_folder: Path) -> str:
    """What is wrong with `source`, found without loading it; empty if nothing is."""
    if (source.path is None) == (source.function is None):
        return "needs exactly one of path and function"
    try:
        for option in ("function", "custom_objects"):
            if problem_text := _reference_problem(option, getattr(source, option), base_folder):
                return problem_text
        return "" if source.path is None else _file_problem(source, base_folder / source.path)
    except InputError as error:
        return str(error)


def _file_problem(source: Source, path: Path) -> str:
    kind = detect_kind(path)
    parse_input_shapes(source.input_shape or ())
    if source.input_shape and kind not in _DESCRIBED_KINDS:
        return f"input_shape is for a Keras model with open dimensions; this is a {kind}"
    if kind is ArtifactKind.SAVED_MODEL and not source.allow_code:
        return "a SavedModel is a program; write `model: {path: .., allow_code: true}` if you trust it"
    if kind not in _DESCRIBED_KINDS:
        return ""
    check_not_quantized(str(source.path), read_config(path))
    code_layers = () if source.allow_code else _code_layers(path, source.custom_objects is not None)
    if code_layers:
        return (
            f"carries code in {', '.join(code_layers)}; name your own classes in `model: {{path: .., custom_objects: "
            "module:attribute}`, or set `allow_code: true` if you trust it"
        )
    return ""


def _reference_problem(option: str, reference: str | None, base_folder: Path) -> str:
    if reference is None:
        return ""
    if not references.is_reference(reference):
        return f"{option} '{reference}' is not of the form module:{'function' if option == 'function' else 'attribute'}"
    references.check(reference, base_folder)
    return ""


def _code_layers(path: Path, has_custom_objects: bool) -> tuple[str, ...]:
    if has_custom_objects:  # only running their module would show which; a subclassed model may be one of them
        return find_code_layers(read_config(path), known_names=None)
    return describe_model(path).code_layers


def _judge_model(artifact: Artifact, context: StageContext, trained_range: tuple[float, float] | None) -> Outcome:
    """Quality and counts of the model as it came, and whether the data reach it as it expects them."""
    from edgepipe.models.input_expectations import read_expectations
    from edgepipe.stages.preprocessing_check import check_preprocessing

    measure, counts = _quality_measurement(artifact, context)
    has_task = context.splits is not None and context.task_if_any is not None
    quality = _measure_if_possible(context, measure) if has_task else []
    findings: list[Finding] = []
    notes: list[str] = []
    if context.splits is not None:
        is_measured = any(metric.value is not None for metric in quality)
        findings, notes = check_preprocessing(
            read_expectations(artifact.path, trained_range), context.splits, measure if is_measured else None
        )
    return Outcome(metrics=(*quality, *counts), findings=tuple(findings), notes=tuple(notes))


def _quality_measurement(artifact: Artifact, context: StageContext) -> tuple["QualityMeasurement", list[Metric]]:
    """A function that measures the quality of the model on samples of the validation split, and its counts."""
    if artifact.kind is ArtifactKind.TFLITE:
        return _tflite_measurement(artifact, context), []
    if artifact.kind is ArtifactKind.SAVED_MODEL:
        reason = "a SavedModel's quality is measured once it is converted"
        return (lambda samples: _unavailable_quality(context, reason)), []
    from edgepipe.compress.source_model import open_model

    model = open_model(artifact.path, artifact.kind, allow_code=context.allow_code)
    _check_shapes(model, context)
    return _keras_measurement(model, artifact, context), model_metrics.parameter_metrics(model, artifact)


def _check_shapes(model: Any, context: StageContext) -> None:
    """Raise an `InputError` if the samples or their classes do not fit the model."""
    if context.splits is None or context.task_if_any is None:
        return
    from edgepipe.training.loss_and_optimizer import check_data_shapes

    validation_data = context.data.validation
    check_data_shapes(model, context.task, validation_data.x, sole_array(validation_data.y))


def _keras_measurement(model: Any, artifact: Artifact, context: StageContext) -> "QualityMeasurement":
    runtime_text = model_metrics.keras_runtime_text(artifact)
    return lambda samples: model_metrics.keras_quality(model, context.task, samples, "validation", runtime_text)


def _tflite_measurement(artifact: Artifact, context: StageContext) -> "QualityMeasurement":
    from edgepipe.stages.tflite_quality import measure_quality
    from edgepipe.tflite.interpreter import Runtime, check_runs

    def measure(samples: "SplitData") -> list[Metric]:
        check_runs(artifact.path, Runtime.XNNPACK)
        return measure_quality(artifact.path, context.task, samples, "validation", Runtime.XNNPACK)

    return measure


def _measure_if_possible(context: StageContext, measure: "QualityMeasurement") -> list[Metric]:
    """The quality; without a value where the model as it is cannot be judged, such as one that is not trained."""
    try:
        return measure(context.data.validation)
    except (EdgepipeError, ValueError, KeyError) as error:  # Keras says in these what does not fit named inputs
        return _unavailable_quality(context, f"the model as it is cannot be judged: {str(error).splitlines()[0]}")


def _unavailable_quality(context: StageContext, reason: str) -> list[Metric]:
    return [unavailable_metric(name, measure.unit, reason) for name, measure in context.task.measures.items()]
