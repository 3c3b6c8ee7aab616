"""The quantization sensitivity of layers as tables, as JSON and as a chart."""

from pathlib import Path

from edgepipe.commands.sensitivity import SensitivityReport
from edgepipe.compress.quantizer.layer_sensitivity import LayerSensitivity, RoundingError
from edgepipe.core.artifact import write_atomically
from edgepipe.core.errors import InputError
from edgepipe.core.escape import json_text
from edgepipe.render.report_tables import TextTable

SCHEMA = "edgepipe.sensitivity/1"
CHART_SUFFIXES = (".png", ".svg", ".pdf")
MAX_SHOWN_LAYERS = 40  # in a chart
EFFECT_COLUMNS = ("layer", "operator", "MACs", "error alone", "error without", "accuracy alone", "accuracy without")
ERROR_COLUMNS = (
    "layer", "weights SNR", "worst channel", "SNR if per tensor", "activation SNR", "worst channel", "cosine",
)  # fmt: skip


def tables(report: SensitivityReport) -> list[TextTable]:
    """The effect of each layer on the outputs, the most sensitive first; rounding errors by layer; the whole model."""
    has_quality = report.quality is not None
    columns = EFFECT_COLUMNS if has_quality else EFFECT_COLUMNS[:-2]
    effect_rows = tuple(_effect_row(layer)[: len(columns)] for layer in report.layers)
    title = f"{report.model}: layers by the error of the scores when only one is {report.scheme}"
    error_rows = tuple(_error_row(layer) for layer in report.layers)
    numeric_columns = frozenset(range(1, len(ERROR_COLUMNS)))
    return [
        TextTable(title, columns, effect_rows, frozenset(range(2, len(columns)))),
        TextTable("Rounding errors of weights and activations", ERROR_COLUMNS, error_rows, numeric_columns),
        _model_table(report),
    ]


def _effect_row(layer: LayerSensitivity) -> tuple[str, ...]:
    return (
        layer.layer, layer.operator, f"{layer.macs:,}", f"{layer.alone:.2e}", f"{layer.left_out:.2e}",
        _format_share(layer.quality_alone), _format_share(layer.quality_left_out),
    )  # fmt: skip


def _error_row(layer: LayerSensitivity) -> tuple[str, ...]:
    weight_error, per_tensor_error, activation_error = layer.weights, layer.weights_per_tensor, layer.activation
    cosine = "" if activation_error is None else f"{activation_error.cosine:.6f}"
    weight_cells = (_snr_text(weight_error), _worst_snr_text(weight_error), _snr_text(per_tensor_error))
    return (layer.layer, *weight_cells, _snr_text(activation_error), _worst_snr_text(activation_error), cosine)


def _snr_text(error: RoundingError | None) -> str:
    return "" if error is None else f"{error.snr:.1f} dB"


def _worst_snr_text(error: RoundingError | None) -> str:
    return "" if error is None else f"{error.worst_channel:.1f} dB"


def _format_share(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"


def _model_table(report: SensitivityReport) -> TextTable:
    rows = [("error of scores, all layers quantized", f"{report.whole:.2e}")]
    if report.quality is not None:
        rows += [(f"{report.quality} in float", _format_share(report.quality_float)),
                 (f"{report.quality}, all layers quantized", _format_share(report.quality_whole))]  # fmt: skip
    rows += [("calibration", report.calibration), ("how", report.how)]
    return TextTable("The model", ("property", "value"), tuple(rows))


def document(report: SensitivityReport) -> str:
    """The same as one JSON document."""
    return json_text({"schema": SCHEMA, **report.model_dump(mode="json")})


def draw_chart(report: SensitivityReport, path: Path) -> None:
    """Draw a bar for each layer, the most sensitive on top, on a logarithmic scale.

    Raises:
        InputError: the suffix of `path` is not that of a picture.
        StorageError: `path` cannot be written.
    """
    if path.suffix.lower() not in CHART_SUFFIXES:
        raise InputError(f"{path}: charts end in {', '.join(CHART_SUFFIXES)}")
    from matplotlib.figure import Figure

    shown_layers = report.layers[:MAX_SHOWN_LAYERS][::-1]
    figure = Figure(figsize=(8, 1.2 + 0.25 * len(shown_layers)), layout="constrained")
    plot_axes = figure.subplots()
    bar_positions = range(len(shown_layers))
    plot_axes.barh(
        bar_positions,
        [max(layer.alone, 1e-12) for layer in shown_layers],
        height=0.6,
        label=f"alone in {report.scheme}",
    )
    plot_axes.plot(
        [max(layer.left_out, 1e-12) for layer in shown_layers], bar_positions, "k.", label="all but this one"
    )
    plot_axes.axvline(max(report.whole, 1e-12), color="tab:red", linewidth=1, label="all layers")
    plot_axes.set_yticks(bar_positions, [layer.layer for layer in shown_layers], fontsize=7)
    plot_axes.set_xscale("log")
    plot_axes.set_xlabel("squared error of the scores over their variance")
    plot_axes.legend(fontsize=7)
    with write_atomically(path) as temporary_path:
        figure.savefig(temporary_path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
