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

from edgepipe.compress.qat.fake_quant import exporting, is_fake_quant, trained_ranges
from edgepipe.compress.quantizer.quantization import Quantized, Request, needs_samples, quantized
from edgepipe.compress.schemes import Number, SchemeName
from edgepipe.core.arrays import Array, Arrays, count
from edgepipe.core.errors import InputError
from edgepipe.models.freeze import Frozen, Port, freeze, freeze_saved_model
from edgepipe.models.native_stderr import captured_stderr
from edgepipe.tflite.model import Model
from edgepipe.tflite.reader import read

BY_CONVERTER = ("float32", "float16", "dynamic")
_TYPES = {"int8": tf.int8, "uint8": tf.uint8, "float32": tf.float32}


def convert(
    model: Any,
    scheme: SchemeName = "int8",
    samples: Arrays | None = None,
    input_type: Number | None = None,
    output_type: Number | None = None,
) -> bytes:
    """The bytes of the TFLite model of `model`; see `converted`."""
    return converted(model, Request(scheme, input_type, output_type), samples).content


def converted(model: Any, request: Request, samples: Arrays | None = None) -> Quantized:
    """The TFLite model of a Keras 3, tf_keras or fake-quant `model`, or of the SavedModel at a path; batch of one.

    `samples` calibrate the schemes that need it (one array, or one per input name; the first axis counts samples). A
    fake-quant model has ranges of its own; samples fill those that it left open.

    Raises:
        InputError: samples that are missing, NaN or of the wrong shape; a scheme and types that do not go together;
            operators that TFLite does not have, each named with the layer it comes from.
    """
    types = request.types
    if (request.scheme == "int8" and is_fake_quant(model)) or (request.scheme in BY_CONVERTER and not request.left):
        return Quantized(_converted(model, request.scheme, samples, types))
    with float_model(model, samples, needs_samples(request)) as (lite, feeds):
        return quantized(lite, request, feeds, trained_ranges(model))


@contextmanager
def float_model(model: Any, samples: Arrays | None, calibrated: bool) -> Iterator[tuple[Model, list[Array] | None]]:
    """The float .tflite of `model`, which exists inside the block only, and `samples` in the order of its inputs.

    With `calibrated` there must be samples to calibrate on. A fake-quant model is taken with the weights it was trained
    to and without rounding anything.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float.tflite"
        feeds = _write_float(model, samples, calibrated, path)
        yield read(path), feeds


def _write_float(model: Any, samples: Arrays | None, calibrated: bool, path: Path) -> list[Array] | None:
    """Write the float .tflite; the samples as it takes them. What the converter says stays here, and nothing else."""
    with captured_stderr() as said, exporting(model, ranges=True):
        frozen = _frozen(model)
        if calibrated:
            _check_loops(frozen.function)
        feeds = feeds_of(samples, frozen.inputs) if calibrated else None
        converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen.function], frozen.function)
        path.write_bytes(_run(converter, said, frozen.function))
        return feeds


def _converted(model: Any, scheme: str, samples: Arrays | None, types: tuple[str, str]) -> bytes:
    """By TensorFlow's converter alone."""
    with captured_stderr() as said, warnings.catch_warnings(), exporting(model):
        # said of every quantization through a frozen graph; the representative samples are those statistics
        warnings.filterwarnings("ignore", "Statistics for quantized inputs were expected", UserWarning)
        frozen = _frozen(model)
        if scheme == "int8":
            _check_loops(frozen.function)
        feeds = feeds_of(samples, frozen.inputs) if scheme == "int8" else []
        converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen.function], frozen.function)
        _configure(converter, scheme, feeds)
        converter.inference_input_type, converter.inference_output_type = (_TYPES[name] for name in types)
        return _run(converter, said, frozen.function)


def _frozen(model: Any) -> Frozen:
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


