"""What a checked pipeline will lack or not reach, found before anything runs and without TensorFlow.

A package that data or a stage cannot do without stops the run at once. What the run itself would report in the end - a
limit that no number can meet, preprocessing that does not fit - is a finding.
"""

from importlib.util import find_spec

from edgepipe.core.errors import ToolError
from edgepipe.core.metric import Evidence, Finding, Judgement, Limit
from edgepipe.data.data_spec import CsvSpec, FunctionSpec, ParquetSpec, SoundSpec
from edgepipe.devices.device_profile import Device, MetricSource
from edgepipe.pipeline.schema import Pipeline, Step
from edgepipe.stages.compile import Compile
from edgepipe.stages.deploy import Deploy
from edgepipe.stages.validate import Validate

_NPU_METRIC = "npu_operators"
_PACKAGE_BY_MODULE = {"ethosu": "ethos-u-vela"}


def find_early_findings(pipeline: Pipeline) -> list[Finding]:
    """Every rule that the pipeline is bound to break as it is written."""
    return [*_preprocessing_findings(pipeline), *_runtime_findings(pipeline), *_limit_findings(pipeline)]


def require_tools(pipeline: Pipeline) -> None:
    """Raise a `ToolError` that names every package which data or stages need and which is not installed."""
    missing_texts = find_missing_tools(pipeline)
    if missing_texts:
        raise ToolError("\n".join(missing_texts))


def find_missing_tools(pipeline: Pipeline) -> list[str]:
    """What data and stages need and is not installed, with who needs it and how to get it."""
    needed_packages = [("data", name, extra) for name, extra in _data_packages(pipeline)]
    needed_packages += [(step.name, "ethosu", "npu") for step in pipeline.steps if isinstance(step.stage, Compile)]
    needed_packages += [(step.name, "paramiko", "deploy") for step in pipeline.steps if _deploys_over_ssh(step)]
    return [
        f"{user}: needs {_PACKAGE_BY_MODULE.get(module, module)}, which is not installed: "
        f'pip install "edgepipe[{extra}]"'
        for user, module, extra in needed_packages
        if find_spec(module) is None
    ]


def _deploys_over_ssh(step: Step) -> bool:
    return isinstance(step.stage, Deploy) and any(address.startswith("ssh:") for address in step.stage.to)


def _data_packages(pipeline: Pipeline) -> list[tuple[str, str]]:
    """Modules that reading the data imports, and the extra of edgepipe that each belongs to."""
    data = pipeline.data
    if isinstance(data, SoundSpec):
        return [("librosa", "data"), ("soundfile", "data")]
    if isinstance(data, ParquetSpec):
        return [("pandas", "data"), ("pyarrow", "data")]
    if isinstance(data, CsvSpec):
        return [("pandas", "data")]
    is_recordings = isinstance(data, FunctionSpec) and data.function.startswith("edgepipe.data.recordings:")
    return [("aeon", "examples")] if is_recordings else []


def _validations(pipeline: Pipeline) -> list[tuple[Step, Validate]]:
    return [(step, step.stage) for step in pipeline.steps if isinstance(step.stage, Validate)]


def _runtime_findings(pipeline: Pipeline) -> list[Finding]:
    """The runtime of a device would run the model here, and is not installed."""
    reason = _missing_tflm_reason()
    devices = [
        device for _, validate in _validations(pipeline) for device in validate.load_devices(pipeline.base_folder)
    ]
    return [
        Finding(
            rule="runs",
            place=f"validate, {device.name}",
            observed=f"nothing can be run: {reason}",
            device=device.name,
            judgement=Judgement.UNKNOWN,
        )
        for device in devices
        if reason and device.runtime.name == "tflite-micro" and device.runtime.release is None
    ]


def _missing_tflm_reason() -> str:
    if find_spec("tflite_micro") is not None:
        return ""
    from edgepipe.tflite import tflm_runtime

    return tflm_runtime.missing_reason()


def _limit_findings(pipeline: Pipeline) -> list[Finding]:
    """A limit on a metric that the device's profile has not, or that needs a package which is not installed."""
    findings = []
    for step, validate in _validations(pipeline):
        device_by_name = {device.name: device for device in validate.load_devices(pipeline.base_folder)}
        for limit in validate.read_budget(step.pipeline):
            device = device_by_name.get(limit.device or "")
            reason = "" if device is None or limit.optional else _unavailable_reason(limit, device)
            if reason:
                findings.append(_limit_finding(step.name, limit, reason))
    return findings


def _unavailable_reason(limit: Limit, device: Device) -> str:
    """Why there will be no number to judge `limit` by; empty if there will be one."""
    if limit.metric == _NPU_METRIC:
        return "" if device.system.npu is not None else "it has no NPU"
    source: MetricSource = getattr(device, limit.metric)
    if source.evidence is Evidence.UNAVAILABLE:
        return str(source.reason)
    if limit.evidence is not None and limit.evidence is not source.evidence:
        return f"its evidence is '{source.evidence}', the budget demands '{limit.evidence}'"
    if source.by == "vela":
        from edgepipe.devices.vela import vela_compiler

        return vela_compiler.unavailable_reason()
    return _missing_tflm_reason() if source.by == "tflite-micro" else ""


def _limit_finding(step_name: str, limit: Limit, reason: str) -> Finding:
    return Finding(
        rule="limit",
        place=f"{step_name}, {limit.text()}",
        observed=f"nothing will tell whether it is met: {reason}",
        suggestion="drop the limit, or write `optional: true` beside its `max`",
        judgement=Judgement.UNKNOWN,
    )


def _preprocessing_findings(pipeline: Pipeline) -> list[Finding]:
    """The model expects other values than `rescale` gives."""
    data, source = pipeline.data, pipeline.source
    if data is None or source.path is None:
        return []
    from edgepipe.data.rescale_choice import choose_rescale, present_choice
    from edgepipe.models.input_expectations import read_expectations
    from edgepipe.tflite.input_expectation import PREPROCESSING_RULE

    present = present_choice(data, pipeline.base_folder)
    expectations = read_expectations(pipeline.base_folder / source.path, source.trained_range)
    if present is None or len(expectations) != 1 or expectations[0].fits(present[0].low, present[0].high):
        return []
    choice = choose_rescale(expectations[0], present[1])
    remedy = (
        f"write `rescale: {choice.mode}` under `data:`"
        if choice is not None
        else "no `rescale` gives that: preprocess in a function, or in the model"
    )
    return [
        Finding(
            rule=PREPROCESSING_RULE,
            place="data.rescale",
            observed=f"the model {expectations[0].describe()}; `rescale: {data.rescale}` gives {present[0].low:g} to "
            f"{present[0].high:g}",
            suggestion=remedy,
        )
    ]
