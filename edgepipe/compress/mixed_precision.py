"""`scheme: mixed`: search for the fewest layers above 8 bits, with notes and tables."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.compress.conversion import ConvertedModel, open_float_tflite
from edgepipe.compress.source_model import SourceModel
from edgepipe.core.arrays import Array, Arrays, count_samples, take_samples
from edgepipe.core.errors import InputError, TargetNotMetError
from edgepipe.core.metric import Evidence, Metric, exact_metric
from edgepipe.core.outcome import Table
from edgepipe.core.units import Dimension, plural
from edgepipe.devices.device_profile import Device
from edgepipe.tflite.model import Model
from edgepipe.tflite.reader import read

if TYPE_CHECKING:
    from edgepipe.compress.quantizer.layerwise_quantizer import LayerwiseQuantizer
    from edgepipe.compress.quantizer.mixed_precision_search import QualityGoal, SearchResult, Trial
    from edgepipe.compress.quantizer.quantization import QuantizationRequest
    from edgepipe.compress.quantizer.trained_ranges import TrainedRanges

RECIPE_FILE = "quantization_recipe.json"
MAX_TRIALS_SHOWN = 12  # trials that are shown whatever their quality
RANKING_SAMPLES = 200  # training samples that rank the layers


@dataclass(frozen=True)
class QualityTarget:
    """How much validation quality a mix may lose, and the device it must run on.

    `measure` returns the primary metric of the .tflite at a path on the whole validation split. `repeat_options` are
    the options that a replay of the recipe must repeat, by name.
    """

    measure_quality: Callable[[Path], float]
    higher_is_better: bool
    max_drop: float
    device: Device | None = None
    repeat_options: Mapping[str, object] | None = None


def convert_mixed(
    source: SourceModel,
    request: "QuantizationRequest",
    samples: Arrays | None,
    target: QualityTarget,
    held_out: Arrays | None = None,
) -> ConvertedModel:
    """The .tflite with the fewest layers above 8 bits that keeps validation quality.

    Args:
        source: the model to convert.
        request: types of inputs and outputs, and calibration.
        samples: representative samples.
        target: the quality to keep.
        held_out: samples that do not calibrate, on which the result is compared with the float model.

    Raises:
        TargetNotMetError: no mix keeps the quality.
    """
    from edgepipe.compress.fidelity import measure_fidelity
    from edgepipe.compress.quantizer.integer_inputs import integer_inputs
    from edgepipe.compress.quantizer.op_decomposition import decomposed_model, uniform_bit_width

    with (
        open_float_tflite(source.model, samples) as (float_lite, feeds, trained_ranges),
        integer_inputs(float_lite, feeds, _kept_inputs(float_lite, request)) as integers,
        decomposed_model(integers.model, uniform_bit_width(8)) as lite,
    ):
        mixed_model = _search_mix(source, request, (lite, feeds, trained_ranges), target)
        loop_notes = _recurrence_notes(source, request, float_lite)
        fidelity = None if held_out is None else measure_fidelity(float_lite, mixed_model.content, held_out)
        return replace(mixed_model, notes=(*loop_notes, *integers.notes, *mixed_model.notes), fidelity=fidelity)


def _kept_inputs(lite: Model, request: "QuantizationRequest") -> list[str]:
    """The inputs that keep their type: all of them, if the user asks for float32."""
    return list(lite.inputs_by_name) if request.io_types[0] == "float32" else []


def _recurrence_notes(source: SourceModel, request: "QuantizationRequest", float_lite: Model) -> list[str]:
    if isinstance(source.model, Model):
        return []
    from edgepipe.compress.loop_unrolling import recurrence_notes

    return recurrence_notes(source.model, request, float_lite)


def _search_mix(
    source: SourceModel,
    request: "QuantizationRequest",
    calibration_inputs: tuple[Model, list[Array] | None, "TrainedRanges"],
    target: QualityTarget,
) -> ConvertedModel:
    from edgepipe.compress.port_signature import name_ports
    from edgepipe.compress.quantizer import device_bit_widths, mixed_precision_search
    from edgepipe.compress.quantizer.op_decomposition import calibrate_decomposed
    from edgepipe.compress.quantizer.output_bias import OutputBiasCorrection
    from edgepipe.compress.quantizer.quantizable_layers import find_layers
    from edgepipe.compress.quantizer.quantization import collect_ranges

    lite, feeds, trained_ranges = calibration_inputs
    activation_ranges = calibrate_decomposed(lite, lambda model: collect_ranges(model, request, feeds, trained_ranges))
    quantizer = _layerwise_quantizer(
        lite, find_layers(lite, source.class_by_layer), activation_ranges.by_tensor, request, feeds
    )
    if not trained_ranges.by_tensor:
        quantizer = replace(quantizer, bias_correction=OutputBiasCorrection(lite, feeds or []))
    allowed_precisions, rejection_reasons = device_bit_widths.allowed_precisions(target.device)
    check_mix, unchecked_notes = build_mix_check(target.device, quantizer)
    goal = _search_goal(target, quantizer, check_mix)
    rejection_reasons += unchecked_notes
    try:
        search_result = mixed_precision_search.search(
            quantizer, goal, allowed_precisions, _layers_without_ranges(source, quantizer)
        )
    except TargetNotMetError as error:
        raise TargetNotMetError("; ".join((str(error), *rejection_reasons))) from None
    notes = (
        *trained_ranges.notes(),
        *activation_ranges.notes(),
        *rejection_reasons,
        *_missing_range_notes(source, search_result),
        *missing_kernel_notes(quantizer, search_result),
        replay_note(target.repeat_options or {}, search_result),
    )
    recipe_json = json.dumps(quantizer.build_recipe(search_result.precisions, "int8"), indent=1) + "\n"
    return ConvertedModel(
        search_result.content if isinstance(source.model, Model) else name_ports(search_result.content),
        notes,
        _build_tables(quantizer, goal, search_result),
        _build_metrics(quantizer, goal, search_result),
        recipe_json,
    )


def _layerwise_quantizer(
    lite: Model,
    quantizable_layers: list[Any],
    range_by_tensor: dict[str, tuple[float, float]],
    request: "QuantizationRequest",
    feeds: list[Array] | None,
) -> "LayerwiseQuantizer":
    from edgepipe.compress.quantizer.layerwise_quantizer import build_layerwise_quantizer

    samples: Arrays = dict(zip(lite.inputs_by_name, feeds or [], strict=True))
    ranking_samples = take_samples(samples, slice(min(RANKING_SAMPLES, count_samples(samples))))
    return build_layerwise_quantizer(lite, quantizable_layers, range_by_tensor, request.io_types, ranking_samples)


def _search_goal(
    target: QualityTarget, quantizer: "LayerwiseQuantizer", check_mix: Callable[[Path], None]
) -> "QualityGoal":
    from edgepipe.compress.quantizer.flatbuffer_edits import temporary_tflite
    from edgepipe.compress.quantizer.mixed_precision_search import QualityGoal

    def measure_quality(content: bytes) -> float:
        with temporary_tflite(content) as path:
            check_mix(path)
            return target.measure_quality(path)

    return QualityGoal(
        measure_quality, target.higher_is_better, measure_quality(quantizer.float_model.content), target.max_drop
    )


def build_mix_check(device: Device | None, quantizer: "LayerwiseQuantizer") -> tuple[Callable[[Path], None], list[str]]:
    """A check that raises an `InputError` for a mix that TFLite Micro cannot run, if it is the device's runtime.

    TFLite Micro has fewer kernels than LiteRT, especially in 16 bits. If it does not even run the plain int8 model, the
    check does nothing, and a note says so.
    """
    from edgepipe.compress.quantizer.flatbuffer_edits import temporary_tflite
    from edgepipe.tflite import tflm_runtime

    if device is None or device.runtime.name != "tflite-micro":
        return lambda path: None, []
    with temporary_tflite(quantizer.quantize({})) as path:
        int8_arena = tflm_runtime.measure_arena(path)
    if int8_arena.value is None:
        return lambda path: None, [f"mixes are not tried on TFLite Micro: {int8_arena.how}"]

    def check_mix(path: Path) -> None:
        if (ram := tflm_runtime.measure_arena(path)).value is None:
            raise InputError(ram.how)

    return check_mix, []


def _layers_without_ranges(source: SourceModel, quantizer: "LayerwiseQuantizer") -> list[str]:
    """Layers of the .tflite without trained ranges."""
    return [layer.name for layer in quantizer.layers if layer.name in source.layers_without_ranges]


def _missing_range_notes(source: SourceModel, search_result: "SearchResult") -> list[str]:
    if not source.layers_without_ranges:
        return []
    promoted_names = [name for name in source.layers_without_ranges if name in search_result.precisions]
    outcome_text = f"promoted: {', '.join(promoted_names)}" if promoted_names else "none needed more than 8 bits"
    return [
        f"layers without trained ranges were tried first: {', '.join(source.layers_without_ranges)}; {outcome_text}"
    ]


def missing_kernel_notes(quantizer: "LayerwiseQuantizer", search_result: "SearchResult") -> list[str]:
    """A note on operators that the quantizer left in another type than their layer's precision."""
    from edgepipe.compress.quantizer.device_bit_widths import COMPUTE_DTYPES
    from edgepipe.compress.quantizer.flatbuffer_edits import temporary_tflite

    with temporary_tflite(search_result.content) as path:
        dtype_by_tensor = {tensor.name: tensor.dtype for tensor in read(path).tensors}
    mismatch_texts = [
        f"{layer.name} {operator.name} {dtype_by_tensor[output.name]}"
        for layer in quantizer.layers
        for operator in layer.operators
        for output in operator.outputs[:1]
        if output is not None and output.dtype == "float32" and layer.name in search_result.precisions
        if dtype_by_tensor.get(output.name, layer_dtype := COMPUTE_DTYPES[search_result.precisions[layer.name]])
        != layer_dtype
    ]
    if not mismatch_texts:
        return []
    count_text = plural(len(mismatch_texts), "operator")
    return [f"TFLite has no such kernel for {count_text} of promoted layers: {', '.join(mismatch_texts)}"]


