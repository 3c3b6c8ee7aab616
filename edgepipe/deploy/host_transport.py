"""This machine as a device, through /bin/sh: `host:///path`."""

from dataclasses import dataclass
from typing import ClassVar, final

from edgepipe.deploy.local_process import HeldProcess, run_process, start_process
from edgepipe.deploy.transport import RunLimits


@final
@dataclass(frozen=True)
class HostTransport:
    """Runs commands in a shell of this machine."""

    name: str = "host"
    notes: tuple[str, ...] = ()
    runs_python: ClassVar[bool] = True

    def run(self, command: str, input_bytes: bytes, limits: RunLimits) -> bytes:
        """See `Transport.run`."""
        return run_process(self.name, _shell_arguments(command), input_bytes, limits)

    def hold(self, command: str) -> HeldProcess:
        """See `Transport.hold`."""
        return HeldProcess(self.name, start_process(_shell_arguments(command)))

    def close(self) -> None:
        """Nothing is open."""


def _shell_arguments(command: str) -> list[str]:
    return ["/bin/sh", "-c", command]
