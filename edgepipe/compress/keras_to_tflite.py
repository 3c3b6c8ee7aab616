"""Conversion of a Keras model to the bytes of a .tflite, through a frozen graph (see `edgepipe.models.freeze`).

TensorFlow's converter writes the float model, with a QUANTIZE and a DEQUANTIZE for each fake-quant. All quantization
starts from there: see `edgepipe.compress.quantizer`.
"""

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from edgepipe.compress.loop_unrolling import freeze_without_loops, recurrence_notes
from edgepipe.compress.port_signature import name_ports, write_signature
from edgepipe.compress.qat.fake_quant import constant_kernels, is_fake_quant
from edgepipe.compress.quantizer.flatbuffer_edits import temporary_tflite
from edgepipe.compress.quantizer.fused_lstm import fuse_lstms
from edgepipe.compress.quantizer.quantization import QuantizationRequest, QuantizedModel, needs_samples, quantize_tflite
from edgepipe.compress.schemes import InterfaceType, RecurrentForm, SchemeName, check_recurrent_form
from edgepipe.compress.streaming_export import check_stream, name_stream, sequence_inputs, stream_notes
from edgepipe.core.arrays import Array, Arrays, count_samples
from edgepipe.core.artifact import wrap_storage_errors
from edgepipe.core.errors import InputError
from edgepipe.core.progress import report_step
from edgepipe.models.float32_rebuild import Float32Model, in_float32
from edgepipe.models.freeze import FrozenGraph, ModelInput, freeze, freeze_saved_model
from edgepipe.models.fused_lstm_marker import MARKER_OPERATION
from edgepipe.models.native_stderr import capture_stderr
from edgepipe.models.saved_model_signatures import SavedModelSignature
from edgepipe.models.streaming import freeze_streaming
from edgepipe.tflite.model import Model
from edgepipe.tflite.reader import read
from edgepipe.tflite.sample_conversion import convert_samples


def convert(
    model: Any,
    scheme: SchemeName = "int8",
    samples: Arrays | None = None,
    input_type: InterfaceType | None = None,
    output_type: InterfaceType | None = None,
) -> bytes:
    """The bytes of the .tflite of `model`; see `convert_keras`.

    Args:
        model: a Keras 3, tf_keras or fake-quant model, or a signature of a SavedModel.
        scheme: any but `mixed` and `recipe`.
        samples: representative samples, (samples, ...) or one array per input name; None for schemes that do not
            calibrate.
        input_type: type of the inputs; None: the scheme's default.
        output_type: type of the outputs; None: the scheme's default.

    Raises:
        InputError: see `convert_keras`.
    """
    return convert_keras(model, QuantizationRequest(scheme, input_type, output_type), samples).content


def convert_keras(
    model: Any, request: QuantizationRequest, samples: Arrays | None = None, held_out: Arrays | None = None
) -> QuantizedModel:
    """The .tflite of a Keras 3, tf_keras or fake-quant `model`, or of a SavedModel's signature; batch size 1.

    `samples` calibrate the schemes that need it (one array, or one per input name; the first axis counts samples). A
    fake-quant model has its own ranges; samples calibrate the rest. On `held_out` samples, the result is compared with
    the float model. Inputs and outputs keep their names and order.

    Raises:
        InputError: samples that are missing, NaN or of the wrong shape; incompatible scheme and types; operators that
            TFLite does not have, each named with the layer it comes from.
    """
    _check_recurrent(model, request)
    source = Float32Model(model) if isinstance(model, SavedModelSignature) else in_float32(model)
    quantized_model = _convert_float32(source.model, request, samples, held_out)
    return replace(
        quantized_model,
        content=name_ports(quantized_model.content),
        notes=(*source.notes, *quantized_model.notes),
    )


def _convert_float32(
    model: Any, request: QuantizationRequest, samples: Arrays | None, held_out: Arrays | None
) -> QuantizedModel:
    if request.streaming is not None:
        return _convert_stream(model, request, samples, held_out)
    with float_model(model, samples, needs_samples(request), request.recurrent) as (lite, feeds):
        held_out_feeds = None if held_out is None else convert_samples(lite, held_out)
        quantized_model = quantize_tflite(lite, request, feeds, held_out_feeds)
        loop_notes = recurrence_notes(model, request, lite) if needs_samples(request) else []
        return replace(quantized_model, notes=(*loop_notes, *quantized_model.notes))


