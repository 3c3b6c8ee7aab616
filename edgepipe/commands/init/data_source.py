"""The data of the new pipeline: what was named on the command line, looked at without reading a sample."""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from edgepipe.commands.init.model_info import Seen
from edgepipe.commands.init.output_location import Place
from edgepipe.core import references
from edgepipe.core.artifact import Kind
from edgepipe.core.errors import InputError
from edgepipe.data import idx
from edgepipe.models.model_description import Shape

Labels = Literal["classes", "values", "none", "unknown"]
_ALLOWED = "a .npz file, a folder of images (one subfolder per class) or of IDX files, or module:function"
_OWN_SETS = {"edgepipe.data:digits", "edgepipe.data:fashion_mnist"}


@dataclass(frozen=True)
class Given:
    """What will stand under `data:` (None: the pipeline can do without), its comment, and what its labels are."""

    options: dict[str, Any] | None
    comment: str
    labels: Labels = "unknown"
    placeholder: bool = False
    notes: tuple[str, ...] = ()


class Header(NamedTuple):
    """The type and shape of an array inside a .npz file."""

    dtype: Any
    shape: tuple[int, ...]


def given(data: str | None, seen: Seen, place: Place) -> Given:
    """What `data`, as the user named it, is; None becomes a placeholder, or nothing where a model needs no data.

    Raises:
        InputError: no form of data that edgepipe reads, or a damaged file.
    """
    if data is None:
        return _placeholder(seen)
    path = Path(data)
    if path.is_dir():
        return _folder(path, seen, place)
    if path.suffix == ".npz":
        return _npz(path, seen, place)
    if not path.exists() and references.is_reference(data):
        return _function(data, seen, place)
    raise InputError(f"{data}: {'cannot be read as data' if path.exists() else 'no such file'}; expected {_ALLOWED}")


def _placeholder(seen: Seen) -> Given:
    if seen.kind is Kind.TFLITE:
        return Given(None, "", notes=("without data the quality is not taken; say --data, or fill in `data:`",))
    many = len(seen.inputs) > 1
    options = {"function": "mydata:load"} if many else {"npz": "data.npz"}
    comment = "FILL IN: a function that returns ({input name: array, ..}, y)" if many else "FILL IN: arrays x and y"
    note = "no --data was given: fill in `data:`; until then `edgepipe check` says that it is missing"
    return Given(options, comment, placeholder=True, notes=(note,))


def _function(reference: str, seen: Seen, place: Place) -> Given:
    notes = []
    try:
        references.check(reference, place.base)
    except InputError as error:
        notes.append(f"data: {reference}: {error}")
    returned = "({input name: array, ..}, y)" if len(seen.inputs) > 1 else "(x, y)"
    labels: Labels = "classes" if reference in _OWN_SETS else "unknown"
    return Given({"function": reference}, f"returns {returned}", labels, notes=tuple(notes))


def _folder(path: Path, seen: Seen, place: Place) -> Given:
    if _is_idx(path):
        return Given({"idx": place.path(path)}, "four IDX files", "classes")
    if not any(inner.is_dir() for inner in path.iterdir()):
        raise InputError(f"{path}: has no subfolder; expected {_ALLOWED}")
    options: dict[str, Any] = {"images": place.path(path)}
    shape = seen.inputs[0].shape[1:] if len(seen.inputs) == 1 else ()
    if len(shape) != 3 or None in shape or shape[2] not in (1, 3):
        wanted = f", and the model takes {shape}" if shape else ""
        note = f"images have the shape (height, width, 1 or 3){wanted}; set `size:` and `channels:` under `data:`"
        return Given(options, "one subfolder per class", "classes", notes=(note,))
    return Given({**options, "size": list(shape[:2]), "channels": shape[2]}, "one subfolder per class", "classes")


def _is_idx(path: Path) -> bool:
    try:
        return bool(idx.find(path))
    except InputError:
        return False


def _npz(path: Path, seen: Seen, place: Place) -> Given:
    options = {"npz": place.path(path)}
    if not path.exists():
        return Given(options, "arrays x and y", notes=(f"{path} does not exist yet; `edgepipe check` will say so",))
    arrays = headers(path)
    listed = ", ".join(arrays)
    x, y = (arrays.get(name) or arrays.get(f"{name}_train") for name in "xy")
    if x is None:
        note = f"{path} holds {listed}; name the samples and labels under `data:`, as `x: ..` and `y: ..`"
        return Given(options, f"holds {listed}", notes=(note,))
    return Given(options, f"holds {listed}", _labels(y), notes=_misfit(path, x, seen))


def headers(path: Path) -> dict[str, Header]:
    """The type and shape of each array of a .npz file, by name; the arrays themselves are not read.

    Raises:
        InputError: not a .npz file, or a damaged one.
    """
    from numpy.lib import format as npy

    found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                with archive.open(member) as stream:
                    old = npy.read_magic(stream) == (1, 0)  # type: ignore[no-untyped-call, unused-ignore]
                    header = npy.read_array_header_1_0 if old else npy.read_array_header_2_0
                    shape, _, dtype = header(stream)  # type: ignore[no-untyped-call, unused-ignore]
                    found[member.removesuffix(".npy")] = Header(dtype, shape)
    except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
        raise InputError(f"{path}: not a .npz file, or a damaged one: {error}") from None
    return found


def _labels(y: Header | None) -> Labels:
    if y is None:
        return "none"
    flat = len(y.shape) == 1 or (len(y.shape) == 2 and y.shape[1] == 1)
    return "classes" if flat and y.dtype.kind in "iu" else "values"


def _misfit(path: Path, x: Header, seen: Seen) -> tuple[str, ...]:
    if len(seen.inputs) > 1:
        note = f"the model has {len(seen.inputs)} inputs and an .npz gives one; write a function that returns a dict"
        return (note,)
    wanted = seen.inputs[0].shape[1:] if seen.inputs and len(seen.inputs[0].shape) > 1 else None
    shape = x.shape[1:]
    if wanted is None or _fits(wanted, shape):
        return ()
    return (f"the samples in {path} have the shape {shape}, but the model takes {wanted}",)


def _fits(wanted: Shape, found: tuple[int, ...]) -> bool:
    return len(wanted) == len(found) and all(w in (None, f) for w, f in zip(wanted, found, strict=True))
