"""Inputs and outputs of a model file of any kind, read without TensorFlow."""

from dataclasses import dataclass
from pathlib import Path

from edgepipe.core.artifact import ArtifactKind
from edgepipe.models import saved_model_graph
from edgepipe.models.file_kind import detect_kind, read_config
from edgepipe.models.model_description import PortDescription, describe
from edgepipe.tflite.model import Tensor
from edgepipe.tflite.reader import read


@dataclass(frozen=True)
class ModelPorts:
    """Inputs and outputs, each with the batch axis; sizes that the file leaves open, or does not state, are None."""

    inputs: tuple[PortDescription, ...]
    outputs: tuple[PortDescription, ...]


def read_model_ports(path: Path) -> ModelPorts | None:
    """The ports of the model at `path`; None for a subclassed model, which does not state them."""
    kind = detect_kind(path)
    if kind is ArtifactKind.TFLITE:
        model = read(path)
        return ModelPorts(_tensor_ports(model.inputs_by_name), _tensor_ports(model.outputs_by_name))
    if kind is ArtifactKind.SAVED_MODEL:
        return ModelPorts(*saved_model_graph.read_ports(path))
    if kind is ArtifactKind.QAT or "layers" not in read_config(path)["config"]:
        return None
    description = describe(path)
    return ModelPorts(description.inputs, description.outputs)


def _tensor_ports(tensor_by_name: dict[str, Tensor]) -> tuple[PortDescription, ...]:
    return tuple(
        PortDescription(name, (None, *(None if size < 0 else size for size in tensor.stated_shape[1:])), tensor.dtype)
        for name, tensor in tensor_by_name.items()
    )