def _convert_stream(
    model: Any, request: QuantizationRequest, samples: Arrays | None, held_out: Arrays | None
) -> QuantizedModel:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float.tflite"
        sequences, difference = _write_stream(model, request, samples, path)
        lite = read(path)
        held_out_feeds = None if held_out is None else convert_samples(lite, held_out)
        quantized_model = quantize_tflite(lite, request, sequences, held_out_feeds)
    with temporary_tflite(quantized_model.content) as quantized_path:
        notes = stream_notes(read(quantized_path), difference, sequences)
    return replace(quantized_model, notes=(*notes, *quantized_model.notes))


def _write_stream(
    model: Any, request: QuantizationRequest, samples: Arrays | None, path: Path
) -> tuple[list[Array] | None, float]:
    """Write the float .tflite of one call; returns the sequences that calibrate, and how far it is from the model."""
    assert request.streaming is not None, "the request is for a stream"
    _check_can_stream(model)
    with capture_stderr() as read_log:
        streaming = freeze_streaming(model, request.streaming)
        sequences = (
            prepare_feeds(samples, sequence_inputs(streaming, samples))
            if needs_samples(request) and samples is not None
            else None
        )
        function = streaming.graph.function
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function], function)
        with wrap_storage_errors(str(path)):
            path.write_bytes(name_stream(_run_converter(converter, read_log), streaming))
    return sequences, check_stream(model, path, streaming, sequences)


def _check_can_stream(model: Any) -> None:
    if isinstance(model, SavedModelSignature):
        raise InputError(
            f"{model.path}: streaming: a SavedModel does not say which of its variables are states of which layer; "
            "convert the Keras model itself (.keras), or save a signature that takes each state and gives it back"
        )
    if is_fake_quant(model):
        raise InputError(
            "streaming: a fake-quant model was trained on whole windows, its states have no range of their own; "
            "convert the float model with `streaming`"
        )


@contextmanager
def float_model(
    model: Any, samples: Arrays | None, requires_samples: bool, recurrent: RecurrentForm = "unrolled"
) -> Iterator[tuple[Model, list[Array] | None]]:
    """The float .tflite of `model`, which exists inside the block only, and `samples` in the order of its inputs.

    A signature names inputs and outputs; their tensors are still called as TensorFlow does, see `name_ports`.

    With `requires_samples` there must be samples to calibrate on, and recurrent layers take the form `recurrent`. A
    fake-quant model has rounded weights, and the fake-quant of its activations; see `trained_ranges`.
    """
    report_step("writing the float .tflite")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float.tflite"
        feeds = _write_float_model(model, samples, recurrent if requires_samples else None, path)
        yield read(path), feeds


def _write_float_model(
    model: Any, samples: Arrays | None, recurrent: RecurrentForm | None, path: Path
) -> list[Array] | None:
    """Write the float .tflite; returns the samples as its inputs take them. The converter's stderr is captured."""
    model = model if isinstance(model, SavedModelSignature) else in_float32(model).model
    with capture_stderr() as read_log, constant_kernels(model):
        frozen_graph, feeds = (
            (_freeze_model(model), None) if recurrent is None else _freeze_with_feeds(model, samples, recurrent)
        )
        converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen_graph.function], frozen_graph.function)
        converter.allow_custom_ops = recurrent == "fused"
        content = write_signature(_run_converter(converter, read_log), frozen_graph.ports)
        with wrap_storage_errors(str(path)):
            path.write_bytes(fuse_lstms(content, MARKER_OPERATION) if recurrent == "fused" else content)
        return feeds


def _freeze_model(model: Any) -> FrozenGraph:
    return freeze_saved_model(model) if isinstance(model, SavedModelSignature) else freeze(model)


def _check_recurrent(model: Any, request: QuantizationRequest) -> None:
    check_recurrent_form(request.scheme, request.recurrent)
    if request.recurrent == "fused" and is_fake_quant(model):
        raise InputError("recurrent fused: the steps of a fake-quant model are unrolled already; drop `recurrent`")


def _freeze_with_feeds(
    model: Any, samples: Arrays | None, recurrent: RecurrentForm = "unrolled"
) -> tuple[FrozenGraph, list[Array]]:
    """The graph without loops, and the samples that calibrate it."""
    loop_free_graph = freeze_without_loops(model, recurrent)
    feeds = prepare_feeds(samples, loop_free_graph.graph.inputs)
    loop_free_graph.check_equal(feeds)
    return loop_free_graph.graph, feeds


