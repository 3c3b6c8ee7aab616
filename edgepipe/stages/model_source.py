"""Where a pipeline's model comes from: a `module:function`, or a file. Always the first step of a run."""

from pathlib import Path
from typing import Any, ClassVar, final

from pydantic import Field

from edgepipe.core import references
from edgepipe.core.artifact import Artifact, ArtifactKind, content_digest, copy_atomically
from edgepipe.core.config import Document, KeyPath, describe_value, validate
from edgepipe.core.errors import InputError
from edgepipe.core.outcome import Outcome
from edgepipe.data.splits import FITTING_SPLITS
from edgepipe.models.file_kind import detect_kind, find_code_layers, read_config
from edgepipe.models.model_description import describe as describe_model
from edgepipe.stages import model_io, model_metrics
from edgepipe.stages.base import Stage
from edgepipe.stages.context import PipelineInfo, StageContext


@final
class Source(Stage):
    """The model a pipeline starts from: a file, or a function that builds it."""

    accepts: ClassVar = {kind: kind for kind in ArtifactKind}
    splits: ClassVar = FITTING_SPLITS
    tools: ClassVar = ("tensorflow", "keras", "tf_keras", "numpy")

    path: str | None = Field(default=None, description=".keras, .h5 or .tflite file, or SavedModel folder")
    function: str | None = Field(default=None, description="module:function that gives a Keras 3 model")
    args: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the function")
    custom_objects: str | None = Field(
        default=None, description="module:attribute, a dictionary of the model's own classes, or one class"
    )
    allow_code: bool = Field(default=False, description="load models that carry code: Lambda layers, SavedModels")

    def kind(self, base: Path) -> ArtifactKind:
        """What it will give, told from the file without loading it."""
        return ArtifactKind.KERAS if self.path is None else detect_kind(base / self.path)

    def key(self, pipeline: PipelineInfo) -> dict[str, Any]:
        """The file's content, or the source of the function."""
        code = [reference.partition(":")[0] for reference in (self.function, self.custom_objects) if reference]
        return {
            "content": content_digest(pipeline.base_folder / self.path) if self.path is not None else None,
            "source": [references.source_digest(module, pipeline.base_folder) for module in code],
        }

    def run(self, context: StageContext) -> tuple[Artifact, Outcome]:
        """Copy the file in or build the model, so that the run no longer depends on what it came from."""
        artifact = self._copied(context) if self.path is not None else self._built(context)
        return artifact, Outcome(metrics=tuple(_evidence(artifact, context)))

    def _copied(self, context: StageContext) -> Artifact:
        source = context.base_folder / str(self.path)
        kind = detect_kind(source)
        target = context.output_folder / f"model{source.suffix}"
        copy_atomically(source, target)
        return Artifact.from_path(kind, target)

    def _built(self, context: StageContext) -> Artifact:
        from edgepipe.models.model_function import build_model
        from edgepipe.training.training_loop import set_seeds

        set_seeds(context.seed)
        model = build_model(str(self.function), dict(self.args), context.base_folder, context.splits)
        return model_io.write_keras(model, context.output_folder)


def parse(document: Document, path: KeyPath, value: Any, base: Path) -> Source | None:
    """The model source at `path`: a file, `module:function`, or a mapping of options."""
    if isinstance(value, str):
        value = {"function": value} if references.is_reference(value) else {"path": value}
    elif not isinstance(value, dict):
        document.add_problem(path, f"must be a file, module:function or a mapping; found {describe_value(value)}")
        return None
    source = validate(document, path, value, Source)
    if source is not None and (wrong := problem(source, base)):
        document.add_problem(path, wrong)
        return None
    return source


def problem(source: Source, base: Path) -> str:
    """What is wrong with `source`, found without loading it; empty if nothing is."""
    if (source.path is None) == (source.function is None):
        return "needs exactly one of path and function"
    try:
        for option in ("function", "custom_objects"):
            if wrong := _wrong_reference(option, getattr(source, option), base):
                return wrong
        if source.path is None:
            return ""
        kind = detect_kind(base / source.path)
        keras_file = kind in (ArtifactKind.KERAS, ArtifactKind.FLOAT) and not source.allow_code
        inside = _code(base / source.path, source.custom_objects is not None) if keras_file else ()
    except InputError as error:
        return str(error)
    if kind is ArtifactKind.SAVED_MODEL and not source.allow_code:
        return "a SavedModel is a program; say `model: {path: .., allow_code: true}` if you trust it"
    if inside:
        return (
            f"carries code in {', '.join(inside)}; give classes of your own as `model: {{path: .., custom_objects: "
            "module:attribute}`, or say `allow_code: true` if you trust it"
        )
    return ""


def _wrong_reference(option: str, reference: str | None, base: Path) -> str:
    if reference is None:
        return ""
    if not references.is_reference(reference):
        return f"{option} '{reference}' is not of the form module:{'function' if option == 'function' else 'attribute'}"
    references.check(reference, base)
    return ""


def _code(path: Path, classes_given: bool) -> tuple[str, ...]:
    if classes_given:  # which ones only their module can say, when it is run; a subclassed model is among them
        return find_code_layers(read_config(path), known_names=None)
    return describe_model(path).code_layers


def _evidence(artifact: Artifact, context: StageContext) -> list[Any]:
    if artifact.kind in (ArtifactKind.TFLITE, ArtifactKind.SAVED_MODEL):
        return []
    from edgepipe.models.model_files import load_model

    return model_metrics.count_parameters(
        load_model(artifact.path, artifact.kind, allow_code=context.allow_code), artifact
    )
