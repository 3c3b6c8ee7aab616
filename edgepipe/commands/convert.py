"""`edgepipe convert`: converts one model to TFLite without YAML, and compares it with the original."""

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgepipe.compress.schemes import (
    SCHEMES,
    ActivationCalibration,
    InterfaceType,
    RecurrentForm,
    SchemeName,
    check_recurrent_form,
    interface_types,
)
from edgepipe.core.arrays import Array, Arrays, count_samples, map_arrays, take_samples
from edgepipe.core.artifact import ArtifactKind, wrap_storage_errors, write_atomically
from edgepipe.core.errors import InputError
from edgepipe.core.metric import Finding, Metric, Record, measured_metric, unavailable_metric
from edgepipe.core.progress import report_step
from edgepipe.core.units import Dimension, plural
from edgepipe.devices import device_metrics
from edgepipe.devices.runtimes.releases import parse_release
from edgepipe.tflite import integer_check, interpreter, reader
from edgepipe.tflite.model import INTEGER_TYPES, Model
from edgepipe.tflite.stream_ports import own_inputs, read_stream_ports

if TYPE_CHECKING:
    from edgepipe.compress.conversion import ConvertedModel
    from edgepipe.compress.quantizer.quantization import QuantizationRequest
    from edgepipe.compress.source_model import SourceModel

MAX_COMPARED_SAMPLES = 100  # that both models are run on
MIN_HELD_BACK_FROM = 50  # samples; of fewer, all calibrate, and nothing is compared
HELD_BACK_STEP = 5  # one sample in so many does not calibrate
RANDOM_SAMPLE_COUNT = 10  # random inputs instead, without samples
SOURCE_KINDS = (ArtifactKind.KERAS, ArtifactKind.FLOAT, ArtifactKind.SAVED_MODEL, ArtifactKind.TFLITE)