def feeds_of(samples: Arrays | None, ports: tuple[Port, ...]) -> list[Array]:
    """The representative samples of each input, in the order of the inputs, as the dtype the input takes.

    Raises:
        InputError: samples that are missing, not finite, no numbers, or of other names, shapes or types.
    """
    if samples is None or not count(samples):
        raise InputError(
            "the scheme needs representative samples to calibrate activations, found none; give at least one"
        )
    named = samples if isinstance(samples, dict) else {ports[0].name: samples}
    wanted = [port.name for port in ports]
    if not isinstance(samples, dict) and len(ports) > 1:
        raise InputError(
            f"the model has inputs {', '.join(wanted)}, the samples are one array; give one array per input name"
        )
    if sorted(named) != sorted(wanted):
        raise InputError(
            f"the samples are named {', '.join(named)}, the model's inputs {', '.join(wanted)}; use the same names"
        )
    feeds = [_feed(np.asarray(named[port.name]), port) for port in ports]
    if len({len(feed) for feed in feeds}) > 1:
        counts = ", ".join(f"'{name}' {len(feed)}" for name, feed in zip(wanted, feeds, strict=True))
        raise InputError(f"the inputs have different numbers of samples: {counts}; give the same number for each")
    return feeds


def _feed(array: Array, port: Port) -> Array:
    if array.shape[1:] != port.shape[1:]:
        found, wanted = array.shape[1:], port.shape[1:]
        raise InputError(f"representative samples have the shape {found}, input '{port.name}' takes {wanted}")
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
        raise InputError(f"representative samples of input '{port.name}' are {array.dtype}, not numbers")
    bad = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
    if bad.size:
        raise InputError(
            f"{bad.size} of {len(array)} representative samples of input '{port.name}' hold NaN or infinity, the "
            f"first is number {bad[0]}; clean or drop them"
        )
    if np.dtype(port.dtype).kind in "iu" and not _held(array, np.iinfo(port.dtype)):
        raise InputError(
            f"representative samples of input '{port.name}' are not all whole numbers that {port.dtype}, which it "
            f"takes, can hold: they are {array.dtype} from {array.min()} to {array.max()}"
        )
    return array.astype(port.dtype)


def _held(array: Array, limits: Any) -> bool:
    return bool((array == np.rint(array)).all() and limits.min <= array.min() and array.max() <= limits.max)


# operators that the quantizer takes from the graph and has no int8 form of; it then fails without a message
WITHOUT_INT8 = frozenset({"Sin", "Cos", "Floor", "Sign", "Cast", "Elu", "Neg", "Square"})


def _run(converter: Any, said: Callable[[], str], function: Any) -> bytes:
    try:
        data: bytes = converter.convert()
    except Exception as error:
        reason = _reason(error, said()) if str(error).strip() else _silent(function)
        raise InputError(f"TFLite cannot express this model: {reason}") from error
    return data


def _silent(function: Any) -> str:
    found = [f"{op.type} ('{op.name}')" for op in function.graph.get_operations() if op.type in WITHOUT_INT8]
    named = f"; without an int8 form in it: {', '.join(found)}" if found else ""
    return f"TensorFlow's quantizer failed without a word{named}; replace these layers, or choose another scheme"


def _reason(error: Exception, log: str) -> str:
    """What the converter complains about, in one line: the operators it lacks and their nodes, or its first line."""
    operators = dict.fromkeys(re.findall(r"'(tf\.\w+)' op is neither", f"{error}\n{log}"))
    if operators:
        told = ", ".join(f"{operator} ({', '.join(_nodes(log, operator)) or 'node unknown'})" for operator in operators)
        return f"it has no builtin operator for {told}; replace the layer that needs it"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[0][:400]


def _nodes(log: str, operator: str) -> list[str]:
    # the location before the complaint: loc(fused["Digamma:", callsite("model/layer/Digamma"("file.py":9:1) ...
    places = re.findall(rf"^(loc\(.*)error: '{re.escape(operator)}' op", log, re.MULTILINE)
    named = [[name for name in re.findall(r'"([^"]+)"', place) if not name.endswith(":")] for place in places]
    return list(dict.fromkeys(f"node '{names[0].partition('@')[0]}'" for names in named if names))
