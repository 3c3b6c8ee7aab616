"""The sensitivity of layers as a table, as JSON, and as a chart."""

import json
from pathlib import Path

from edgepipe.commands.sensitivity import SensitivityReport
from edgepipe.compress.quantizer.layer_sensitivity import Error, Sensitivity
from edgepipe.core.artifact import written_aside
from edgepipe.core.errors import InputError
from edgepipe.render.report_tables import Rows

SCHEMA = "edgepipe.sensitivity/1"
ENDINGS = (".png", ".svg", ".pdf")
SHOWN = 40  # layers in a chart
EFFECT = ("layer", "operator", "MACs", "error alone", "error left out", "accuracy alone", "accuracy left out")
ERRORS = (
    "layer", "weights SNR", "worst channel", "SNR if per tensor", "activation SNR", "worst channel", "cosine",
)  # fmt: skip


def tables(found: SensitivityReport) -> list[Rows]:
    """What becomes of the outputs, the most sensitive layer first; what rounding does to each; the model as a whole."""
    labelled = found.quality is not None
    columns = EFFECT if labelled else EFFECT[:-2]
    effect = tuple(_effect(layer)[: len(columns)] for layer in found.layers)
    title = f"{found.model}: layers by the error of the scores with one alone in {found.scheme}"
    errors = tuple(_errors(layer) for layer in found.layers)
    return [
        Rows(title, columns, effect, frozenset(range(2, len(columns)))),
        Rows("What rounding does to weights and activations", ERRORS, errors, frozenset(range(1, len(ERRORS)))),
        _whole(found),
    ]


def _effect(layer: Sensitivity) -> tuple[str, ...]:
    return (
        layer.layer, layer.operator, f"{layer.macs:,}", f"{layer.alone:.2e}", f"{layer.left_out:.2e}",
        _share(layer.quality_alone), _share(layer.quality_left_out),
    )  # fmt: skip


def _errors(layer: Sensitivity) -> tuple[str, ...]:
    weights, tensor, activation = layer.weights, layer.weights_per_tensor, layer.activation
    cosine = "" if activation is None else f"{activation.cosine:.6f}"
    return (
        layer.layer, _snr(weights), _worst(weights), _snr(tensor), _snr(activation), _worst(activation), cosine,
    )  # fmt: skip


def _snr(error: Error | None) -> str:
    return "" if error is None else f"{error.snr:.1f} dB"


def _worst(error: Error | None) -> str:
    return "" if error is None else f"{error.worst_channel:.1f} dB"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _whole(found: SensitivityReport) -> Rows:
    rows = [("error of scores, all layers quantized", f"{found.whole:.2e}")]
    if found.quality is not None:
        rows += [(f"{found.quality} in float", _share(found.quality_float)),
                 (f"{found.quality}, all layers quantized", _share(found.quality_whole))]  # fmt: skip
    rows += [("calibration", found.calibration), ("how", found.how)]
    return Rows("The model", ("what", "value"), tuple(rows))


def document(found: SensitivityReport) -> str:
    """The same as one JSON document."""
    return json.dumps({"schema": SCHEMA, **found.model_dump(mode="json")}, indent=2)


def draw(found: SensitivityReport, path: Path) -> None:
    """Bars, the most sensitive layer on top, on a logarithmic scale.

    Raises:
        InputError: an ending that is no picture's.
        StorageError: it cannot be written.
    """
    if path.suffix.lower() not in ENDINGS:
        raise InputError(f"{path}: charts end in {', '.join(ENDINGS)}")
    from matplotlib.figure import Figure

    shown = found.layers[:SHOWN][::-1]
    figure = Figure(figsize=(8, 1.2 + 0.25 * len(shown)), layout="constrained")
    axis = figure.subplots()
    places = range(len(shown))
    axis.barh(places, [max(layer.alone, 1e-12) for layer in shown], height=0.6, label=f"alone in {found.scheme}")
    axis.plot([max(layer.left_out, 1e-12) for layer in shown], places, "k.", label="all but this one")
    axis.axvline(max(found.whole, 1e-12), color="tab:red", linewidth=1, label="all layers")
    axis.set_yticks(places, [layer.layer for layer in shown], fontsize=7)
    axis.set_xscale("log")
    axis.set_xlabel("squared error of the scores over their variance")
    axis.legend(fontsize=7)
    with written_aside(path) as aside:
        figure.savefig(aside, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
