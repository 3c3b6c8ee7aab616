"""Outputs that were one tensor before conversion: how to join them again, stored inside the .tflite.

Boxes in pixels and scores in one tensor have one scale, which leaves a score two codes. As outputs of their own, each
part has its own.
"""

from collections.abc import Mapping
from typing import Literal, final

import numpy as np
from pydantic import Field, ValidationError

from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError
from edgepipe.core.metric import Record
from edgepipe.tflite.metadata import add_metadata
from edgepipe.tflite.model import Model

SPLIT_OUTPUTS_NAME = "edgepipe.split_outputs"


@final
class SplitOutput(Record):
    """An output of the float model, and the outputs that hold its parts."""

    name: str
    parts: tuple[str, ...] = Field(min_length=2, description="names of outputs, in order")
    axis: int = Field(ge=1, description="along which the parts are joined")
    shape: tuple[int, ...] = Field(description="of the joined output, batch included")

    def join(self, arrays: list[Array]) -> Array:
        """The output for all samples, from the real numbers of its parts, each (samples, ...)."""
        return np.concatenate(arrays, axis=self.axis).reshape(-1, *self.shape[1:])


@final
class SplitOutputs(Record):
    """All outputs that were split."""

    format: Literal["edgepipe.split_outputs/1"] = Field(default="edgepipe.split_outputs/1", alias="schema")
    outputs: tuple[SplitOutput, ...] = Field(min_length=1)


def read_split_outputs(model: Model) -> tuple[SplitOutput, ...]:
    """The outputs that were split; none of most models.

    Raises:
        InputError: the entry cannot be read, or names outputs that the model does not have.
    """
    content = model.metadata.get(SPLIT_OUTPUTS_NAME)
    if content is None:
        return ()
    try:
        outputs = SplitOutputs.model_validate_json(content).outputs
    except ValidationError as error:
        problem_text = error.errors()[0]["msg"]
        raise InputError(f"{model.path}: metadata '{SPLIT_OUTPUTS_NAME}' cannot be read: {problem_text}") from None
    unknown_names = {part for output in outputs for part in output.parts} - set(model.outputs_by_name)
    if unknown_names:
        raise InputError(
            f"{model.path}: metadata '{SPLIT_OUTPUTS_NAME}' names '{min(unknown_names)}', which is no output of it"
        )
    return outputs


def embed_split_outputs(content: bytes, outputs: tuple[SplitOutput, ...]) -> bytes:
    """The .tflite `content` with what was split inside; unchanged if nothing was."""
    if not outputs:
        return content
    return add_metadata(
        content, SPLIT_OUTPUTS_NAME, SplitOutputs(outputs=outputs).model_dump_json(by_alias=True).encode()
    )


def join_outputs(model: Model, array_by_output: Mapping[str, Array]) -> dict[str, Array]:
    """The real numbers of all outputs, parts joined as the float model gave them, in its order."""
    output_by_part = {part: output for output in read_split_outputs(model) for part in output.parts}
    joined_arrays: dict[str, Array] = {}
    for name, array in array_by_output.items():
        output = output_by_part.get(name)
        if output is None:
            joined_arrays[name] = array
        elif name == output.parts[0]:
            joined_arrays[output.name] = output.join([array_by_output[part] for part in output.parts])
    return joined_arrays
