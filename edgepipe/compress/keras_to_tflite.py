"""A Keras model to the bytes of a TFLite model, through one frozen graph (see `edgepipe.models.freeze`).

TensorFlow's converter makes the float model, and the int8 one of a fake-quant model, which has its ranges already. All
other quantization starts from the float .tflite: see `edgepipe.compress.quantizer`.
"""

import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from edgepipe.compress.qat.fake_quant import export_mode, is_fake_quant, trained_ranges
from edgepipe.compress.quantizer.quantization import QuantizationRequest, QuantizedModel, needs_samples, quantize_tflite
from edgepipe.compress.schemes import InterfaceType, SchemeName
from edgepipe.core.arrays import Array, Arrays, count_samples
from edgepipe.core.errors import InputError
from edgepipe.models.freeze import FrozenGraph, ModelInput, freeze, freeze_saved_model
from edgepipe.models.native_stderr import capture_stderr
from edgepipe.tflite.model import Model
from edgepipe.tflite.reader import read

CONVERTER_SCHEMES = ("float32", "float16", "dynamic")
_TYPES = {"int8": tf.int8, "uint8": tf.uint8, "float32": tf.float32}


def convert(
    model: Any,
    scheme: SchemeName = "int8",
    samples: Arrays | None = None,
    input_type: InterfaceType | None = None,
    output_type: InterfaceType | None = None,
) -> bytes:
    """The bytes of the TFLite model of `model`; see `converted`."""
    return convert_keras(model, QuantizationRequest(scheme, input_type, output_type), samples).content


def convert_keras(model: Any, request: QuantizationRequest, samples: Arrays | None = None) -> QuantizedModel:
    """The TFLite model of a Keras 3, tf_keras or fake-quant `model`, or of the SavedModel at a path; batch of one.

    `samples` calibrate the schemes that need it (one array, or one per input name; the first axis counts samples). A
    fake-quant model has ranges of its own; samples fill those that it left open.

    Raises:
        InputError: samples that are missing, NaN or of the wrong shape; a scheme and types that do not go together;
            operators that TFLite does not have, each named with the layer it comes from.
    """
    io_types = request.io_types
    if (request.scheme == "int8" and is_fake_quant(model)) or (
        request.scheme in CONVERTER_SCHEMES and not request.keep_float
    ):
        return QuantizedModel(_convert_directly(model, request.scheme, samples, io_types))
    with float_model(model, samples, needs_samples(request)) as (lite, feeds):
        return quantize_tflite(lite, request, feeds, trained_ranges(model))


@contextmanager
def float_model(
    model: Any, samples: Arrays | None, requires_samples: bool
) -> Iterator[tuple[Model, list[Array] | None]]:
    """The float .tflite of `model`, which exists inside the block only, and `samples` in the order of its inputs.

    With `requires_samples` there must be samples to calibrate on. A fake-quant model is taken with the weights it was trained
    to and without rounding anything.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float.tflite"
        feeds = _write_float_model(model, samples, requires_samples, path)
        yield read(path), feeds


def _write_float_model(model: Any, samples: Arrays | None, requires_samples: bool, path: Path) -> list[Array] | None:
    """Write the float .tflite; the samples as it takes them. What the converter says stays here, and nothing else."""
    with capture_stderr() as read_log, export_mode(model, ranges=True):
        frozen_graph = _freeze_model(model)
        if requires_samples:
            _check_loops(frozen_graph.function)
        feeds = prepare_feeds(samples, frozen_graph.inputs) if requires_samples else None
        converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen_graph.function], frozen_graph.function)
        path.write_bytes(_run_converter(converter, read_log, frozen_graph.function))
        return feeds


def _convert_directly(model: Any, scheme: str, samples: Arrays | None, io_types: tuple[str, str]) -> bytes:
    """By TensorFlow's converter alone."""
    with capture_stderr() as read_log, warnings.catch_warnings(), export_mode(model):
        # said of every quantization through a frozen graph; the representative samples are those statistics
        warnings.filterwarnings("ignore", "Statistics for quantized inputs were expected", UserWarning)
        frozen_graph = _freeze_model(model)
        if scheme == "int8":
            _check_loops(frozen_graph.function)
        feeds = prepare_feeds(samples, frozen_graph.inputs) if scheme == "int8" else []
        converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen_graph.function], frozen_graph.function)
        _configure(converter, scheme, feeds)
        converter.inference_input_type, converter.inference_output_type = (_TYPES[name] for name in io_types)
        return _run_converter(converter, read_log, frozen_graph.function)


def _freeze_model(model: Any) -> FrozenGraph:
    return freeze_saved_model(model) if isinstance(model, Path) else freeze(model)


LOOPS = ("LoopCond", "While", "StatelessWhile")


def _check_loops(function: Any) -> None:
    """Refuse a graph with a loop: calibrating one crashes TensorFlow's converter, without a message."""
    # Freezing lowers a While to its parts, of which LoopCond is the one that every loop has once.
    loops = [op.name.split("/while/")[0] for op in function.graph.get_operations() if op.type in LOOPS]
    if loops:
        raise InputError(
            f"activations cannot be calibrated through a loop, and the model has {len(loops)}: {', '.join(loops)}; "
            "build recurrent layers (LSTM, GRU) with unroll=True, or choose scheme dynamic or float16"
        )


