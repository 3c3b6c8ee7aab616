"""Child process of `tflm_runtime`: runs a model in TensorFlow Lite Micro, which logs to stderr."""

from pathlib import Path
from typing import Any

import numpy as np

from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError
from edgepipe.tflite import child_process, reader
from edgepipe.tflite.child_process import Json
from edgepipe.tflite.model import Model
from edgepipe.tflite.sample_conversion import check_type
from edgepipe.tflite.sequence_run import SequenceRunner
from edgepipe.tflite.stream_ports import own_inputs, read_stream_ports

ARENA_BYTES = 1 << 30  # untouched pages cost nothing


def handle_request(request: Json) -> Json:
    """Run a `task` on the model at `path`: `arena` prints the allocator's record, `predict` runs samples."""
    model = reader.read(Path(request["path"]))
    try:
        if request["task"] == "arena":
            _print_allocations(model)
        else:
            _predict(model, Path(request["samples"]), Path(request["results"]))
    except (RuntimeError, ValueError) as error:  # the wrapper says little: the reason is on stderr
        raise InputError(f"{model.path}: TensorFlow Lite Micro refuses the model: {error}") from None
    return {}


def _print_allocations(model: Model) -> None:
    for name, tensor in model.inputs_by_name.items():
        check_type(model.path, name, tensor)
    interpreter = _open_interpreter(model)
    try:
        _invoke(model, interpreter, [np.zeros(tensor.shape, tensor.dtype) for tensor in model.inputs])
    except RuntimeError:  # zeros may be refused as data, by a division
        _invoke(model, interpreter, [np.ones(tensor.shape, tensor.dtype) for tensor in model.inputs])
    interpreter.print_allocations()


def _predict(model: Model, samples_path: Path, results_path: Path) -> None:
    with np.load(samples_path, allow_pickle=False) as archive:
        input_arrays = [archive[f"arr_{index}"] for index in range(len(own_inputs(model)))]
    np.savez(results_path, *_run_samples(model, input_arrays))


def _run_samples(model: Model, input_arrays: list[Array]) -> list[Array]:
    """One array for each output, (samples, *shape), by the model's own batch, which must be 1; see `interpreter`."""
    if any(tensor.shape[:1] != (1,) for tensor in model.inputs):
        shapes = [tensor.shape for tensor in model.inputs]
        raise InputError(f"{model.path}: samples run one by one, so each input's first axis must be 1; found {shapes}")
    interpreter = _open_interpreter(model)
    if (ports := read_stream_ports(model)) is not None:
        return SequenceRunner(model, ports, lambda arrays: _invoke(model, interpreter, arrays)).run(input_arrays)
    sample_outputs = [
        _invoke(model, interpreter, [array[index : index + 1] for array in input_arrays])
        for index in range(len(input_arrays[0]))
    ]
    stacked_outputs = (np.stack(arrays) for arrays in zip(*sample_outputs, strict=True))
    return [array[:, 0] if array.shape[1:2] == (1,) else array for array in stacked_outputs]


def _open_interpreter(model: Model) -> Any:
    from tflite_micro.python.tflite_micro import runtime

    return runtime.Interpreter.from_bytes(model.content, arena_size=ARENA_BYTES)


def _invoke(model: Model, interpreter: Any, input_arrays: list[Array]) -> list[Array]:
    """The outputs of one inference on a freshly reset model, so that samples do not see each other."""
    if any(tensor.is_variable for tensor in model.tensors):
        interpreter.reset()
    for index, array in enumerate(input_arrays):
        interpreter.set_input(array, index)
    interpreter.invoke()
    return [np.array(interpreter.get_output(index)) for index in range(len(model.outputs))]


if __name__ == "__main__":
    child_process.serve(handle_request)
