"""What deployment needs of a device: files put, read back, made durable and renamed, by a POSIX shell alone.

Every command is framed by a mark that is drawn anew, so that what a login script prints is not taken for an answer,
and an answer that was cut short is noticed. Names reach the shell as arguments, never as part of a script.
"""

import re
import secrets
import shlex
from dataclasses import dataclass, field
from typing import final

from edgepipe.deploy.transport import DeviceError, LostConnectionError, RunLimits, Transport

STALL_BYTES_PER_SECOND = 20_000  # the slowest upload that is waited for
MAX_MESSAGE_CHARACTERS = 300
NO_LOCK_STATUS = 76
VERSIONS_FOLDER = "versions"
STATE_FOLDER = ".edgepipe"
# Coreutils, busybox and toybox differ in what `sync` takes; without arguments it makes everything durable.
DURABLE = 'durable() { sync -- "$@" >/dev/null 2>&1 || fsync "$@" >/dev/null 2>&1 || sync; }; '


@dataclass(frozen=True)
class CommandResult:
    """The exit status of a script, and what it printed."""

    status: int
    output: str

    @property
    def last_line(self) -> str:
        """What it said last, for messages."""
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        return lines[-1][:MAX_MESSAGE_CHARACTERS] if lines else "it printed nothing"


@final
@dataclass
class Device:
    """A device and the folder of one deployment on it. `fence` is the token of the lock once it is held."""

    transport: Transport
    folder: str
    fence: str = ""
    python: str = field(default="python3")

    @property
    def name(self) -> str:
        """As messages name it."""
        return self.transport.name

    def create_folders(self) -> None:
        """Create the folder of the deployment and those in it.

        Raises:
            DeviceError: it cannot be created or written.
        """
        target = _folder_argument(self.folder)
        script = f"mkdir -p {target}/{VERSIONS_FOLDER} {target}/{STATE_FOLDER} && test -w {target}"
        result = self._run_framed(script, (), b"", RunLimits())
        if result.status:
            raise DeviceError(f"{self.name}: cannot create {self.folder}: {_explain_failure(result)}")

    def has_folder(self) -> bool:
        """Whether anything was ever deployed to the folder."""
        script = f"test -d {_folder_argument(self.folder)}/{VERSIONS_FOLDER}"
        return self._run_framed(script, (), b"", RunLimits()).status == 0

    def run(
        self, script: str, *arguments: str, input_bytes: bytes = b"", limits: RunLimits | None = None
    ) -> CommandResult:
        """Run `script` in the folder, with `arguments` as $1, $2, ..

        Raises:
            LostConnectionError: the answer ended before its mark.
            DeviceError: the device answers something else, too slowly or too much.
        """
        entered_script = f"{_enter_folder(self.folder)}{script}"
        return self._run_framed(entered_script, arguments, input_bytes, limits or RunLimits())

    def _run_framed(
        self, script: str, arguments: tuple[str, ...], input_bytes: bytes, limits: RunLimits
    ) -> CommandResult:
        mark = f"edgepipe-{secrets.token_hex(8)}"
        framed_script = f"printf '\\n{mark}\\n'; ( {script}\n) 2>&1; printf '\\n{mark} %s\\n' $?"
        output = self.transport.run(_shell_command(framed_script, arguments), input_bytes, limits)
        return _parse_frame(self.name, mark, output)

    def check(self, action: str, script: str, *arguments: str, input_bytes: bytes = b"") -> str:
        """As `run`, for a script that must succeed.

        Raises:
            DeviceError: it failed; the message begins with `action`.
        """
        limits = RunLimits(RunLimits.seconds + len(input_bytes) / STALL_BYTES_PER_SECOND)
        result = self.run(script, *arguments, input_bytes=input_bytes, limits=limits)
        if result.status:
            raise DeviceError(f"{self.name}: {action}: {_explain_failure(result)}")
        return result.output

    def change(self, action: str, script: str, *arguments: str, input_bytes: bytes = b"") -> str:
        """As `check`, for a script that changes the device: it runs only while the lock is this process's own."""
        own_token = shlex.quote(self.fence)
        guard = f'read -r owner < {STATE_FOLDER}/owner && [ "$owner" = {own_token} ] || exit {NO_LOCK_STATUS}; '
        return self.check(action, guard + script, *arguments, input_bytes=input_bytes)

    def hold_command(self, script: str, *arguments: str) -> str:
        """The command of a script that is left running, for `Transport.hold`."""
        return _shell_command(_enter_folder(self.folder) + script, arguments)

    def put(self, path: str, content: bytes) -> None:
        """Write a file, not yet durably; `path` is relative to the folder."""
        printed = self.change(f"cannot write {path}", 'cat > "$1" && wc -c < "$1"', path, input_bytes=content)
        if printed.split()[-1:] != [str(len(content))]:
            raise DeviceError(
                f"{self.name}: {path}: {len(content)} bytes were sent, {printed.strip() or 'none'} arrived"
            )

    def make_durable(self, *paths: str) -> None:
        """Wait until files and folders are on the medium."""
        self.change("cannot make files durable", f'{DURABLE}durable "$@"', *paths)

    def digests(self, folder: str) -> dict[str, str]:
        """SHA-256 of each file in a folder, computed on the device, by file name."""
        printed = self.check(f"cannot read {folder}", f'cd "./$1" && {DIGEST_SCRIPT}', folder)
        digest_by_name = {m["name"]: m["digest"] for m in _DIGEST_LINE.finditer(printed)}
        if not digest_by_name:
            raise DeviceError(f"{self.name}: {folder}: no digest in its answer: {CommandResult(0, printed).last_line}")
        return digest_by_name

    def read_text(self, path: str) -> str:
        """A small text file."""
        return self.check(f"cannot read {path}", 'cat "$1"', path)


