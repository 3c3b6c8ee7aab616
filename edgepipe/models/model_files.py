"""Loads model files, and writes the two kinds of `.keras` files that stages exchange.

No code inside a model file runs unless the user allows it: Lambda layers, and functions and classes that would have to
be imported, are found in the file's JSON first (see `file_kind`), and both Keras libraries load in safe mode.
"""

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import tf_keras

import edgepipe.models.bridge_layers  # noqa: F401 - registers the layers that a bridged model may hold
from edgepipe.core.artifact import KERAS_WEIGHTS_MEMBER, Artifact, ArtifactKind, wrap_storage_errors
from edgepipe.core.errors import InputError, ToolError
from edgepipe.models import custom_objects
from edgepipe.models.bridge import bridge
from edgepipe.models.dtype_policies import check_not_quantized, describe_float_policies, find_float_policies
from edgepipe.models.file_kind import check_no_file_names, detect_kind, find_code_layers, read_config
from edgepipe.models.float32_rebuild import Float32Model, float32_by_default, in_float32
from edgepipe.models.input_shapes import check_is_graph
from edgepipe.models.keras_types import AnyKerasModel, AnyKerasVariable, KerasModel, TfKerasModel
from edgepipe.models.port_names import unstored_output_names
from edgepipe.models.subclassed import to_functional

_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest date a zip can store: equal models, equal bytes
_TRAINING_STATE_GROUPS = {"optimizer", "metrics"}
_OUTPUT_NAMES_KEY = "edgepipe_output_names"  # beside the config: Keras' own reader ignores it


def load_model(
    artifact: Artifact | Path, kind: ArtifactKind | None = None, allow_code: bool = False
) -> AnyKerasModel | Path:
    """Load the model in `artifact`: a Keras 3 model for kind `keras`, a tf_keras one for `float`.

    See `load_in_float32`.
    """
    return load_in_float32(artifact, kind, allow_code).model


def load_in_float32(
    artifact: Artifact | Path, kind: ArtifactKind | None = None, allow_code: bool = False
) -> Float32Model:
    """The model in `artifact`, rebuilt if its layers compute in other floats than float32, and a note on that.

    A Keras 3 file loaded as `float` is bridged. A SavedModel is a program and can only be converted; its path is
    returned. `kind` defaults to the kind of the file.

    Raises:
        InputError: the file is missing, damaged or of another kind, holds code or unknown classes, is not built, or has
            layers that Keras has quantized.
    """
    path = artifact.path if isinstance(artifact, Artifact) else artifact
    file_kind = detect_kind(path)
    wanted_kind = kind or (artifact.kind if isinstance(artifact, Artifact) else file_kind)
    if file_kind is not wanted_kind and (file_kind, wanted_kind) != (ArtifactKind.KERAS, ArtifactKind.FLOAT):
        raise InputError(f"{path}: holds a model of kind '{file_kind}', not '{wanted_kind}'")
    if file_kind is ArtifactKind.SAVED_MODEL:
        return Float32Model(_saved_model_path(path, allow_code))
    if file_kind not in (ArtifactKind.KERAS, ArtifactKind.FLOAT):
        raise InputError(f"{path}: a {file_kind} is not a Keras model; expected a .keras or .h5 file")
    loaded_model = _load_keras_file(path, file_kind, allow_code)
    _check_finite(path, loaded_model.model)
    if file_kind is wanted_kind:
        return loaded_model
    return Float32Model(bridge(loaded_model.model).model, loaded_model.note)


def _check_finite(path: Path, model: AnyKerasModel) -> None:
    nonfinite_weights = [
        weight.path if hasattr(weight, "path") else weight.name for weight in model.weights if not _is_finite(weight)
    ]
    if nonfinite_weights:
        raise InputError(
            f"{path}: weights hold NaN or infinity: {', '.join(nonfinite_weights[:5])}; did its training diverge?"
        )


def _is_finite(weight: AnyKerasVariable) -> bool:
    array = np.asarray(weight)
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _saved_model_path(path: Path, allow_code: bool) -> Path:
    if not allow_code:
        raise InputError(
            f"{path}: a SavedModel is a program; set `allow_code: true` (--allow-code) if you trust who made it"
        )
    return path


def _load_keras_file(path: Path, kind: ArtifactKind, allow_code: bool) -> Float32Model:
    config = read_config(path)
    check_not_quantized(str(path), config)
    check_no_file_names(path, config)
    code_layers = find_code_layers(config, custom_objects.active_objects())
    if code_layers and not allow_code:
        raise InputError(
            f"{path}: the file holds code or names code to import: {', '.join(code_layers)}; "
            "give your own classes as `custom_objects: module:attribute` (--custom-objects), or set "
            "`allow_code: true` (--allow-code) if you trust who made it"
        )
    if keras.backend.backend() != "tensorflow":
        raise ToolError(f"Keras runs on '{keras.backend.backend()}' here; set KERAS_BACKEND=tensorflow and restart")
    keras_package: Any = keras if kind is ArtifactKind.KERAS else tf_keras
    try:
        # a scope alone is not enough: keras.utils.clear_session, which every stage starts with, clears it
        objects_by_name = dict(custom_objects.active_objects())
        with float32_by_default():
            model = keras_package.saving.load_model(
                path, custom_objects=objects_by_name, compile=False, safe_mode=not allow_code
            )
    except Exception as error:
        raise InputError(f"{path}: cannot be loaded: {_load_failure_reason(error, path, keras_package)}") from error
    if kind is ArtifactKind.KERAS:
        model = to_functional(model)
    check_is_graph(model)
    float32_model = in_float32(model)
    if kind is ArtifactKind.FLOAT:
        _restore_output_names(config, path, float32_model.model)
    policies_text = describe_float_policies(config)
    if policies_text and not float32_model.note:
        note = f"{policies_text}: not compared; the layers that its classes create are built in float32"
        return replace(float32_model, note=note)
    return float32_model


