"""The checks of `validate`: quality against earlier models, agreement of runtimes, integer types, pruned zeros."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgepipe.compress.source_model import open_model
from edgepipe.core.arrays import take_samples
from edgepipe.core.artifact import Artifact, ArtifactKind
from edgepipe.core.errors import InputError, ToolError
from edgepipe.core.metric import Evidence, Finding, Metric, exact_metric, unavailable_metric
from edgepipe.core.outcome import Table
from edgepipe.core.units import Dimension, plural
from edgepipe.data.splits import SplitData
from edgepipe.stages import model_metrics
from edgepipe.stages.context import StageContext
from edgepipe.stages.tflite_quality import has_logits, score_outputs
from edgepipe.stages.validate.class_tables import class_tables
from edgepipe.tasks.quality import class_scores
from edgepipe.tflite import child_process, integer_check, interpreter, parity, pruned_zeros, tflm_runtime
from edgepipe.tflite.interpreter import ModelOutputs, Runtime, predict
from edgepipe.tflite.model import Model
from edgepipe.tflite.reader import weight_sparsity

KERAS_KINDS = (ArtifactKind.KERAS, ArtifactKind.FLOAT, ArtifactKind.QAT)


def check_quality(
    context: StageContext, reference_stages: list[str], max_samples: int
) -> tuple[list[Metric], list[Table], list[str]]:
    """Quality on the test split by LiteRT, its drop from each of `references`, and how far the runtimes agree.

    LiteRT runs the whole split; the slow runtimes that it is compared with run at most `max_samples` of it. TensorFlow
    Lite Micro runs the whole split of a model that LiteRT does not run.
    """
    if context.splits is None or context.task_if_any is None:
        missing_section = "data" if context.splits is None else "task"
        return [], [], [f"quality was not measured: the pipeline has no `{missing_section}:`"]
    test_data = context.data.test
    deployed_outputs, deployed_notes = _run_deployed(context.artifact.path, test_data)
    if deployed_outputs is None:
        return [], [], deployed_notes
    deployed_metrics = _quality_metrics(context, test_data, deployed_outputs)
    metrics = list(deployed_metrics)
    for name in reference_stages:
        metrics += _reference_metrics(context, name, deployed_metrics)
    compared_data = _draw_samples(test_data, max_samples, context.seed)
    outputs_by_runtime, notes = _run_runtimes(
        context.artifact.path,
        compared_data,
        deployed_outputs if compared_data is test_data and not deployed_notes else None,
    )
    tables = [_agreement_table(context, compared_data, outputs_by_runtime)] if outputs_by_runtime else []
    return metrics, [*tables, *_class_tables(context, test_data, deployed_outputs)], [*deployed_notes, *notes]


def _class_tables(context: StageContext, test_data: SplitData, outputs: ModelOutputs) -> list[Table]:
    """What a classifier confuses; nothing for other tasks."""
    scores = class_scores(context.task, outputs.real_values, is_logits=has_logits(context.artifact.path))
    if scores is None or test_data.y is None or isinstance(test_data.y, dict):
        return []
    return class_tables(scores, test_data.y, context.data.class_names)


def _run_deployed(path: Path, test_data: SplitData) -> tuple[ModelOutputs | None, list[str]]:
    """The outputs by which the model is judged, and a note if they are not LiteRT's; None if nothing runs it here."""
    try:
        interpreter.check_runs(path, Runtime.XNNPACK)
        return predict(path, test_data.x, Runtime.XNNPACK), []
    except child_process.ChildError as error:
        reason = str(error)
    try:
        outputs = tflm_runtime.predict(path, test_data.x)
    except (InputError, ToolError) as error:
        return None, [f"quality was not measured: {reason}; {error}"]
    return outputs, [f"quality is that of TensorFlow Lite Micro: {reason}"]


def _draw_samples(test_data: SplitData, max_samples: int, seed: int) -> SplitData:
    if len(test_data) <= max_samples:
        return test_data
    indices = np.sort(np.random.RandomState(seed).permutation(len(test_data))[:max_samples])
    return SplitData(
        take_samples(test_data.x, indices), None if test_data.y is None else take_samples(test_data.y, indices)
    )


