"""A device profile: a YAML file, resolved through what it inherits and validated as a whole.

A profile may `inherit` others (a system, a runtime, a latency fit), later ones overriding earlier ones. The child's
keys win, mappings merge, lists replace. Every problem points at the file, line and column of the value, inherited or
not.
"""

import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, final

from pydantic import BeforeValidator, Field, model_validator

from edgepipe.core import units
from edgepipe.core.artifact import json_digest
from edgepipe.core.config import Document, KeyPath, Options, Quantity, validate
from edgepipe.core.errors import ConfigError, InputError, did_you_mean
from edgepipe.core.metric import Evidence
from edgepipe.core.shipped_files import shipped_folder
from edgepipe.core.units import Dimension
from edgepipe.devices import builtin_operators, citations, inheritance, metric_basis
from edgepipe.devices.calibration.calibration_record import DeviceCalibration
from edgepipe.devices.latency.latency_record import LatencyFit
from edgepipe.devices.latency.processor_kinds import PROCESSOR_KINDS
from edgepipe.devices.metric_basis import CLOCK_FIELD, BasisByMetric, Change, MetricBasis
from edgepipe.devices.runtimes.releases import parse_release

PROFILE_SUFFIXES = (".yaml", ".yml")
TRANSFER_CLOCK_ERROR = 0.3  # as of Cortex-A, the largest: what a transfer was fitted on is read later
DType = Literal[
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "int4",
    "uint4",
    "int2",
    "bool",
    "float16",
    "bfloat16",
    "float32",
    "float64",
    "complex64",
    "string",
    "resource",  # a handle of a variable or table
    "variant",
]


def _parse_bytes(quantity: Any) -> int:
    return round(units.parse(quantity, Dimension.BYTES))


def _parse_operators(operator_names: Any) -> tuple[str, ...] | None:
    if operator_names == "all":
        return None
    if isinstance(operator_names, list) and operator_names and all(isinstance(name, str) for name in operator_names):
        return tuple(operator_names)
    raise ValueError("must be `all` or a list of TFLite operators such as CONV_2D")


RuleName = Literal[  # a test compares these with edgepipe.devices.accelerator_rules, which needs NumPy
    "static-shapes",
    "batch-one",
    "constant-parameters",
    "three-dimensions",
    "plain-activation",
    "equal-dilation",
    "one-row",
    "zero-padding",
    "softmax-size",
    "keeps-batch",
    "mean-depth",
    "unit-strides",
    "prelu-per-channel",
    "per-tensor",
]


def _check_release(text: Any) -> str:
    try:
        parse_release(str(text))
    except InputError as error:
        raise ValueError(str(error)) from None
    return str(text)


ReleaseText = Annotated[str, BeforeValidator(_check_release, json_schema_input_type=str | float)]
Bytes = Annotated[int, BeforeValidator(_parse_bytes, json_schema_input_type=int | str), Field(gt=0)]
PositiveNumber = Annotated[float, Field(gt=0)]
Hertz = Annotated[float, Quantity(Dimension.FREQUENCY), Field(gt=0)]
OperatorNames = Annotated[
    tuple[str, ...] | None, BeforeValidator(_parse_operators, json_schema_input_type=Literal["all"] | list[str])
]


@final
class MemoryBank(Options):
    """One memory of the device, for activations or weights, or a cache."""

    name: str = Field(description="as in the datasheet, for example DTCM, AXI SRAM, QSPI flash")
    kind: Literal["ram", "flash", "cache"]
    size: Bytes = Field(description="in bytes, written as 512 KiB")
    bandwidth: Annotated[float, Field(gt=0)] | None = Field(default=None, description="peak, in bytes per second")
    external: bool = Field(default=False, description="off-chip, and so slower than on-chip memory")


