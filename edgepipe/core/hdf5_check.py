"""HDF5 files of unknown origin: refused if reading one would open another file or more bytes than it holds.

HDF5 can link to other files, keep a dataset's bytes in any file on disk, assemble one from others, run them through
plug-ins, and claim a size without storing anything. Keras writes none of these.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgepipe.core.errors import InputError

MAX_OBJECTS = 200_000
SUPPORTED_REMEDY = "save the model again with Keras, which writes plain datasets only"


def check_hdf5(title: str, source: Path | bytes) -> None:
    """Check links, storage, filters and declared sizes of every object in a file, without reading a dataset.

    Args:
        title: names the file in messages.
        source: the file, or its bytes.

    Raises:
        InputError: it is not a readable HDF5 file, or an object is not a plain one; names the object.
    """
    import h5py

    try:
        with h5py.File(io.BytesIO(source) if isinstance(source, bytes) else source, "r") as file:
            for name, problem in _find_problems(file):
                raise InputError(f"{title}: '{name}' {problem}; {SUPPORTED_REMEDY}")
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise InputError(f"{title}: not a readable HDF5 file (truncated or damaged?): {error}") from None


def _find_problems(file: Any) -> Iterator[tuple[str, str]]:
    """Names of objects and what is wrong with them; each object is looked at once, whatever links lead to it."""
    import h5py

    pending_groups, seen_addresses = [file], {_address(file)}
    while pending_groups:
        group = pending_groups.pop()
        for name in group:
            path = f"{group.name.rstrip('/')}/{name}"
            if problem := _link_problem(group, name):
                yield path, problem
                continue
            node = group[name]
            if _address(node) in seen_addresses:
                continue
            seen_addresses.add(_address(node))
            if len(seen_addresses) > MAX_OBJECTS:
                yield path, f"is one of more than {MAX_OBJECTS:,} objects, which are not read"
            if isinstance(node, h5py.Group):
                pending_groups.append(node)
            elif isinstance(node, h5py.Dataset) and (problem := _dataset_problem(node)):
                yield path, problem


def _address(node: Any) -> int:
    import h5py

    return int(h5py.h5o.get_info(node.id).addr)


def _link_problem(group: Any, name: str) -> str:
    import h5py

    try:
        link = group.get(name, getlink=True)
    except TypeError:
        return "is a link of a type that only a plug-in knows"
    if isinstance(link, h5py.ExternalLink):
        return f"is a link into another file, '{link.filename}'"
    if isinstance(link, h5py.SoftLink):
        return f"is a soft link to '{link.path}'"
    return ""


def _dataset_problem(dataset: Any) -> str:
    import h5py

    properties = dataset.id.get_create_plist()
    layout = properties.get_layout()
    if layout == h5py.h5d.VIRTUAL:
        return f"is assembled from other files: {', '.join(_virtual_sources(properties))}"
    if layout == h5py.h5d.CONTIGUOUS and properties.get_external_count():
        return f"keeps its bytes in another file, '{properties.get_external(0)[0].decode(errors='replace')}'"
    if layout == h5py.h5d.CHUNKED and properties.get_nfilters():
        return f"is stored through the filter '{properties.get_filter(0)[3].decode(errors='replace')}'"
    declared_bytes = 0 if dataset.shape is None else dataset.nbytes
    stored_bytes = dataset.id.get_storage_size()
    if declared_bytes > stored_bytes:
        return f"claims {declared_bytes:,} bytes ({dataset.dtype}, shape {dataset.shape}); {stored_bytes:,} are stored"
    return ""


def _virtual_sources(properties: Any) -> list[str]:
    return [properties.get_virtual_filename(index) for index in range(properties.get_virtual_count())]
