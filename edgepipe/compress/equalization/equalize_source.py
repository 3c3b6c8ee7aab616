"""`equalize` and `bias_correction`: the float model prepared for integers before it is converted."""

from typing import TYPE_CHECKING, Any, Literal

from edgepipe.compress.source_model import SourceModel, layer_classes
from edgepipe.core.arrays import Arrays
from edgepipe.core.outcome import Table

if TYPE_CHECKING:
    from edgepipe.compress.equalization.bias_correction import CorrectedModel
    from edgepipe.compress.equalization.cross_layer import EqualizedModel

StatisticsSource = Literal["data_free", "samples"]


def equalize_source(
    model: Any, equalize: StatisticsSource | None, bias_correction: StatisticsSource | None, samples: Arrays | None
) -> SourceModel:
    """The float tf_keras `model`, equalized and its biases corrected.

    Args:
        model: a tf_keras model.
        equalize: scale channels between layers by the weights alone, or on samples; None: not at all.
        bias_correction: correct biases from batch-norm statistics, or on samples; None: not at all.
        samples: representative samples; None where neither needs them.

    Raises:
        InputError: samples that do not fit, or a model that computes something else when it is folded.
    """
    from edgepipe.compress.equalization.batch_norm_folding import fold_batch_norms
    from edgepipe.compress.equalization.bias_correction import correct_biases
    from edgepipe.compress.equalization.cross_layer import equalize_channels

    state = fold_batch_norms(model, samples)
    notes, tables = list(state.notes), []
    if equalize is not None:
        equalized = equalize_channels(state, samples if equalize == "samples" else None)
        state = equalized.folded_model
        notes += [*equalized.notes, *equalized.exclusion_notes]
        tables.append(_equalization_table(equalized, equalize))
    if bias_correction is not None:
        corrected = correct_biases(state, samples if bias_correction == "samples" else None)
        state = corrected.folded_model
        notes += [*corrected.notes, *corrected.exclusion_notes]
        tables.append(_correction_table(corrected, bias_correction))
    return SourceModel(state.model, layer_classes(state.model), notes=tuple(notes), tables=tuple(tables))


def _equalization_table(equalized: "EqualizedModel", source: str) -> Table:
    rows = tuple(
        (
            ", ".join(joint.makers),
            ", ".join(joint.readers),
            joint.channels,
            f"{joint.spread_before:.3g}",
            f"{joint.spread_after:.3g}",
        )
        for joint in equalized.groups
    )
    title = f"equalized ({source}): largest range of a channel over the median, before and after"
    return Table(title=title, columns=("from", "to", "channels", "before", "after"), rows=rows)


def _correction_table(corrected: "CorrectedModel", source: str) -> Table:
    rows = tuple(
        (entry.layer, entry.channels, f"{entry.largest_shift:.3g}", f"{entry.mean_shift:.3g}",
         "" if entry.relative_shift is None else f"{entry.relative_shift:.3g}")
        for entry in corrected.corrections
    )  # fmt: skip
    columns = ("layer", "channels", "largest", "mean", "mean over deviation of output")
    return Table(title=f"biases corrected ({source})", columns=columns, rows=rows)