def replay_note(repeat_options: Mapping[str, object], search_result: "SearchResult") -> str:
    """How to reproduce the model from its recipe."""
    options_text = "".join(f", {name}: {setting}" for name, setting in repeat_options.items() if setting is not None)
    return (
        f"the recipe is stored with the model, in artifacts/ with the stage number before its name; copy it to "
        f"{RECIPE_FILE}, and `convert: {{scheme: recipe, recipe: {RECIPE_FILE}{options_text}}}` reproduces the model "
        f"without the {plural(len(search_result.trials), 'trial')}"
    )


def _build_tables(
    quantizer: "LayerwiseQuantizer", goal: "QualityGoal", search_result: "SearchResult"
) -> tuple[Table, ...]:
    macs_by_layer, dtypes_by_layer = (
        {layer.name: layer.macs for layer in quantizer.layers},
        _output_dtypes_by_layer(quantizer, search_result),
    )
    layer_table = Table(
        title="layer types, the most sensitive first",
        columns=("layer", "precision", "outputs in the .tflite", "error of scores, only it in int8", "MACs"),
        rows=tuple(
            (
                name,
                search_result.precisions.get(name, "int8"),
                dtypes_by_layer[name],
                f"{error:.3g}",
                macs_by_layer[name],
            )
            for name, error in search_result.layer_ranking
        ),
    )
    later_successes = [trial for trial in search_result.trials[MAX_TRIALS_SHOWN:] if trial.meets_goal]
    trial_table = Table(
        title=f"{plural(len(search_result.trials), 'model')} tried on validation, float {goal.float_quality:.6g}, "
        f"drop allowed {goal.max_drop:.6g}; the first {MAX_TRIALS_SHOWN} and those that met it",
        columns=("layers above int8", "number", "quality", "drop", "met"),
        rows=tuple(
            (
                _precisions_text(trial.precisions),
                len(trial.precisions),
                *_quality_cells(goal, trial),
                "yes" if trial.meets_goal else "no",
            )
            for trial in (*search_result.trials[:MAX_TRIALS_SHOWN], *later_successes)
        ),
    )
    return layer_table, trial_table