class Conversion(Record):
    """A converted model: its path, metrics such as size and difference from the original, findings and notes."""

    path: str
    scheme: SchemeName
    metrics: tuple[Metric, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()


def convert(
    path: Path,
    *,
    data: "str | Path | Arrays | None",
    scheme: SchemeName,
    input_type: InterfaceType | None,
    output_type: InterfaceType | None,
    out: Path | None,
    allow_code: bool,
    custom_objects: str | None = None,
    calibration: ActivationCalibration | None = None,
    keep_float_types: Collection[str] = (),
    keep_float_layers: Collection[str] = (),
    recipe: Path | None = None,
    allow_low_fidelity: bool = False,
    input_shapes: Sequence[str] = (),
    signature: str | None = None,
    recurrent: RecurrentForm = "unrolled",
    streaming: int | None = None,
    split_outputs: bool = False,
    runtime: str | None = None,
    keep_open_batch: bool = False,
) -> Conversion:
    """Convert the model at `path`; a Keras 3 model is converted directly, without the bridge to tf_keras.

    The .tflite is compared with the original on up to 100 of the samples, or on random inputs if there are none.

    Args:
        path: a `.keras` or `.h5` file, a SavedModel folder or a float `.tflite`.
        data: representative samples for schemes that calibrate: an array, a .npy or .npz file, or what `init` takes.
        scheme: types of weights and activations.
        input_type: type of the inputs; None for the scheme's own.
        output_type: type of the outputs, likewise.
        out: the .tflite to write; None writes it beside the model.
        allow_code: load a model that carries code.
        custom_objects: `module:attribute`, the model's own classes, looked up in the current folder first.
        calibration: activation-range calibration; None for minimum and maximum.
        keep_float_types: layer classes or operators that stay in float.
        keep_float_layers: layers that stay in float, by regular expression.
        recipe: a recipe file, for the scheme `recipe`.
        allow_low_fidelity: accept an integer model with an output that is too far from the float one.
        input_shapes: sizes of open input dimensions, as `224x224x3` or `name=224x224x3`.
        signature: which one of a SavedModel; None for `serving_default`, or the only one.
        recurrent: how recurrent layers become integers.
        streaming: steps of the sequence in one call, states being inputs and outputs; None converts whole windows.
        split_outputs: an output that joins parts of very different range becomes one output for each part.
        runtime: a release that must run the result right, such as `tflite-runtime==2.14`; None asks for none.
        keep_open_batch: of a float .tflite, which else gets a batch of 1 in schemes that calibrate.

    Raises:
        InputError: no model, no samples where they are needed, samples that do not fit, options that do not go
            together, or an operator that TFLite, or the release, does not have.
        StorageError: the .tflite cannot be written.
    """
    from edgepipe.compress.conversion import float_operator_notes
    from edgepipe.compress.release_adaptation import convert_model_for
    from edgepipe.compress.source_model import open_with_classes
    from edgepipe.models.file_kind import detect_kind
    from edgepipe.models.startup import load_tensorflow

    release = None if runtime is None else parse_release(runtime)
    kind = detect_kind(path)
    target_path = out or path.with_suffix(".tflite")
    _check_paths(path, kind, target_path)
    quantization_request = replace(
        _build_request(scheme, (input_type, output_type), calibration, recipe, recurrent),
        streaming=streaming, split_outputs=split_outputs, keep_open_batch=keep_open_batch,
    )  # fmt: skip
    samples, sample_notes = _read_samples(quantization_request, data, path)
    calibrating, held_out = _hold_back(quantization_request, samples)
    load_tensorflow()
    report_step(f"reading {path}")
    source_model = open_with_classes(
        path, kind, allow_code=allow_code, custom_objects=custom_objects, input_shapes=input_shapes, signature=signature
    )
    report_step(f"converting to {scheme}")
    converted_model = convert_model_for(
        source_model.model,
        _keep_float(quantization_request, keep_float_types, keep_float_layers, source_model),
        calibrating,
        held_out,
        release,
    )
    report_step("comparing with the original")
    fidelity_findings, accepted_notes = converted_model.judge_fidelity(allow_low_fidelity)
    with write_atomically(target_path) as temporary_path:  # the file appears once it has been run and compared
        with wrap_storage_errors(str(target_path)):
            temporary_path.write_bytes(converted_model.content)
        lite = reader.read(temporary_path)
        must_be_integer = SCHEMES[scheme].integer_only and not (keep_float_types or keep_float_layers)
        findings = integer_check.check_integer_only(lite, allow_float_interface=True) if must_be_integer else []
        metrics = [
            *device_metrics.file_metrics(lite),
            *_difference_metrics(source_model, kind, lite, samples),
            *_fidelity_metrics(quantization_request, converted_model, samples),
        ]
    return Conversion(
        path=str(target_path), scheme=scheme, metrics=tuple(metrics),
        findings=(*findings, *fidelity_findings),
        notes=(*sample_notes, *source_model.notes, *converted_model.notes, *float_operator_notes(scheme, lite),
               *accepted_notes, *_held_back_notes(samples, held_out)),
    )  # fmt: skip


def _check_paths(path: Path, kind: ArtifactKind, target_path: Path) -> None:
    if kind not in SOURCE_KINDS:
        raise InputError(
            f"{path}: is a {kind} already; `convert` takes a .keras or .h5 file, a SavedModel folder or a float .tflite"
        )
    if target_path.resolve() == path.resolve():
        raise InputError(f"{target_path}: would overwrite the model itself; name another file with -o")
    if target_path.is_dir():
        raise InputError(f"{target_path}: is a folder; name the .tflite to write with -o")


def _build_request(
    scheme: SchemeName,
    io_types: tuple[InterfaceType | None, InterfaceType | None],
    calibration: ActivationCalibration | None,
    recipe: Path | None,
    recurrent: RecurrentForm,
) -> "QuantizationRequest":
    from edgepipe.compress.quantizer import recipe_files
    from edgepipe.compress.quantizer.quantization import QuantizationRequest

    interface_types(scheme, *io_types)
    if scheme == "mixed":
        raise InputError("mixed is decided by validation quality: write a pipeline, for example with `edgepipe init`")
    check_recurrent_form(scheme, recurrent)
    if (scheme == "recipe") != (recipe is not None):
        raise InputError("--recipe FILE and --scheme recipe go together")
    if calibration is not None and calibration.method != "min_max" and not SCHEMES[scheme].needs_calibration:
        raise InputError(f"calibration {calibration.describe()}: scheme {scheme} quantizes no activations")
    recipe_rules = recipe_files.read(recipe) if recipe is not None else None
    return QuantizationRequest(
        scheme,
        *io_types,
        calibration or ActivationCalibration(),
        recipe_rules,
        recurrent=recurrent,
    )


def _read_samples(
    request: "QuantizationRequest", data: "str | Path | Arrays | None", model_path: Path
) -> tuple[Arrays | None, tuple[str, ...]]:
    """The samples of `data`, which are required if `request` calibrates, and notes on what is not read."""
    from edgepipe.compress.quantizer.quantization import needs_samples

    if data is None and needs_samples(request):
        raise InputError(
            f"{request.scheme} needs representative samples for its activation ranges: give --data samples.npz (a "
            "hundred typical inputs, array 'x') or a folder of them, or choose --scheme dynamic or float16"
        )
    if not isinstance(data, (str, Path)):
        return data, ()
    from edgepipe.commands.model_samples import read_model_samples

    samples = read_model_samples(str(data), model_path)
    return samples.train_x, samples.notes


def _hold_back(request: "QuantizationRequest", samples: Arrays | None) -> tuple[Arrays | None, Arrays | None]:
    """The samples that calibrate, and every fifth one, on which the result is compared, if there are enough."""
    from edgepipe.compress.quantizer.quantization import needs_samples

    if samples is None or not needs_samples(request) or count_samples(samples) < MIN_HELD_BACK_FROM:
        return samples, None
    is_held_back = np.arange(count_samples(samples)) % HELD_BACK_STEP == HELD_BACK_STEP - 1
    return take_samples(samples, ~is_held_back), take_samples(samples, is_held_back)


def _fidelity_metrics(
    request: "QuantizationRequest", converted_model: "ConvertedModel", samples: Arrays | None
) -> list[Metric]:
    from edgepipe.compress.quantizer.quantization import needs_samples

    if samples is None or not needs_samples(request):
        return []
    reason = (f"all {count_samples(samples)} samples calibrate; from {MIN_HELD_BACK_FROM} on, every fifth one is held "
              "back to compare the model on")  # fmt: skip
    return converted_model.fidelity_metrics(reason)


def _held_back_notes(samples: Arrays | None, held_out: Arrays | None) -> list[str]:
    if samples is None or held_out is None:
        return []
    held_back_text = f"{count_samples(held_out)} of {plural(count_samples(samples), 'sample')}"
    return [f"{held_back_text} did not calibrate: the model is compared with the float one on them"]


def _keep_float(
    request: "QuantizationRequest",
    operator_types: Collection[str],
    layer_patterns: Collection[str],
    source_model: "SourceModel",
) -> "QuantizationRequest":
    """`request` with the operators that stay in float."""
    from edgepipe.compress.quantizer.float_exclusions import select_float_operators

    if not (operator_types or layer_patterns):
        return request
    if request.scheme == "float32":
        raise InputError("--keep-float-types and --keep-float-layers: scheme float32 quantizes nothing")
    for pattern in layer_patterns:
        _check_expression(pattern)
    return replace(
        request, keep_float=select_float_operators(operator_types, layer_patterns, source_model.class_by_layer)
    )


def _check_expression(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise InputError(f"--keep-float-layers '{pattern}' is not a regular expression: {error}") from None


def _difference_metrics(
    source_model: "SourceModel", kind: ArtifactKind, lite: Model, samples: Arrays | None
) -> list[Metric]:
    """The difference of the converted model's outputs from the original's, on the same inputs."""
    if kind is ArtifactKind.SAVED_MODEL:
        reason = "a SavedModel is only converted, not run; compare it where it was trained"
        return [unavailable_metric("max_difference", Dimension.NUMBER, reason)]
    is_exported_stream = read_stream_ports(lite) is not None and not isinstance(source_model.model, Model)
    if samples is None and is_exported_stream:
        reason = "no samples: a stream is compared on whole sequences; give --data"
        return [unavailable_metric("max_difference", Dimension.NUMBER, reason)]
    if samples is None:
        x, inputs_text = _random_inputs(lite), "random inputs"
    elif is_exported_stream:
        x, inputs_text = take_samples(samples, slice(MAX_COMPARED_SAMPLES)), "of the given sequences"
    else:
        x, inputs_text = (
            take_samples(_prepare_samples(source_model, samples), slice(MAX_COMPARED_SAMPLES)),
            "of the given samples",
        )
    original_outputs = _original_outputs(source_model, lite, x)
    converted_outputs = _list_outputs(interpreter.predict(lite.path, _as_real_numbers(lite, x)).real_values)
    conditions = f"{count_samples(x)} {inputs_text}, original against LiteRT"
    if not all(np.isfinite(array).all() for array in original_outputs):
        reason = f"the original outputs values that are not finite, {conditions}"
        return [unavailable_metric("max_difference", Dimension.NUMBER, reason)]
    if not all(np.isfinite(array).all() for array in converted_outputs):
        raise InputError(f"the converted model outputs values that are not finite ({conditions}); nothing is written")
    max_difference = max(float(np.abs(a - b).max()) for a, b in zip(original_outputs, converted_outputs, strict=True))
    provenance = f"largest absolute difference of outputs on {conditions}"
    metrics = [measured_metric("max_difference", max_difference, Dimension.NUMBER, provenance)]
    if original_outputs[0].ndim == 2 and original_outputs[0].shape[1] > 1:
        equal_share = float(np.mean(original_outputs[0].argmax(axis=1) == converted_outputs[0].argmax(axis=1)))
        provenance = f"same argmax of the outputs on {conditions}"
        metrics.append(measured_metric("labels_equal", equal_share, Dimension.FRACTION, provenance))
    return metrics


def _prepare_samples(source_model: "SourceModel", samples: Arrays) -> Arrays:
    """Samples in the shapes of the model's inputs, by input name if there are several."""
    if isinstance(source_model.model, Model):
        return samples
    from edgepipe.compress.keras_to_tflite import prepare_feeds
    from edgepipe.models.freeze import model_inputs

    input_ports = model_inputs(source_model.model)
    feeds = prepare_feeds(samples, input_ports)
    return (
        {port.name: feed for port, feed in zip(input_ports, feeds, strict=True)} if len(input_ports) > 1 else feeds[0]
    )


def _original_outputs(source_model: "SourceModel", lite: Model, x: Arrays) -> list[Array]:
    """The outputs in the order of the .tflite, whatever their names."""
    if isinstance(source_model.model, Model):
        return _list_outputs(interpreter.predict(source_model.model.path, x).real_values)
    if read_stream_ports(lite) is not None:
        from edgepipe.compress.streaming_export import whole_outputs

        return whole_outputs(source_model.model, lite, x)
    import keras

    return list(keras.tree.flatten(source_model.model.predict(x, batch_size=256, verbose=0)))


def _as_real_numbers(lite: Model, x: Arrays) -> Arrays:
    """Integer samples, such as pixels, as real numbers, unless the model takes integers without quantization."""
    has_unquantized_integers = any(
        tensor.dtype in INTEGER_TYPES and tensor.quantization is None for tensor in lite.inputs
    )
    return x if has_unquantized_integers else map_arrays(lambda array: array.astype(np.float32), x)


def _random_inputs(lite: Model) -> Arrays:
    from edgepipe.compress.quantizer.integer_inputs import integer_input_names

    random_state, integer_names = np.random.RandomState(0), integer_input_names(lite)
    array_by_input = {
        # Integers may be indices into a small table: 0 and 1 are valid in any.
        name: random_state.rand(RANDOM_SAMPLE_COUNT, *t.shape[1:]).astype(np.float32)
        if t.dtype.startswith("float") and name not in integer_names
        else random_state.randint(0, 2, (RANDOM_SAMPLE_COUNT, *t.shape[1:])).astype(t.dtype)
        for name, t in own_inputs(lite).items()  # a stream gets sequences of one call
    }
    return array_by_input if len(array_by_input) > 1 else next(iter(array_by_input.values()))


def _list_outputs(outputs: Arrays) -> list[Array]:
    return list(outputs.values()) if isinstance(outputs, dict) else [outputs]