def _configure(converter: Any, scheme: str, feeds: list[Array]) -> None:
    if scheme == "float32":
        return
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if scheme == "float16":
        converter.target_spec.supported_types = [tf.float16]
    elif scheme == "int8":
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        total = len(feeds[0])
        converter.representative_dataset = lambda: (
            [feed[index : index + 1] for feed in feeds] for index in range(total)
        )


def prepare_feeds(samples: Arrays | None, ports: tuple[ModelInput, ...]) -> list[Array]:
    """The representative samples of each input, in the order of the inputs, as the dtype the input takes.

    Raises:
        InputError: samples that are missing, not finite, no numbers, or of other names, shapes or types.
    """
    if samples is None or not count_samples(samples):
        raise InputError(
            "the scheme needs representative samples to calibrate activations, found none; give at least one"
        )
    samples_by_input = samples if isinstance(samples, dict) else {ports[0].name: samples}
    input_names = [port.name for port in ports]
    if not isinstance(samples, dict) and len(ports) > 1:
        raise InputError(
            f"the model has inputs {', '.join(input_names)}, the samples are one array; give one array per input name"
        )
    if sorted(samples_by_input) != sorted(input_names):
        raise InputError(
            f"the samples are named {', '.join(samples_by_input)}, the model's inputs {', '.join(input_names)}; use the same names"
        )
    feeds = [_prepare_feed(np.asarray(samples_by_input[port.name]), port) for port in ports]
    if len({len(feed) for feed in feeds}) > 1:
        counts = ", ".join(f"'{name}' {len(feed)}" for name, feed in zip(input_names, feeds, strict=True))
        raise InputError(f"the inputs have different numbers of samples: {counts}; give the same number for each")
    return feeds


def _prepare_feed(array: Array, port: ModelInput) -> Array:
    if array.shape[1:] != port.shape[1:]:
        sample_shape, input_shape = array.shape[1:], port.shape[1:]
        raise InputError(
            f"representative samples have the shape {sample_shape}, input '{port.name}' takes {input_shape}"
        )
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
        raise InputError(f"representative samples of input '{port.name}' are {array.dtype}, not numbers")
    nonfinite_indices = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
    if nonfinite_indices.size:
        raise InputError(
            f"{nonfinite_indices.size} of {len(array)} representative samples of input '{port.name}' hold NaN or infinity, the "
            f"first is number {nonfinite_indices[0]}; clean or drop them"
        )
    if np.dtype(port.dtype).kind in "iu" and not _fits_dtype(array, np.iinfo(port.dtype)):
        raise InputError(
            f"representative samples of input '{port.name}' are not all whole numbers that {port.dtype}, which it "
            f"takes, can hold: they are {array.dtype} from {array.min()} to {array.max()}"
        )
    return array.astype(port.dtype)


def _fits_dtype(array: Array, limits: Any) -> bool:
    return bool((array == np.rint(array)).all() and limits.min <= array.min() and array.max() <= limits.max)


# operators that the quantizer takes from the graph and has no int8 form of; it then fails without a message
OPS_WITHOUT_INT8 = frozenset({"Sin", "Cos", "Floor", "Sign", "Cast", "Elu", "Neg", "Square"})


def _run_converter(converter: Any, read_log: Callable[[], str], function: Any) -> bytes:
    try:
        content: bytes = converter.convert()
    except Exception as error:
        reason = _failure_reason(error, read_log()) if str(error).strip() else _silent_failure_reason(function)
        raise InputError(f"TFLite cannot express this model: {reason}") from error
    return content


def _silent_failure_reason(function: Any) -> str:
    ops_without_int8 = [
        f"{op.type} ('{op.name}')" for op in function.graph.get_operations() if op.type in OPS_WITHOUT_INT8
    ]
    op_list = f"; without an int8 form in it: {', '.join(ops_without_int8)}" if ops_without_int8 else ""
    return f"TensorFlow's quantizer failed without a word{op_list}; replace these layers, or choose another scheme"


def _failure_reason(error: Exception, log: str) -> str:
    """What the converter complains about, in one line: the operators it lacks and their nodes, or its first line."""
    operators = dict.fromkeys(re.findall(r"'(tf\.\w+)' op is neither", f"{error}\n{log}"))
    if operators:
        missing_ops = ", ".join(
            f"{operator} ({', '.join(_node_names(log, operator)) or 'node unknown'})" for operator in operators
        )
        return f"it has no builtin operator for {missing_ops}; replace the layer that needs it"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[0][:400]


def _node_names(log: str, operator: str) -> list[str]:
    # the location before the complaint: loc(fused["Digamma:", callsite("model/layer/Digamma"("file.py":9:1) ...
    locations = re.findall(rf"^(loc\(.*)error: '{re.escape(operator)}' op", log, re.MULTILINE)
    names_by_location = [
        [name for name in re.findall(r'"([^"]+)"', location) if not name.endswith(":")] for location in locations
    ]
    return list(dict.fromkeys(f"node '{names[0].partition('@')[0]}'" for names in names_by_location if names))