@final
class DeviceMemory(Options):
    """The memory available to a model; absent where the host's own memory is the limit."""

    ram: Bytes | None = Field(default=None, description="RAM in bytes, written as 640 KiB")
    flash: Bytes | None = Field(default=None, description="flash or other storage in bytes, written as 2 MiB")
    banks: tuple[MemoryBank, ...] = Field(default=(), description="each memory, fastest first")
    allow_external: bool = Field(
        default=False,
        description="what on-chip memory does not hold may land off-chip; without it, that is a finding",
    )

    @model_validator(mode="after")
    def _check_order(self) -> "DeviceMemory":
        for kind in ("ram", "flash"):
            banks = [bank for bank in self.banks if bank.kind == kind]
            for faster_bank, bank in itertools.pairwise(banks):
                if faster_bank.external and not bank.external:
                    raise ValueError(
                        f"`banks` go from the fastest to the slowest: '{bank.name}' is on-chip and belongs before "
                        f"'{faster_bank.name}'"
                    )
        return self


@final
class VelaOptions(Options):
    """Vela's settings for this accelerator: names in its configuration file, Arm/vela.ini."""

    accelerator: str = Field(description="for example ethos-u55-128")
    system_config: str = Field(description="clock and memories, for example Ethos_U55_High_End_Embedded")
    memory_mode: str = Field(description="which data goes to which memory, for example Shared_Sram")
    invoke: Annotated[float, Quantity(Dimension.SECONDS), Field(ge=0)] = Field(
        default=0.0, description="overhead per inference on top of the cycles that Vela counts"
    )


@final
class Npu(Options):
    """A neural accelerator beside the core."""

    name: str
    clock: Hertz | None = Field(default=None, description="in hertz, written as 500 MHz")
    macs_per_cycle: Annotated[int, Field(gt=0)] | None = None
    operators: OperatorNames = Field(
        description="the TFLite operators it supports, or `all`; the others run on the core"
    )
    dtypes: tuple[DType, ...] = Field(min_length=1, description="types of the tensors it computes on")
    state_dtypes: tuple[DType, ...] = Field(
        default=(), description="further types of the states that it keeps from one call to the next"
    )
    rules: tuple[RuleName, ...] = Field(
        default=(), description="what it requires of an operator besides name and types"
    )
    learned_from: Literal["coral-pairs"] | None = Field(
        default=None, description="published models before and after its compiler, which show what that maps"
    )
    partitions: Literal["one", "any"] = Field(
        default="any", description="`one`: whatever depends on an unsupported operator runs on the core too"
    )
    channels: Annotated[int, Field(gt=1)] | None = Field(
        default=None, description="it computes in blocks of this many channels, padded if needed"
    )
    vela: VelaOptions | None = Field(default=None, description="of an Arm Ethos-U")


@final
class System(Options):
    """The hardware."""

    core: str = Field(description="for example Cortex-M4F")
    architecture: str = Field(description="for example Armv7E-M")
    cores: Annotated[int, Field(ge=1)] | None = None
    clock: Hertz | None = Field(default=None, description="in hertz, written as 120 MHz")
    memory: DeviceMemory = DeviceMemory()
    npu: Npu | None = None

    @property
    def is_32_bit(self) -> bool:
        """Whether pointers have four bytes: Arm's M profile, Armv7 and older, Xtensa, 32-bit RISC-V."""
        return re.match(r"Armv\S*-M\b|Armv[1-7]|Xtensa|RV32", self.architecture, re.IGNORECASE) is not None


@final
class RuntimeProfile(Options):
    """The interpreter or compiler that runs the model."""

    name: Literal["litert", "tflite-micro", "vela", "x-cube-ai", "neural-art", "openvx", "edgetpu"]
    version: str = Field(description="the version that the operator list applies to")
    release: ReleaseText | None = Field(
        default=None,
        description="the package and version that must run every operator right, for example tflite-runtime==2.14; "
        "without one, only the lists of operators and types count",
    )
    kernels: str | None = Field(default=None, description="kernel library, for example CMSIS-NN or XNNPACK")
    threads: Annotated[int, Field(ge=1)] = 1
    code: Bytes | None = Field(default=None, description="flash for the runtime's own code")
    ram: Bytes | None = Field(default=None, description="RAM for the runtime besides activations")