# sha256sum is in coreutils, busybox and toybox; macOS has shasum
DIGEST_SCRIPT = "if command -v sha256sum >/dev/null 2>&1; then sha256sum -- *; else shasum -a 256 -- *; fi"
_DIGEST_LINE = re.compile(r"^(?P<digest>[0-9a-f]{64}) [ *](?P<name>.+)$", re.MULTILINE)


def _enter_folder(folder: str) -> str:
    """`cd` into the folder, which `open_folder` has created; `~` is what the device says it is."""
    return f"cd {_folder_argument(folder)} || exit 71; "


def _folder_argument(folder: str) -> str:
    return f'"$HOME"/{shlex.quote(folder[2:])}' if folder.startswith("~/") else shlex.quote(folder)


def _shell_command(script: str, arguments: tuple[str, ...]) -> str:
    """For whatever shell the user has: one `sh -c` with everything quoted."""
    return " ".join(["sh", "-c", *map(shlex.quote, (script, "edgepipe", *arguments))])


def _parse_frame(name: str, mark: str, output: bytes) -> CommandResult:
    start, begin, answer = output.partition(f"\n{mark}\n".encode())
    if not begin:
        raise _frame_error(name, start)
    end = re.search(rf"\n{mark} (\d+)\n".encode(), answer)  # a shell may report a crashed command after it
    if end is None:
        raise LostConnectionError(f"{name}: the connection was lost in the middle of a command")
    return CommandResult(int(end[1]), answer[: end.start()].decode(errors="replace"))


def _frame_error(name: str, output: bytes) -> DeviceError:
    text = "".join(c if c.isprintable() else " " for c in output.decode(errors="replace")).strip()
    if not text:
        return LostConnectionError(f"{name}: the connection was lost before the device answered")
    return DeviceError(f"{name}: does not run commands in a POSIX shell; it answered: {text[:MAX_MESSAGE_CHARACTERS]}")


def _explain_failure(result: CommandResult) -> str:
    if result.status == NO_LOCK_STATUS:
        return "another deployment has taken over this device's lock; nothing was switched"
    if "No space left" in result.output:
        return "the device's disk is full; free some space or deploy to another folder"
    if "Read-only file system" in result.output:
        return "the file system is read-only; deploy to a folder that can be written"
    if "ermission denied" in result.output:
        return f"no permission: {result.last_line}"
    return f"exit status {result.status}: {result.last_line}"
