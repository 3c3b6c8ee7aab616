"""What `validate` shows of a model: quality against its origin, agreement of runtimes, integers, zeros."""

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
from edgepipe.core.units import Dimension
from edgepipe.data.splits import SplitData
from edgepipe.stages import model_metrics
from edgepipe.stages.context import StageContext
from edgepipe.stages.tflite_quality import scored
from edgepipe.tflite import integer_check as integer_only
from edgepipe.tflite import parity, pruned_zeros, tflm_runtime
from edgepipe.tflite.interpreter import ModelOutputs, Runtime, predict
from edgepipe.tflite.model import Model
from edgepipe.tflite.reader import weight_sparsity

KERAS_KINDS = (ArtifactKind.KERAS, ArtifactKind.FLOAT, ArtifactKind.QAT)


def quality(context: StageContext, references: list[str], samples: int) -> tuple[list[Metric], list[Table], list[str]]:
    """Quality on the test split by LiteRT, its drop from each of `references`, and how far the runtimes agree.

    LiteRT runs the whole split; the slow runtimes that it is compared with run at most `samples` of it.
    """
    if context.splits is None or context.task_if_any is None:
        missing = "data" if context.splits is None else "task"
        return [], [], [f"quality was not taken: the pipeline has no `{missing}:`"]
    test = context.data.test
    fast = predict(context.artifact.path, test.x, Runtime.XNNPACK)
    deployed = _scored(context, test, fast)
    metrics = list(deployed)
    for name in references:
        metrics += _compared(context, name, deployed)
    compared = _some(test, samples, context.seed)
    outputs, notes = _outputs(context.artifact.path, compared, fast if compared is test else None)
    return metrics, [_agreement(context, compared, outputs)], notes


def _some(test: SplitData, samples: int, seed: int) -> SplitData:
    if len(test) <= samples:
        return test
    chosen = np.sort(np.random.RandomState(seed).permutation(len(test))[:samples])
    return SplitData(take_samples(test.x, chosen), None if test.y is None else test.y[chosen])


def _outputs(path: Path, data: SplitData, fast: ModelOutputs | None) -> tuple[dict[str, ModelOutputs], list[str]]:
    """What each runtime that takes the model gives; the first is what the others are held against.

    `fast` is what XNNPACK gave for the same samples, if it ran them already.
    """
    found: dict[str, ModelOutputs] = {}
    notes = []
    runs: dict[str, Callable[[], ModelOutputs]] = {
        Runtime.REFERENCE.value: lambda: predict(path, data.x, Runtime.REFERENCE),
        Runtime.XNNPACK.value: lambda: fast or predict(path, data.x, Runtime.XNNPACK),
        "tflite-micro": lambda: tflm_runtime.predict(path, data.x),
    }
    for name, run in runs.items():
        try:
            found[name] = run()
        except (InputError, ToolError) as error:
            notes.append(f"not compared with {name}: {error}")
    return found, notes


def _scored(context: StageContext, data: SplitData, outputs: ModelOutputs) -> list[Metric]:
    return scored(context.artifact.path, context.task, data, "test", outputs)


def _compared(context: StageContext, name: str, deployed: list[Metric]) -> list[Metric]:
    """The quality of the earlier model `name`, and how much worse the deployed one is."""
    artifact = context.earlier_artifacts[name]
    if artifact.kind not in KERAS_KINDS:
        reason = f"'{name}' gives a {artifact.kind} artifact, whose quality is not taken before it is converted"
        return [
            unavailable_metric(f"{m.name}_drop", m.unit, reason).model_copy(update={"details": {"against": name}})
            for m in deployed
        ]
    origin = _keras_quality(context, name, artifact)
    return [*origin, *(_drop(context, name, now, before) for now, before in zip(deployed, origin, strict=True))]


def _keras_quality(context: StageContext, name: str, artifact: Artifact) -> list[Metric]:
    from edgepipe.training.training_loop import evaluate

    model = open_model(artifact.path, artifact.kind, allow_code=context.allow_code)
    values = evaluate(model, context.task, context.data.test)
    found = model_metrics.quality_metrics(
        values, context.task, "test", len(context.data.test), f"the Keras model of stage '{name}'"
    )
    return [m.model_copy(update={"name": f"{m.name}_of_{name}"}) for m in found]


def _drop(context: StageContext, name: str, now: Metric, before: Metric) -> Metric:
    lost = (before.value or 0.0) - (now.value or 0.0)
    higher = context.task.measures[now.name].higher_is_better
    return Metric(
        name=f"{now.name}_drop", value=lost if higher else 0.0 - lost, unit=now.unit, evidence=Evidence.MEASURED,
        how=f"'{name}' {before.text()}, deployed {now.text()}, same test samples", details={"against": name},
    )  # fmt: skip


