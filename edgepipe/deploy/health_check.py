"""The proof on the device: the model loads there, computes what it computes here, and is fast enough."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources

from edgepipe.core import budget
from edgepipe.core.errors import InputError
from edgepipe.core.metric import Evidence, Finding, Limit, Metric, Verdict, judge, unavailable_metric
from edgepipe.core.units import Dimension, plural, show
from edgepipe.deploy.board_check import check_board
from edgepipe.deploy.device import Device
from edgepipe.deploy.golden_vectors import GoldenVectors
from edgepipe.deploy.runner_document import RunnerDocument, parse_document
from edgepipe.deploy.transport import DeviceError, RunLimits
from edgepipe.devices.device_profile import Device as DeviceProfile
from edgepipe.devices.runtimes import release_check
from edgepipe.devices.runtimes.releases import parse_release
from edgepipe.tflite.model import Model
from edgepipe.tflite.parity import Parity

RUNNER_FILE = "runner.py"
GOLDEN_FILE = "golden.npz"
RUN_SECONDS = 600.0
MAX_DOCUMENT_BYTES = 256 << 20
NO_PYTHON_STATUS = 127
THROTTLED_SHARE = 0.9  # of the frequency before; below it the processor was slowed down
INSTALL_HINT = (
    "install the runtime there: `python3 -m venv VENV && VENV/bin/pip install ai-edge-litert numpy` (tflite-runtime "
    "with numpy<2 on older Pythons and 32-bit boards), and name it with --python /path/to/VENV/bin/python3; "
    "or add --install"
)


@dataclass(frozen=True)
class MeasurementOptions:
    """How the runner times the model."""

    threads: int = 1
    runs: int = 50
    warm_up: int = 5


@dataclass(frozen=True)
class HealthReport:
    """What the device computed, and how it is judged."""

    document: RunnerDocument
    parity: Parity | None
    metrics: tuple[Metric, ...]
    findings: tuple[Finding, ...]
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing speaks against switching to the model."""
        return not self.findings and all(verdict.met for verdict in self.verdicts)


def parse_limits(texts: Iterable[str]) -> tuple[Limit, ...]:
    """Limits such as `latency=20ms`.

    Raises:
        InputError: no limit, or one on what is not measured on a device.
    """
    limits = budget.parse_max_options(tuple(texts))
    if other_names := sorted({limit.metric for limit in limits} - {"latency", "ram"}):
        raise InputError(
            f"{other_names[0]}: only latency and ram are measured on a device; `edgepipe verify` checks it"
        )
    return tuple(limits)


def runner_source() -> bytes:
    """The file that runs on devices."""
    return resources.files("edgepipe.deploy").joinpath(RUNNER_FILE).read_bytes()


def run_on_device(device: Device, folder: str, options: MeasurementOptions, model_file: str) -> RunnerDocument:
    """Run the runner on the files in `folder`.

    Raises:
        DeviceError: no Python or no runtime there, an answer that is none, or a crash.
    """
    script = 'cd "./$1" && exec "$2" runner.py "$3" --golden golden.npz --threads "$4" --runs "$5" --warm-up "$6"'
    numbers = map(str, (options.threads, options.runs, options.warm_up))
    result = device.run(
        script, folder, device.python, model_file, *numbers, limits=RunLimits(RUN_SECONDS, MAX_DOCUMENT_BYTES)
    )
    if result.status == NO_PYTHON_STATUS:
        raise DeviceError(
            f"{device.name}: '{device.python}' is not there: {result.last_line}; install Python 3.7 or newer "
            "(a device without Python needs the static binary benchmark_model, which edgepipe does not bring)"
        )
    if result.status:
        raise DeviceError(f"{device.name}: the model was not run: {_explain_exit(result.status, result.last_line)}")
    document = parse_document(device.name, result.output)
    if document.missing:
        raise DeviceError(
            f"{device.name}: no runtime for Python {document.host.python} on {document.host.machine} "
            f"({document.missing}); {INSTALL_HINT}"
        )
    return document


def _explain_exit(status: int, last_line: str) -> str:
    if status > 128:
        return f"the runtime crashed there (signal {status - 128}); last output: {last_line}"
    return f"the runner ended with status {status}: {last_line}"


def check_health(
    document: RunnerDocument,
    golden: GoldenVectors,
    limits: Sequence[Limit],
    address: str,
    profile: DeviceProfile | None = None,
) -> HealthReport:
    """Judge what the runner said.

    Args:
        document: of the runner.
        golden: the vectors it was given.
        limits: on `latency` and `ram`.
        address: names the device in metrics, findings and limits where there is no profile.
        profile: of the board that it is said to be.
    """
    device_name = profile.name if profile else address
    if document.refused:
        return HealthReport(document, None, (), tuple(_refusal_findings(document, golden.model, device_name)), (), ())
    parity, findings = _compare_outputs(document, golden, device_name)
    metrics = (_latency_metric(document, device_name), _memory_metric(document, device_name))
    own_limits = [limit.model_copy(update={"device": device_name}) for limit in limits]
    verdicts = tuple(judge(limit, list(metrics)) for limit in own_limits)
    findings += check_board(profile, document.host) if profile else []
    return HealthReport(document, parity, metrics, tuple(findings), verdicts, tuple(_hardware_notes(document)))


