"""The lock of a deployment folder: held by a shell on the device that ends with the connection.

The device's kernel releases it when that shell ends, for whatever reason. If edgepipe's own machine is switched off,
the device may not notice for hours; so the holder counts up a beat, and whoever sees the count stand still for
`SILENCE_SECONDS` ends the holder. Nothing depends on the device's clock, which a board without a battery sets late.
"""

import getpass
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from edgepipe.core import interrupts
from edgepipe.deploy.device import Device
from edgepipe.deploy.transport import DeviceError, HeldCommand

BEAT_SECONDS = 3.0
SILENCE_SECONDS = 15.0
ANSWER_SECONDS = 30.0
POLL_SECONDS = 0.5
DEFAULT_WAIT_SECONDS = 120.0
_NO_FLOCK = "NOFLOCK"
_HELD, _BUSY = "HELD", "BUSY"

# The owner file holds the token that scripts compare, the shell to end, and who it is. `9>&9` hands the descriptor on
# in shells that keep it to themselves (mksh).
HOLD_SCRIPT = f"""
exec 9>>.edgepipe/lock || exit 71
if command -v flock >/dev/null 2>&1; then flock -n 9 9>&9
elif command -v python3 >/dev/null 2>&1; then python3 -c 'import fcntl; fcntl.flock(9, 6)' 9>&9 2>/dev/null
else echo {_NO_FLOCK}; exit 72; fi || {{ echo {_BUSY}; exit 75; }}
printf '%s\\n%s\\n%s\\n' "$1" $$ "$2" > .edgepipe/owner && echo 0 > .edgepipe/beat && echo {_HELD}
while read -r beat; do echo "$beat" > .edgepipe/beat; done
"""
TAKE_OVER_SCRIPT = """
{ read -r owner; read -r pid; } < .edgepipe/owner && [ "$owner" = "$1" ] && kill -9 "$pid"
"""


@dataclass(frozen=True)
class Holder:
    """Who holds the lock, and how far it has counted."""

    token: str
    who: str
    beat: str


@contextmanager
def locked(device: Device, wait_seconds: float, notify: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of the device's folder; `notify` is called for a wait and for a take-over.

    Raises:
        DeviceError: another deployment holds it for longer than `wait_seconds`, or it cannot be held there.
    """
    token = secrets.token_hex(8)
    held_command = _acquire(device, token, wait_seconds, notify)
    device.fence = token
    stop_event = threading.Event()
    beat_thread = threading.Thread(target=_count_beats, args=(held_command, stop_event), daemon=True)
    beat_thread.start()
    try:
        yield
    finally:
        stop_event.set()
        beat_thread.join()
        held_command.close()
        device.fence = ""


def _acquire(device: Device, token: str, wait_seconds: float, notify: Callable[[str], None]) -> HeldCommand:
    start_time = silence_start = time.monotonic()
    holder: Holder | None = None
    while True:
        interrupts.check()
        held_command = _try_hold(device, token)
        if held_command is not None:
            return held_command
        seen_holder = _read_holder(device)
        now = time.monotonic()
        if seen_holder != holder:
            if holder is None and seen_holder is not None:
                notify(f"{device.name}: waits for the deployment of {seen_holder.who}")
            holder, silence_start = seen_holder, now
        elif holder is not None and now - silence_start >= SILENCE_SECONDS:
            _take_over(device, holder, notify)
            silence_start = now
        if now - start_time >= wait_seconds:
            who = holder.who if holder else "an unknown holder"
            raise DeviceError(
                f"{device.name}: {device.folder} is locked by {who}; waited {wait_seconds:g} s; "
                "try again, or wait longer with --wait"
            )
        time.sleep(min(POLL_SECONDS, max(0.0, wait_seconds - (now - start_time))))


def _try_hold(device: Device, token: str) -> HeldCommand | None:
    who = f"{getpass.getuser()} on {platform.node()}, process {os.getpid()}"
    held_command = device.transport.hold(device.hold_command(HOLD_SCRIPT, token, who))
    try:
        answer = _read_answer(held_command)
    except DeviceError:
        held_command.close()
        raise
    if answer == _HELD:
        return held_command
    held_command.close()
    if answer == _BUSY:
        return None
    reason = "it has neither `flock` nor python3" if answer == _NO_FLOCK else f"it answered: {answer or 'nothing'}"
    raise DeviceError(f"{device.name}: the lock cannot be held in {device.folder}: {reason}")


def _read_answer(held_command: HeldCommand) -> str:
    """The answer of the script, whatever a login script prints before it; else the last line."""
    line = last_line = held_command.read_line(ANSWER_SECONDS)
    while line and line not in (_HELD, _BUSY, _NO_FLOCK):
        last_line, line = line, held_command.read_line(ANSWER_SECONDS)
    return line or last_line


def _read_holder(device: Device) -> Holder | None:
    """None while the file is being written, or after the holder has gone."""
    result = device.run("cat .edgepipe/owner .edgepipe/beat")
    lines = result.output.splitlines()
    return Holder(lines[0], lines[2], lines[3]) if result.status == 0 and len(lines) >= 4 else None


def _take_over(device: Device, holder: Holder, notify: Callable[[str], None]) -> None:
    notify(f"{device.name}: takes over the lock of {holder.who}, which has been silent for {SILENCE_SECONDS:g} s")
    result = device.run(TAKE_OVER_SCRIPT, holder.token)
    if "not permitted" in result.output:
        raise DeviceError(
            f"{device.name}: {holder.who} holds the lock, seems dead, and belongs to another user of the device: "
            f"{result.last_line}"
        )


def _count_beats(held_command: HeldCommand, stop_event: threading.Event) -> None:
    beat = 0
    while not stop_event.wait(BEAT_SECONDS):
        beat += 1
        try:
            held_command.write(f"{beat}\n")
        except DeviceError:
            return  # the lock is lost; the next change notices by its fence or by the lost connection