def _run_runtimes(
    path: Path, split_data: SplitData, xnnpack_outputs: ModelOutputs | None
) -> tuple[dict[str, ModelOutputs], list[str]]:
    """The outputs of each runtime that runs the model, the reference first, and a note on each that does not.

    `xnnpack_outputs` are those of XNNPACK for the same samples, if it has already run them.
    """
    outputs_by_runtime: dict[str, ModelOutputs] = {}
    notes = []
    runner_by_runtime: dict[str, Callable[[], ModelOutputs]] = {
        Runtime.REFERENCE.value: lambda: predict(path, split_data.x, Runtime.REFERENCE),
        Runtime.XNNPACK.value: lambda: xnnpack_outputs or predict(path, split_data.x, Runtime.XNNPACK),
        "tflite-micro": lambda: tflm_runtime.predict(path, split_data.x),
    }
    for runtime_name, runner in runner_by_runtime.items():
        try:
            if runtime_name != "tflite-micro":
                interpreter.check_runs(path, Runtime(runtime_name))
            outputs_by_runtime[runtime_name] = runner()
        except (InputError, ToolError) as error:
            notes.append(f"not compared with {runtime_name}: {error}")
    return outputs_by_runtime, notes


def _quality_metrics(context: StageContext, split_data: SplitData, outputs: ModelOutputs) -> list[Metric]:
    return score_outputs(context.artifact.path, context.task, split_data, "test", outputs)


def _reference_metrics(context: StageContext, stage_name: str, deployed_metrics: list[Metric]) -> list[Metric]:
    """The quality of the model of stage `name`, and how much worse the deployed model is."""
    artifact = context.earlier_artifacts[stage_name]
    if artifact.kind not in KERAS_KINDS:
        reason = f"the artifact of '{stage_name}' is {artifact.kind}, whose quality is not measured before conversion"
        return [
            unavailable_metric(f"{metric.name}_drop", metric.unit, reason).model_copy(
                update={"details": {"against": stage_name}}
            )
            for metric in deployed_metrics
        ]
    reference_metrics = _keras_metrics(context, stage_name, artifact)
    return [
        *reference_metrics,
        *(
            _drop_metric(context, stage_name, deployed_metric, reference_metric)
            for deployed_metric, reference_metric in zip(deployed_metrics, reference_metrics, strict=True)
        ),
    ]


def _keras_metrics(context: StageContext, stage_name: str, artifact: Artifact) -> list[Metric]:
    model = open_model(artifact.path, artifact.kind, allow_code=context.allow_code)
    metrics = model_metrics.keras_quality(
        model, context.task, context.data.test, "test", f"the Keras model of stage '{stage_name}'"
    )
    return [metric.model_copy(update={"name": f"{metric.name}_of_{stage_name}"}) for metric in metrics]


def _drop_metric(context: StageContext, stage_name: str, deployed_metric: Metric, reference_metric: Metric) -> Metric:
    quality_drop = (reference_metric.value or 0.0) - (deployed_metric.value or 0.0)
    higher_is_better = context.task.measures[deployed_metric.name].higher_is_better
    return Metric(
        name=f"{deployed_metric.name}_drop",
        value=quality_drop if higher_is_better else 0.0 - quality_drop,
        unit=deployed_metric.unit,
        evidence=Evidence.MEASURED,
        how=f"'{stage_name}' {reference_metric.text()}, deployed {deployed_metric.text()}, same test samples",
        details={"against": stage_name},
    )


def _agreement_table(
    context: StageContext, split_data: SplitData, outputs_by_runtime: dict[str, ModelOutputs]
) -> Table:
    reference_name, reference_outputs = next(iter(outputs_by_runtime.items()))
    reference_text = "the reference kernels" if reference_name == Runtime.REFERENCE.value else reference_name
    count_text = f"{len(split_data)} of {len(context.data.test)} test samples"
    return Table(
        title=f"Runtimes compared with {reference_text}, {count_text}",
        columns=(
            "runtime",
            context.task.primary_measure,
            "same label",
            "max difference (LSB)",
            "p99 difference (LSB)",
            "outputs per difference (LSB)",
        ),
        rows=tuple(
            _agreement_row(context, split_data, name, reference_outputs, runtime_outputs)
            for name, runtime_outputs in outputs_by_runtime.items()
        ),
    )


def _agreement_row(
    context: StageContext,
    split_data: SplitData,
    runtime_name: str,
    reference_outputs: ModelOutputs,
    outputs: ModelOutputs,
) -> tuple[str, ...]:
    comparison = parity.compare(reference_outputs, outputs)
    labels_text = "" if comparison.labels_equal is None else f"{comparison.labels_equal:.2%}"
    histogram_text = ", ".join(f"{step}: {number}" for step, number in sorted(comparison.histogram.items()))
    max_text = f"{comparison.max_lsb}" if comparison.max_lsb is not None else ""
    p99_text = f"{comparison.p99_lsb:g}" if comparison.p99_lsb is not None else ""
    quality_text = _quality_metrics(context, split_data, outputs)[0].text()
    return (
        runtime_name,
        quality_text,
        labels_text,
        max_text,
        p99_text,
        histogram_text or f"floats, largest {comparison.max_difference:.3g}",
    )


