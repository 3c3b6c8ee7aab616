"""The options of `prune`, and what they say about saliency and schedule."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, final

from pydantic import AfterValidator, Field, model_validator

from edgepipe.core.config import Document, KeyPath, Options, Quantity
from edgepipe.core.errors import EdgepipeError
from edgepipe.core.units import Dimension
from edgepipe.devices import device_profile
from edgepipe.stages.base import Expression
from edgepipe.stages.context import PipelineInfo
from edgepipe.stages.training import TrainingStage

if TYPE_CHECKING:
    from edgepipe.compress.pruning.saliency import SaliencySettings
    from edgepipe.compress.pruning.sparsity_schedule import SparsitySchedule


Count = Annotated[float, Quantity(Dimension.COUNT), Field(gt=0)]
Bytes = Annotated[float, Quantity(Dimension.BYTES), Field(gt=0)]
Seconds = Annotated[float, Quantity(Dimension.SECONDS), Field(gt=0)]
Fraction = Annotated[float, Quantity(Dimension.FRACTION), Field(gt=0)]


def _granularity(text: str) -> str:
    if text != "channel":
        from edgepipe.compress.pruning.granularity import parse_granularity

        parse_granularity(text)
    return text


@final
class PruneTargetOptions(Options):
    """What the pruned model is to cost at most; exactly one of the four."""

    parameters: Count | None = Field(default=None, description="weights that are not zero, as 20 k")
    macs: Count | None = Field(default=None, description="multiply-accumulates of one inference, as 2 M; channels only")
    flash: Bytes | None = Field(default=None, description="bytes of the int8 .tflite, as 64 KiB; channels only")
    latency: Seconds | None = Field(
        default=None, description="seconds of one inference on `device`, as 5 ms; channels only"
    )
    device: str | None = Field(default=None, description="the device profile that latency is for")

    @model_validator(mode="after")
    def _one(self) -> "PruneTargetOptions":
        given = [name for name in ("parameters", "macs", "flash", "latency") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"needs exactly one of parameters, macs, flash, latency; found {' and '.join(given) or 'none'}"
            )
        if (self.latency is None) != (self.device is None):
            raise ValueError("`latency` and `device` go together: the time of which device")
        return self


@final
class PruneLayerOptions(Options):
    """What holds for some layers only."""

    sparsity: float | None = Field(default=None, ge=0, lt=1, description="the share of zeros, or of channels, there")


class PruneOptions(TrainingStage):
    """Base of `Prune`, with all of its options, which the modules that do its work read."""

    sparsity: float | None = Field(
        default=None, gt=0, lt=1, description="share that goes, of weights or channels; null takes 0.5 or what N:M says"
    )
    target: PruneTargetOptions | None = Field(
        default=None, description="instead of a share: what the model is to cost at most"
    )
    granularity: Annotated[str, AfterValidator(_granularity)] = Field(
        default="weight", description="what goes together: weight, `block 1x4` (outputs x inputs), `2:4`, or channel"
    )
    saliency: Literal["magnitude", "taylor", "obd", "taylor2", "random"] = Field(
        default="magnitude",
        description="what matters: |w|; |g w|; h w^2/2 (Optimal Brain Damage); h w^2/2 - g w; or nothing",
    )
    hessian: Literal["auto", "exact", "hutchinson", "gauss_newton"] = Field(
        default="auto", description="how obd and taylor2 take h; auto: exact up to 4096 weights, else gauss_newton"
    )
    probes: int = Field(default=32, ge=2, description="random vectors of an estimate of h")
    saliency_samples: int = Field(default=1024, ge=1, description="training samples that saliency is taken on")
    distribution: Literal["uniform", "erk", "global", "per_mac"] | None = Field(
        default=None,
        description="how it is spread over layers; null: uniform, or for channels the best of uniform, global, per_mac",
    )
    schedule: Literal["one_shot", "constant", "polynomial", "cubic", "iterative"] = Field(
        default="polynomial", description="when it goes: at once, along a curve, or in rounds of pruning and training"
    )
    initial_sparsity: float = Field(default=0.0, ge=0, lt=1, description="where polynomial and cubic begin")
    power: float = Field(default=3.0, gt=0, description="exponent of the polynomial schedule")
    ramp: float = Field(
        default=0.75,
        gt=0,
        le=1,
        description="share of the steps over which polynomial and cubic grow; the rest recovers",
    )
    rounds: int = Field(default=5, ge=1, description="of iterative: rounds to the target, each training for `epochs`")
    max_drop: Fraction | None = Field(
        default=None, description="of iterative: the validation quality that may be lost, as 1 point; then it stops"
    )
    min_quality: Fraction | None = Field(
        default=None, description="of iterative: the validation quality that must be held, as 95 %; else it stops"
    )
    multiple_of: int = Field(default=1, ge=1, description="of channel: layers keep a multiple of this many channels")
    exclude_last: bool = Field(default=True, description="leave the last convolution or dense layer alone")
    types: dict[str, PruneLayerOptions | None] = Field(
        default_factory=dict, description="by layer class: `{Conv2D: {sparsity: 0.9}}`; null leaves the class alone"
    )
    layers: dict[Expression, PruneLayerOptions | None] = Field(
        default_factory=dict, description='by name, a regular expression: `{"block_1_.*": null}`'
    )

    @model_validator(mode="after")
    def _agree(self) -> "PruneOptions":
        for wrong in filter(None, (rule(self) for rule in _RULES)):
            raise ValueError(wrong)
        return self

    @property
    def share(self) -> float:
        """The share that is asked for, where no target is."""
        kept, _, group = self.granularity.partition(":")
        return 1 - int(kept) / int(group) if group else self.sparsity or 0.5

    def check(self, document: Document, path: KeyPath, pipeline: PipelineInfo) -> None:
        """Teachers exist; so does the device of a latency target, and it can tell latency."""
        super().check(document, path, pipeline)
        if self.target is None or self.target.device is None:
            return
        try:
            latency = device_profile.load(self.target.device, pipeline.base_folder).latency
        except EdgepipeError as error:
            document.add_problem((*path, "target", "device"), str(error))
            return
        if latency.by is None:
            document.add_problem((*path, "target", "device"), f"its latency is unavailable: {latency.reason}")

    def key(self, pipeline: PipelineInfo) -> dict[str, Any]:
        """The profile of the device that a latency target is for, and the host that is measured."""
        taught = super().key(pipeline)
        if self.target is None or self.target.device is None:
            return taught
        from edgepipe.tflite.host_fingerprint import fingerprint

        device = device_profile.load(self.target.device, pipeline.base_folder)
        return {**taught, "device": device_profile.digest(device), "host": fingerprint().digest}

    def settings(self) -> "SaliencySettings":
        """The saliency that is asked for."""
        from edgepipe.compress.pruning.saliency import SaliencySettings

        return SaliencySettings(self.saliency, self.hessian, self.probes, self.saliency_samples)

    def when(self, final: float) -> "SparsitySchedule":
        """The schedule, for a share `final` that goes in the end."""
        from edgepipe.compress.pruning.sparsity_schedule import SparsitySchedule

        return SparsitySchedule(
            self.schedule, min(self.initial_sparsity / final, 1.0) if final else 0.0, self.power, self.ramp, self.rounds
        )


def _two_targets(options: PruneOptions) -> str:
    return "sparsity and target exclude each other" if options.sparsity is not None and options.target else ""


def _pattern(options: PruneOptions) -> str:
    own = [
        option
        for option in (*options.types.values(), *options.layers.values())
        if option and option.sparsity is not None
    ]
    given = options.target is not None or options.sparsity not in (None, options.share)
    if ":" not in options.granularity or not (given or own):
        return ""
    return f"{options.granularity} says how many weights go ({options.share:.0%}): leave sparsity and target out"


def _channels_only(options: PruneOptions) -> str:
    if options.granularity == "channel":
        return ""
    given = [
        name for name in ("macs", "flash", "latency") if options.target and getattr(options.target, name) is not None
    ]
    if given:
        return f"zeros in a kernel save no {given[0]}: a target in {given[0]} needs `granularity: channel`"
    if options.multiple_of > 1 or options.distribution == "per_mac":
        return "multiple_of and `distribution: per_mac` are for `granularity: channel`"
    return ""


def _no_erk(options: PruneOptions) -> str:
    return "erk is for zeros in kernels; for channels: uniform, global, per_mac" if (
        options.granularity == "channel" and options.distribution == "erk"
    ) else ""  # fmt: skip


def _rounds_only(options: PruneOptions) -> str:
    given = [name for name in ("max_drop", "min_quality") if getattr(options, name) is not None]
    return f"{given[0]} needs `schedule: iterative`" if given and options.schedule != "iterative" else ""


def _grows(options: PruneOptions) -> str:
    if options.initial_sparsity == 0:
        return ""
    if options.schedule not in ("polynomial", "cubic"):
        return "initial_sparsity is where polynomial and cubic begin"
    if options.target is None and options.initial_sparsity >= options.share:
        return f"initial_sparsity ({options.initial_sparsity}) must be below sparsity ({options.share:g})"
    return ""


_RULES = (_two_targets, _pattern, _channels_only, _no_erk, _rounds_only, _grows)
