"""What a backend provides: commands run on a device, and one that stays open for the lock."""

from dataclasses import dataclass
from typing import Protocol

from edgepipe.core.errors import ToolError

SHORT_SECONDS = 60.0  # for a command that only touches files
MAX_OUTPUT_BYTES = 1 << 20
CHUNK_BYTES = 1 << 16


class DeviceError(ToolError):
    """A device that cannot be reached, is not set up, or answers what it should not."""


class LostConnectionError(DeviceError):
    """The connection ended in the middle of a command."""


@dataclass(frozen=True)
class RunLimits:
    """How long a command may take (for input: without progress), and how much it may print."""

    seconds: float = SHORT_SECONDS
    output_bytes: int = MAX_OUTPUT_BYTES


class HeldCommand(Protocol):
    """A command that runs until its input is closed."""

    def read_line(self, seconds: float) -> str:
        """Its next line of output, without the line break; empty at the end of the output.

        Raises:
            DeviceError: no line within `seconds`, or the connection is lost.
        """

    def write(self, text: str) -> None:
        """Send `text` to its standard input.

        Raises:
            DeviceError: the connection is lost.
        """

    def close(self) -> None:
        """Close its input, and end it."""


class Transport(Protocol):
    """One connection to a device. Commands are for its shell, POSIX sh or near to it."""

    @property
    def name(self) -> str:
        """The device as messages name it, without secrets."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of how the connection came about."""

    @property
    def runs_python(self) -> bool:
        """Whether devices of this kind have Python, or could have it."""

    def run(self, command: str, input_bytes: bytes, limits: RunLimits) -> bytes:
        """What `command` prints, standard error included, up to its end or that of the connection.

        Raises:
            DeviceError: it takes too long, prints too much, or cannot be started.
        """

    def hold(self, command: str) -> HeldCommand:
        """Start `command` and leave it running.

        Raises:
            DeviceError: it cannot be started.
        """

    def close(self) -> None:
        """End the connection."""


def timeout_error(name: str, seconds: float) -> DeviceError:
    """The error of a device that does not answer in time."""
    return DeviceError(f"{name}: no answer within {seconds:g} s; is the device overloaded, or the connection too slow?")


def flood_error(name: str, output_bytes: int) -> DeviceError:
    """The error of a device that prints without end."""
    return DeviceError(
        f"{name}: printed more than {output_bytes:,} bytes where a short answer was due; stopped reading"
    )
