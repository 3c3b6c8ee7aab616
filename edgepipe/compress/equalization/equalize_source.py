"""`equalize` and `bias_correction`: prepare the float model for quantization before it is converted."""

from typing import TYPE_CHECKING, Any

from edgepipe.compress.schemes import StatisticsSource
from edgepipe.compress.source_model import SourceModel, map_layer_classes
from edgepipe.core.arrays import Arrays
from edgepipe.core.outcome import Table

if TYPE_CHECKING:
    from edgepipe.compress.equalization.bias_correction import CorrectedModel
    from edgepipe.compress.equalization.cross_layer import EqualizedModel


def equalize_source(
    model: Any, equalize: StatisticsSource | None, bias_correction: StatisticsSource | None, samples: Arrays | None
) -> SourceModel:
    """Equalize the float tf_keras `model` and correct its biases.

    Args:
        model: a tf_keras model.
        equalize: scale channels between layers by the weights alone, or on samples; None: not at all.
        bias_correction: correct biases from batch-norm statistics, or on samples; None: not at all.
        samples: representative samples; None if neither needs them.

    Raises:
        InputError: samples that do not fit, or a model whose outputs change when it is folded.
    """
    from edgepipe.compress.equalization.batch_norm_folding import fold_batch_norms
    from edgepipe.compress.equalization.bias_correction import correct_biases
    from edgepipe.compress.equalization.cross_layer import equalize_channels

    folded_model = fold_batch_norms(model, samples)
    notes, tables = list(folded_model.notes), []
    if equalize is not None:
        equalized_model = equalize_channels(folded_model, samples if equalize == "samples" else None)
        folded_model = equalized_model.folded_model
        notes += [*equalized_model.notes, *equalized_model.exclusion_notes]
        tables.append(_equalization_table(equalized_model, equalize))
    if bias_correction is not None:
        corrected_model = correct_biases(folded_model, samples if bias_correction == "samples" else None)
        folded_model = corrected_model.folded_model
        notes += [*corrected_model.notes, *corrected_model.exclusion_notes]
        tables.append(_correction_table(corrected_model, bias_correction))
    return SourceModel(
        folded_model.model, map_layer_classes(folded_model.model), notes=tuple(notes), tables=tuple(tables)
    )


def _equalization_table(equalized_model: "EqualizedModel", statistics_source: str) -> Table:
    rows = tuple(
        (
            ", ".join(group.producer_names),
            ", ".join(group.reader_names),
            group.channel_count,
            f"{group.spread_before:.3g}",
            f"{group.spread_after:.3g}",
        )
        for group in equalized_model.equalization_groups
    )
    title = f"equalized ({statistics_source}): largest range of a channel over the median, before and after"
    return Table(title=title, columns=("from", "to", "channels", "before", "after"), rows=rows)


def _correction_table(corrected_model: "CorrectedModel", statistics_source: str) -> Table:
    rows = tuple(
        (
            correction.layer_name,
            correction.channel_count,
            f"{correction.largest_shift:.3g}",
            f"{correction.mean_shift:.3g}",
            "" if correction.relative_shift is None else f"{correction.relative_shift:.3g}",
        )
        for correction in corrected_model.corrections
    )
    columns = ("layer", "channels", "largest", "mean", "mean over deviation of output")
    return Table(title=f"biases corrected ({statistics_source})", columns=columns, rows=rows)
