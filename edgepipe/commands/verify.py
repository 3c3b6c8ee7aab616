"""`edgepipe verify`: checks a .tflite against devices and limits."""

from collections.abc import Collection, Iterable
from pathlib import Path

from edgepipe.commands.tflite_input import read_tflite
from edgepipe.core import budget
from edgepipe.core.artifact import ArtifactKind
from edgepipe.core.errors import InputError
from edgepipe.core.metric import (
    Finding,
    Judgement,
    Limit,
    Metric,
    Record,
    Suggestion,
    Verdict,
    judge,
    judge_all,
    unavailable_metric,
)
from edgepipe.core.units import Dimension
from edgepipe.devices import device_metrics, device_profile, estimate_limits
from edgepipe.devices.limit_suggestions import suggest_for_limit
from edgepipe.devices.runtime_answer import INSTALLED_TFLM, ask_runtime
from edgepipe.devices.runtimes.release_check import check_release
from edgepipe.devices.runtimes.releases import Release, parse_release
from edgepipe.tflite import integer_check, pruned_zeros
from edgepipe.tflite.model import Model


class Verification(Record):
    """The result of checking a .tflite against devices and limits."""

    path: str
    devices: tuple[str, ...]
    metrics: tuple[Metric, ...]
    findings: tuple[Finding, ...]
    verdicts: tuple[Verdict, ...]
    suggestions: tuple[Suggestion, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def judgement(self) -> Judgement:
        """`met` if every limit was met and no rule was broken; `unknown` if something could not be decided."""
        return judge_all(self.verdicts, self.findings)

    @property
    def met(self) -> bool:
        """Whether every limit was met and no rule was broken; what is unknown is not met."""
        return self.judgement is Judgement.MET


def verify(
    path: Path,
    *,
    devices: Collection[str],
    limits: Iterable[str],
    integer_only: bool,
    zeros_of: Path | None = None,
    runtimes: Collection[str] = (),
    base: Path | None = None,
) -> Verification:
    """Check the .tflite at `path` against devices and limits, and against the zeros of a pruned Keras model.

    Without a device, `ram` is TFLite Micro's tensor arena and `flash` the bytes of the file. A limit on a metric of
    devices holds for each device.

    Args:
        path: the .tflite.
        devices: names or paths of profiles.
        limits: such as `ram=64KiB`.
        integer_only: every operator and tensor must be integer.
        zeros_of: a pruned .keras or .h5 model, whose zeros must be zeros here.
        runtimes: releases that must run every operator right, such as `tflite-runtime==2.14`.
        base: what paths of profiles are relative to; None for the current folder.

    Raises:
        InputError: not a .tflite, an unknown device or release, or a text that is not a limit.
    """
    releases = [parse_release(text) for text in runtimes]
    loaded_devices = [device_profile.load(name, base or Path.cwd()) for name in devices]
    parsed_limits = _parse_limits(list(limits), [device.name for device in loaded_devices])
    model = read_tflite(path)
    device_results = device_metrics.gather(model, loaded_devices, parsed_limits)
    metrics = [*device_metrics.file_metrics(model), *device_results.metrics]
    if not loaded_devices:
        metrics += _file_metrics(model)
    float_findings = integer_check.check_integer_only(model) if integer_only else []
    zero_findings = _zero_findings(model, zeros_of) if zeros_of is not None else []
    verdicts = tuple(judge(limit, metrics) for limit in parsed_limits)
    return Verification(
        path=str(path),
        devices=tuple(device.name for device in loaded_devices),
        metrics=tuple(metrics),
        findings=(*float_findings, *zero_findings, *device_results.findings, *_release_findings(releases, model)),
        verdicts=verdicts,
        suggestions=_build_suggestions(verdicts, model),
        notes=device_results.notes,
    )


def _build_suggestions(verdicts: Iterable[Verdict], model: Model) -> tuple[Suggestion, ...]:
    texts = ((verdict.limit.text(), suggest_for_limit(verdict, model)) for verdict in verdicts)
    return tuple(Suggestion(limit=limit, text=text) for limit, text in texts if text)


def _release_findings(releases: Collection[Release], model: Model) -> list[Finding]:
    return [
        finding.model_copy(update={"device": str(release)})
        for release in releases
        for finding in check_release(release, model)
    ]


def _zero_findings(lite: Model, pruned_path: Path) -> list[Finding]:
    """Findings on zeros of the pruned model that `lite` lost, and on kernels that are not found in it."""
    from edgepipe.models.file_kind import detect_kind
    from edgepipe.models.startup import load_tensorflow

    kind = detect_kind(pruned_path)
    if kind not in (ArtifactKind.KERAS, ArtifactKind.FLOAT):
        raise InputError(f"{pruned_path}: is a {kind}; --zeros-of takes the .keras or .h5 file of a pruned model")
    load_tensorflow()
    from edgepipe.compress.pruning.prunable_kernels import kernels_in_tflite_order
    from edgepipe.models.bridge import bridge
    from edgepipe.models.model_files import load_model

    model = load_model(pruned_path, kind, allow_code=False)
    kernel_checks = pruned_zeros.check_kernels(
        lite, kernels_in_tflite_order(bridge(model).model if kind is ArtifactKind.KERAS else model)
    )
    if not kernel_checks:
        raise InputError(f"{pruned_path}: is not pruned: no kernel has zeros")
    missing_kernel_findings = [
        Finding(rule="pruned-zeros", place=check.layer_name, observed="no tensor of the .tflite is this kernel")
        for check in kernel_checks
        if not check.tensor_name
    ]
    return [*missing_kernel_findings, *pruned_zeros.build_findings(kernel_checks)]


def _parse_limits(limit_texts: list[str], device_names: list[str]) -> list[Limit]:
    limits = budget.parse_max_options(limit_texts)
    return [
        limit.model_copy(update={"device": device})
        for limit in limits
        for device in (device_names if limit.metric in budget.UNIT_BY_DEVICE_METRIC and device_names else [None])
    ]


def _file_metrics(model: Model) -> list[Metric]:
    latency = unavailable_metric(
        "latency", Dimension.SECONDS, "a time holds for a device; name one, such as --device host"
    )
    return [latency, _arena_metric(model), device_metrics.file_size_metric("flash", model.path)]


def _arena_metric(model: Model) -> Metric:
    if reason := estimate_limits.uncovered_reason("tflite-micro", model):
        return unavailable_metric("ram", Dimension.BYTES, reason)
    return device_metrics.arena_metric(model, ask_runtime(INSTALLED_TFLM, model))
