"""The steps of `convert`, in order: samples, source model, conversion, file."""

from typing import TYPE_CHECKING, Any

from edgepipe.compress import source_model
from edgepipe.compress.conversion import ConvertedModel
from edgepipe.compress.schemes import SCHEMES
from edgepipe.compress.source_model import SourceModel
from edgepipe.core.arrays import Arrays
from edgepipe.core.artifact import Artifact, ArtifactKind, write_bytes, write_text
from edgepipe.core.errors import InputError
from edgepipe.data.splits import draw_representative
from edgepipe.devices.runtimes.releases import parse_release
from edgepipe.stages import model_io
from edgepipe.stages.context import StageContext
from edgepipe.tflite.metadata import embed_preprocessing

if TYPE_CHECKING:
    from edgepipe.compress.mixed_precision import QualityTarget
    from edgepipe.compress.quantizer.quantization import QuantizationRequest
    from edgepipe.stages.convert.convert_options import ConvertOptions


def draw_samples(options: "ConvertOptions", context: StageContext) -> Arrays | None:
    """Representative samples from the training split; None for schemes that do not calibrate."""
    if not SCHEMES[options.scheme].needs_calibration or context.splits is None:
        return None
    return draw_representative(context.data.train, options.calibration_sample_count(context.pipeline), context.seed)


def open_source(options: "ConvertOptions", context: StageContext, samples: Arrays | None) -> SourceModel:
    """The stage's input, with equalized channels and corrected biases if the options say so."""
    if options.equalize is None and options.bias_correction is None:
        return source_model.open_source(
            context.artifact.path,
            context.artifact.kind,
            allow_code=context.allow_code,
            input_shapes=options.input_shapes,
            signature=options.signature,
        )
    from dataclasses import replace

    from edgepipe.compress.equalization.equalize_source import equalize_source

    _check_equalization(options, context, samples)
    model, notes = model_io.open_float(context, options.input_shapes)
    source = equalize_source(model, options.equalize, options.bias_correction, samples)
    return replace(source, notes=(*notes, *source.notes))


def _check_equalization(options: "ConvertOptions", context: StageContext, samples: Arrays | None) -> None:
    if context.artifact.kind not in (ArtifactKind.KERAS, ArtifactKind.FLOAT):
        raise InputError(
            "equalize and bias_correction change the weights of a float Keras model; the stage's input is "
            f"{context.artifact.kind}"
        )
    if options.signature is not None:
        raise InputError("signature: only a SavedModel has signatures; equalize and bias_correction take Keras models")
    if samples is None and "samples" in (options.equalize, options.bias_correction):
        raise InputError("equalize and bias_correction on samples need `data:`; `data_free` does not")


def convert(
    options: "ConvertOptions", context: StageContext, source: SourceModel, samples: Arrays | None
) -> ConvertedModel:
    """Convert `source` by the scheme of the options.

    Args:
        options: of the stage.
        context: of the stage.
        source: the model to convert.
        samples: representative samples; None for schemes that do not calibrate.

    Raises:
        InputError: a model, samples or options that do not go together.
        TargetNotMetError: no mix of types keeps the quality.
    """
    request, held_out = _build_request(options, context, source), _held_out_samples(options, context)
    if options.scheme != "mixed":
        from edgepipe.compress.release_adaptation import convert_model_for

        release = None if options.runtime is None else parse_release(options.runtime)
        return convert_model_for(source.model, request, samples, held_out, release)
    from edgepipe.compress.mixed_precision import convert_mixed

    return convert_mixed(source, request, samples, _quality_target(options, context), held_out)


def _held_out_samples(options: "ConvertOptions", context: StageContext) -> Arrays | None:
    """Samples of the validation split, on which an integer model is compared with the float one."""
    if not SCHEMES[options.scheme].needs_calibration or context.splits is None:
        return None
    from edgepipe.compress.fidelity import MAX_SAMPLES

    return draw_representative(context.data.validation, MAX_SAMPLES, context.seed)


def _build_request(options: "ConvertOptions", context: StageContext, source: SourceModel) -> "QuantizationRequest":
    from edgepipe.compress.quantizer import recipe_files
    from edgepipe.compress.quantizer.float_exclusions import select_float_operators
    from edgepipe.compress.quantizer.quantization import QuantizationRequest

    keep_float = None
    if options.keeps_float:
        _check_keep_float(context)
        keep_float = select_float_operators(options.keep_float_types, options.keep_float_layers, source.class_by_layer)
    recipe_rules = recipe_files.read(context.base_folder / options.recipe) if options.recipe is not None else None
    return QuantizationRequest(
        options.scheme, options.input, options.output, options.activation_calibration, recipe_rules, keep_float,
        options.recurrent, options.streaming, options.split_outputs, keep_open_batch=options.keep_open_batch,
    )  # fmt: skip


def _check_keep_float(context: StageContext) -> None:
    if context.artifact.kind is ArtifactKind.QAT:
        raise InputError(
            "keep_float_types and keep_float_layers: a fake-quant model is quantized as it was trained; set them in "
            "`quantize`"
        )


def _quality_target(options: "ConvertOptions", context: StageContext) -> "QualityTarget":
    from edgepipe.compress.mixed_precision import QualityTarget

    return QualityTarget(
        measure_quality=lambda path: _primary_quality(path, context),
        higher_is_better=context.task.measures[context.task.primary_measure].higher_is_better,
        max_drop=options.max_drop or 0.0,
        device=options.target_device(context.base_folder),
        repeat_options=options.repeat_options(),
    )


def _primary_quality(path: Any, context: StageContext) -> float:
    from edgepipe.stages.tflite_quality import measure_quality
    from edgepipe.tflite.interpreter import Runtime

    primary_measure = context.task.primary_measure
    metrics = measure_quality(path, context.task, context.data.validation, "validation", Runtime.XNNPACK)
    quality = next(metric.value for metric in metrics if metric.name == primary_measure)
    if quality is None:
        raise InputError(f"{primary_measure} could not be measured on the validation split")
    return quality


def write(context: StageContext, converted_model: ConvertedModel) -> Artifact:
    """Store the .tflite, with the preprocessing constants inside; for `mixed` also its recipe, as a file beside it."""
    from edgepipe.compress.mixed_precision import RECIPE_FILE

    path = context.output_folder / "model.tflite"
    preprocessing = context.splits.preprocessing if context.splits is not None else None
    write_bytes(path, embed_preprocessing(converted_model.content, preprocessing))
    if converted_model.recipe_json is not None:
        write_text(context.output_folder / RECIPE_FILE, converted_model.recipe_json)
    return Artifact.from_path(ArtifactKind.TFLITE, path)
