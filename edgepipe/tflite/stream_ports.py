"""Which ports of a streaming .tflite carry states: stored inside the file, read by whatever runs it.

One call takes some steps of a sequence and the states of the call before; it gives outputs and the states for the next
call. A state's input and output have one shape, one type, one scale and one zero point, so a device copies the codes. A
sequence starts from states of zero, that is, from the code `zero_point`.
"""

from typing import Literal, final

from pydantic import Field, ValidationError

from edgepipe.core.errors import InputError
from edgepipe.core.metric import Record
from edgepipe.tflite.metadata import add_metadata
from edgepipe.tflite.model import Model, Tensor

STREAMING_NAME = "edgepipe.streaming"


@final
class StatePort(Record):
    """One state, by the names of its input and of the output that holds it after the call."""

    input: str
    output: str


@final
class StreamPorts(Record):
    """What a caller must know to run a streaming model over a sequence."""

    format: Literal["edgepipe.streaming/1"] = Field(default="edgepipe.streaming/1", alias="schema")
    steps: int = Field(ge=1, description="of the sequence in one call")
    states: tuple[StatePort, ...] = Field(min_length=1, description="each output is the input of the next call")
    step_outputs: tuple[str, ...] = Field(
        default=(), description="outputs with an entry for every step; of the others, the last call's counts"
    )

    @property
    def state_inputs(self) -> set[str]:
        """The names of the inputs that are states."""
        return {state.input for state in self.states}

    @property
    def state_outputs(self) -> set[str]:
        """The names of the outputs that are states."""
        return {state.output for state in self.states}


def read_stream_ports(model: Model) -> StreamPorts | None:
    """The states of a streaming model; None for any other model.

    Raises:
        InputError: the entry cannot be read, or names ports that the model does not have.
    """
    content = model.metadata.get(STREAMING_NAME)
    if content is None:
        return None
    try:
        ports = StreamPorts.model_validate_json(content)
    except ValidationError as error:
        problem_text = error.errors()[0]["msg"]
        raise InputError(f"{model.path}: metadata '{STREAMING_NAME}' cannot be read: {problem_text}") from None
    unknown_names = [
        *(ports.state_inputs - set(model.inputs_by_name)),
        *({*ports.state_outputs, *ports.step_outputs} - set(model.outputs_by_name)),
    ]
    if unknown_names:
        raise InputError(
            f"{model.path}: metadata '{STREAMING_NAME}' names '{unknown_names[0]}', which is no port of it"
        )
    return ports


def embed_stream_ports(content: bytes, ports: StreamPorts) -> bytes:
    """The .tflite `content` with `ports` inside."""
    return add_metadata(content, STREAMING_NAME, ports.model_dump_json(by_alias=True).encode())


def own_inputs(model: Model) -> dict[str, Tensor]:
    """The inputs of `model` by name, without states."""
    ports = read_stream_ports(model)
    state_names = set() if ports is None else ports.state_inputs
    return {name: tensor for name, tensor in model.inputs_by_name.items() if name not in state_names}


def own_outputs(model: Model) -> dict[str, Tensor]:
    """The outputs of `model` by name, without states."""
    ports = read_stream_ports(model)
    state_names = set() if ports is None else ports.state_outputs
    return {name: tensor for name, tensor in model.outputs_by_name.items() if name not in state_names}