@final
class LatencyTransfer(Options):
    """A latency from the fit of another device of the same kind, scaled by clock and one measured factor."""

    device: str = Field(description="the profile that has the fit")
    scale: Annotated[float, Field(gt=0)] = Field(
        default=1.0, description="measured latency over what the clock ratio alone predicts"
    )
    error: Annotated[float, Field(ge=0)] = Field(description="standard deviation of the log error around that factor")
    points: Annotated[int, Field(ge=0)] = Field(description="measurements of this device; 0: scaled by the clock alone")
    source: str = Field(description="where scale and error come from")
    fit: LatencyFit | None = Field(default=None, description="the fit of that device; read from its profile")


MetricMethod = Literal[
    "host", "tflite-micro", "file", "program", "vela", "fit", "transfer", "calibration", "plan", "weights"
]  # fmt: skip


@final
class MetricSource(Options):
    """How a metric is obtained on this device, or why it is not."""

    evidence: Evidence
    by: MetricMethod | None = Field(
        default=None,
        description="host: run here; tflite-micro: its allocator; vela: compiled; file: counted from the artifact; "
        "fit: operator costs fitted to measurements; transfer: the fit of another device, scaled by clock and a "
        "factor; calibration: fitted to a suite measured on the device; plan: from the planned arena; "
        "weights: from the constants of the .tflite; program: the .tflite and the runtime's code",
    )
    fit: LatencyFit | None = Field(default=None, description="for `by: fit`; written by `edgepipe device fit`")
    transfer: LatencyTransfer | None = Field(default=None, description="for `by: transfer`")
    calibration: DeviceCalibration | None = Field(
        default=None, description="for `by: calibration`; `edgepipe device calibrate`"
    )
    reason: str | None = Field(default=None, description="for `unavailable`: why, and what would make it available")
    ratio: PositiveNumber | None = Field(
        default=None, description="for `plan`: activations are this multiple of the arena"
    )
    plus: Bytes | None = Field(default=None, description="for an estimate: constant part, added for any model")
    per_operator: Bytes | None = Field(default=None, description="for an estimate: added per operator")
    per_kind: Bytes | None = Field(default=None, description="for `program`: added per kind of operator")
    interval: tuple[PositiveNumber, PositiveNumber] | None = Field(
        default=None,
        description="for an estimate: true values were between these multiples of it (for `weights` and `program`: "
        "of the code)",
    )
    points: Annotated[int, Field(gt=0)] | None = Field(default=None, description="number of models in the fit")

    @model_validator(mode="after")
    def _check_evidence(self) -> "MetricSource":
        unavailable = self.evidence is Evidence.UNAVAILABLE
        if unavailable and (self.reason is None or self.by is not None):
            raise ValueError("`unavailable` needs a `reason` (why, and what would make it available) and no `by`")
        if not unavailable and (self.by is None or self.reason is not None):
            raise ValueError(f"`{self.evidence}` needs `by` ({', '.join(_EVIDENCE_BY_METHOD)}) and no `reason`")
        if self.by is not None and self.evidence is not _EVIDENCE_BY_METHOD[self.by]:
            raise ValueError(
                f"`by: {self.by}` gives `evidence: {_EVIDENCE_BY_METHOD[self.by]}`, found `{self.evidence}`"
            )
        for name in ("fit", "transfer", "calibration"):
            if (self.by == name) != (getattr(self, name) is not None):
                raise ValueError(f"`{name}` belongs to `by: {name}`, and `by: {name}` needs it")
        return self

    @model_validator(mode="after")
    def _check_estimate_fields(self) -> "MetricSource":
        required_fields = _REQUIRED_FIELDS_BY_METHOD.get(self.by or "", ())
        missing_fields = [name for name in required_fields if getattr(self, name) is None]
        allowed_fields = (*required_fields, *_OPTIONAL_FIELDS_BY_METHOD.get(self.by or "", ()))
        extra_fields = [
            name for name in _ESTIMATE_FIELDS if name not in allowed_fields and getattr(self, name) is not None
        ]
        if missing_fields:
            raise ValueError(f"`by: {self.by}` needs `{missing_fields[0]}`")
        if extra_fields:
            owners_text = " or ".join(
                f"`by: {method}`"
                for method, required_names in _REQUIRED_FIELDS_BY_METHOD.items()
                if extra_fields[0] in (*required_names, *_OPTIONAL_FIELDS_BY_METHOD[method])
            )
            raise ValueError(f"`{extra_fields[0]}` belongs to {owners_text}")
        if self.interval is not None and self.interval[0] > self.interval[1]:
            raise ValueError(f"`interval` must go from the lower to the higher, found {list(self.interval)}")
        return self