def _agreement(context: StageContext, data: SplitData, outputs: dict[str, ModelOutputs]) -> Table:
    first, reference = next(iter(outputs.items()))
    return Table(
        title=f"Runtimes against {first}, {len(data)} of {len(context.data.test)} test samples",
        columns=(
            "runtime",
            context.task.primary_measure,
            "labels equal",
            "max LSB",
            "p99 LSB",
            "differences in LSB: count",
        ),
        rows=tuple(_agreement_row(context, data, name, reference, found) for name, found in outputs.items()),
    )


def _agreement_row(
    context: StageContext, data: SplitData, name: str, reference: ModelOutputs, found: ModelOutputs
) -> tuple[str, ...]:
    same = parity.compare(reference, found)
    labels = "" if same.labels_equal is None else f"{same.labels_equal:.2%}"
    steps = ", ".join(f"{step}: {number}" for step, number in sorted(same.histogram.items()))
    largest = f"{same.max_lsb}" if same.max_lsb is not None else ""
    percentile = f"{same.p99_lsb:g}" if same.p99_lsb is not None else ""
    quality_text = _scored(context, data, found)[0].text()
    return (name, quality_text, labels, largest, percentile, steps or f"floats, largest {same.max_difference:.3g}")


def integer(model: Model, demanded: bool) -> tuple[list[Finding], list[Metric], Table]:
    """Whether every operator and tensor is an integer; offenders are findings if that is demanded."""
    offenders = integer_only.check_integer_only(model)
    census = ", ".join(f"{number} {dtype}" for dtype, number in sorted(model.dtype_counts.items()))
    counts = ", ".join(f"{number} {name}" for name, number in sorted(model.operator_counts.items()))
    rows = [
        ("operators", len(model.operators), counts),
        ("tensors", len(model.used_tensors), census),
        ("inputs", len(model.inputs), ", ".join(f"{t.dtype} {list(t.shape)}" for t in model.inputs)),
        ("outputs", len(model.outputs), ", ".join(f"{t.dtype} {list(t.shape)}" for t in model.outputs)),
        *(("not integer", 1, str(finding)) for finding in offenders),
    ]
    title = (
        "Fully integer: every operator and tensor"
        if not offenders
        else f"Not fully integer: {len(offenders)} offenders"
    )
    metric = exact_metric(
        "float_offenders", len(offenders), Dimension.COUNT, "operators and interface tensors not fully integer"
    )
    return (
        offenders if demanded else [],
        [metric],
        Table(title=title, columns=("what", "number", "which"), rows=tuple(rows)),
    )


def sparsity(model: Model) -> tuple[list[Metric], list[Table]]:
    """The share of exact zeros inside the file: in convolutions and dense layers but the last, and over all weights."""
    layers = weight_sparsity(model)
    dense = [layer for layer in layers if layer.kind in ("CONV_2D", "FULLY_CONNECTED")]
    if not dense:
        return [], []
    kept = dense[:-1] or dense
    but_last = f"{len(kept)} CONV_2D and FULLY_CONNECTED layers" + (", the last one excepted" if dense[:-1] else "")
    metrics = [_share("sparsity", kept, but_last), _share("sparsity_all_weights", layers, f"all {len(layers)} layers")]
    rows: list[tuple[Any, ...]] = [
        (layer.operator, layer.tensor, layer.elements, layer.zeros, f"{layer.share:.2%}") for layer in layers
    ]
    columns = ("operator", "weights", "elements", "zeros", "share")
    return metrics, [Table(title="Exact zeros inside the .tflite", columns=columns, rows=tuple(rows))]


def pruned(context: StageContext, model: Model) -> tuple[list[Finding], list[Table], list[str]]:
    """The zeros of the last float model before, held against the .tflite weight by weight.

    Every kernel that holds zeros counts as pruned; one that is no tensor of the file is noted.
    """
    floats = [name for name, artifact in context.earlier_artifacts.items() if artifact.kind is ArtifactKind.FLOAT]
    if not floats:
        return [], [], []
    name = floats[-1]
    from edgepipe.compress.pruning.prunable_kernels import kernels_in_tflite_order

    origin = context.earlier_artifacts[name]
    checked = pruned_zeros.check_kernels(
        model, kernels_in_tflite_order(open_model(origin.path, origin.kind, allow_code=context.allow_code))
    )
    missing = [entry.layer for entry in checked if not entry.tensor]
    notes = [f"zeros of '{layer}' are not checked: no tensor of the .tflite is this kernel" for layer in missing]
    rows = tuple((entry.layer, entry.tensor, entry.zeros, len(entry.nonzeros), entry.pattern)
                 for entry in checked if entry.tensor)  # fmt: skip
    columns = ("layer", "tensor", "zeros of the pruned model", "of these not zero", "shape of the zeros")
    tables = [Table(title=f"Zeros of '{name}' inside the .tflite", columns=columns, rows=rows)] if rows else []
    return pruned_zeros.findings(checked), tables, notes


def _share(name: str, layers: list[Any], which: str) -> Metric:
    zeros, elements = sum(layer.zeros for layer in layers), sum(layer.elements for layer in layers)
    return exact_metric(
        name, zeros / elements, Dimension.FRACTION, f"{zeros} zeros of {elements} weights of {which}, in the .tflite"
    )
