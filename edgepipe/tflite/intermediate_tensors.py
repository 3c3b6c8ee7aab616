"""Every tensor of a .tflite while it runs, not only its outputs."""

from collections.abc import Iterator

from edgepipe.core.arrays import Array, Arrays
from edgepipe.tflite.interpreter import Runtime, Session, refusals
from edgepipe.tflite.model import Model, Tensor
from edgepipe.tflite.sample_conversion import stored


def activations(model: Model) -> list[Tensor]:
    """The tensors that are computed, inputs first, then in the order of the operators of the first subgraph."""
    made = [tensor for op in model.operators if op.subgraph == 0 for tensor in op.outputs if tensor is not None]
    return [*model.inputs, *made]


def run(model: Model, x: Arrays, tensors: list[Tensor], runtime: Runtime = Runtime.REFERENCE) -> Iterator[list[Array]]:
    """For each sample of `x`, one by one: the stored values of `tensors`, copied.

    Memory is not shared between tensors (the interpreter preserves all), so delegates see the model as it is without.

    Raises:
        InputError: samples that do not fit, or a model that the runtime refuses.
    """
    given = stored(model, x)
    with refusals(model.path, runtime):
        session = Session(model, runtime, threads=1, preserve=True)
        interpreter = session.open([(1, *array.shape[1:]) for array in given])
        for index in range(len(given[0])):
            session.invoke(interpreter, [array[index : index + 1] for array in given])
            yield [interpreter.get_tensor(tensor.index) for tensor in tensors]
