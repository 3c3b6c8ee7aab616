"""Zip and gzip files of unknown origin: what they declare is checked before anything is unpacked.

Deflate packs zeros a thousand times. Weights, arrays and images hardly pack at all, so a file that claims to unpack to
far more than it holds is refused, unless the result is small.
"""

import gzip
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgepipe.core.errors import InputError
from edgepipe.core.input_files import check_ordinary
from edgepipe.core.units import Dimension, show

MAX_EXPANSION = 100  # unpacked bytes for each byte of the file ...
SMALL_BYTES = 256 * 2**20  # ... beyond this size
MAX_MEMBERS = 20_000
METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_ENCRYPTED_FLAG = 0x1
_CHUNK_BYTES = 2**20


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """The zip at `path`, whose members may be read: their number, methods and sizes have been checked.

    Raises:
        InputError: the file cannot be read, is encrypted or packed by another method than deflate, or unpacks to
            absurdly many bytes.
        zipfile.BadZipFile: it is damaged; whoever knows what it should be says so.
    """
    check_ordinary(path)
    try:
        archive = zipfile.ZipFile(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, EOFError) as error:
        raise zipfile.BadZipFile(str(error)) from None
    with archive:
        _check_members(path, archive.infolist())
        yield archive


def _check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    if len(members) > MAX_MEMBERS:
        raise InputError(f"{path}: holds {len(members):,} files; at most {MAX_MEMBERS:,} are read")
    for member in members:
        if member.flag_bits & _ENCRYPTED_FLAG:
            raise InputError(f"{path}: '{member.filename}' inside it is encrypted; store it without a password")
        if member.compress_type not in METHODS:
            raise InputError(
                f"{path}: '{member.filename}' inside it is packed by method {member.compress_type}; "
                "store it, or use deflate"
            )
    check_expansion(str(path), path.stat().st_size, sum(member.file_size for member in members))


def check_expansion(subject: str, stored_bytes: int, unpacked_bytes: int) -> None:
    """Raise an `InputError` if so few bytes claim to unpack to so many."""
    if unpacked_bytes > max(SMALL_BYTES, MAX_EXPANSION * stored_bytes):
        raise InputError(
            f"{subject}: {show(stored_bytes, Dimension.BYTES)} that claim to unpack to "
            f"{show(unpacked_bytes, Dimension.BYTES)}; more than {MAX_EXPANSION} times the size is not unpacked "
            f"beyond {show(SMALL_BYTES, Dimension.BYTES)}; store it without compression"
        )


def gunzip(path: Path) -> bytes:
    """The bytes of the file at `path`, unpacked if it is a gzip file.

    Raises:
        InputError: the file cannot be read, is damaged, or unpacks to absurdly many bytes.
    """
    check_ordinary(path)
    try:
        with path.open("rb") as file:
            if file.read(2) != b"\x1f\x8b":
                file.seek(0)
                return file.read()
        return _unpack(path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: a damaged gzip file: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def _unpack(path: Path) -> bytes:
    stored_bytes, content = path.stat().st_size, bytearray()
    with gzip.open(path) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            content += chunk
            check_expansion(str(path), stored_bytes, len(content))
    return bytes(content)