def _refusal_findings(document: RunnerDocument, model: Model, device_name: str) -> list[Finding]:
    """That the runtime refuses the model, and the operators that its release is known not to have."""
    assert document.runtime is not None, "a runtime has refused it"
    runtime_text = f"{document.runtime.package} {document.runtime.version}"
    findings = [
        Finding(
            rule="runs-on-device",
            place=str(model.path),
            observed=f"{runtime_text} refuses the model: {document.refused}",
            suggestion=f"convert with --runtime '{runtime_text.replace(' ', '==')}', or install a newer runtime there",
            device=device_name,
        )
    ]
    try:
        release = parse_release(runtime_text)
    except InputError:
        return findings  # a build of its own, which no table knows
    known = [finding for finding in release_check.check_release(release, model) if finding.judgement == "not met"]
    return findings + [finding.model_copy(update={"device": device_name}) for finding in known]


def _compare_outputs(
    document: RunnerDocument, golden: GoldenVectors, device_name: str
) -> tuple[Parity | None, list[Finding]]:
    def finding(observed: str) -> Finding:
        return Finding(
            rule="golden-vectors",
            place=str(golden.model.path),
            observed=observed,
            suggestion="another runtime release there, or convert with --runtime for the one it has",
            device=device_name,
        )

    try:
        parity = golden.compare(document.output_arrays(device_name))
    except InputError as error:
        return None, [finding(f"the device's outputs do not fit: {error}")]
    if golden.tolerance.allows(parity):
        return parity, []
    return parity, [finding(f"{parity.text()}; allowed: {golden.tolerance.text()}")]


def _latency_metric(document: RunnerDocument, device_name: str) -> Metric:
    if document.latency is None or document.runtime is None:
        return unavailable_metric("latency", Dimension.SECONDS, "the runner did not time the model", device_name)
    if document.host.emulator:
        seconds_text = show(document.latency.p50, Dimension.SECONDS)
        reason = (
            f"an emulated processor's time is no latency of a board: {document.host.emulator} took {seconds_text}; "
            "deploy to the board to measure it"
        )
        return unavailable_metric("latency", Dimension.SECONDS, reason, device_name)
    runtime_text = f"{document.runtime.package} {document.runtime.version}"
    return Metric(
        name="latency",
        value=document.latency.p50,
        unit=Dimension.SECONDS,
        evidence=Evidence.MEASURED,
        device=device_name,
        how=f"median of {document.latency.runs} runs there on {runtime_text}, {plural(document.threads, 'thread')}",
        details=_measurement_details(document),
    )


def _measurement_details(document: RunnerDocument) -> dict[str, float | int | str]:
    assert document.latency is not None, "it was timed"
    assert document.runtime is not None, "by a runtime"
    details: dict[str, float | int | str | None] = {
        **document.latency.model_dump(),
        "first": document.first_seconds,
        "load": document.load_seconds,
        "threads": document.threads,
        "version": f"{document.runtime.package} {document.runtime.version}",
        "host": document.host.text(),
        "host_digest": document.host.digest,
        "governor": document.before.governor,
        "temperature_c": max(document.after.temperature_c, default=None),
        "measured_at": document.measured_at,
    }
    return {name: value for name, value in details.items() if value is not None}


def _memory_metric(document: RunnerDocument, device_name: str) -> Metric:
    if document.host.emulator:
        reason = f"the memory is the emulator's ({document.host.emulator}); deploy to the board to measure it"
        return unavailable_metric("ram", Dimension.BYTES, reason, device_name)
    if document.memory is None:
        reason = "the device does not report the peak memory of a process; Linux does, through /proc/self"
        return unavailable_metric("ram", Dimension.BYTES, reason, device_name)
    return Metric(
        name="ram",
        value=document.memory,
        unit=Dimension.BYTES,
        evidence=Evidence.MEASURED,
        device=device_name,
        how="growth of the peak resident memory there by loading and running the model and its golden vectors",
        details={"host": document.host.text(), "host_digest": document.host.digest},
    )


def _hardware_notes(document: RunnerDocument) -> list[str]:
    notes = []
    if document.host.emulator:
        notes.append(f"runs under emulation: {document.host.emulator}")
    flags = sorted({*(document.before.throttling or ()), *(document.after.throttling or ())})
    if flags:
        notes.append(f"the board was slowed down while it was measured: {', '.join(flags)}")
    before, after = max(document.before.frequency_hz, default=0.0), max(document.after.frequency_hz, default=0.0)
    if after < THROTTLED_SHARE * before:
        notes.append(
            f"the frequency fell from {show(before, Dimension.FREQUENCY)} to {show(after, Dimension.FREQUENCY)} "
            "while it was measured"
        )
    if document.before.governor and document.before.governor != "performance":
        notes.append(
            f"the frequency governor is '{document.before.governor}': latency varies more than with 'performance'"
        )
    return notes