def _quality_cells(goal: "QualityGoal", trial: "Trial") -> tuple[str, str]:
    if trial.quality is None:
        return "does not run", trial.refusal_reason
    return f"{trial.quality:.6g}", f"{goal.quality_drop(trial.quality):.6g}"


def _output_dtypes_by_layer(quantizer: "LayerwiseQuantizer", search_result: "SearchResult") -> dict[str, str]:
    """The actual output types of each layer: operators without a kernel stay in float."""
    from edgepipe.compress.quantizer.flatbuffer_edits import temporary_tflite

    with temporary_tflite(search_result.content) as path:
        dtype_by_tensor = {t.name: t.dtype for op in read(path).operators for t in op.outputs if t is not None}
    return {
        layer.name: ", ".join(
            dict.fromkeys(
                dtype_by_tensor.get(t.name, "folded") for op in layer.operators for t in op.outputs if t is not None
            )
        )
        for layer in quantizer.layers
    }


def _precisions_text(precisions: dict[str, Any]) -> str:
    return ", ".join(f"{name} {precision}" for name, precision in precisions.items()) or "none"


def _build_metrics(
    quantizer: "LayerwiseQuantizer", goal: "QualityGoal", search_result: "SearchResult"
) -> tuple[Metric, ...]:
    layers_text = (
        f"of {plural(len(quantizer.layers), 'layer')}, those above 8 bits: {_precisions_text(search_result.precisions)}"
    )
    drop_text = f"float {goal.float_quality:.4f}, mixed {search_result.quality:.4f}, validation split, LiteRT xnnpack"
    return (
        exact_metric("promoted_layers", len(search_result.precisions), Dimension.COUNT, layers_text),
        Metric(
            name="drop_of_mixed",
            value=goal.quality_drop(search_result.quality),
            unit=Dimension.NUMBER,
            evidence=Evidence.MEASURED,
            how=drop_text,
        ),
    )