def prepare_feeds(samples: Arrays | None, inputs: tuple[ModelInput, ...]) -> list[Array]:
    """The representative samples of each input, in the order of the inputs, cast to its dtype.

    Raises:
        InputError: samples that are missing, not finite, not numbers, or of other names, shapes or types.
    """
    if samples is None or not count_samples(samples):
        raise InputError(
            "the scheme needs representative samples to calibrate activations, found none; give at least one"
        )
    samples_by_input = samples if isinstance(samples, dict) else {inputs[0].name: samples}
    input_names = [model_input.name for model_input in inputs]
    if not isinstance(samples, dict) and len(inputs) > 1:
        raise InputError(
            f"the model has inputs {', '.join(input_names)}, the samples are one array; give one array per input name"
        )
    if sorted(samples_by_input) != sorted(input_names):
        raise InputError(
            f"the samples are named {', '.join(samples_by_input)}, the model's inputs {', '.join(input_names)}; "
            "use the same names"
        )
    feeds = [_prepare_feed(np.asarray(samples_by_input[model_input.name]), model_input) for model_input in inputs]
    if len({len(feed) for feed in feeds}) > 1:
        counts_text = ", ".join(f"'{name}' {len(feed)}" for name, feed in zip(input_names, feeds, strict=True))
        raise InputError(f"the inputs have different numbers of samples: {counts_text}; give the same number for each")
    return feeds


def _prepare_feed(array: Array, model_input: ModelInput) -> Array:
    if array.shape[1:] != model_input.shape[1:]:
        sample_shape, input_shape = array.shape[1:], model_input.shape[1:]
        raise InputError(
            f"representative samples have the shape {sample_shape}, input '{model_input.name}' takes {input_shape}"
        )
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
        raise InputError(f"representative samples of input '{model_input.name}' are {array.dtype}, not numbers")
    nonfinite_indices = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
    if nonfinite_indices.size:
        raise InputError(
            f"{nonfinite_indices.size} of {len(array)} representative samples of input '{model_input.name}' hold NaN "
            f"or infinity, the first is number {nonfinite_indices[0]}; clean or drop them"
        )
    if np.dtype(model_input.dtype).kind in "iu" and not _fits_dtype(array, np.iinfo(model_input.dtype)):
        raise InputError(
            f"representative samples of input '{model_input.name}' are not all whole numbers that {model_input.dtype}, "
            f"which it takes, can hold: they are {array.dtype} from {array.min()} to {array.max()}"
        )
    return array.astype(model_input.dtype)


def _fits_dtype(array: Array, integer_limits: Any) -> bool:
    return bool(
        (array == np.rint(array)).all() and integer_limits.min <= array.min() and array.max() <= integer_limits.max
    )


def _run_converter(converter: Any, read_log: Callable[[], str]) -> bytes:
    try:
        content: bytes = converter.convert()
    except Exception as error:
        raise InputError(f"TFLite cannot express this model: {_failure_reason(error, read_log())}") from error
    return content


def _failure_reason(error: Exception, log: str) -> str:
    """The converter's error in one line: the operators that TFLite lacks and their nodes, or the first line."""
    operator_names = dict.fromkeys(re.findall(r"'(tf\.\w+)' op is neither", f"{error}\n{log}"))
    if operator_names:
        missing_ops_text = ", ".join(
            f"{operator} ({', '.join(_node_names(log, operator)) or 'node unknown'})" for operator in operator_names
        )
        return f"it has no builtin operator for {missing_ops_text}; replace the layer that needs it"
    message_lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return message_lines[0][:400]


def _node_names(log: str, operator_name: str) -> list[str]:
    # the location before the complaint: loc(fused["Digamma:", callsite("model/layer/Digamma"("file.py":9:1) ...
    log_locations = re.findall(rf"^(loc\(.*)error: '{re.escape(operator_name)}' op", log, re.MULTILINE)
    names_per_location = [
        [name for name in re.findall(r'"([^"]+)"', location) if not name.endswith(":")] for location in log_locations
    ]
    return list(dict.fromkeys(f"node '{names[0].partition('@')[0]}'" for names in names_per_location if names))
