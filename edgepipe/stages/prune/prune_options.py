"""The options of `prune`, and which of them go together."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, final

from pydantic import AfterValidator, Field, model_validator

from edgepipe.core.config import Document, KeyPath, Options, Quantity
from edgepipe.core.errors import EdgepipeError
from edgepipe.core.units import Dimension
from edgepipe.devices import device_profile
from edgepipe.stages.base import RegularExpression
from edgepipe.stages.context import PipelineInfo
from edgepipe.stages.training import TrainingStage

if TYPE_CHECKING:
    from edgepipe.compress.pruning.saliency import SaliencySettings
    from edgepipe.compress.pruning.sparsity_schedule import SparsitySchedule


Count = Annotated[float, Quantity(Dimension.COUNT), Field(gt=0)]
Bytes = Annotated[float, Quantity(Dimension.BYTES), Field(gt=0)]
Seconds = Annotated[float, Quantity(Dimension.SECONDS), Field(gt=0)]
Fraction = Annotated[float, Quantity(Dimension.FRACTION), Field(gt=0)]


def _check_granularity(text: str) -> str:
    if text != "channel":
        from edgepipe.compress.pruning.granularity import parse_granularity

        parse_granularity(text)
    return text


@final
class PruneTargetOptions(Options):
    """The maximum cost of the pruned model; exactly one of the four."""

    parameters: Count | None = Field(default=None, description="weights that are not zero, as 20 k")
    macs: Count | None = Field(default=None, description="multiply-accumulates of one inference, as 2 M; channels only")
    flash: Bytes | None = Field(default=None, description="bytes of the int8 .tflite, as 64 KiB; channels only")
    latency: Seconds | None = Field(
        default=None, description="seconds of one inference on `device`, as 5 ms; channels only"
    )
    device: str | None = Field(default=None, description="the device profile that latency is for")

    @model_validator(mode="after")
    def _check_single_target(self) -> "PruneTargetOptions":
        target_names = [name for name in ("parameters", "macs", "flash", "latency") if getattr(self, name) is not None]
        if len(target_names) != 1:
            raise ValueError(
                f"needs exactly one of parameters, macs, flash, latency; found {' and '.join(target_names) or 'none'}"
            )
        if (self.latency is None) != (self.device is None):
            raise ValueError("`latency` and `device` go together: set both")
        return self


@final
class PruneLayerOptions(Options):
    """Options of single layers or layer classes."""

    sparsity: float | None = Field(default=None, ge=0, lt=1, description="fraction of weights or channels to remove")


class PruneOptions(TrainingStage):
    """Base of `Prune` with all of its options, so that the modules that do its work need not import the stage."""

    sparsity: float | None = Field(
        default=None, gt=0, lt=1, description="fraction of weights or channels to remove; null: 0.5, or as N:M defines"
    )
    target: PruneTargetOptions | None = Field(
        default=None, description="instead of a fraction: the maximum cost of the model"
    )
    granularity: Annotated[str, AfterValidator(_check_granularity)] = Field(
        default="weight", description="unit of removal: weight, `block 1x4` (outputs x inputs), `2:4`, or channel"
    )
    saliency: Literal["magnitude", "taylor", "obd", "taylor2", "random"] = Field(
        default="magnitude",
        description="importance: |w|; |g w|; h w^2/2 (Optimal Brain Damage); h w^2/2 - g w; or a random order",
    )
    hessian: Literal["auto", "exact", "hutchinson", "gauss_newton"] = Field(
        default="auto", description="how obd and taylor2 compute h; auto: exact up to 4096 weights, else gauss_newton"
    )
    probes: int = Field(default=32, ge=2, description="random vectors to estimate h with")
    saliency_samples: int = Field(default=1024, ge=1, description="training samples to compute saliency on")
    distribution: Literal["uniform", "erk", "global", "per_mac"] | None = Field(
        default=None,
        description="distribution over layers; null: uniform, or for channels the best of uniform, global, per_mac",
    )
    schedule: Literal["one_shot", "constant", "polynomial", "cubic", "iterative"] = Field(
        default="polynomial", description="pruning schedule: at once, along a curve, or in rounds with training between"
    )
    initial_sparsity: float = Field(default=0.0, ge=0, lt=1, description="initial sparsity of polynomial and cubic")
    power: float = Field(default=3.0, gt=0, description="exponent of the polynomial schedule")
    ramp: float = Field(
        default=0.75,
        gt=0,
        le=1,
        description="fraction of the training steps over which polynomial and cubic prune; the rest is recovery",
    )
    rounds: int = Field(default=5, ge=1, description="for iterative: rounds to the target, each training for `epochs`")
    max_drop: Fraction | None = Field(
        default=None, description="for iterative: maximum drop in validation quality, as 1 point; stops beyond it"
    )
    min_quality: Fraction | None = Field(
        default=None, description="for iterative: minimum validation quality, as 95 %; stops below it"
    )
    multiple_of: int = Field(default=1, ge=1, description="for channel: layers keep a multiple of this many channels")
    exclude_last: bool = Field(default=True, description="exclude the last convolution or dense layer")
    types: dict[str, PruneLayerOptions | None] = Field(
        default_factory=dict, description="by layer class: `{Conv2D: {sparsity: 0.9}}`; null excludes the class"
    )
    layers: dict[RegularExpression, PruneLayerOptions | None] = Field(
        default_factory=dict, description='by layer name, a regular expression: `{"block_1_.*": null}`'
    )

    @model_validator(mode="after")
    def _check_combination(self) -> "PruneOptions":
        for problem in filter(None, (find_problem(self) for find_problem in _PROBLEM_FINDERS)):
            raise ValueError(problem)
        return self

    @property
    def removed_share(self) -> float:
        """The fraction to remove, unless there is a target."""
        kept_count, _, group_size = self.granularity.partition(":")
        return 1 - int(kept_count) / int(group_size) if group_size else self.sparsity or 0.5

    def check(self, document: Document, path: KeyPath, pipeline: PipelineInfo) -> None:
        """The teachers exist, and so does the device of a latency target, with an available latency."""
        super().check(document, path, pipeline)
        if self.target is None or self.target.device is None:
            return
        try:
            latency_source = device_profile.load(self.target.device, pipeline.base_folder).latency
        except EdgepipeError as error:
            document.add_problem((*path, "target", "device"), str(error))
            return
        if latency_source.by is None:
            document.add_problem((*path, "target", "device"), f"its latency is unavailable: {latency_source.reason}")

    def key(self, pipeline: PipelineInfo) -> dict[str, Any]:
        """The profile of the device that a latency target is for, and the host that is measured."""
        teacher_key = super().key(pipeline)
        if self.target is None or self.target.device is None:
            return teacher_key
        from edgepipe.tflite.host_fingerprint import fingerprint

        device = device_profile.load(self.target.device, pipeline.base_folder)
        return {**teacher_key, "device": device_profile.digest(device), "host": fingerprint().digest}

    def saliency_settings(self) -> "SaliencySettings":
        """The options of saliency."""
        from edgepipe.compress.pruning.saliency import SaliencySettings

        return SaliencySettings(self.saliency, self.hessian, self.probes, self.saliency_samples)

    def sparsity_schedule(self, final_share: float) -> "SparsitySchedule":
        """The schedule that ends with `final_share` removed."""
        from edgepipe.compress.pruning.sparsity_schedule import SparsitySchedule

        return SparsitySchedule(
            self.schedule,
            min(self.initial_sparsity / final_share, 1.0) if final_share else 0.0,
            self.power,
            self.ramp,
            self.rounds,
        )


def _target_problem(options: PruneOptions) -> str:
    return "sparsity and target exclude each other" if options.sparsity is not None and options.target else ""


def _pattern_problem(options: PruneOptions) -> str:
    layer_options = [
        option
        for option in (*options.types.values(), *options.layers.values())
        if option and option.sparsity is not None
    ]
    has_target = options.target is not None or options.sparsity not in (None, options.removed_share)
    if ":" not in options.granularity or not (has_target or layer_options):
        return ""
    return (
        f"{options.granularity} defines how many weights to remove ({options.removed_share:.0%}): "
        "omit sparsity and target"
    )


def _channel_problem(options: PruneOptions) -> str:
    if options.granularity == "channel":
        return ""
    target_names = [
        name for name in ("macs", "flash", "latency") if options.target and getattr(options.target, name) is not None
    ]
    if target_names:
        return (
            f"zeros in a kernel do not reduce {target_names[0]}: "
            f"a target in {target_names[0]} needs `granularity: channel`"
        )
    if options.multiple_of > 1 or options.distribution == "per_mac":
        return "multiple_of and `distribution: per_mac` are for `granularity: channel`"
    return ""


def _erk_problem(options: PruneOptions) -> str:
    return "erk is for zeros in kernels; for channels: uniform, global, per_mac" if (
        options.granularity == "channel" and options.distribution == "erk"
    ) else ""  # fmt: skip


def _rounds_problem(options: PruneOptions) -> str:
    used_option_names = [name for name in ("max_drop", "min_quality") if getattr(options, name) is not None]
    return (
        f"{used_option_names[0]} needs `schedule: iterative`"
        if used_option_names and options.schedule != "iterative"
        else ""
    )


def _initial_sparsity_problem(options: PruneOptions) -> str:
    if options.initial_sparsity == 0:
        return ""
    if options.schedule not in ("polynomial", "cubic"):
        return "initial_sparsity is for `schedule: polynomial` and cubic"
    if options.target is None and options.initial_sparsity >= options.removed_share:
        return f"initial_sparsity ({options.initial_sparsity}) must be below sparsity ({options.removed_share:g})"
    return ""


_PROBLEM_FINDERS = (
    _target_problem,
    _pattern_problem,
    _channel_problem,
    _erk_problem,
    _rounds_problem,
    _initial_sparsity_problem,
)
