"""`scheme: mixed`: the search for the fewest layers above 8 bits, with its notes and tables."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.compress.conversion import ConvertedModel, open_float_tflite
from edgepipe.compress.source_model import SourceModel
from edgepipe.core.arrays import Array, Arrays, count_samples, take_samples
from edgepipe.core.errors import InputError, TargetNotMetError
from edgepipe.core.metric import Evidence, Metric, exact_metric
from edgepipe.core.outcome import Table
from edgepipe.core.units import Dimension
from edgepipe.devices.device_profile import Device
from edgepipe.tflite.model import Model
from edgepipe.tflite.reader import read

if TYPE_CHECKING:
    from edgepipe.compress.quantizer.layerwise_quantizer import LayerwiseQuantizer
    from edgepipe.compress.quantizer.mixed_precision_search import QualityGoal, SearchResult, Trial
    from edgepipe.compress.quantizer.quantization import QuantizationRequest

RECIPE_FILE = "quantization_recipe.json"
TRIALS_SHOWN = 12  # trials that are shown whatever came out
RANKING_SAMPLES = 200  # training samples that rank the layers


@dataclass(frozen=True)
class QualityTarget:
    """How much validation quality a mix may lose, and on what it is to run.

    `measure` gives the deciding metric of the .tflite at a path on the whole validation split. `repeat_options` are the
    options that a replay of the recipe must repeat, by name.
    """

    measure: Callable[[Path], float]
    higher_is_better: bool
    max_drop: float
    device: Device | None = None
    repeat_options: Mapping[str, object] | None = None


def convert_mixed(
    source: SourceModel, request: "QuantizationRequest", samples: Arrays | None, target: QualityTarget
) -> ConvertedModel:
    """The .tflite with the fewest layers above 8 bits that keeps validation quality.

    Args:
        source: the model to convert.
        request: types of inputs and outputs, and calibration.
        samples: representative samples.
        target: the quality to keep.

    Raises:
        NotMetError: no mix keeps the quality.
    """
    from edgepipe.compress.quantizer.op_decomposition import decomposed_model, uniform_bit_width

    with (
        open_float_tflite(source.model, samples) as (plain, feeds, trained),
        decomposed_model(plain, uniform_bit_width(8)) as lite,
    ):
        return _search_mix(source, request, (lite, feeds, trained), target)


def _search_mix(
    source: SourceModel,
    request: "QuantizationRequest",
    calibrated: tuple[Model, list[Array] | None, dict[str, Any]],
    target: QualityTarget,
) -> ConvertedModel:
    from edgepipe.compress.quantizer import device_bit_widths, mixed_precision_search
    from edgepipe.compress.quantizer.op_decomposition import calibrate_decomposed
    from edgepipe.compress.quantizer.quantizable_layers import find_layers
    from edgepipe.compress.quantizer.quantization import collect_ranges

    lite, feeds, trained = calibrated
    ranges = calibrate_decomposed(lite, lambda model: collect_ranges(model, request, feeds, trained))
    bench = _layerwise_quantizer(lite, find_layers(lite, source.layer_classes), ranges.by_tensor, request, feeds)
    allowed, reasons = device_bit_widths.allowed_precisions(target.device)
    check_mix, unchecked = mix_check(target.device, bench)
    goal = _search_goal(target, bench, check_mix)
    reasons += unchecked
    try:
        mix = mixed_precision_search.search(bench, goal, allowed, _uncovered_layers(source, bench))
    except TargetNotMetError as error:
        raise TargetNotMetError("; ".join((str(error), *reasons))) from None
    notes = (
        *ranges.notes(),
        *reasons,
        *_uncovered_notes(source, mix),
        *missing_kernel_notes(bench, mix),
        replay_note(target.repeat_options or {}, mix),
    )
    recipe = json.dumps(bench.build_recipe(mix.precisions, "int8"), indent=1) + "\n"
    return ConvertedModel(mix.content, notes, _tables(bench, goal, mix), _metrics(bench, goal, mix), recipe)


def _layerwise_quantizer(
    lite: Model,
    layers: list[Any],
    ranges: dict[str, tuple[float, float]],
    request: "QuantizationRequest",
    feeds: list[Array] | None,
) -> "LayerwiseQuantizer":
    from edgepipe.compress.quantizer.layerwise_quantizer import build_layerwise_quantizer

    samples: Arrays = dict(zip(lite.inputs_by_name, feeds or [], strict=True))
    ranking_samples = take_samples(samples, slice(min(RANKING_SAMPLES, count_samples(samples))))
    return build_layerwise_quantizer(lite, layers, ranges, request.io_types, ranking_samples)


def _search_goal(
    target: QualityTarget, bench: "LayerwiseQuantizer", check_mix: Callable[[Path], None]
) -> "QualityGoal":
    from edgepipe.compress.quantizer.flatbuffer_edits import temporary_tflite
    from edgepipe.compress.quantizer.mixed_precision_search import QualityGoal

    def quality(content: bytes) -> float:
        with temporary_tflite(content) as path:
            check_mix(path)
            return target.measure(path)

    return QualityGoal(quality, target.higher_is_better, quality(bench.float_model.content), target.max_drop)


def mix_check(device: Device | None, bench: "LayerwiseQuantizer") -> tuple[Callable[[Path], None], list[str]]:
    """What raises an `InputError` for a mix that TFLite Micro does not run, if that is what the device has: its kernels
    are fewer than those of LiteRT, above all in 16 bits. Where it cannot tell mixes apart, it is let be, with a note.
    """
    from edgepipe.compress.quantizer.flatbuffer_edits import temporary_tflite
    from edgepipe.tflite import tflm_runtime

    if device is None or device.runtime.name != "tflite-micro":
        return lambda path: None, []
    with temporary_tflite(bench.quantize({})) as path:
        plain = tflm_runtime.measure_arena(path)
    if plain.value is None:
        return lambda path: None, [f"mixes are not tried on TFLite Micro: {plain.how}"]

    def check_mix(path: Path) -> None:
        if (ram := tflm_runtime.measure_arena(path)).value is None:
            raise InputError(ram.how)

    return check_mix, []


def _uncovered_layers(source: SourceModel, bench: "LayerwiseQuantizer") -> list[str]:
    """Layers of the .tflite that training left to calibration."""
    return [layer.name for layer in bench.layers if layer.name in source.uncovered_layers]


def _uncovered_notes(source: SourceModel, mix: "SearchResult") -> list[str]:
    if not source.uncovered_layers:
        return []
    promoted = [name for name in source.uncovered_layers if name in mix.precisions]
    outcome = f", of which {', '.join(promoted)} promoted" if promoted else ", none of which needed more than 8 bits"
    return [f"layers that training left to calibration were tried first: {', '.join(source.uncovered_layers)}{outcome}"]


def missing_kernel_notes(bench: "LayerwiseQuantizer", mix: "SearchResult") -> list[str]:
    """A note on operators that the quantizer left in another type than their layer was given."""
    from edgepipe.compress.quantizer.device_bit_widths import COMPUTE_DTYPES
    from edgepipe.compress.quantizer.flatbuffer_edits import temporary_tflite

    with temporary_tflite(mix.content) as path:
        dtype_by_tensor = {tensor.name: tensor.dtype for tensor in read(path).tensors}
    lagging = [
        f"{layer.name} {operator.name} {dtype_by_tensor[output.name]}"
        for layer in bench.layers
        for operator in layer.operators
        for output in operator.outputs[:1]
        if output is not None and output.dtype == "float32" and layer.name in mix.precisions
        if dtype_by_tensor.get(output.name, expected := COMPUTE_DTYPES[mix.precisions[layer.name]]) != expected
    ]
    if not lagging:
        return []
    return [f"TFLite has no such form of {len(lagging)} operators of promoted layers: {', '.join(lagging)}"]


def replay_note(repeat_options: Mapping[str, object], mix: "SearchResult") -> str:
    """How to make the same model again from its recipe."""
    options = "".join(f", {name}: {value}" for name, value in repeat_options.items() if value is not None)
    return (
        f"the recipe is beside the model, in artifacts/ with the number of the stage before its name; a copy called "
        f"{RECIPE_FILE} and `convert: {{scheme: recipe, recipe: {RECIPE_FILE}{options}}}` make it again without the "
        f"{len(mix.trials)} trials"
    )


def _tables(bench: "LayerwiseQuantizer", goal: "QualityGoal", mix: "SearchResult") -> tuple[Table, ...]:
    macs, dtypes = {layer.name: layer.macs for layer in bench.layers}, _output_dtypes(bench, mix)
    layers = Table(
        title="types of the layers, the most sensitive first",
        columns=("layer", "asked for", "outputs in the .tflite", "error of scores alone in int8", "MACs"),
        rows=tuple(
            (name, mix.precisions.get(name, "int8"), dtypes[name], f"{error:.3g}", macs[name])
            for name, error in mix.ranking
        ),
    )
    trials = Table(
        title=f"{len(mix.trials)} models tried on validation, float {goal.float_quality:.6g}, drop allowed "
        f"{goal.max_drop:.6g}; the first {TRIALS_SHOWN} and those that met it",
        columns=("layers above int8", "number", "quality", "drop", "met"),
        rows=tuple(
            (_list_levels(trial.precisions), len(trial.precisions), *_quality_cells(goal, trial), "yes" if trial.meets_goal else "no")
            for trial in (*mix.trials[:TRIALS_SHOWN], *(t for t in mix.trials[TRIALS_SHOWN:] if t.meets_goal))
        ),
    )  # fmt: skip
    return layers, trials


def _quality_cells(goal: "QualityGoal", trial: "Trial") -> tuple[str, str]:
    if trial.quality is None:
        return "does not run", trial.refusal
    return f"{trial.quality:.6g}", f"{goal.drop(trial.quality):.6g}"


def _output_dtypes(bench: "LayerwiseQuantizer", mix: "SearchResult") -> dict[str, str]:
    """What the outputs of each layer really are: litert-quantizer passes over what it has no kernel for."""
    from edgepipe.compress.quantizer.flatbuffer_edits import temporary_tflite

    with temporary_tflite(mix.content) as path:
        dtype_by_tensor = {t.name: t.dtype for op in read(path).operators for t in op.outputs if t is not None}
    return {
        layer.name: ", ".join(
            dict.fromkeys(
                dtype_by_tensor.get(t.name, "folded") for op in layer.operators for t in op.outputs if t is not None
            )
        )
        for layer in bench.layers
    }


def _list_levels(levels: dict[str, Any]) -> str:
    return ", ".join(f"{name} {level}" for name, level in levels.items()) or "none"


def _metrics(bench: "LayerwiseQuantizer", goal: "QualityGoal", mix: "SearchResult") -> tuple[Metric, ...]:
    how = f"of {len(bench.layers)} layers, those above 8 bits: {_list_levels(mix.precisions)}"
    drop = f"float {goal.float_quality:.4f}, mixed {mix.quality:.4f}, validation split, LiteRT xnnpack"
    return (
        exact_metric("promoted_layers", len(mix.precisions), Dimension.COUNT, how),
        Metric(name="drop_of_mixed", value=goal.drop(mix.quality), unit=Dimension.NUMBER, evidence=Evidence.MEASURED,
               how=drop),
    )  # fmt: skip
