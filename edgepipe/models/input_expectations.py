"""The values that a trained model expects at its inputs, read from its file: without TensorFlow and without running it.

Of a Keras file, what tells is preprocessing inside the model (Rescaling, Normalization, `x / 127.5 - 1`) and a batch
normalization behind the input or the first layer, which has kept the statistics of its training data.
"""

from dataclasses import replace
from pathlib import Path

from edgepipe.core.artifact import ArtifactKind
from edgepipe.models.file_kind import detect_kind
from edgepipe.models.first_layer_statistics import estimate_training_statistics
from edgepipe.models.leading_operators import LeadingOperators, find_leading_operators
from edgepipe.models.saved_model_graph import read_saved_model_expectations
from edgepipe.tflite.input_expectation import (
    InputExpectation,
    affine_expectation,
    read_tflite_expectations,
    span_expectation,
)
from edgepipe.tflite.reader import read

_KERAS_KINDS = (ArtifactKind.KERAS, ArtifactKind.FLOAT)


def read_expectations(path: Path, trained_range: tuple[float, float] | None = None) -> tuple[InputExpectation, ...]:
    """What is known of the inputs of the model at `path`; nothing for an input that no layer tells of.

    `trained_range`, if the user states it, is that of its only input, whatever the layers say.
    """
    if trained_range is not None:
        return (span_expectation("", "was trained, as `trained_range` says,", trained_range),)
    kind = detect_kind(path)
    if kind is ArtifactKind.TFLITE:
        return read_tflite_expectations(read(path))
    if kind is ArtifactKind.SAVED_MODEL:
        return read_saved_model_expectations(path)
    leading_operators = find_leading_operators(path) if kind in _KERAS_KINDS else ()
    expectations = (_keras_expectation(path, operators) for operators in leading_operators)
    return tuple(expectation for expectation in expectations if expectation is not None)


def _keras_expectation(path: Path, operators: LeadingOperators) -> InputExpectation | None:
    origin = f"begins with {', '.join(operators.layer_texts)}"
    expectation = affine_expectation(operators.input_name, origin, operators.factor, operators.summand)
    if expectation is None:
        return estimate_training_statistics(path, operators)
    is_normalization = all(text.startswith("Normalization ") for text in operators.layer_texts)
    return replace(expectation, is_statistics=is_normalization)