_EVIDENCE_BY_METHOD = {
    "host": Evidence.MEASURED,
    "tflite-micro": Evidence.SIMULATED,
    "vela": Evidence.SIMULATED,
    "file": Evidence.EXACT,
    "program": Evidence.ESTIMATED,
    "fit": Evidence.ESTIMATED,
    "transfer": Evidence.ESTIMATED,
    "calibration": Evidence.ESTIMATED,
    "plan": Evidence.ESTIMATED,
    "weights": Evidence.ESTIMATED,
}
_REQUIRED_FIELDS_BY_METHOD = {
    "plan": ("ratio", "interval"),
    "weights": ("interval",),
    "program": ("interval",),
}  # mandatory fields of each kind of estimate
_OPTIONAL_FIELDS_BY_METHOD = {
    "plan": ("plus", "per_operator", "points"),
    "weights": ("plus", "per_operator", "points"),
    "program": ("plus", "per_kind", "points"),
}
_ESTIMATE_FIELDS = ("ratio", "plus", "per_operator", "per_kind", "interval", "points")


@final
class Device(Options):
    """A resolved profile."""

    name: str = Field(description="as used in pipelines; equal to the file name")
    description: str
    sources: dict[str, str] = Field(
        default_factory=dict, description="the citation of each field and everything below it"
    )
    system: System
    runtime: RuntimeProfile
    dtypes: tuple[DType, ...] = Field(min_length=1, description="tensor types that the runtime supports")
    operators: OperatorNames = Field(description="the TFLite operators that run on the core, or `all`")
    custom_operators: tuple[str, ...] = Field(default=(), description="custom operators of the runtime, by custom code")
    rules: tuple[RuleName, ...] = Field(default=(), description="what else the runtime requires of an operator")
    integer_only: bool = Field(
        default=False, description="a float tensor is a finding, even if the runtime supports it"
    )
    latency: MetricSource
    ram: MetricSource
    flash: MetricSource


def load(name_or_path: str, base: Path, folders: tuple[Path, ...] = ()) -> Device:
    """The device of that name from `folders` or the profiles shipped with edgepipe, or from the user's own file.

    Args:
        name_or_path: a name such as `nucleo-l4r5zi`, or a path ending in .yaml, relative to `base`.
        base: the folder that relative paths start from.
        folders: searched before the shipped profiles.

    Raises:
        InputError: no such device, or an abstract one.
        ConfigError: the profile, or one it inherits, is invalid; lists all problems with file, line and column.
    """
    device, file = _read_profile(name_or_path, base, folders)
    transfer = device.latency.transfer
    return _with_transfer_fit(device, file, folders) if transfer and transfer.fit is None else device


def _read_profile(name_or_path: str, base: Path, folders: tuple[Path, ...]) -> tuple[Device, Path]:
    """The device as in its profile, without the fit of a transfer, and the profile's file.

    A metric that it inherits and that does not hold for what it changes is scaled, or unavailable with the reason.
    """
    search_folders = (*folders, shipped_folder("devices"))
    file = _find_profile_path(name_or_path, base, search_folders)
    profile = inheritance.resolve_profile(file, search_folders)
    document = profile.document
    document.raise_problems()
    if document.content.pop(inheritance.ABSTRACT_KEY, False) is True:  # this call owns the resolved data
        raise InputError(
            f"device '{name_or_path}' is abstract and can only be inherited; devices: {_device_names_text(folders)}"
        )
    device = validate(document, (), document.content, Device)
    _check_names(document, file)
    document.raise_problems()
    assert device is not None, "a document without problems has a value"
    return _with_held_metrics(device, document.content, profile.bases), file


