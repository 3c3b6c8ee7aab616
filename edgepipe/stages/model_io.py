"""Reading the model a stage works on, and storing the one it outputs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgepipe.core.artifact import Artifact, ArtifactKind
from edgepipe.stages.context import StageContext


def open_float(context: StageContext, input_shapes: Sequence[str] = ()) -> tuple[Any, list[str]]:
    """The stage's input as a tf_keras model, loaded or bridged from Keras 3, and notes on the bridge.

    `input_shapes` are the sizes of open input dimensions, which are fixed before the bridge.
    """
    from edgepipe.models.bridge import bridge
    from edgepipe.models.fixed_inputs import fix_input_shapes
    from edgepipe.models.input_shapes import parse_input_shapes
    from edgepipe.models.model_files import load_in_float32

    source = load_in_float32(context.artifact.path, context.artifact.kind, allow_code=context.allow_code)
    model = fix_input_shapes(source.model, parse_input_shapes(input_shapes)) if input_shapes else source.model
    if context.artifact.kind is ArtifactKind.FLOAT:
        return model, list(source.notes)
    bridge_result = bridge(model)
    return bridge_result.model, [*source.notes, *bridge_result.notes]


def write_keras(model: Any, folder: Path) -> Artifact:
    """Store a Keras 3 model as the artifact of a stage."""
    from edgepipe.models.model_files import save_keras

    save_keras(model, folder / "model.keras")
    return Artifact.from_path(ArtifactKind.KERAS, folder / "model.keras")


def write_float(model: Any, folder: Path) -> Artifact:
    """Store a tf_keras model as the artifact of a stage."""
    from edgepipe.models.model_files import save_float

    save_float(model, folder / "model.keras")
    return Artifact.from_path(ArtifactKind.FLOAT, folder / "model.keras")
