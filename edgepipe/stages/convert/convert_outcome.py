"""What `convert` reports: quality, counts, what stayed in float, agreement with the fake-quant model."""

from typing import TYPE_CHECKING

from edgepipe.compress.conversion import ConvertedModel, float_operator_notes
from edgepipe.compress.schemes import SCHEMES
from edgepipe.compress.source_model import SourceModel
from edgepipe.core.artifact import Artifact
from edgepipe.core.metric import Finding, Metric
from edgepipe.core.outcome import Outcome
from edgepipe.devices.device_metrics import file_metrics
from edgepipe.stages.context import StageContext
from edgepipe.stages.convert.qat_agreement import describe_agreement
from edgepipe.tflite.integer_check import check_integer_only
from edgepipe.tflite.model import Model
from edgepipe.tflite.reader import read

if TYPE_CHECKING:
    from edgepipe.stages.convert.convert_options import ConvertOptions


def build_outcome(
    options: "ConvertOptions",
    context: StageContext,
    artifact: Artifact,
    source: SourceModel,
    converted_model: ConvertedModel,
) -> Outcome:
    """Measure the converted model and build the outcome of the stage.

    Args:
        options: of the stage.
        context: of the stage.
        artifact: the stored .tflite.
        source: the model it was converted from.
        converted_model: has the conversion's own metrics, notes and tables.
    """
    lite = read(artifact.path)
    agreement_tables, agreement_metrics = describe_agreement(converted_model.agreement)
    fidelity_findings, accepted_notes = converted_model.judge_fidelity(options.allow_low_fidelity)
    return Outcome(
        metrics=(
            *_quality_metrics(artifact, context),
            *agreement_metrics,
            *_fidelity_metrics(options, context, converted_model),
            *converted_model.metrics,
            *file_metrics(lite),
        ),
        findings=(*_float_findings(options, context, lite), *fidelity_findings),
        notes=(
            *source.notes,
            *converted_model.notes,
            *float_operator_notes(options.scheme, lite),
            *accepted_notes,
        ),
        tables=(*source.tables, *converted_model.tables, *agreement_tables),
    )


def _float_findings(options: "ConvertOptions", context: StageContext, lite: Model) -> list[Finding]:
    """What is float although integers are required, unless the user keeps layers in float."""
    device = options.target_device(context.base_folder)
    must_be_integer = SCHEMES[options.scheme].integer_only or (device is not None and device.integer_only)
    if not must_be_integer or options.keeps_float:
        return []
    return check_integer_only(lite, allow_float_interface="float32" in (options.input, options.output))


def _fidelity_metrics(
    options: "ConvertOptions", context: StageContext, converted_model: ConvertedModel
) -> list[Metric]:
    if not SCHEMES[options.scheme].needs_calibration:
        return []
    return converted_model.fidelity_metrics("the pipeline has no `data:` to compare on")


def _quality_metrics(artifact: Artifact, context: StageContext) -> list[Metric]:
    if context.splits is None or context.task_if_any is None:
        return []
    from edgepipe.stages.tflite_quality import measure_quality
    from edgepipe.tflite.interpreter import Runtime

    return measure_quality(artifact.path, context.task, context.data.validation, "validation", Runtime.XNNPACK)