def _with_held_metrics(device: Device, content: dict[str, Any], bases: BasisByMetric) -> Device:
    """`device` with each metric as it holds for the system and the runtime of this profile."""
    return device.model_copy(
        update={key: _hold_metric(key, device, content, bases[key]) for key in metric_basis.METRIC_KEYS}
    )


def _hold_metric(key: str, device: Device, content: dict[str, Any], basis: MetricBasis) -> MetricSource:
    metric_source: MetricSource = getattr(device, key)
    before = _validate_basis(content, basis)
    if before is None:
        return _lost_metric(key, basis.profile_name, ["that profile is not valid by itself"])
    changes = metric_basis.find_changes(metric_source.by, device.model_dump(), before.model_dump())
    clock = device.system.clock if _follows_clock(metric_source) else None
    lost_changes = [change for change in changes if change.field != CLOCK_FIELD or clock is None]
    if lost_changes:
        return _lost_metric(key, basis.profile_name, lost_changes)
    return metric_source if clock is None else _at_clock(metric_source, clock, before.system.clock, basis.profile_name)


def _validate_basis(content: dict[str, Any], basis: MetricBasis) -> Device | None:
    """The profile as it was when the metric was stated; where that lacked a mandatory field, the present one counts."""
    basis_contents = (basis.content, metric_basis.fill(basis.content, content))
    devices = (validate(Document("basis"), (), {**content, **part}, Device) for part in basis_contents)
    return next((device for device in devices if device is not None), None)


def _follows_clock(metric_source: MetricSource) -> bool:
    """Whether a latency is scaled by the clock of the core."""
    if metric_source.fit is not None:
        return PROCESSOR_KINDS[metric_source.fit.kind].clock_error is not None
    return metric_source.transfer is not None


def _at_clock(metric_source: MetricSource, clock: float, clock_before: float | None, parent_name: str) -> MetricSource:
    """A fit of another clock as a transfer; a transfer to another clock with the error of that on top of its own."""
    fit, transfer = metric_source.fit, metric_source.transfer
    if fit is not None and clock != fit.clock:
        transfer = LatencyTransfer(device=parent_name, error=0.0, points=0, source="", fit=fit)
        clock_before, clock_error = fit.clock, PROCESSOR_KINDS[fit.kind].clock_error or 0.0
    elif transfer is not None and clock_before is not None and clock != clock_before:
        clock_error = TRANSFER_CLOCK_ERROR
    else:
        return metric_source
    clock_error = min(clock_error, abs(math.log(clock / clock_before)))  # at most all of it does not follow the clock
    source_text = (
        f"nothing was measured at {units.show(clock, Dimension.FREQUENCY)}, only at "
        f"{units.show(clock_before, Dimension.FREQUENCY)}; an error of {clock_error:.2g} in the logarithm is assumed"
    )
    update = {
        "error": math.hypot(transfer.error, clock_error),
        "source": f"{transfer.source}; {source_text}" if transfer.source else source_text,
    }
    return MetricSource(evidence=Evidence.ESTIMATED, by="transfer", transfer=transfer.model_copy(update=update))


def _lost_metric(key: str, parent_name: str, changes: Sequence[Change | str]) -> MetricSource:
    remedies = {"latency": "state it anew with `edgepipe device fit`, `edgepipe device calibrate` or `by: transfer`"}
    remedy = remedies.get(key, f"state `{key}` anew, or inherit the runtime that has it")
    reason = f"the {key} of '{parent_name}' does not hold here: {'; '.join(map(str, changes))}; {remedy}"
    return MetricSource(evidence=Evidence.UNAVAILABLE, reason=reason)


