"""Priors of the kinds of processors: the cycles that each feature costs, before any measurement.

A fit starts from these figures, and they remain in effect for operators that are rare in the measured models. `spread`
is the uncertainty of a figure as the standard deviation of its logarithm: 0.3 is a factor of 1.35.

The figures are orders of magnitude from how the kernels work: CMSIS-NN does two MACs per cycle on a Cortex-M4 to M7
(SMLAD) and as many loads; requantizing an output takes a 64-bit multiplication, shifts and a saturation; elementwise
arithmetic requantizes each operand; a depthwise kernel loads each multiplied value once; LiteRT's int8 depthwise kernel
without XNNPACK is scalar per channel; a matrix unit computes whole tiles. They were rounded with the published tables
at hand, so the held-out errors on those tables are somewhat optimistic.
"""

from dataclasses import dataclass

from edgepipe.devices.latency.feature_names import FEATURE_DESCRIPTIONS, SCALAR_TILE, ChannelTile, FeatureAmounts

_MINOR_FEATURES = (
    "arithmetic_outputs",
    "reduced_inputs",
    "looked_up_outputs",
    "moved_outputs",
    "requantized_outputs",
    "resized_outputs",
    "pooled_elements",
)


@dataclass(frozen=True)
class ProcessorKind:
    """The prior of one kind of processor and runtime."""

    title: str
    cycles_by_feature: FeatureAmounts  # per unit of each feature, of the profile's clock
    spread_by_feature: FeatureAmounts  # standard deviation of the logarithm of each figure
    speed_spread: float  # of the overall speed, between devices of the kind
    device_spread: float  # of a single figure, between devices of the kind
    noise: float  # standard deviation of the log error of a measurement
    tile: ChannelTile = SCALAR_TILE
    clock_error: float | None = None  # of the log latency at a clock not measured; None: it does not follow the core's

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The features with a cost, in the order of FEATURES."""
        return tuple(name for name in FEATURE_DESCRIPTIONS if name in self.cycles_by_feature)


def _assign_spreads(
    cycles_by_feature: FeatureAmounts,
    main_spread: float,
    minor_spread: float,
    extra_minor_features: tuple[str, ...] = (),
) -> FeatureAmounts:
    return {
        name: minor_spread if name in (*_MINOR_FEATURES, *extra_minor_features) else main_spread
        for name in cycles_by_feature
    }


_CORTEX_M: FeatureAmounts = {
    "operators": 3000,
    "pointwise_macs": 1.0,
    "kernel_macs": 0.9,
    "patch_elements": 2,
    "depthwise3_macs": 3,
    "depthwise_other_macs": 4,
    "dense_macs": 1.5,
    "conv_outputs": 12,
    "first_outputs": 10,
    "depthwise_outputs": 12,
    "arithmetic_outputs": 30,
    "reduced_inputs": 15,
    "moved_outputs": 3,
    "looked_up_outputs": 100,
    "requantized_outputs": 6,
    "pooled_elements": 8,
    "resized_outputs": 50,
    "weights": 0.5,
    "spilled_weights": 4,
}
_CORTEX_A_SCALAR_DEPTHWISE: FeatureAmounts = {
    "operators": 4000,
    "pointwise_macs": 0.4,
    "kernel_macs": 0.35,
    "patch_elements": 3,
    "depthwise_macs": 8,
    "depthwise_other_macs": 1,  # on top of the 3x3 figure
    "dense_macs": 1,
    "conv_outputs": 5,
    "depthwise_outputs": 6,
    "arithmetic_outputs": 20,
    "reduced_inputs": 6,
    "moved_outputs": 2,
    "looked_up_outputs": 20,
    "requantized_outputs": 5,
    "pooled_elements": 3,
    "resized_outputs": 60,
    "weights": 0.3,
}
_CORTEX_A_FLOAT: FeatureAmounts = {
    "inference": 1.2e5,
    "operators": 1e4,
    "conv_macs": 0.09,
    "first_macs": 0.13,
    "depthwise_macs": 0.3,
    "depthwise_other_macs": 0.08,
    "dense_macs": 0.5,
    "activations": 0.25,
    "arithmetic_outputs": 1.5,
    "reduced_inputs": 1,
    "moved_outputs": 1.2,
    "looked_up_outputs": 8,
    "requantized_outputs": 1.2,
    "pooled_elements": 0.5,
    "resized_outputs": 2.5,
    "weights": 0.7,
}
_CORTEX_A_INT8: FeatureAmounts = {
    **{name: 0.7 * cycles if name.endswith("_macs") else cycles for name, cycles in _CORTEX_A_FLOAT.items()},
    "weights": 0.25,
}
_CORTEX_A_XNNPACK: FeatureAmounts = {
    "inference": 20000,
    "operators": 3000,
    "conv_macs": 0.25,
    "first_macs": 0.5,
    "depthwise_macs": 1.0,
    "depthwise_other_macs": 0.3,
    "dense_macs": 0.5,
    "activations": 0.4,
    "arithmetic_outputs": 2,
    "reduced_inputs": 1.5,
    "moved_outputs": 1.5,
    "looked_up_outputs": 10,
    "requantized_outputs": 2,
    "pooled_elements": 2,
    "resized_outputs": 5,
    "weights": 0.25,
}
_NPU_BESIDE_CPU: FeatureAmounts = {
    "inference": 240000,
    "operators": 16000,
    "conv_macs": 0.05,
    "first_macs": 0.1,
    "depthwise_macs": 0.8,
    "depthwise_other_macs": 0.4,
    "dense_macs": 0.4,
    "conv_outputs": 0.8,
    "depthwise_outputs": 0.8,
    "arithmetic_outputs": 2.5,
    "reduced_inputs": 2.5,
    "moved_outputs": 0.8,
    "looked_up_outputs": 2.5,
    "requantized_outputs": 1.5,
    "pooled_elements": 0.8,
    "resized_outputs": 2.5,
    "weights": 0.4,
}
_NPU_IN_MCU: FeatureAmounts = {
    "inference": 150000,
    "operators": 8000,
    "conv_macs": 0.01,
    "first_macs": 0.05,
    "depthwise_macs": 0.15,
    "depthwise_other_macs": 0.1,
    "dense_macs": 0.5,
    "activations": 0.3,
    "arithmetic_outputs": 5,
    "reduced_inputs": 3,
    "looked_up_outputs": 5,
    "resized_outputs": 60,  # in software, on the core
    "weights": 2.5,
}

PROCESSOR_KINDS = {
    "cortex-m": ProcessorKind(
        "Cortex-M with CMSIS-NN or X-CUBE-AI, int8",
        _CORTEX_M, _assign_spreads(_CORTEX_M, 0.6, 0.6), speed_spread=3.0, device_spread=0.2, noise=0.05,
        clock_error=0.2,  # wait states of the flash follow the clock too
    ),
    "cortex-a-scalar-depthwise": ProcessorKind(
        "Cortex-A, LiteRT without XNNPACK, int8",
        _CORTEX_A_SCALAR_DEPTHWISE,
        _assign_spreads(_CORTEX_A_SCALAR_DEPTHWISE, 1.0, 0.1, ("operators", "weights", "depthwise_other_macs")),
        speed_spread=0.2, device_spread=0.1, noise=0.05,
        clock_error=0.3,  # the DRAM keeps its own clock
    ),
    "cortex-a-float": ProcessorKind(
        "Cortex-A in a phone, LiteRT on several threads, float32",
        _CORTEX_A_FLOAT, _assign_spreads(_CORTEX_A_FLOAT, 0.3, 0.3), speed_spread=0.5, device_spread=0.15, noise=0.1,
        clock_error=0.3,  # the DRAM keeps its own clock
    ),
    "cortex-a-int8": ProcessorKind(
        "Cortex-A in a phone, LiteRT on several threads, int8",
        _CORTEX_A_INT8, _assign_spreads(_CORTEX_A_INT8, 0.3, 0.3), speed_spread=0.5, device_spread=0.15, noise=0.1,
        clock_error=0.3,  # the DRAM keeps its own clock
    ),
    "cortex-a-xnnpack": ProcessorKind(
        "Cortex-A under Linux, LiteRT with XNNPACK, int8",
        _CORTEX_A_XNNPACK, _assign_spreads(_CORTEX_A_XNNPACK, 0.8, 0.8), speed_spread=1.0, device_spread=0.2, noise=0.1,
        clock_error=0.3,  # the DRAM keeps its own clock
    ),
    "npu-beside-cpu": ProcessorKind(
        "an NPU with its own driver beside Cortex-A cores and DRAM",
        _NPU_BESIDE_CPU, _assign_spreads(_NPU_BESIDE_CPU, 0.3, 0.3), speed_spread=0.5, device_spread=0.15, noise=0.1,
        tile=ChannelTile(16, 8),
    ),
    "npu-in-mcu": ProcessorKind(
        "an NPU inside a microcontroller, weights in external flash",
        _NPU_IN_MCU, _assign_spreads(_NPU_IN_MCU, 0.6, 0.3), speed_spread=0.5, device_spread=0.15, noise=0.1,
        tile=ChannelTile(16, 8),
    ),
}  # fmt: skip
"""By the name stored in a fit."""
