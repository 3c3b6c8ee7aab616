"""`convert: {scheme: mixed}`: the search for the fewest layers above 8 bits, and what there is to tell of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.core.arrays import Array, Arrays, count, take
from edgepipe.core.artifact import write_text
from edgepipe.core.errors import InputError, NotMetError
from edgepipe.core.metric import Evidence, Metric
from edgepipe.core.outcome import Table
from edgepipe.core.units import Dimension
from edgepipe.stages import model_metrics
from edgepipe.stages.base import Work
from edgepipe.stages.tflite_quality import lite_quality
from edgepipe.tflite.interpreter import Runtime
from edgepipe.tflite.model import Model
from edgepipe.tflite.reader import read

if TYPE_CHECKING:
    from edgepipe.compress.conversion import Made, Opened
    from edgepipe.compress.quantizer.layerwise_quantizer import Bench
    from edgepipe.compress.quantizer.mixed_precision_search import Found, Goal, Trial
    from edgepipe.compress.quantizer.quantization import Request
    from edgepipe.stages.convert import Convert

FILE = "quantization_recipe.json"
SHOWN = 12  # trials that are shown whatever came out
SCREENED = 200  # training samples that rank the layers


def made(
    convert: "Convert",
    work: Work,
    opened: "Opened",
    request: "Request",
    given: tuple[Model, list[Array] | None, dict[str, Any]],
) -> "Made":
    """The mixed model, with its recipe beside it.

    Raises:
        NotMetError: no mix keeps the quality.
    """
    from edgepipe.compress.conversion import Made
    from edgepipe.compress.quantizer import device_bit_widths, mixed_precision_search
    from edgepipe.compress.quantizer.op_decomposition import widened
    from edgepipe.compress.quantizer.quantizable_layers import layers
    from edgepipe.compress.quantizer.quantization import ranges_of

    lite, feeds, trained = given
    ranges = widened(lite, lambda model: ranges_of(model, request, feeds, trained))
    bench = _bench(lite, layers(lite, opened.layers), ranges.by_tensor, request, feeds)
    allowed, reasons = device_bit_widths.levels(convert.target(work.base))
    refuse, unchecked = _refusing(convert, work.base, bench)
    goal = _goal(convert, work, bench, refuse)
    reasons += unchecked
    try:
        found = mixed_precision_search.search(bench, goal, allowed, _suspects(opened, bench))
    except NotMetError as error:
        raise NotMetError("; ".join((str(error), *reasons))) from None
    write_text(work.folder / FILE, json.dumps(bench.recipe(found.levels, "int8"), indent=1) + "\n")
    notes = [
        *ranges.notes(),
        *reasons,
        *_of_training(opened, found),
        *_otherwise(bench, found),
        _replay(convert, found),
    ]
    return Made(found.content, opened, tuple(notes), _tables(bench, goal, found), tuple(_metrics(bench, goal, found)))


def _bench(
    lite: Model,
    layers: list[Any],
    ranges: dict[str, tuple[float, float]],
    request: "Request",
    feeds: list[Array] | None,
) -> "Bench":
    from edgepipe.compress.quantizer.layerwise_quantizer import bench_of

    samples: Arrays = dict(zip(lite.input_names, feeds or [], strict=True))
    few = take(samples, slice(min(SCREENED, count(samples))))
    return bench_of(lite, layers, ranges, request.types, few)


def _goal(convert: "Convert", work: Work, bench: "Bench", refuse: Callable[[Path], None]) -> "Goal":
    from edgepipe.compress.quantizer.flatbuffer_edits import written
    from edgepipe.compress.quantizer.mixed_precision_search import Goal

    deciding = work.goal.deciding
    higher = work.goal.measures[deciding].higher_is_better

    def quality(content: bytes) -> float:
        with written(content) as path:
            refuse(path)
            found = lite_quality(path, work.goal, work.data.validation, "validation", Runtime.XNNPACK)
        value = next(metric.value for metric in found if metric.name == deciding)
        if value is None:
            raise InputError(f"{deciding} could not be taken on validation")
        return value

    return Goal(quality, higher, quality(bench.lite.content), convert.max_drop or 0.0)


def _refusing(convert: "Convert", base: Path, bench: "Bench") -> tuple[Callable[[Path], None], list[str]]:
    """What raises an `InputError` for a mix that TFLite Micro does not run, if that is what the device has: its kernels
    are fewer than those of LiteRT, above all in 16 bits. Where it cannot tell mixes apart, it is let be, with a note.
    """
    from edgepipe.compress.quantizer.flatbuffer_edits import written
    from edgepipe.tflite import tflm_runtime

    device = convert.target(base)
    if device is None or device.runtime.name != "tflite-micro":
        return lambda path: None, []
    with written(bench.made({})) as path:
        plain = tflm_runtime.arena(path)
    if plain.value is None:
        return lambda path: None, [f"mixes are not tried on TFLite Micro: {plain.how}"]

    def refuse(path: Path) -> None:
        if (ram := tflm_runtime.arena(path)).value is None:
            raise InputError(ram.how)

    return refuse, []


def _suspects(opened: "Opened", bench: "Bench") -> list[str]:
    """Layers of the .tflite that training left alone."""
    return [layer.name for layer in bench.layers if layer.name in opened.suspects]


def _of_training(opened: "Opened", found: "Found") -> list[str]:
    if not opened.suspects:
        return []
    promoted = [name for name in opened.suspects if name in found.levels]
    told = f", of which {', '.join(promoted)} promoted" if promoted else ", none of which needed more than 8 bits"
    return [f"layers that training left to calibration were tried first: {', '.join(opened.suspects)}{told}"]


def _otherwise(bench: "Bench", found: "Found") -> list[str]:
    """A note on operators that the quantizer left in another type than their layer was given."""
    from edgepipe.compress.quantizer.device_bit_widths import DTYPES
    from edgepipe.compress.quantizer.flatbuffer_edits import written
    from edgepipe.tflite.reader import read

    with written(found.content) as path:
        types = {tensor.name: tensor.dtype for tensor in read(path).tensors}
    kept = [
        f"{layer.name} {operator.name} {types[made.name]}"
        for layer in bench.layers
        for operator in layer.operators
        for made in operator.outputs[:1]
        if made is not None and made.dtype == "float32" and layer.name in found.levels
        if types.get(made.name, wanted := DTYPES[found.levels[layer.name]]) != wanted
    ]
    if not kept:
        return []
    return [f"TFLite has no such form of {len(kept)} operators of promoted layers: {', '.join(kept)}"]


KEPT = ("representative", "calibration", "percentile", "equalize", "bias_correction")  # what ranges and weights hang on


def _replay(convert: "Convert", found: "Found") -> str:
    given = {name: getattr(convert, name) for name in KEPT if name in convert.model_fields_set}
    options = "".join(f", {name}: {value}" for name, value in given.items() if value is not None)
    return (
        f"the recipe is beside the model, in artifacts/ with the number of the stage before its name; a copy called "
        f"{FILE} and `convert: {{scheme: recipe, recipe: {FILE}{options}}}` make it again without the "
        f"{len(found.trials)} trials"
    )


def _tables(bench: "Bench", goal: "Goal", found: "Found") -> tuple[Table, ...]:
    macs, stored = {layer.name: layer.macs for layer in bench.layers}, _stored(bench, found)
    layers = Table(
        title="types of the layers, the most sensitive first",
        columns=("layer", "asked for", "outputs in the .tflite", "error of scores alone in int8", "MACs"),
        rows=tuple(
            (name, found.levels.get(name, "int8"), stored[name], f"{alone:.3g}", macs[name])
            for name, alone in found.ranking
        ),
    )
    trials = Table(
        title=f"{len(found.trials)} models tried on validation, float {goal.of_float:.6g}, drop allowed "
        f"{goal.max_drop:.6g}; the first {SHOWN} and those that met it",
        columns=("layers above int8", "number", "quality", "drop", "met"),
        rows=tuple(
            (_listed(trial.levels), len(trial.levels), *_measured(goal, trial), "yes" if trial.met else "no")
            for trial in (*found.trials[:SHOWN], *(t for t in found.trials[SHOWN:] if t.met))
        ),
    )  # fmt: skip
    return layers, trials


def _measured(goal: "Goal", trial: "Trial") -> tuple[str, str]:
    if trial.quality is None:
        return "does not run", trial.why
    return f"{trial.quality:.6g}", f"{goal.drop(trial.quality):.6g}"


def _stored(bench: "Bench", found: "Found") -> dict[str, str]:
    """What the outputs of each layer really are: litert-quantizer passes over what it has no kernel for."""
    from edgepipe.compress.quantizer.flatbuffer_edits import written

    with written(found.content) as path:
        types = {t.name: t.dtype for op in read(path).operators for t in op.outputs if t is not None}
    return {
        layer.name: ", ".join(
            dict.fromkeys(types.get(t.name, "folded") for op in layer.operators for t in op.outputs if t is not None)
        )
        for layer in bench.layers
    }


def _listed(levels: dict[str, Any]) -> str:
    return ", ".join(f"{name} {level}" for name, level in levels.items()) or "none"


def _metrics(bench: "Bench", goal: "Goal", found: "Found") -> list[Metric]:
    how = f"of {len(bench.layers)} layers, those above 8 bits: {_listed(found.levels)}"
    drop = f"float {goal.of_float:.4f}, mixed {found.quality:.4f}, validation split, LiteRT xnnpack"
    return [
        model_metrics.exact("promoted_layers", len(found.levels), Dimension.COUNT, how),
        Metric(name="drop_of_mixed", value=goal.drop(found.quality), unit=Dimension.PLAIN, evidence=Evidence.MEASURED,
               how=drop),
    ]  # fmt: skip
