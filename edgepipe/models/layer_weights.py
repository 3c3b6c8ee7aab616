"""Reads the weights of single layers from a `.keras` or `.h5` file, without Keras."""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgepipe.core.arrays import Array
from edgepipe.core.artifact import KERAS_WEIGHTS_MEMBER, read_keras_member
from edgepipe.models.model_description import LayerDescription


def read_layer_weights(
    path: Path, layer_path: Sequence[LayerDescription], siblings: Sequence[LayerDescription]
) -> list[Array]:
    """The arrays of a layer in the order in which it created them; none if the file does not have them.

    Args:
        path: the model, which `detect_kind` has accepted.
        layer_path: the nested models around the layer, outermost first, then the layer itself.
        siblings: all layers of the model that holds the layer.
    """
    import h5py

    if path.suffix.lower() in (".h5", ".hdf5"):
        with h5py.File(path, "r") as file:
            return _read_legacy_group(file.get("model_weights", file), layer_path)
    with h5py.File(io.BytesIO(read_keras_member(path, KERAS_WEIGHTS_MEMBER)), "r") as file:
        group = _find_by_name(file, layer_path[-1].name) or _find_by_order(file, layer_path, siblings)
        return [] if group is None else [np.asarray(group[key]) for key in sorted(group, key=int)]


def _read_legacy_group(root: Any, layer_path: Sequence[LayerDescription]) -> list[Array]:
    """Of an `.h5` of Keras 2: a group for each layer of the outermost model, with the names of its arrays in order."""
    group = root.get(layer_path[0].name)
    if group is None:
        return []
    names = [name.decode() if isinstance(name, bytes) else str(name) for name in group.attrs.get("weight_names", [])]
    own_names = [name for name in names if layer_path[-1].name in name.split("/")] if len(layer_path) > 1 else names
    return [np.asarray(group[name]) for name in own_names if name in group]


def _find_by_name(file: Any, layer_name: str) -> Any:
    """Keras 3 notes the name of the layer at its variables."""

    def visit(_: str, item: Any) -> Any:
        is_match = item.name.endswith("/vars") and str(item.attrs.get("name", "")) == layer_name
        return item if is_match and not item.name.startswith("/optimizer") else None

    return file.visititems(visit)


def _find_by_order(file: Any, layer_path: Sequence[LayerDescription], siblings: Sequence[LayerDescription]) -> Any:
    """tf_keras names groups by the layer's class and its number among the layers of that class."""
    if len(layer_path) > 1:
        return None
    same_class_names = [layer.name for layer in siblings if layer.class_name == layer_path[0].class_name]
    number = same_class_names.index(layer_path[0].name)
    group_name = _snake_case(layer_path[0].class_name) + (f"_{number}" if number else "")
    return next((file[key] for root in ("layers", "_layer_checkpoint_dependencies")
                 if (key := f"{root}/{group_name}/vars") in file), None)  # fmt: skip


def _snake_case(class_name: str) -> str:
    separated = re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", re.sub(r"\W+", "", class_name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", separated).lower()
