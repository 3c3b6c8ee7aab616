"""Deploys to several devices: a canary first, then the others in parallel, until too many fail.

One failing device hides no other: each ends with its own outcome, or is skipped and says why.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from edgepipe.core import interrupts
from edgepipe.core.errors import EdgepipeError, ExitCode, InputError
from edgepipe.deploy.backends import ConnectionOptions, connect
from edgepipe.deploy.deployment import Deployment
from edgepipe.deploy.device import Device
from edgepipe.deploy.target_url import TargetUrl

DEFAULT_PARALLEL = 8
DEFAULT_MAX_FAILURES = 0.2  # share of the devices

Work = Callable[[Device, TargetUrl], Deployment]


@dataclass(frozen=True)
class FleetOptions:
    """`canary`: devices that go first, one after the other; `max_failures`: the share of all that may fail."""

    canary: int = 1
    parallel: int = DEFAULT_PARALLEL
    max_failures: float = DEFAULT_MAX_FAILURES


@dataclass(frozen=True)
class DeviceOutcome:
    """How one device came out: a deployment, an error, or the reason why it was not tried."""

    url: TargetUrl
    deployment: Deployment | None = None
    error: EdgepipeError | None = None
    skipped: str = ""

    @property
    def exit_code(self) -> ExitCode:
        """What a process for this device alone would end with."""
        if self.error is not None:
            return self.error.exit_code
        health = self.deployment.health if self.deployment else None
        return ExitCode.NOT_MET if health and not health.healthy else ExitCode.SUCCESS

    @property
    def status(self) -> str:
        """One word: deployed, staged, refused, failed or skipped."""
        if self.deployment is None:
            return "skipped" if self.skipped else "failed"
        if self.deployment.version is None:
            return "refused"
        return "deployed" if self.deployment.switched else "staged"

    @property
    def version(self) -> str | None:
        """The version that was staged or switched to."""
        return self.deployment.version if self.deployment else None

    @property
    def previous(self) -> str | None:
        """The version that ran before."""
        return self.deployment.previous if self.deployment else None

    @property
    def failed(self) -> bool:
        """Whether it was tried and does not run what it should."""
        return self.exit_code is not ExitCode.SUCCESS


class _Tally:
    """How many devices have failed, and whether to go on."""

    def __init__(self, device_count: int, options: FleetOptions) -> None:
        self.lock = threading.Lock()
        self.failure_count = 0
        self.allowed = options.max_failures * device_count
        self.device_count = device_count

    def add(self, outcome: DeviceOutcome) -> None:
        with self.lock:
            self.failure_count += outcome.failed

    def stop_reason(self) -> str:
        """Why no further device is begun; empty if it is."""
        if interrupts.is_requested():
            return "interrupted"
        if self.failure_count > self.allowed:
            return f"{self.failure_count} of {self.device_count} devices had failed already"
        return ""


def work_on_all(
    urls: Sequence[TargetUrl],
    work: Work,
    connection: ConnectionOptions,
    options: FleetOptions,
    notify: Callable[[str], None],
) -> list[DeviceOutcome]:
    """Connect to every device and do `work` there; outcomes are in the order of `urls`.

    Args:
        urls: of the devices, each once.
        work: what to do; its errors become the outcome of that device.
        connection: how to connect.
        options: canary, parallel devices and failures.
        notify: called with what was noticed while connecting.

    Raises:
        InputError: an address twice, or none.
    """
    _check_urls(urls)
    tally = _Tally(len(urls), options)
    canary_count = min(options.canary, len(urls) - 1)  # a single device needs no canary

    def attempt(url: TargetUrl) -> DeviceOutcome:
        reason = tally.stop_reason()
        outcome = DeviceOutcome(url, skipped=reason) if reason else _work_on(url, work, connection, notify)
        tally.add(outcome)
        return outcome

    canaries = [attempt(url) for url in urls[:canary_count]]
    failed_canary = next((outcome for outcome in canaries if outcome.failed), None)
    if failed_canary is not None:
        reason = f"the canary {failed_canary.url} failed"
        return [*canaries, *(DeviceOutcome(url, skipped=reason) for url in urls[canary_count:])]
    with ThreadPoolExecutor(max(1, options.parallel)) as executor:
        return [*canaries, *executor.map(attempt, urls[canary_count:])]


def _check_urls(urls: Sequence[TargetUrl]) -> None:
    if not urls:
        raise InputError("no device given")
    for index, url in enumerate(urls):
        if url in urls[:index]:
            raise InputError(f"{url}: is given twice")


def _work_on(url: TargetUrl, work: Work, connection: ConnectionOptions, notify: Callable[[str], None]) -> DeviceOutcome:
    try:
        device = connect(url, connection)
        try:
            for note in device.transport.notes:
                notify(note)
            deployment = work(device, url)
        finally:
            device.transport.close()
    except EdgepipeError as error:
        return DeviceOutcome(url, error=error)
    return DeviceOutcome(url, deployment)


def worst_exit_code(outcomes: Sequence[DeviceOutcome]) -> ExitCode:
    """The exit code of all: unreachable before not met before bad input before success."""
    codes = {outcome.exit_code for outcome in outcomes}
    order = (ExitCode.UNREACHABLE, ExitCode.NOT_MET, ExitCode.BAD_INPUT)
    return next((code for code in order if code in codes), ExitCode.SUCCESS)
