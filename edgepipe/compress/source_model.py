"""The source of a conversion: a Keras model, a SavedModel, a fake-quant model or a float .tflite."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.core.artifact import ArtifactKind
from edgepipe.core.errors import InputError
from edgepipe.core.outcome import Table
from edgepipe.models.input_shapes import parse_input_shapes
from edgepipe.tflite.model import Model
from edgepipe.tflite.reader import read

if TYPE_CHECKING:
    from edgepipe.models.float32_rebuild import Float32Model


@dataclass(frozen=True)
class SourceModel:
    """The model to convert, the classes of its layers by name, and the layers without trained ranges."""

    model: Any  # a Keras or tf_keras model, a `SavedModelSignature`, or the parsed `Model` of a float .tflite
    class_by_layer: Mapping[str, str]
    layers_without_ranges: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()


def open_source(
    path: Path,
    kind: ArtifactKind,
    *,
    allow_code: bool,
    input_shapes: Sequence[str] = (),
    signature: str | None = None,
) -> SourceModel:
    """The model at `path`, of any kind that can be converted.

    Args:
        path: the model.
        kind: its kind.
        allow_code: load a model that carries code.
        input_shapes: sizes of open input dimensions, see `input_shapes.parse_input_shapes`.
        signature: which one of a SavedModel; None for `serving_default`, or the only one.

    Raises:
        InputError: it cannot be loaded, has no such signature, or is a .tflite that is not a float model (see
            `read_float_tflite`).
    """
    if input_shapes and kind not in (ArtifactKind.KERAS, ArtifactKind.FLOAT):
        raise InputError(f"{path}: input_shape is for a Keras model with open dimensions; this is a {kind}")
    if kind is ArtifactKind.SAVED_MODEL:
        return _open_saved_model(path, signature)
    if signature is not None:
        raise InputError(f"{path}: signature '{signature}': only a SavedModel has signatures, this is a {kind} model")
    if kind is ArtifactKind.TFLITE:
        return SourceModel(read_float_tflite(path), {})
    if kind is ArtifactKind.QAT:
        return _open_fake_quant(path)
    source = open_in_float32(path, kind, allow_code=allow_code)
    from edgepipe.models.fixed_inputs import fix_input_shapes

    model = fix_input_shapes(source.model, parse_input_shapes(input_shapes)) if input_shapes else source.model
    return SourceModel(model, map_layer_classes(model), notes=source.notes)


def open_with_classes(
    path: Path,
    kind: ArtifactKind,
    *,
    allow_code: bool,
    custom_objects: str | None,
    input_shapes: Sequence[str] = (),
    signature: str | None = None,
) -> SourceModel:
    """The model at `path`, for a command, which reads the user's classes itself.

    Args:
        path: the model.
        kind: its kind.
        allow_code: load a model that carries code.
        custom_objects: `module:attribute`, the model's own classes, looked up in the current folder first.
        input_shapes: as in `open_source`.
        signature: as in `open_source`.

    Raises:
        InputError: it cannot be loaded, has no such signature, or is a SavedModel without `allow_code`.
    """
    if kind is ArtifactKind.SAVED_MODEL and not allow_code:
        raise InputError(f"{path}: a SavedModel is a program; set --allow-code if you trust its source")
    if kind is ArtifactKind.TFLITE:
        return open_source(path, kind, allow_code=allow_code, input_shapes=input_shapes, signature=signature)
    from edgepipe.models import custom_objects as user_classes
    from edgepipe.models.startup import load_tensorflow

    load_tensorflow()
    with user_classes.scope(user_classes.load(custom_objects, Path.cwd()) if custom_objects else {}):
        return open_source(path, kind, allow_code=allow_code, input_shapes=input_shapes, signature=signature)


def _open_saved_model(path: Path, signature: str | None) -> SourceModel:
    from edgepipe.models.saved_model_signatures import choose_signature

    chosen_signature, notes = choose_signature(path, signature)
    return SourceModel(chosen_signature, {}, notes=notes)


def _open_fake_quant(path: Path) -> SourceModel:
    from edgepipe.compress.qat.qat_store import restore_fake_quant

    fake_quant = restore_fake_quant(path)
    layers_without_ranges = tuple(
        layer.layer for layer in fake_quant.layer_coverages if layer.quantized_by != "training"
    )
    return SourceModel(
        fake_quant.model, {layer.layer: layer.cls for layer in fake_quant.layer_coverages}, layers_without_ranges
    )


def open_model(path: Path, kind: ArtifactKind, *, allow_code: bool) -> Any:
    """The Keras, tf_keras or fake-quant model at `path`."""
    return open_in_float32(path, kind, allow_code=allow_code).model


def open_in_float32(path: Path, kind: ArtifactKind, *, allow_code: bool) -> "Float32Model":
    """What `open_model` gives, and a note if it was rebuilt in float32."""
    from edgepipe.models.float32_rebuild import Float32Model

    if kind is ArtifactKind.QAT:
        from edgepipe.compress.qat.qat_store import restore_model

        return Float32Model(restore_model(path))
    from edgepipe.models.model_files import load_in_float32

    return load_in_float32(path, kind, allow_code=allow_code)


def map_layer_classes(model: Any) -> dict[str, str]:
    """The class of each layer by name, nested models expanded."""
    class_by_name: dict[str, str] = {}
    for layer in model.layers:
        class_by_name |= map_layer_classes(layer) if hasattr(layer, "layers") else {layer.name: type(layer).__name__}
    return class_by_name


def read_float_tflite(path: Path) -> Model:
    """The parsed float .tflite at `path`, with fake-quant or float16 weights or without, which is checked to run.

    Raises:
        InputError: it is damaged, does not run, has loops or branches, is already quantized, or has tensors without a
            unique name.
    """
    from edgepipe.compress.quantizer.float_preparation import folded_float16_constants
    from edgepipe.compress.quantizer.trained_ranges import fake_quant_tensors
    from edgepipe.tflite.interpreter import check_runs

    model = read(path)
    fake_quant_indices = {tensor.index for tensor in fake_quant_tensors(model)}
    quantized_activations = [
        t
        for operator in model.operators
        for t in operator.outputs
        if t is not None and t.quantization and t.index not in fake_quant_indices
    ]
    folded_constants = folded_float16_constants(model)
    quantized_weights = [t for t in model.parameter_tensors if t.dtype != "float32" and t not in folded_constants]
    if quantized_tensors := [*quantized_activations, *quantized_weights]:
        raise InputError(
            f"{path}: is quantized already: '{quantized_tensors[0].name}' is {quantized_tensors[0].dtype}; `convert` "
            "takes a float .tflite (`scheme: float32` writes one)"
        )
    if len(model.subgraphs) > 1:
        raise InputError(
            f"{path}: has {len(model.subgraphs)} subgraphs (loops, branches or several signatures); one is taken"
        )
    _check_tensor_names(model)
    check_runs(path)
    return model


def _check_tensor_names(model: Model) -> None:
    """Ranges and recipe rules refer to tensors by name."""
    tensor_names: set[str] = set()
    for tensor in model.tensors:
        if tensor.name in tensor_names or not tensor.name:
            problem = f"two tensors are called '{tensor.name}'" if tensor.name else f"tensor {tensor.index} has no name"
            raise InputError(f"{model.path}: {problem}; quantization refers to tensors by name, each must be unique")
        tensor_names.add(tensor.name)
