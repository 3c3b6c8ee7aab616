"""Detects the kind of a model file from its content alone, without TensorFlow or Keras and without running its code.

Both Keras 3 and tf_keras write `.keras` files as zips of JSON and HDF5. They differ in their `config.json`: Keras 3
writes a layer's dtype as a `DTypePolicy` object and an input shape as `batch_shape`, tf_keras writes the name of the
dtype and `batch_input_shape`.
"""

import functools
import json
import re
import sys
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any

from edgepipe.core.archives import open_zip
from edgepipe.core.artifact import (
    BASE_MODEL_FILE,
    KERAS_WEIGHTS_MEMBER,
    QAT_RECIPE_FILE,
    ArtifactKind,
    read_keras_member,
)
from edgepipe.core.errors import InputError
from edgepipe.core.hdf5_check import check_hdf5
from edgepipe.core.input_files import check_ordinary

EXPECTED_FORMATS = "a .keras or .h5 model, a .tflite model, or a SavedModel folder"
MAX_CONFIG_DEPTH = 200  # of lists and objects; a model nested in a model adds about six
_ZIP_MAGIC, _HDF5_MAGIC, _TFLITE_MAGIC = b"PK\x03\x04", b"\x89HDF\r\n\x1a\n", b"TFL3"
_FILE_OPTIONS = ("vocabulary", "idf_weights")  # of lookup layers: a list, or the path of a file
_SAFE_PACKAGES = {"keras", "tf_keras", "builtins", "edgepipe", "tensorflow_model_optimization"}
# tf_keras stores `tf.math.add(a, b)` as a layer that names the TensorFlow function; these are pure
_SAFE_FUNCTION_PATTERN = re.compile(
    r"(compat\.v1\.)?((math|nn|linalg|image|__operators__)\.[\w.]+|add|argmax|argmin|abs|cast|clip_by_value|concat|divide|exp"
    r"|expand_dims|gather|identity|maximum|minimum|multiply|pad|pow|reduce_\w+|reshape|shape|sigmoid|slice|split|sqrt|square"
    r"|squeeze|stack|strided_slice|subtract|tanh|tile|transpose|unstack|where|zeros_like|ones_like)"
)


