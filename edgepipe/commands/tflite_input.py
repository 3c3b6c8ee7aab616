"""The .tflite that a command is given; for another kind of model the error says what it is and what to do with it."""

from contextlib import suppress
from pathlib import Path

from edgepipe.core.artifact import ArtifactKind
from edgepipe.core.errors import InputError
from edgepipe.core.units import plural
from edgepipe.models.file_kind import detect_kind
from edgepipe.models.model_description import describe
from edgepipe.tflite.model import Model
from edgepipe.tflite.reader import read

_TEXT_BY_KIND = {
    ArtifactKind.KERAS: "a Keras 3 model",
    ArtifactKind.FLOAT: "a tf_keras (Keras 2) model",
    ArtifactKind.QAT: "a fake-quant model",
    ArtifactKind.SAVED_MODEL: "a SavedModel",
}


def read_tflite(path: Path) -> Model:
    """Read the .tflite at `path`.

    Raises:
        InputError: it is none; of another model that edgepipe takes, with the commands that take it.
    """
    try:
        return read(path)
    except InputError as error:
        kind = _find_kind(path)
        if kind in _TEXT_BY_KIND:
            raise InputError(_describe_other_model(path, kind)) from error
        raise


def _find_kind(path: Path) -> ArtifactKind | None:
    with suppress(InputError):
        return detect_kind(path)
    return None


def _describe_other_model(path: Path, kind: ArtifactKind) -> str:
    return (
        f"{path}: {_TEXT_BY_KIND[kind]}{_describe_ports(path)}, not a .tflite; convert it first: `edgepipe convert "
        f"{path}` (add --data for int8), or write a pipeline that prunes and trains it too: `edgepipe init {path}`"
    )


def _describe_ports(path: Path) -> str:
    """Layers, inputs and outputs, where the file tells them."""
    with suppress(InputError):
        description = describe(path)
        ports = [
            f"{name} {', '.join('x'.join(str(size or '?') for size in port.shape[1:]) or 'scalar' for port in ports)}"
            for name, ports in (("in", description.inputs), ("out", description.outputs))
            if ports
        ]
        layer_count = sum(class_name != "InputLayer" for _, class_name in description.layers)
        return f" of {plural(layer_count, 'layer')} ({'; '.join(ports)})"
    return ""
