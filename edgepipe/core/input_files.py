"""Files that a user names: only ordinary ones are opened.

Opening a named pipe waits for whoever writes to it, and a device such as /dev/zero never ends.
"""

import errno
import os
import stat
from pathlib import Path

from edgepipe.core.errors import InputError
from edgepipe.core.units import Dimension, show

_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def check_ordinary(path: Path) -> None:
    """Raise an `InputError` unless `path` is a file or a folder that may be read; also for a dangling link.

    A missing file is left to whoever opens it, which knows what it should be.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        _check_link(path)
    except ValueError:
        raise InputError(f"{path}: not the name of a file: it holds a null character") from None
    except OSError as error:  # a loop of links, no permission for the folder
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    else:
        for is_kind, kind_name in _KINDS:
            if is_kind(mode):
                raise InputError(f"{path}: is {kind_name}; only ordinary files are read; save it as one first")
        if not os.access(path, os.R_OK):  # some libraries take a file that they may not read for a damaged one
            raise InputError(f"{path}: cannot be read: {os.strerror(errno.EACCES)}")


def _check_link(path: Path) -> None:
    if path.is_symlink():
        raise InputError(f"{path}: a link to '{path.readlink()}', which does not exist")


def read_bytes(path: Path, max_bytes: int | None = None) -> bytes:
    """The content of the file at `path`.

    Raises:
        InputError: it cannot be read, is not an ordinary file, or has more than `max_bytes` bytes.
    """
    check_ordinary(path)
    try:
        size = path.stat().st_size
        if max_bytes is not None and size > max_bytes:
            sizes_text = f"{show(size, Dimension.BYTES)}; at most {show(max_bytes, Dimension.BYTES)} are read"
            raise InputError(f"{path}: a file of {sizes_text}")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
