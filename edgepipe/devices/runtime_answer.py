"""Whether the runtime of a device runs a model: each runtime answers for itself, and for no other.

A runtime that is installed here runs the model once in the sandbox. Of the others only the operator lists of their
profile are known; `support_check` reports what those forbid.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from edgepipe.core.errors import ToolError
from edgepipe.core.metric import Finding, Judgement
from edgepipe.core.references import installed_version
from edgepipe.devices.device_profile import RuntimeProfile
from edgepipe.devices.estimate_limits import has_open_input
from edgepipe.tflite import interpreter, tflm_runtime
from edgepipe.tflite.child_process import ChildError
from edgepipe.tflite.interpreter import Runtime
from edgepipe.tflite.model import NUMPY_TYPES, Model
from edgepipe.tflite.tflm_runtime import ArenaRecord

RULE_NAME = "runs"
INSTALLED_TFLM = RuntimeProfile(name="tflite-micro", version="as installed")  # whose arena is wanted without a device
RELEASE_REASON = "by the table of releases; nothing was run"
LISTS_REASON = "by the operator lists of the profile; nothing was run"
# Custom operators that the packages are built with, by custom code; XNNPACK has the first four of LiteRT's. A test asks
# the packages.
LITERT_CUSTOM_OPERATORS = frozenset(
    {
        *("Convolution2DTransposeBias", "MaxPoolingWithArgmax2D", "MaxUnpooling2D", "NumericVerify"),
        *("AudioSpectrogram", "Mfcc", "TFLite_Detection_PostProcess"),
    }
)
TFLM_CUSTOM_OPERATORS = frozenset(
    {
        *("CIRCULAR_BUFFER", "SignalDelay", "SignalEnergy", "SignalFftAutoScale", "SignalFilterBank"),
        *("SignalFilterBankLog", "SignalFilterBankSpectralSubtraction", "SignalFilterBankSquareRoot", "SignalFramer"),
        *("SignalIrfft", "SignalOverlapAdd", "SignalPCAN", "SignalRfft", "SignalStacker", "SignalWindow"),
        *("TFLM_DECODE", "TFLite_Detection_PostProcess"),
    }
)


class RunState(StrEnum):
    """What a runtime does with a model."""

    RUNS = "runs"
    REFUSES = "refuses"
    CRASHES = "crashes"
    UNKNOWN = "unknown"  # nothing here can tell


@dataclass(frozen=True)
class RuntimeAnswer:
    """What one runtime does with one model; `reason` is in its own words if it does not run it."""

    state: RunState
    runtime: str  # name and version of what answered
    reason: str = ""
    suggestion: str = ""
    arena_record: ArenaRecord | None = None  # of TensorFlow Lite Micro, if it ran the model here

    def findings(self, model: Model) -> list[Finding]:
        """One finding unless the model runs."""
        if self.state is RunState.RUNS:
            return []
        return [
            Finding(
                rule=RULE_NAME,
                place=model.path.name,
                observed=self.reason,
                suggestion=self.suggestion,
                judgement=Judgement.UNKNOWN if self.state is RunState.UNKNOWN else Judgement.NOT_MET,
            )
        ]


def ask_runtime(runtime: RuntimeProfile, model: Model) -> RuntimeAnswer:
    """Whether `runtime` runs `model`, by a run here if it is installed, else by the lists of its profile.

    Custom operators that the package here is not built with leave it to the lists, too, and a profile that names a
    release leaves it to the table of releases.
    """
    package = _PACKAGES.get(runtime.name)
    if runtime.release is not None:
        return _answer_of_release(runtime, package, model)
    if package is None or _has_foreign_operators(package, model):
        return RuntimeAnswer(RunState.RUNS, f"{runtime.name} {runtime.version}", LISTS_REASON)
    if unfilled_text := _describe_unfilled_input(model):
        return RuntimeAnswer(RunState.UNKNOWN, runtime.name, unfilled_text, "run the model on the device")
    return package.ask(runtime, model)


def _answer_of_release(runtime: RuntimeProfile, package: "_RuntimePackage | None", model: Model) -> RuntimeAnswer:
    """The table decides, through `support_check`; a run here only adds the arena."""
    answer = package.ask(runtime, model) if package is not None else None
    if answer is not None and answer.state is RunState.RUNS:
        return answer
    return RuntimeAnswer(RunState.RUNS, str(runtime.release), RELEASE_REASON)


def is_installed(runtime: RuntimeProfile) -> bool:
    """Whether there is a package of `runtime` that runs models here."""
    return runtime.name in _PACKAGES


def _has_foreign_operators(package: "_RuntimePackage", model: Model) -> bool:
    return any(operator.is_custom and operator.name not in package.custom_operators for operator in model.operators)


def _describe_unfilled_input(model: Model) -> str:
    """Why a run here is not possible whatever the runtime does; empty if it is."""
    for name, tensor in model.inputs_by_name.items():
        if tensor.dtype not in NUMPY_TYPES:
            return f"nothing was run: input '{name}' is {tensor.dtype}, which edgepipe cannot fill"
    return ""


def _ask_litert(runtime: RuntimeProfile, model: Model) -> RuntimeAnswer:
    kernels = Runtime.XNNPACK if runtime.kernels == "XNNPACK" else Runtime.BUILTIN
    runtime_text = f"LiteRT {installed_version('ai-edge-litert')}"
    try:
        interpreter.check_runs(model.path, kernels)
    except ChildError as error:
        return _describe_failure(error, model, runtime_text)
    return RuntimeAnswer(RunState.RUNS, runtime_text)


def _ask_tflm(_: RuntimeProfile, model: Model) -> RuntimeAnswer:
    try:
        arena_record = tflm_runtime.run_on_zeros(model.path)
    except ToolError as error:
        return RuntimeAnswer(RunState.UNKNOWN, "TensorFlow Lite Micro", f"nothing was run: {error}")
    except ChildError as error:
        return _describe_failure(error, model, tflm_runtime.runtime_name())
    return RuntimeAnswer(RunState.RUNS, tflm_runtime.runtime_name(), arena_record=arena_record)


def _describe_failure(error: ChildError, model: Model, runtime_text: str) -> RuntimeAnswer:
    """A refusal or a crash is the runtime's answer; a time limit, missing memory or open sizes leave it unknown."""
    reason = f"{str(error).removeprefix(f'{model.path}: ')} ({runtime_text})"
    if has_open_input(model):
        reason = f"a size of the inputs is open, and with the 1 that the file holds for it: {reason}"
        return RuntimeAnswer(RunState.UNKNOWN, runtime_text, reason, "give the input a fixed shape and convert again")
    if error.is_refusal:
        suggestion = "replace the layers that the message names, or use another runtime"
        return RuntimeAnswer(RunState.REFUSES, runtime_text, reason, suggestion)
    if error.is_crash:
        suggestion = "convert the model again, or use another release of the runtime"
        return RuntimeAnswer(RunState.CRASHES, runtime_text, reason, suggestion)
    return RuntimeAnswer(RunState.UNKNOWN, runtime_text, reason, "run the model on the device")


@dataclass(frozen=True)
class _RuntimePackage:
    """A runtime that is installed here: how to ask it, and the custom operators that it is built with."""

    ask: Callable[[RuntimeProfile, Model], RuntimeAnswer]
    custom_operators: frozenset[str]


_PACKAGES = {
    "litert": _RuntimePackage(_ask_litert, LITERT_CUSTOM_OPERATORS),
    "tflite-micro": _RuntimePackage(_ask_tflm, TFLM_CUSTOM_OPERATORS),
}