def _with_transfer_fit(device: Device, file: Path, folders: tuple[Path, ...]) -> Device:
    """`device` with the fit that its latency is transferred from, so that its digest covers the fit too."""
    transfer = device.latency.transfer
    assert transfer is not None, "only called for a transfer"
    try:
        fitted_device, _ = _read_profile(transfer.device, file.parent, folders)
    except ConfigError:
        raise  # it already names file and position
    except InputError as error:
        raise InputError(f"{file}: latency.transfer.device: {error}") from None
    fit = _own_fit(fitted_device)
    if fit is None or device.system.clock is None:
        reason = "it has no clock" if fit else f"'{transfer.device}' has no fitted latency"
        raise InputError(
            f"{file}: latency.transfer: '{device.name}' cannot use the latency of another device: {reason}"
        )
    complete_transfer = transfer.model_copy(update={"fit": fit})
    return device.model_copy(update={"latency": device.latency.model_copy(update={"transfer": complete_transfer})})


def _own_fit(device: Device) -> LatencyFit | None:
    """The fit of `device`, at the clock it was measured at."""
    return device.latency.fit or (device.latency.transfer.fit if device.latency.transfer else None)


def _find_profile_path(name_or_path: str, base: Path, search_folders: tuple[Path, ...]) -> Path:
    if name_or_path.endswith(PROFILE_SUFFIXES):
        return base / name_or_path
    profile_path = inheritance.find_profile(name_or_path, search_folders)
    if profile_path is None:
        known_names = device_names(search_folders[:-1])
        raise InputError(
            f"unknown device '{name_or_path}'{did_you_mean(name_or_path, known_names)} "
            "(the path of a .yaml file is also allowed)"
        )
    return profile_path


def _device_names_text(folders: tuple[Path, ...]) -> str:
    return ", ".join(device_names(folders))


def _check_names(document: Document, file: Path) -> None:
    """Report a name that differs from the file name, and unknown operators."""
    profile_data = document.content if isinstance(document.content, dict) else {}
    if isinstance(profile_data.get("name"), str) and profile_data["name"] != file.stem:
        document.add_problem(("name",), f"'{profile_data['name']}' must equal the name of its file, '{file.stem}'")
    npu = profile_data["system"].get("npu") if isinstance(profile_data.get("system"), dict) else None
    for path, owner_data in ((("operators",), profile_data), (("system", "npu", "operators"), npu)):
        operator_names = owner_data.get("operators") if isinstance(owner_data, dict) else None
        for index, name in enumerate(operator_names if isinstance(operator_names, list) else ()):
            if isinstance(name, str) and name not in builtin_operators.OPERATOR_NAMES:
                suggestion = did_you_mean(name, builtin_operators.OPERATOR_NAMES)
                hint = (
                    suggestion
                    if suggestion.startswith("; did")
                    else "; allowed: the names of TFLite's builtin operators"
                )
                document.add_problem((*path, index), f"unknown operator '{name}'{hint}")


def device_names(folders: tuple[Path, ...] = ()) -> list[str]:
    """The devices in `folders` and the shipped ones, sorted; without abstract profiles."""
    files = (file for folder in (*folders, shipped_folder("devices")) for file in sorted(folder.glob("*.yaml")))
    return sorted({file.stem for file in files if not inheritance.is_abstract(file)})


def stated_numbers_by_path(device: Device) -> dict[KeyPath, float]:
    """Every number in the profile by its path, in base units; without those of fitted records."""
    profile_data = device.model_dump(mode="json", exclude_unset=True)
    value_by_path = {path: _value_at(profile_data, path) for path in citations.leaf_paths(profile_data)}
    return {
        path: number
        for path, number in value_by_path.items()
        if isinstance(number, (int, float))
        and number is not True
        and number is not False
        and path[1:2] not in _SELF_CITED_FIELDS
    }


_SELF_CITED_FIELDS = (("fit",), ("transfer",), ("calibration",))  # records that hold their own source


def _value_at(tree: Any, path: KeyPath) -> Any:
    return _value_at(tree[path[0]], path[1:]) if path else tree


def digest(device: Device) -> str:
    """SHA-256 of the resolved content: equal for equal profiles, however they are split into files."""
    return json_digest(device.model_dump(mode="json"))
