"""Reads intermediate tensors of a .tflite while it runs."""

from collections.abc import Iterator

from edgepipe.core.arrays import Array, Arrays
from edgepipe.tflite.interpreter import Runtime, Session, wrap_runtime_errors
from edgepipe.tflite.model import Model, Tensor
from edgepipe.tflite.sample_conversion import convert_calls


def list_activations(model: Model) -> list[Tensor]:
    """The tensors that are computed, inputs first, then in the order of the operators of the first subgraph."""
    computed_tensors = [
        tensor for op in model.operators if op.subgraph_index == 0 for tensor in op.outputs if tensor is not None
    ]
    return [*model.inputs, *computed_tensors]


def record_tensors(
    model: Model, x: Arrays, tensors: list[Tensor], runtime: Runtime = Runtime.REFERENCE
) -> Iterator[list[Array]]:
    """The stored values of `tensors`, copied, for each sample of `x`, one by one.

    The interpreter keeps every tensor instead of sharing memory; delegates still see the same model.

    Args:
        model: the .tflite.
        x: samples; the first axis counts them. Of a streaming model they are single calls, states included.
        tensors: of the main subgraph.
        runtime: which kernels run the model.

    Raises:
        InputError: samples that do not fit, or a model that the runtime refuses.
    """
    input_arrays = convert_calls(model, x)
    with wrap_runtime_errors(model.path, runtime):
        session = Session(model, runtime, threads=1, preserve_tensors=True)
        interpreter = session.open_interpreter([(1, *array.shape[1:]) for array in input_arrays])
        for index in range(len(input_arrays[0])):
            session.invoke(interpreter, [array[index : index + 1] for array in input_arrays])
            yield [interpreter.get_tensor(tensor.index) for tensor in tensors]