def detect_kind(path: Path) -> ArtifactKind:
    """The kind of the model at `path`, detected from its content.

    Raises:
        InputError: the file is missing or damaged, its suffix does not match its content, or it is not a model.
    """
    check_ordinary(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; expected {EXPECTED_FORMATS}")
    if path.is_dir():
        return _folder_kind(path)
    head_bytes = _read_head_bytes(path)
    if head_bytes[4:8] == _TFLITE_MAGIC:
        return ArtifactKind.TFLITE
    if head_bytes[:4] == _ZIP_MAGIC:
        _check_suffix(path, (".keras",), "a .keras model (a zip)")
        return _detect_keras_kind(path, read_config(path))
    if head_bytes == _HDF5_MAGIC:
        _check_suffix(path, (".h5", ".hdf5"), "an HDF5 model")
        check_hdf5(str(path), path)
        return ArtifactKind.KERAS if h5_version(path).startswith("3") else ArtifactKind.FLOAT
    raise InputError(f"{path}: {_describe_unknown_file(path, head_bytes)}; expected {EXPECTED_FORMATS}")


def _folder_kind(path: Path) -> ArtifactKind:
    if (path / QAT_RECIPE_FILE).is_file() and (path / BASE_MODEL_FILE).is_file():
        return ArtifactKind.QAT
    if any((path / name).is_file() for name in ("saved_model.pb", "saved_model.pbtxt")):
        return ArtifactKind.SAVED_MODEL
    raise InputError(f"{path}: a folder without saved_model.pb, so no SavedModel; expected {EXPECTED_FORMATS}")


def _read_head_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(8)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def _check_suffix(path: Path, suffixes: tuple[str, ...], content_description: str) -> None:
    if path.suffix.lower() not in suffixes:
        raise InputError(
            f"{path}: holds {content_description} but is named '{path.suffix}'; "
            f"rename it to end in {' or '.join(suffixes)}"
        )


def _describe_unknown_file(path: Path, head_bytes: bytes) -> str:
    size = path.stat().st_size
    if not size:
        return "the file is empty"
    if head_bytes.startswith(b"version "):
        return "a Git LFS pointer, not the model itself (run `git lfs pull`)"
    return f"not a model (its {size} bytes begin with {head_bytes!r}; damaged, or another format)"


def read_config(path: Path) -> dict[str, Any]:
    """The architecture in a `.keras` or `.h5` file: `{"class_name": .., "config": ..}`.

    Raises:
        InputError: the file is damaged, or holds weights without an architecture.
    """
    if path.suffix.lower() in (".h5", ".hdf5"):
        return _read_h5_config(path)
    _check_archive(path)
    return _parse_config(f"{path}: its config.json", read_keras_member(path, "config.json"))


def _parse_config(subject: str, text: str | bytes) -> dict[str, Any]:
    """The config of a model, whose shape is what the readers of this package count on."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{subject} is damaged: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("config"), dict):
        raise InputError(f"{subject} does not describe a model")
    _check_depth(subject, config)
    for serialized_object in iter_serialized_objects(config):
        _check_layer_list(subject, serialized_object)
    return config


def _check_depth(subject: str, config: dict[str, Any]) -> None:
    level: list[Any] = [config]
    for _ in range(MAX_CONFIG_DEPTH):
        level = [child for node in level for child in _children(node)]
        if not level:
            return
    raise InputError(f"{subject} nests lists and objects deeper than {MAX_CONFIG_DEPTH} levels")


def _children(node: Any) -> Iterable[Any]:
    return node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()


def _check_layer_list(subject: str, serialized_object: dict[str, Any]) -> None:
    config = serialized_object.get("config")
    layers = config.get("layers", []) if isinstance(config, dict) else []
    if not isinstance(layers, list) or not all(
        isinstance(layer, dict) and isinstance(layer.get("class_name"), str) for layer in layers
    ):
        raise InputError(f"{subject}: the layers of '{serialized_object['class_name']}' are no list of layers")


def _check_archive(path: Path) -> None:
    status = path.stat()
    _check_unchanged_archive(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _check_unchanged_archive(path: Path, _size: int, _modified: int) -> None:
    """Check a file once in the process, as long as its size and time stay the same: it reads all of it."""
    check_hdf5(f"{path}: {KERAS_WEIGHTS_MEMBER}", read_keras_member(path, KERAS_WEIGHTS_MEMBER))
    with open_zip(path) as archive:
        damaged_member = archive.testzip()
    if damaged_member:
        raise InputError(f"{path}: '{damaged_member}' inside it is damaged (its checksum differs)")


def _read_h5_config(path: Path) -> dict[str, Any]:
    text = _read_h5_attribute(path, "model_config")
    if not text:
        raise InputError(f"{path}: an HDF5 file without a model (weights only?); save the whole model, as .keras")
    return _parse_config(f"{path}: its model_config", text)


def h5_version(path: Path) -> str:
    """The Keras version that wrote the `.h5` file ("3..." for Keras 3); an `InputError` if it holds no model."""
    _read_h5_config(path)
    return _read_h5_attribute(path, "keras_version") or "2"


def _read_h5_attribute(path: Path, name: str) -> str:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            attribute = file.attrs.get(name, "")
    except OSError as error:
        raise InputError(f"{path}: not a readable HDF5 file (truncated or damaged?): {error}") from None
    return attribute.decode() if isinstance(attribute, bytes) else str(attribute)


def _detect_keras_kind(path: Path, config: dict[str, Any]) -> ArtifactKind:
    for serialized_object in iter_serialized_objects(config):
        object_config = serialized_object.get("config") or {}
        if serialized_object["class_name"] == "DTypePolicy" or (
            _is_input_layer(serialized_object) and "batch_shape" in object_config
        ):
            return ArtifactKind.KERAS
        if _is_input_layer(serialized_object) and "batch_input_shape" in object_config:
            return ArtifactKind.FLOAT
    keras_version = str(json.loads(read_keras_member(path, "metadata.json")).get("keras_version", ""))
    return ArtifactKind.KERAS if keras_version.startswith("3") else ArtifactKind.FLOAT


def _is_input_layer(serialized_object: dict[str, Any]) -> bool:
    return serialized_object["class_name"] == "InputLayer" and isinstance(serialized_object.get("config"), dict)


def iter_serialized_objects(config: Any) -> Iterator[dict[str, Any]]:
    """Every `{"class_name": ..}` object inside a config, outermost first."""
    if isinstance(config, dict):
        if isinstance(config.get("class_name"), str):
            yield config
        for child in config.values():
            yield from iter_serialized_objects(child)
    elif isinstance(config, list):
        for child in config:
            yield from iter_serialized_objects(child)


def check_no_file_names(path: Path, config: dict[str, Any]) -> None:
    """Raise an `InputError` if a layer would read its vocabulary from a file on this machine, which its text names."""
    for serialized_object in iter_serialized_objects(config):
        layer_config = serialized_object.get("config")
        if not isinstance(layer_config, dict):
            continue
        for key in _FILE_OPTIONS:
            if isinstance(layer_config.get(key), str):
                raise InputError(
                    f"{path}: layer '{layer_config.get('name')}' ({serialized_object['class_name']}) takes its {key} "
                    f"from the file '{layer_config[key]}'; a model must hold it itself"
                )


def find_code_layers(config: dict[str, Any], known_names: Container[str] | None = ()) -> tuple[str, ...]:
    """The layers of a model that contain or import code, each with a description; empty for a plain model.

    Classes and functions in `known_names` come from the user and need no import; None means all are known.
    """
    code_descriptions: dict[str, None] = {}
    _collect_code(config, "the model", known_names, code_descriptions)
    return tuple(code_descriptions)


def _collect_code(
    config_node: Any, layer_name: str, known_names: Container[str] | None, code_descriptions: dict[str, None]
) -> None:
    if isinstance(config_node, list):
        for child in config_node:
            _collect_code(child, layer_name, known_names, code_descriptions)
    if not isinstance(config_node, dict):
        return
    config = config_node.get("config")
    if isinstance(config, dict) and isinstance(config.get("name"), str):
        layer_name = f"'{config['name']}'"
    if code_kind := _describe_code(config_node, known_names):
        code_descriptions[f"{layer_name} ({code_kind})"] = None
        return
    for child in config_node.values():
        _collect_code(child, layer_name, known_names, code_descriptions)


def _describe_code(serialized_object: dict[str, Any], known_names: Container[str] | None) -> str:
    class_name, config = serialized_object.get("class_name"), serialized_object.get("config")
    if class_name in ("Lambda", "__lambda__"):
        return "Lambda layer" if class_name == "Lambda" else "lambda function"
    if class_name in ("TFOpLambda", "ClassMethod", "InstanceMethod", "InstanceProperty") and isinstance(config, dict):
        function = str(config.get("function", config.get("cls_symbol", "")))
        return "" if _SAFE_FUNCTION_PATTERN.fullmatch(function) else f"a call of tf.{function}"
    module = serialized_object.get("module")
    if not isinstance(class_name, str) or not isinstance(module, str) or module.split(".")[0] in _SAFE_PACKAGES:
        return ""
    # a function is written as class_name "function", its own name as config
    candidate_names = (
        class_name,
        serialized_object.get("registered_name"),
        config if class_name == "function" else None,
    )
    if known_names is None or any(
        isinstance(candidate, str) and candidate in known_names for candidate in candidate_names
    ):
        return ""
    return "" if module in sys.modules else f"{class_name} from the Python module '{module}'"
