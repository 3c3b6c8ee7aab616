"""`convert: {equalize: .., bias_correction: ..}`: the model made ready for integers, and what there is to tell."""

from typing import TYPE_CHECKING

from edgepipe.core.arrays import Arrays
from edgepipe.core.artifact import Kind
from edgepipe.core.errors import InputError
from edgepipe.core.outcome import Table
from edgepipe.stages import model_metrics
from edgepipe.stages.base import Work

if TYPE_CHECKING:
    from edgepipe.compress.conversion import Opened
    from edgepipe.compress.equalization.bias_correction import Corrected
    from edgepipe.compress.equalization.cross_layer import Equalized
    from edgepipe.stages.convert import Convert


def opened(convert: "Convert", work: Work, samples: Arrays | None) -> "Opened":
    """The input of the stage, equalized and corrected as the options say.

    Raises:
        InputError: a model that is no float Keras model, or no samples where they are asked for.
    """
    from edgepipe.compress.conversion import Opened, classes
    from edgepipe.compress.equalization.batch_norm_folding import folded
    from edgepipe.compress.equalization.bias_correction import correct_biases
    from edgepipe.compress.equalization.cross_layer import equalize

    _check(convert, work, samples)
    base, notes = model_metrics.open_float(work)
    state = folded(base, samples)
    notes += state.notes
    tables = []
    if convert.equalize is not None:
        equalized = equalize(state, samples if convert.equalize == "samples" else None)
        state, notes = equalized.folded, [*notes, *equalized.notes, *equalized.left]
        tables.append(_joints(equalized, convert.equalize))
    if convert.bias_correction is not None:
        corrected = correct_biases(state, samples if convert.bias_correction == "samples" else None)
        state, notes = corrected.folded, [*notes, *corrected.notes, *corrected.left]
        tables.append(_corrections(corrected, convert.bias_correction))
    return Opened(state.model, classes(state.model), notes=tuple(notes), tables=tuple(tables))


def _check(convert: "Convert", work: Work, samples: Arrays | None) -> None:
    if work.input.kind not in (Kind.KERAS, Kind.FLOAT):
        raise InputError(
            f"equalize and bias_correction change the weights of a float Keras model; the model before is "
            f"{work.input.kind}"
        )
    if samples is None and "samples" in (convert.equalize, convert.bias_correction):
        raise InputError("equalize and bias_correction on samples need `data:`; `data_free` does without")


def _joints(found: "Equalized", how: str) -> Table:
    rows = tuple(
        (", ".join(joint.makers), ", ".join(joint.readers), joint.channels, f"{joint.before:.3g}", f"{joint.after:.3g}")
        for joint in found.joints
    )
    title = f"equalized ({how}): largest range of a channel over the median, before and after"
    return Table(title=title, columns=("from", "to", "channels", "before", "after"), rows=rows)


def _corrections(found: "Corrected", how: str) -> Table:
    rows = tuple(
        (entry.layer, entry.channels, f"{entry.largest:.3g}", f"{entry.mean:.3g}",
         "" if entry.relative is None else f"{entry.relative:.3g}")
        for entry in found.corrections
    )  # fmt: skip
    columns = ("layer", "channels", "largest", "mean", "mean over deviation of output")
    return Table(title=f"biases corrected ({how})", columns=columns, rows=rows)
