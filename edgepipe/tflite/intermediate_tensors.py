"""Every tensor of a .tflite while it runs, not only its outputs."""

from collections.abc import Iterator

from edgepipe.core.arrays import Array, Arrays
from edgepipe.tflite.interpreter import Runtime, Session, wrap_runtime_errors
from edgepipe.tflite.model import Model, Tensor
from edgepipe.tflite.sample_conversion import convert_samples


def list_activations(model: Model) -> list[Tensor]:
    """The tensors that are computed, inputs first, then in the order of the operators of the first subgraph."""
    computed_tensors = [
        tensor for op in model.operators if op.subgraph == 0 for tensor in op.outputs if tensor is not None
    ]
    return [*model.inputs, *computed_tensors]


def record_tensors(
    model: Model, x: Arrays, tensors: list[Tensor], runtime: Runtime = Runtime.REFERENCE
) -> Iterator[list[Array]]:
    """For each sample of `x`, one by one: the stored values of `tensors`, copied.

    Memory is not shared between tensors (the interpreter preserves all), so delegates see the model as it is without.

    Raises:
        InputError: samples that do not fit, or a model that the runtime refuses.
    """
    inputs = convert_samples(model, x)
    with wrap_runtime_errors(model.path, runtime):
        session = Session(model, runtime, threads=1, preserve_tensors=True)
        interpreter = session.open_interpreter([(1, *array.shape[1:]) for array in inputs])
        for index in range(len(inputs[0])):
            session.invoke(interpreter, [array[index : index + 1] for array in inputs])
            yield [interpreter.get_tensor(tensor.index) for tensor in tensors]