def _restore_output_names(config: dict[str, Any], path: Path, model: TfKerasModel) -> None:
    names = config.get(_OUTPUT_NAMES_KEY)
    if names is None:
        return
    if not isinstance(names, list) or len(names) != len(model.outputs):
        raise InputError(f"{path}: holds {len(model.outputs)} outputs, and the names {names} for them; is it damaged?")
    model.output_names = [str(name) for name in names]


def _load_failure_reason(error: Exception, path: Path, keras_package: Any) -> str:
    unknown_classes = _describe_unknown_classes(read_config(path), keras_package)
    if unknown_classes:
        return (
            f"{keras_package.__name__} does not know {', '.join(unknown_classes)}; give your classes as "
            "`custom_objects: module:attribute` (--custom-objects), or the model as module:function"
        )
    if "bfloat16" in find_float_policies(read_config(path)):
        return (
            "its weights are bfloat16, which neither the .keras format of tf_keras nor .h5 can read back; save it from "
            "the program that trained it, as .keras of Keras 3 or rebuilt under the policy float32"
        )
    first_line = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first_line.strip()[:300]} (damaged, or written by an incompatible Keras?)"


def _describe_unknown_classes(config: dict[str, Any], keras_package: Any) -> list[str]:
    registered_objects = keras_package.saving.get_custom_objects()
    unknown_classes: dict[str, None] = {}
    for serialized_layer in config["config"].get("layers", []):
        registered_name = serialized_layer.get("registered_name") or serialized_layer["class_name"]
        if (
            registered_name not in registered_objects
            and not hasattr(keras_package.layers, serialized_layer["class_name"])
            and not hasattr(keras_package, serialized_layer["class_name"])
        ):
            unknown_classes[
                f"the class '{registered_name}' of layer '{(serialized_layer.get('config') or {}).get('name')}'"
            ] = None
    return list(unknown_classes)


def save_keras(model: KerasModel, path: Path) -> None:
    """Write a Keras 3 model to `path`, without optimizer or compile state; equal models give equal content digests."""
    _save(model, path)


def save_float(model: TfKerasModel, path: Path) -> None:
    """Write a tf_keras model to `path`, without optimizer or compile state; equal models give equal content digests."""
    _save(model, path)


def _save(model: AnyKerasModel, path: Path) -> None:
    raw_path = path.with_name(f"{path.stem}.raw.keras")
    with wrap_storage_errors(str(path)):
        try:
            model.save(raw_path)
            _write_canonical(raw_path, path, unstored_output_names(model))
        finally:
            raw_path.unlink(missing_ok=True)


def _write_canonical(raw_path: Path, path: Path, output_names: list[str]) -> None:
    # Keras writes the current date, the compile state, and memory addresses as ids of shared objects
    with zipfile.ZipFile(raw_path) as raw_archive, zipfile.ZipFile(path, "w") as canonical_archive:
        config = json.loads(raw_archive.read("config.json"))
        config.pop("compile_config", None)
        if output_names:
            config[_OUTPUT_NAMES_KEY] = output_names
        keras_version = json.loads(raw_archive.read("metadata.json"))["keras_version"]
        canonical_members = {
            "metadata.json": json.dumps({"keras_version": keras_version}).encode(),
            "config.json": json.dumps(_renumber_shared(config, {})).encode(),
            KERAS_WEIGHTS_MEMBER: _strip_training_state(raw_archive.read(KERAS_WEIGHTS_MEMBER)),
        }
        for name in raw_archive.namelist():  # assets such as vocabularies are copied as they are
            canonical_archive.writestr(
                zipfile.ZipInfo(name, _ZIP_DATE), canonical_members.get(name) or raw_archive.read(name)
            )


def _renumber_shared(config_node: Any, number_by_shared_id: dict[int, int]) -> Any:
    if isinstance(config_node, list):
        return [_renumber_shared(child, number_by_shared_id) for child in config_node]
    if not isinstance(config_node, dict):
        return config_node
    renumbered_node = dict(config_node)
    shared_id = renumbered_node.pop("shared_object_id", None)
    # whether layers share a policy object has no effect, and differs between a new and a reloaded model
    if shared_id is not None and config_node.get("class_name") != "DTypePolicy":
        renumbered_node["shared_object_id"] = number_by_shared_id.setdefault(shared_id, len(number_by_shared_id) + 1)
    return {
        key: child if key == "shared_object_id" else _renumber_shared(child, number_by_shared_id)
        for key, child in renumbered_node.items()
    }


def _strip_training_state(h5_bytes: bytes) -> bytes:
    stripped_buffer = io.BytesIO()
    with h5py.File(io.BytesIO(h5_bytes), "r") as h5_file, h5py.File(stripped_buffer, "w") as stripped_file:
        for name in sorted(set(h5_file) - _TRAINING_STATE_GROUPS):
            h5_file.copy(name, stripped_file)
        for key, attribute in h5_file.attrs.items():
            stripped_file.attrs[key] = attribute
    return stripped_buffer.getvalue()