def check_integers(model: Model, is_required: bool) -> tuple[list[Finding], list[Metric], Table]:
    """Whether every operator and tensor is integer; those that are not are findings if `is_required`."""
    findings = integer_check.check_integer_only(model)
    dtypes_text = ", ".join(f"{number} {dtype}" for dtype, number in sorted(model.dtype_counts.items()))
    operators_text = ", ".join(f"{number} {name}" for name, number in sorted(model.operator_counts.items()))
    rows = [
        ("operators", len(model.operators), operators_text),
        ("tensors", len(model.used_tensors), dtypes_text),
        ("inputs", len(model.inputs), ", ".join(f"{t.dtype} {list(t.shape)}" for t in model.inputs)),
        ("outputs", len(model.outputs), ", ".join(f"{t.dtype} {list(t.shape)}" for t in model.outputs)),
        *(("not integer", 1, str(finding)) for finding in findings),
    ]
    title = "Integer-only check of every operator and tensor"
    if findings:
        title += f": {plural(len(findings), 'is not integer', 'are not integer')}"
    metric = exact_metric(
        "float_offenders", len(findings), Dimension.COUNT, "operators, inputs and outputs that are not integer"
    )
    return (
        findings if is_required else [],
        [metric],
        Table(title=title, columns=("kind", "count", "details"), rows=tuple(rows)),
    )


def measure_sparsity(model: Model) -> tuple[list[Metric], list[Table]]:
    """The share of exact zeros inside the file: in convolutions and dense layers but the last, and over all weights."""
    layer_sparsities = weight_sparsity(model)
    weight_layers = [layer for layer in layer_sparsities if layer.kind in ("CONV_2D", "FULLY_CONNECTED")]
    if not weight_layers:
        return [], []
    inner_layers = weight_layers[:-1] or weight_layers
    prefix = f"the first {len(inner_layers)} of " if weight_layers[:-1] else ""
    scope_text = f"{prefix}{plural(len(weight_layers), 'CONV_2D and FULLY_CONNECTED layer')} of the .tflite"
    metrics = [
        _share_metric("sparsity", inner_layers, scope_text),
        _share_metric(
            "sparsity_all_weights", layer_sparsities, f"all {plural(len(layer_sparsities), 'layer')} of the .tflite"
        ),
    ]
    rows: list[tuple[Any, ...]] = [
        (layer.operator, layer.tensor, layer.elements, layer.zeros, f"{layer.share:.2%}") for layer in layer_sparsities
    ]
    columns = ("operator", "weights", "elements", "zeros", "share")
    return metrics, [Table(title="Exact zeros inside the .tflite", columns=columns, rows=tuple(rows))]


def check_pruned_zeros(context: StageContext, model: Model) -> tuple[list[Finding], list[Table], list[str]]:
    """Compare the zeros of the last float model with the .tflite, weight by weight.

    Every kernel with zeros counts as pruned; a kernel that is not found in the .tflite is noted.
    """
    float_stage_names = [name for name, a in context.earlier_artifacts.items() if a.kind is ArtifactKind.FLOAT]
    if not float_stage_names:
        return [], [], []
    stage_name = float_stage_names[-1]
    from edgepipe.compress.pruning.prunable_kernels import kernels_in_tflite_order

    artifact = context.earlier_artifacts[stage_name]
    float_model = open_model(artifact.path, artifact.kind, allow_code=context.allow_code)
    kernel_checks = pruned_zeros.check_kernels(model, kernels_in_tflite_order(float_model))
    missing_layer_names = [check.layer_name for check in kernel_checks if not check.tensor_name]
    notes = [
        f"zeros of '{layer}' are not checked: no tensor of the .tflite is this kernel" for layer in missing_layer_names
    ]
    rows = tuple(
        (check.layer_name, check.tensor_name, check.zero_count, len(check.nonzero_positions), check.zero_pattern)
        for check in kernel_checks
        if check.tensor_name
    )
    columns = ("layer", "tensor", "zeros of the pruned model", "of these not zero", "zero pattern")
    tables = [Table(title=f"Zeros of '{stage_name}' inside the .tflite", columns=columns, rows=rows)] if rows else []
    return pruned_zeros.build_findings(kernel_checks), tables, notes


def _share_metric(metric_name: str, layer_sparsities: list[Any], scope: str) -> Metric:
    zeros, elements = sum(layer.zeros for layer in layer_sparsities), sum(layer.elements for layer in layer_sparsities)
    return exact_metric(
        metric_name, zeros / elements, Dimension.FRACTION, f"{zeros:,} of {elements:,} weights are zero, in {scope}"
    )
