"""The addresses of devices: `ssh://user@host[:port]/path`, `adb://serial/path`, `host:///path`."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import SplitResult, unquote, urlsplit

from edgepipe.core.errors import InputError, did_you_mean

SCHEMES = ("ssh", "adb", "host")
EXAMPLES = "ssh://pi@raspberrypi/home/pi/app, ssh://alias/~/app, adb://SERIAL or host:///tmp/app"
DEFAULT_FOLDER = "~/edgepipe"
ANDROID_FOLDER = "/data/local/tmp/edgepipe"  # where the shell of adb may write and run programs
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class TargetUrl:
    """Where to deploy to. `folder` is absolute, or begins with `~/` for the home folder of the user."""

    scheme: str
    host: str
    folder: str
    user: str | None = None
    port: int | None = None

    @property
    def name(self) -> str:
        """The device without the folder, such as `ssh://pi@raspberrypi:2222`."""
        user_text = f"{self.user}@" if self.user else ""
        host_text = f"[{self.host}]" if ":" in self.host and self.scheme == "ssh" else self.host
        port_text = f":{self.port}" if self.port else ""
        return f"{self.scheme}://{user_text}{host_text}{port_text}"

    def __str__(self) -> str:
        return f"{self.name}/{self.folder.removeprefix('/')}"


def parse_url(text: str) -> TargetUrl:
    """The device and the folder that `text` names.

    Raises:
        InputError: no such scheme, no host, a password, or a folder that versions must not be put in.
    """
    if _CONTROL_CHARACTER.search(text):
        raise InputError(f"{_without_password(text)!r}: an address has no control characters; for example {EXAMPLES}")
    shown_text = _without_password(text)
    try:
        parts = urlsplit(text)
        port = parts.port if parts.scheme != "adb" else None
    except ValueError:  # its text would show what may be a part of a password
        problem = "not an address (its port is no number from 1 to 65535, or a bracket is open)"
        raise InputError(f"'{shown_text}': {problem}; for example {EXAMPLES}") from None
    if parts.scheme not in SCHEMES or "://" not in text:
        problem = f"unknown scheme '{parts.scheme}'" if "://" in text else "no scheme"
        hint = did_you_mean(parts.scheme, SCHEMES) if "://" in text else ""
        raise InputError(f"'{shown_text}': {problem}{hint}; for example {EXAMPLES}")
    _check_parts(shown_text, parts)
    if parts.scheme == "adb":  # a serial number keeps its capitals, and may be HOST:PORT
        return TargetUrl(parts.scheme, unquote(parts.netloc), _parse_folder(shown_text, parts))
    return TargetUrl(
        parts.scheme, parts.hostname or "", _parse_folder(shown_text, parts), _decode(parts.username), port
    )


def _check_parts(shown_text: str, parts: SplitResult) -> None:
    if parts.password is not None:
        raise InputError(
            f"'{shown_text}': an address never holds a password; use a key, the agent (ssh-add) or ~/.ssh/config"
        )
    if parts.query or parts.fragment:
        raise InputError(f"'{shown_text}': write '?' and '#' in a folder as %3F and %23")
    if parts.scheme == "ssh" and not parts.hostname:
        raise InputError(f"'{shown_text}': no host; for example {EXAMPLES}")
    if parts.scheme == "host" and parts.netloc:
        raise InputError(f"'{shown_text}': 'host' is this machine and takes a folder only: host:///tmp/app")
    for part in (parts.hostname or "", _decode(parts.username) or ""):
        if part.startswith("-"):
            raise InputError(f"'{shown_text}': '{part}' would be read as an option")


def _parse_folder(shown_text: str, parts: SplitResult) -> str:
    path = unquote(parts.path)
    if _CONTROL_CHARACTER.search(path):
        raise InputError(f"'{shown_text}': a folder on a device has no control characters")
    if path in ("", "/", "/~", "/~/"):
        if parts.scheme == "host":
            raise InputError(f"'{shown_text}': name a folder, such as host:///tmp/app")
        return ANDROID_FOLDER if parts.scheme == "adb" else DEFAULT_FOLDER
    if ".." in PurePosixPath(path).parts:
        raise InputError(f"'{shown_text}': name the folder itself, without '..'")
    return path[1:].rstrip("/") if path.startswith("/~/") else path.rstrip("/")


def _decode(text: str | None) -> str | None:
    return unquote(text) if text else None


def _without_password(text: str) -> str:
    return re.sub(r"(://[^@:]*):.*@", r"\1:***@", text, flags=re.DOTALL)
