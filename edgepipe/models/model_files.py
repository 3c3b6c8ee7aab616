"""Opening model files, and writing the two kinds of `.keras` that stages exchange.

Nothing inside a model file is run unless the user says so: Lambda layers, functions and classes that would have to
be imported are found in the file's JSON first (see `sniff`), and both Keras are told to refuse them too.
"""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import tf_keras

import edgepipe.models.bridge_layers  # noqa: F401 - registers the layers that a bridged model may hold
from edgepipe.core.artifact import Artifact, Kind, storing
from edgepipe.core.errors import InputError, ToolError
from edgepipe.models import custom_objects
from edgepipe.models.bridge import bridge
from edgepipe.models.file_kind import code_inside, read_config, sniff
from edgepipe.models.input_shapes import check_shapes
from edgepipe.models.subclassed import functional

_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can hold: equal models, equal bytes
_TRAINING_STATE = {"optimizer", "metrics"}


def load(artifact: Artifact | Path, kind: Kind | None = None, allow_code: bool = False) -> Any:
    """The model in `artifact`: a Keras 3 model for kind `keras`, a tf_keras one for `float`.

    A Keras 3 file asked for as `float` goes through the bridge. A SavedModel, which is a program and can only be
    converted, gives its path. Without `kind` the file's own is taken.

    Raises:
        InputError: missing, damaged or of another kind; holds code or unknown classes; is not built.
    """
    path = artifact.path if isinstance(artifact, Artifact) else artifact
    found = sniff(path)
    wanted = kind or (artifact.kind if isinstance(artifact, Artifact) else found)
    if found is not wanted and (found, wanted) != (Kind.KERAS, Kind.FLOAT):
        raise InputError(f"{path}: holds a model of kind '{found}', not '{wanted}'")
    if found is Kind.SAVED_MODEL:
        return _program(path, allow_code)
    if found not in (Kind.KERAS, Kind.FLOAT):
        raise InputError(f"{path}: a {found} is no Keras model; expected a .keras or .h5 file")
    model = _open(path, found, allow_code)
    _check_finite(path, model)
    return bridge(model).model if found is not wanted else model


def _check_finite(path: Path, model: Any) -> None:
    bad = [weight.path if hasattr(weight, "path") else weight.name for weight in model.weights if not _finite(weight)]
    if bad:
        raise InputError(f"{path}: weights hold NaN or infinity: {', '.join(bad[:5])}; did its training diverge?")


def _finite(weight: Any) -> bool:
    values = np.asarray(weight)
    return values.dtype.kind != "f" or bool(np.isfinite(values).all())


def _program(path: Path, allow_code: bool) -> Path:
    if not allow_code:
        raise InputError(
            f"{path}: a SavedModel is a program; say `allow_code: true` (--allow-code) if you trust who made it"
        )
    return path


def _open(path: Path, kind: Kind, allow_code: bool) -> Any:
    code = code_inside(read_config(path), custom_objects.current())
    if code and not allow_code:
        raise InputError(
            f"{path}: the file holds code or names code to import: {', '.join(code)}; "
            "give classes of your own as `custom_objects: module:attribute` (--custom-objects), or say "
            "`allow_code: true` (--allow-code) if you trust who made it"
        )
    if keras.backend.backend() != "tensorflow":
        raise ToolError(f"Keras runs on '{keras.backend.backend()}' here; set KERAS_BACKEND=tensorflow and start again")
    package: Any = keras if kind is Kind.KERAS else tf_keras
    try:
        # not by scope alone: keras.utils.clear_session, which begins every stage, forgets those
        own = dict(custom_objects.current())
        model = package.saving.load_model(path, custom_objects=own, compile=False, safe_mode=not allow_code)
    except Exception as error:
        raise InputError(f"{path}: cannot be loaded: {_reason(error, path, package)}") from error
    if kind is Kind.KERAS:
        model = functional(model)
    check_shapes(model)
    return model


def _reason(error: Exception, path: Path, package: Any) -> str:
    unknown = _unknown_classes(read_config(path), package)
    if unknown:
        return (
            f"{package.__name__} does not know {', '.join(unknown)}; give your classes as "
            "`custom_objects: module:attribute` (--custom-objects), or the model as module:function"
        )
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first.strip()[:300]} (damaged, or written by an incompatible Keras?)"


def _unknown_classes(config: dict[str, Any], package: Any) -> list[str]:
    registered = package.saving.get_custom_objects()
    found: dict[str, None] = {}
    for entry in config["config"].get("layers", []):
        name = entry.get("registered_name") or entry["class_name"]
        if (
            name not in registered
            and not hasattr(package.layers, entry["class_name"])
            and not hasattr(package, entry["class_name"])
        ):
            found[f"the class '{name}' of layer '{(entry.get('config') or {}).get('name')}'"] = None
    return list(found)


def save_keras(model: Any, path: Path) -> None:
    """Write a Keras 3 model to `path`, without optimizer or compile state; equal models give equal content digests."""
    _save(model, path)


def save_float(model: Any, path: Path) -> None:
    """Write a tf_keras model to `path`, without optimizer or compile state; equal models give equal content digests."""
    _save(model, path)


def _save(model: Any, path: Path) -> None:
    raw = path.with_name(f"{path.stem}.raw.keras")
    with storing(str(path)):
        try:
            model.save(raw)
            _canonical(raw, path)
        finally:
            raw.unlink(missing_ok=True)


def _canonical(raw: Path, path: Path) -> None:
    # Keras writes today's date, the compile state, and as the id of a shared object its address in memory.
    with zipfile.ZipFile(raw) as source, zipfile.ZipFile(path, "w") as target:
        config = json.loads(source.read("config.json"))
        config.pop("compile_config", None)
        version = json.loads(source.read("metadata.json"))["keras_version"]
        own = {
            "metadata.json": json.dumps({"keras_version": version}).encode(),
            "config.json": json.dumps(_renumbered(config, {})).encode(),
            "model.weights.h5": _weights_only(source.read("model.weights.h5")),
        }
        for name in source.namelist():  # vocabularies and such stand beside these three
            target.writestr(zipfile.ZipInfo(name, _DATE), own.get(name) or source.read(name))


def _renumbered(value: Any, seen: dict[int, int]) -> Any:
    if isinstance(value, list):
        return [_renumbered(part, seen) for part in value]
    if not isinstance(value, dict):
        return value
    kept = dict(value)
    shared = kept.pop("shared_object_id", None)
    # whether two layers share one policy object changes nothing, and differs between a fresh and a reloaded model
    if shared is not None and value.get("class_name") != "DTypePolicy":
        kept["shared_object_id"] = seen.setdefault(shared, len(seen) + 1)
    return {key: part if key == "shared_object_id" else _renumbered(part, seen) for key, part in kept.items()}


def _weights_only(data: bytes) -> bytes:
    target = io.BytesIO()
    with h5py.File(io.BytesIO(data), "r") as source, h5py.File(target, "w") as kept:
        for name in sorted(set(source) - _TRAINING_STATE):
            source.copy(name, kept)
        for key, value in source.attrs.items():
            kept.attrs[key] = value
    return target.getvalue()
