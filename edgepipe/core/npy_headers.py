"""Headers of NumPy arrays in files of unknown origin: a declared shape is believed only if the file is that large."""

import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from edgepipe.core.archives import open_zip
from edgepipe.core.errors import InputError
from edgepipe.core.input_files import check_ordinary

ARRAY_SUFFIX = ".npy"
NPY_MAGIC, ZIP_MAGIC = b"\x93NUMPY", b"PK"


@dataclass(frozen=True)
class ArrayHeader:
    """The type and shape of a stored array."""

    dtype: "np.dtype[Any]"
    shape: tuple[int, ...]


@contextmanager
def open_npz(path: Path) -> Iterator[Any]:
    """The arrays of a .npz by name, none of them read, whose headers have been checked; no pickled objects.

    Raises:
        InputError: see `read_npz_headers`.
    """
    read_npz_headers(path)
    with np.load(path, allow_pickle=False) as archive:
        yield archive


def read_npz_headers(path: Path) -> dict[str, ArrayHeader]:
    """The header of each array of a .npz, by name; the arrays themselves are not read.

    Raises:
        InputError: not a .npz, a damaged one, one that unpacks to absurdly many bytes, or an array that claims more
            bytes than are stored.
    """
    headers = {}
    with _damage_as_input_errors(str(path)), open_zip(path) as archive:
        for member in archive.infolist():
            title = f"{path}: array '{member.filename.removesuffix(ARRAY_SUFFIX)}'"
            with _damage_as_input_errors(title), archive.open(member) as stream:
                if stream.read(len(NPY_MAGIC)) != NPY_MAGIC:
                    raise InputError(f"{title} is no array; is this really a .npz file?")
                stream.seek(0)
                headers[member.filename.removesuffix(ARRAY_SUFFIX)] = read_header(title, stream, member.file_size)
    return headers


def check_npy_or_npz(path: Path) -> None:
    """Check the declared sizes of a .npy or .npz, whichever the content is; what is neither is left to NumPy.

    Raises:
        InputError: it claims more bytes than it holds.
        OSError: it cannot be read.
    """
    check_ordinary(path)
    with path.open("rb") as stream:
        magic = stream.read(len(NPY_MAGIC))
    if magic == NPY_MAGIC:
        with _damage_as_input_errors(str(path)), path.open("rb") as stream:
            read_header(str(path), stream, path.stat().st_size)
    elif magic.startswith(ZIP_MAGIC):
        read_npz_headers(path)


def read_header(title: str, stream: IO[bytes], stored_bytes: int) -> ArrayHeader:
    """The header at the beginning of `stream`, which holds `stored_bytes` in all.

    Raises:
        InputError: the array would be larger than what is stored. `title` begins the message.
        ValueError: there is no header.
    """
    from numpy.lib import format as npy

    is_version_1 = npy.read_magic(stream) == (1, 0)  # type: ignore[no-untyped-call, unused-ignore]
    parse = npy.read_array_header_1_0 if is_version_1 else npy.read_array_header_2_0
    try:
        shape, _, dtype = parse(stream)  # type: ignore[no-untyped-call, unused-ignore]
    except (tokenize.TokenError, SyntaxError, TypeError, RecursionError, MemoryError):  # it parses a Python literal
        raise ValueError("its header is not one of NumPy") from None
    array_bytes = math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and array_bytes > stored_bytes:  # objects are refused by whoever reads the array
        raise InputError(
            f"{title}: its header claims {dtype} of shape {shape}, {array_bytes:,} bytes; {stored_bytes:,} are stored"
        )
    return ArrayHeader(dtype, shape)


@contextmanager
def _damage_as_input_errors(title: str) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError) as error:
        raise InputError(f"{title}: a truncated or damaged .npy or .npz file: {error}") from None
    except OSError as error:
        raise InputError(f"{title}: cannot be read: {error.strerror or error}") from None
