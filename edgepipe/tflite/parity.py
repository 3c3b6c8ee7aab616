"""How far two runtimes agree on the same model and samples, as a distribution of differences.

Parity is never a bare yes: it is stated against a pinned reference (LiteRT's reference kernels, `Runtime.REFERENCE`)
as the number of outputs that differ by how many steps of the stored type (LSB), and as the share of equal labels.
Compare trained models: a flat softmax hides errors, random weights amplify rounding.
"""

import numpy as np
from pydantic import Field

from edgepipe.core.arrays import Array, Arrays
from edgepipe.core.errors import InputError
from edgepipe.core.metric import Record
from edgepipe.tflite.sample_conversion import ModelOutputs


class Parity(Record):
    """The differences candidate - reference over all samples and outputs."""

    samples: int
    labels_equal: float | None = Field(
        description="share of samples whose largest entry is the same in every output; null without two or more entries"
    )
    histogram: dict[int, int] = Field(description="signed difference in LSB -> how many entries; empty for floats")
    max_lsb: int | None = Field(description="the largest absolute difference; null for floats")
    p99_lsb: float | None = Field(description="99th percentile of the absolute difference; null for floats")
    max_difference: float = Field(description="largest absolute difference of the dequantized values")

    def text(self) -> str:
        """For example `labels 99.70 % equal; LSB -1: 3, 0: 3590, 1: 7`."""
        labels_text = "" if self.labels_equal is None else f"labels {self.labels_equal * 100:.2f} % equal; "
        if not self.histogram:
            return f"{labels_text}largest difference {self.max_difference:.3g}"
        return labels_text + "LSB " + ", ".join(f"{step}: {count}" for step, count in sorted(self.histogram.items()))


def compare(reference: ModelOutputs, candidate: ModelOutputs) -> Parity:
    """Compare the outputs of one runtime with the reference's, for the same model and samples.

    Raises:
        InputError: the two differ in names, shapes, types or quantization, so that they come from different models.
    """
    reference_arrays, candidate_arrays = _as_dict(reference.stored_values), _as_dict(candidate.stored_values)
    _check_comparable(
        reference_arrays,
        candidate_arrays,
        (reference.scales, reference.zero_points) == (candidate.scales, candidate.zero_points),
    )
    integer_pairs = [
        (reference_arrays[name], candidate_arrays[name])
        for name in reference_arrays
        if np.issubdtype(reference_arrays[name].dtype, np.integer)
    ]
    lsb_differences = np.concatenate(
        [(y.astype(np.int64) - x.astype(np.int64)).ravel() for x, y in integer_pairs] or [np.zeros(0, int)]
    )
    step_values, counts = np.unique(lsb_differences, return_counts=True)
    reference_values, candidate_values = _as_dict(reference.real_values), _as_dict(candidate.real_values)
    return Parity(
        samples=len(next(iter(reference_arrays.values()))),
        labels_equal=_equal_label_share(reference_arrays, candidate_arrays),
        histogram=dict(zip(step_values.tolist(), counts.tolist(), strict=True)),
        max_lsb=int(np.abs(lsb_differences).max()) if lsb_differences.size else None,
        p99_lsb=float(np.percentile(np.abs(lsb_differences), 99)) if lsb_differences.size else None,
        max_difference=max(
            _max_difference(reference_values[name], candidate_values[name]) for name in reference_values
        ),
    )


def _as_dict(arrays: Arrays) -> dict[str, Array]:
    return arrays if isinstance(arrays, dict) else {"output": arrays}


def _check_comparable(a: dict[str, Array], b: dict[str, Array], is_same_scale: bool) -> None:
    shapes_and_dtypes = [{name: (array.shape, str(array.dtype)) for name, array in side.items()} for side in (a, b)]
    if shapes_and_dtypes[0] != shapes_and_dtypes[1]:
        raise InputError(
            f"outputs that cannot be compared: the reference gave {shapes_and_dtypes[0]}, "
            f"the other {shapes_and_dtypes[1]}"
        )
    if not is_same_scale:
        raise InputError("outputs that cannot be compared: scales or zero points differ; run the same .tflite on both")


def _equal_label_share(a: dict[str, Array], b: dict[str, Array]) -> float | None:
    names = [name for name, array in a.items() if array.size // len(array) > 1]
    if not names:
        return None
    equal_labels = [_predicted_labels(a[name]) == _predicted_labels(b[name]) for name in names]
    return float(np.mean(np.all(equal_labels, axis=0)))


def _predicted_labels(array: Array) -> Array:
    labels: Array = array.reshape(len(array), -1).argmax(axis=1)
    return labels


def _max_difference(x: Array, y: Array) -> float:
    return float(np.abs(x.astype(np.float64) - y.astype(np.float64)).max(initial=0.0))
