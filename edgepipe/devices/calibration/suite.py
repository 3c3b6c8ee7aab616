"""The models that a device is calibrated on: single operators over many shapes, and small composites.

Shapes are drawn at random from those of mobile networks and limited by work, so that no model takes long. For a given
effort and seed the suite is byte-identical everywhere.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from edgepipe.devices.calibration.network_builder import NetworkBuilder, TensorNode

COMMON_SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224)
COMMON_CHANNEL_COUNTS = (
    1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 72, 80, 96, 100, 112, 120, 128, 144, 160,
    192, 200, 240, 256, 288, 320, 336, 384, 448, 480, 512, 576, 640, 672, 768, 960, 1024, 1280,
)  # fmt: skip
MAX_MACS = 40e6
MAX_ELEMENTS = 600_000  # of one activation
MAX_WEIGHTS = 3_000_000


class Effort(StrEnum):
    """How many models the suite has."""

    QUICK = "quick"
    FULL = "full"


@dataclass(frozen=True)
class SuiteCase:
    """One model of the suite; `group` is the operator or composite it measures."""

    name: str
    group: str
    is_composite: bool
    build_network: Callable[[int], NetworkBuilder]

    def model_bytes(self, seed: int) -> bytes:
        """The .tflite file; equal for equal seeds."""
        case_seed = int.from_bytes(hashlib.sha256(f"{seed}:{self.name}".encode()).digest()[:8], "big")
        return self.build_network(case_seed).to_bytes()


@dataclass(frozen=True)
class ShapeSampler:
    """Random shapes, one stream per group."""

    random: np.random.Generator

    def pick(self, *choices: int) -> int:
        """One of `choices`."""
        return int(self.random.choice(choices))

    def pick_channels(self, low: int = 1, high: int = 1280) -> int:
        """A number of channels: mostly a common one, sometimes any."""
        if self.random.random() < 0.2:
            return int(np.exp(self.random.uniform(np.log(low), np.log(high))))
        return self.pick(*(c for c in COMMON_CHANNEL_COUNTS if low <= c <= high))

    def pick_size(self, most_pixels: float, low: int = 1) -> int:
        """A height and width with at most `most_pixels`, drawn uniformly from common ones."""
        return self.pick(*(s for s in COMMON_SIZES if s == low or (s > low and s * s <= most_pixels)))


CaseMaker = Callable[[ShapeSampler], tuple[str, Callable[[int], NetworkBuilder]]]


def build_suite(effort: Effort, seed: int) -> tuple[SuiteCase, ...]:
    """The cases of `effort`: about 380 for quick, 970 for full; the full suite contains the quick one."""
    return tuple(case for group in SUITE_GROUPS for case in _draw_cases(group, effort, seed))


@dataclass(frozen=True)
class SuiteGroup:
    """How to draw the cases of one operator or composite."""

    name: str
    quick_count: int
    full_count: int
    make_case: CaseMaker
    is_composite: bool = False


def _draw_cases(group: SuiteGroup, effort: Effort, seed: int) -> Iterator[SuiteCase]:
    seed_digest = hashlib.sha256(f"{seed}:{group.name}".encode()).digest()
    sampler = ShapeSampler(np.random.default_rng(int.from_bytes(seed_digest[:8], "big")))
    case_labels: set[str] = set()
    target_count, try_count = (group.quick_count if effort is Effort.QUICK else group.full_count), 0
    while len(case_labels) < target_count and try_count < 20 * target_count:
        try_count += 1
        case_label, build_network = group.make_case(sampler)
        if case_label not in case_labels:
            case_labels.add(case_label)
            yield SuiteCase(f"{group.name}_{case_label}", group.name, group.is_composite, build_network)


# ---- single operators


def _make_pointwise(sampler: ShapeSampler) -> tuple[str, Callable[[int], NetworkBuilder]]:
    cin, cout = sampler.pick_channels(), sampler.pick_channels()
    cout = min(cout, MAX_WEIGHTS // cin)
    size = sampler.pick_size(min(MAX_MACS / cin / cout, MAX_ELEMENTS / max(cin, cout)))
    act = str(sampler.random.choice(["", "relu6"]))

    def build(seed: int) -> NetworkBuilder:
        net = NetworkBuilder(seed)
        return net.set_outputs(net.conv(net.input(size, size, cin), cout, 1, act=act))

    return f"{size}x{size}x{cin}_{cout}{act}", build


def _convolution_maker(kernel_sizes: tuple[int, ...], min_channels: int, max_channels: int) -> CaseMaker:
    def make(sampler: ShapeSampler) -> tuple[str, Callable[[int], NetworkBuilder]]:
        kernel, stride, cin = (
            sampler.pick(*kernel_sizes),
            sampler.pick(1, 1, 2),
            sampler.pick_channels(min_channels, max_channels),
        )
        cout = min(sampler.pick_channels(4, 320), max(1, MAX_WEIGHTS // (cin * kernel**2)))
        max_pixels = min(MAX_MACS / (cin * cout * kernel**2), MAX_ELEMENTS / max(cout, cin * stride**2), 150**2)
        size = stride * sampler.pick_size(max_pixels)

        def build(seed: int) -> NetworkBuilder:
            net = NetworkBuilder(seed)
            return net.set_outputs(net.conv(net.input(size, size, cin), cout, kernel, stride))

        return f"k{kernel}s{stride}_{size}x{size}x{cin}_{cout}", build

    return make


def _make_first_layer(sampler: ShapeSampler) -> tuple[str, Callable[[int], NetworkBuilder]]:
    cin, cout = sampler.pick(1, 3, 3), sampler.pick(4, 6, 8, 12, 16, 24, 32, 64)
    height, width = (sampler.pick(3, 3, 3, 4, 5, 7, 7), sampler.pick(0, 0, 0, 0, 4, 10))
    kernel = (height, height) if not width else (width, height)
    stride = sampler.pick(1, 2, 2)
    size = stride * sampler.pick_size(min(MAX_MACS / (cin * cout * kernel[0] * kernel[1]), MAX_ELEMENTS / cout), 8)
    valid_padding = sampler.pick(0, 1) == 1 and size > max(kernel)

    def build(seed: int) -> NetworkBuilder:
        net = NetworkBuilder(seed)
        x = net.input(max(size, kernel[0]), max(size, kernel[1]), cin)
        return net.set_outputs(net.conv(x, cout, kernel, stride, "relu", valid_padding))

    return f"k{kernel[0]}x{kernel[1]}s{stride}_{size}x{size}x{cin}_{cout}{'v' if valid_padding else ''}", build


def _make_depthwise(sampler: ShapeSampler) -> tuple[str, Callable[[int], NetworkBuilder]]:
    kernel, stride, channels = sampler.pick(3, 3, 3, 5), sampler.pick(1, 1, 2), sampler.pick_channels(4, 1280)
    size = stride * sampler.pick_size(MAX_ELEMENTS / channels / stride**2)
    valid_padding = sampler.pick(0, 0, 1) == 1 and size > kernel

    def build(seed: int) -> NetworkBuilder:
        net = NetworkBuilder(seed)
        return net.set_outputs(
            net.depthwise(net.input(size, size, channels), kernel, stride, valid_padding=valid_padding)
        )

    return f"k{kernel}s{stride}_{size}x{size}x{channels}{'v' if valid_padding else ''}", build


def _make_dense(sampler: ShapeSampler) -> tuple[str, Callable[[int], NetworkBuilder]]:
    cin = sampler.pick_channels(4, 1280) * sampler.pick(1, 1, 1, 4)
    units = min(sampler.pick(1, 2, 5, 8, 10, 12, 16, 35, 64, 101, 128, 256, 512, 640, 1000), MAX_WEIGHTS // cin)

    def build(seed: int) -> NetworkBuilder:
        net = NetworkBuilder(seed)
        return net.set_outputs(net.dense(net.input(cin), units))

    return f"{cin}_{units}", build


def _elementwise_maker(operator_name: str, operand_form: str) -> CaseMaker:
    """`form` is the second operand: `same` shape, a per-channel `constant`, or a `broadcast` per-channel tensor."""

    def make(sampler: ShapeSampler) -> tuple[str, Callable[[int], NetworkBuilder]]:
        channels = sampler.pick_channels(4, 640)
        size = sampler.pick_size(MAX_ELEMENTS / channels, 2)

        def build(seed: int) -> NetworkBuilder:
            net = NetworkBuilder(seed)
            x = net.input(size, size, channels)
            if operand_form == "constant":
                return net.set_outputs(net.binary_constant(operator_name, x))
            y = net.input(1, 1, channels) if operand_form == "broadcast" else net.input(size, size, channels)
            return net.set_outputs(net.binary(operator_name, x, y))

        return f"{size}x{size}x{channels}", build

    return make


def _unary_maker(operator_name: str) -> CaseMaker:
    def make(sampler: ShapeSampler) -> tuple[str, Callable[[int], NetworkBuilder]]:
        channels = sampler.pick_channels(2, 640)
        size = sampler.pick_size(MAX_ELEMENTS / channels)

        def build(seed: int) -> NetworkBuilder:
            net = NetworkBuilder(seed)
            return net.set_outputs(net.unary(operator_name, net.input(size, size, channels)))

        return f"{size}x{size}x{channels}", build

    return make


def _pool_maker(operator_name: str) -> CaseMaker:
    def make(sampler: ShapeSampler) -> tuple[str, Callable[[int], NetworkBuilder]]:
        channels, is_global = sampler.pick_channels(4, 640), sampler.pick(0, 1)
        kernel = sampler.pick(2, 3, 4, 5, 7) if is_global else sampler.pick(2, 2, 3)
        stride = kernel if is_global else sampler.pick(1, 2)
        size = kernel * (1 if is_global else sampler.pick_size(MAX_ELEMENTS / channels / kernel**2))

        def build(seed: int) -> NetworkBuilder:
            net = NetworkBuilder(seed)
            return net.set_outputs(net.pool(net.input(size, size, channels), operator_name, kernel, stride))

        return f"k{kernel}s{stride}_{size}x{size}x{channels}", build

    return make


def _make_mean(sampler: ShapeSampler) -> tuple[str, Callable[[int], NetworkBuilder]]:
    channels, keep_dims = sampler.pick_channels(4, 1280), sampler.pick(0, 1) == 1
    size = sampler.pick_size(min(MAX_ELEMENTS / channels, 40**2), 2)

    def build(seed: int) -> NetworkBuilder:
        net = NetworkBuilder(seed)
        return net.set_outputs(net.mean(net.input(size, size, channels), keep_dims))

    return f"{size}x{size}x{channels}{'k' if keep_dims else ''}", build


def _move_maker(operator_name: str) -> CaseMaker:
    """PAD, CONCATENATION, RESHAPE, STRIDED_SLICE, TRANSPOSE and the resizes: operators that only move data."""

    def make(sampler: ShapeSampler) -> tuple[str, Callable[[int], NetworkBuilder]]:
        channels, variant = sampler.pick_channels(1, 320), sampler.pick(1, 2, 3)
        size = sampler.pick_size(MAX_ELEMENTS / channels / (4 if operator_name.startswith("RESIZE") else 1), 2)

        def build(seed: int) -> NetworkBuilder:
            net = NetworkBuilder(seed)
            x = net.input(size, size, channels)
            return net.set_outputs(_apply_move(net, x, operator_name, variant))

        return f"{size}x{size}x{channels}_{variant}", build

    return make


def _apply_move(net: NetworkBuilder, x: TensorNode, operator_name: str, variant: int) -> TensorNode:
    size, channels = x.shape[1], x.channels
    move_by_operator: dict[str, Callable[[], TensorNode]] = {
        "PAD": lambda: net.pad(x, variant // 2, (variant + 1) // 2),
        "CONCATENATION": lambda: net.concat(x, *(net.input(size, size, channels) for _ in range(variant))),
        "RESHAPE": lambda: net.reshape(x, size * size * channels),
        "STRIDED_SLICE": lambda: net.strided_slice(x, max(1, size - variant), max(1, size - 1)),
        "TRANSPOSE": lambda: net.transpose(x),
        "RESIZE_BILINEAR": lambda: net.resize(operator_name, x, 2),
        "RESIZE_NEAREST_NEIGHBOR": lambda: net.resize(operator_name, x, 2),
    }
    return move_by_operator[operator_name]()


def _make_softmax(sampler: ShapeSampler) -> tuple[str, Callable[[int], NetworkBuilder]]:
    row_count, class_count = sampler.pick(1, 1, 1, 16, 64, 400), sampler.pick(2, 3, 5, 10, 12, 20, 35, 101, 256, 1000)

    def build(seed: int) -> NetworkBuilder:
        net = NetworkBuilder(seed)
        return net.set_outputs(
            net.softmax(net.input(row_count, class_count) if row_count > 1 else net.input(class_count))
        )

    return f"{row_count}x{class_count}", build


def _conversion_maker(operator_name: str) -> CaseMaker:
    def make(sampler: ShapeSampler) -> tuple[str, Callable[[int], NetworkBuilder]]:
        channels = sampler.pick(1, 3, 3, 10, 64, 101)
        size = sampler.pick(32, 48, 96, 128, 160, 192, 224, 256, 320) if channels == 3 else sampler.pick_size(4000)
        dtype = str(sampler.random.choice(["uint8", "float32"])) if operator_name == "QUANTIZE" else "int8"

        def build(seed: int) -> NetworkBuilder:
            net = NetworkBuilder(seed)
            x = net.input(size, size, channels, dtype=dtype)
            return net.set_outputs(net.quantize(x) if operator_name == "QUANTIZE" else net.dequantize(x))

        return f"{dtype}_{size}x{size}x{channels}", build

    return make


# ---- composites


def _make_inverted_residual(sampler: ShapeSampler) -> tuple[str, Callable[[int], NetworkBuilder]]:
    channels, expansion, kernel = sampler.pick_channels(4, 160), sampler.pick(2, 3, 4, 6), sampler.pick(3, 3, 5)
    stride, block_count, excite_kind = sampler.pick(1, 1, 2), sampler.pick(1, 2, 3), sampler.pick(0, 0, 0, 1, 2)
    expanded_channels = channels * expansion
    size = stride * sampler.pick_size(
        min(MAX_ELEMENTS / expanded_channels / stride**2, MAX_MACS / (expanded_channels * channels * 2)), 2
    )

    def build(seed: int) -> NetworkBuilder:
        net = NetworkBuilder(seed)
        x = net.input(size, size, channels)
        for block in range(block_count):
            block_stride = stride if block == block_count - 1 else 1
            y = net.depthwise(net.conv(x, expanded_channels), kernel, block_stride)
            y = _squeeze_excite(net, y, excite_kind == 2) if excite_kind else y
            y = net.conv(y, channels, act="")
            x = net.binary("ADD", x, y) if block_stride == 1 else y
        return net.set_outputs(x)

    return f"{block_count}x_k{kernel}s{stride}_{size}x{size}x{channels}x{expansion}{['', 'e', 'h'][excite_kind]}", build


def _squeeze_excite(net: NetworkBuilder, x: TensorNode, hard_sigmoid: bool) -> TensorNode:
    """Squeeze and excitation (arXiv 1709.01507), with a sigmoid or a clipped gate (arXiv 1905.02244)."""
    squeeze = net.conv(net.mean(x, keep_dims=True), max(1, x.channels // 4), act="relu")
    gate = net.conv(squeeze, x.channels, act="")
    if hard_sigmoid:
        gate = net.binary_constant("MAXIMUM", net.binary_constant("MINIMUM", gate))
    return net.binary("MUL", x, gate if hard_sigmoid else net.unary("LOGISTIC", gate))


def _make_residual(sampler: ShapeSampler) -> tuple[str, Callable[[int], NetworkBuilder]]:
    channels, block_count, block_form = sampler.pick_channels(4, 128), sampler.pick(1, 2, 3), sampler.pick(0, 1, 2)
    size = sampler.pick_size(min(MAX_ELEMENTS / channels, MAX_MACS / (channels**2 * 18)), 2)

    def build(seed: int) -> NetworkBuilder:
        net = NetworkBuilder(seed)
        x = net.input(size, size, channels)
        for _ in range(block_count):
            if block_form == 2:  # a bottleneck
                y = net.conv(net.conv(net.conv(x, max(1, channels // 4)), max(1, channels // 4), 3), channels, act="")
            else:
                y = net.conv(net.conv(x, channels, 3, act="relu"), channels, 3, act="")
            x = net.binary("ADD", x, y, "relu") if block_form else net.unary("RELU", net.binary("ADD", x, y))
        return net.set_outputs(x)

    return f"{block_count}x_{block_form}_{size}x{size}x{channels}", build


def _make_separable(sampler: ShapeSampler) -> tuple[str, Callable[[int], NetworkBuilder]]:
    input_channels, block_count, size = (
        sampler.pick(4, 8, 8, 16, 24, 32),
        sampler.pick(2, 4, 6, 8),
        sampler.pick(8, 14, 16, 24, 28, 32, 48, 56),
    )
    strides = [sampler.pick(1, 1, 2) for _ in range(block_count)]
    explicit_padding = sampler.pick(0, 1) == 1

    def build(seed: int) -> NetworkBuilder:
        net = NetworkBuilder(seed)
        x, channels = net.input(size, size, input_channels), input_channels
        for stride in strides:
            channels = min(channels * stride, 320)
            if explicit_padding and stride == 2:
                x = net.depthwise(net.pad(x, 0, 1), 3, 2, valid_padding=True) if x.shape[1] > 2 else net.depthwise(x)
            else:
                x = net.depthwise(x, 3, stride)
            x = net.conv(x, channels)
        return net.set_outputs(x)

    return f"{'p' if explicit_padding else ''}{''.join(map(str, strides))}_{size}x{size}x{input_channels}", build


def _make_stack(sampler: ShapeSampler) -> tuple[str, Callable[[int], NetworkBuilder]]:
    channels, layer_count = sampler.pick_channels(8, 96), sampler.pick(2, 3, 4, 6)
    size = sampler.pick_size(min(MAX_ELEMENTS / channels, MAX_MACS / (channels**2 * 9 * layer_count)), 4)
    kernel_sizes = [sampler.pick(1, 3) for _ in range(layer_count)]
    ends_in_pool = sampler.pick(0, 1) == 1

    def build(seed: int) -> NetworkBuilder:
        net = NetworkBuilder(seed)
        x = net.input(size, size, channels)
        for kernel in kernel_sizes:
            x = net.conv(x, channels, kernel, act="relu")
        return net.set_outputs(net.pool(x, "MAX_POOL_2D", 2, 2) if ends_in_pool else x)

    return f"{''.join(map(str, kernel_sizes))}_{size}x{size}x{channels}{'p' if ends_in_pool else ''}", build


def _make_classifier(sampler: ShapeSampler) -> tuple[str, Callable[[int], NetworkBuilder]]:
    """A complete small network: image in, probabilities out, with the dtypes that applications use."""
    cin, size, first_filters = (
        sampler.pick(1, 3, 3),
        sampler.pick(24, 32, 48, 64, 96, 128, 160, 224),
        sampler.pick(8, 8, 16, 24),
    )
    block_count, class_count, kernel = sampler.pick(2, 3, 5), sampler.pick(2, 5, 10, 101), sampler.pick(3, 3, 5, 7)
    converts_dtypes, flatten_kind, is_separable = (
        sampler.pick(0, 1, 1) == 1,
        sampler.pick(0, 1, 2, 3),
        sampler.pick(0, 1) == 1,
    )

    def build(seed: int) -> NetworkBuilder:
        net = NetworkBuilder(seed)
        x = net.input(size, size, cin, dtype="uint8" if converts_dtypes else "int8")
        x = net.conv(net.quantize(x) if converts_dtypes else x, first_filters, kernel, 2)
        for block in range(block_count):
            stride = 2 if block % 2 == 0 else 1
            filters = min(x.channels * stride, 256)
            x = net.conv(net.depthwise(x, 3, stride), filters) if is_separable else net.conv(x, filters, 3, stride)
        x = net.softmax(net.dense(_flatten(net, x, flatten_kind), class_count))
        return net.set_outputs(net.dequantize(x) if converts_dtypes else x)

    kind_label = f"{'u' if converts_dtypes else 'i'}{flatten_kind}{'d' if is_separable else 'c'}"
    return f"{kind_label}{block_count}_k{kernel}_{size}x{size}x{cin}_{first_filters}_{class_count}", build


def _flatten(net: NetworkBuilder, x: TensorNode, flatten_kind: int) -> TensorNode:
    if flatten_kind == 0:
        return net.mean(x)
    if flatten_kind == 1:
        x = net.pool(x, "AVERAGE_POOL_2D", x.shape[1], 1)
    elements = x.shape[1] * x.shape[2] * x.channels
    return net.dynamic_reshape(x, elements) if flatten_kind == 3 else net.reshape(x, elements)


def _make_reshape_chain(sampler: ShapeSampler) -> tuple[str, Callable[[int], NetworkBuilder]]:
    """Convolutions with dynamic reshapes between them: operators that no delegate runs."""
    channels, size, block_count = sampler.pick_channels(4, 128), sampler.pick(1, 2, 4, 7, 14), sampler.pick(1, 2, 4)

    def build(seed: int) -> NetworkBuilder:
        net = NetworkBuilder(seed)
        x = net.input(size, size, channels)
        for _ in range(block_count):
            x = net.conv(x, channels)
            x = net.dynamic_reshape(net.dynamic_reshape(x, size * size * channels), size, size, channels)
        return net.set_outputs(net.conv(x, channels))

    return f"{block_count}x_{size}x{size}x{channels}", build


def _make_dense_chain(sampler: ShapeSampler) -> tuple[str, Callable[[int], NetworkBuilder]]:
    units, layer_count, input_size = (
        sampler.pick(16, 32, 64, 128, 256, 512),
        sampler.pick(2, 4, 8),
        sampler.pick_channels(16, 1280),
    )

    def build(seed: int) -> NetworkBuilder:
        net = NetworkBuilder(seed)
        x = net.input(input_size)
        for _ in range(layer_count):
            x = net.dense(x, units, "relu")
        return net.set_outputs(x)

    return f"{layer_count}x{units}_{input_size}", build


def _make_pyramid(sampler: ShapeSampler) -> tuple[str, Callable[[int], NetworkBuilder]]:
    channels, size = sampler.pick(8, 16, 24, 32, 64), sampler.pick(4, 6, 8, 12, 16, 24)
    operator_name = str(sampler.random.choice(["RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"]))

    def build(seed: int) -> NetworkBuilder:
        net = NetworkBuilder(seed)
        x = net.input(size * 2, size * 2, channels)
        low_res = net.conv(x, channels * 2, 3, 2)
        pyramid = net.concat(net.resize(operator_name, net.conv(low_res, channels), 2), x)
        return net.set_outputs(net.conv(pyramid, channels, 3))

    return f"{operator_name[7]}{size}x{channels}", build


SUITE_GROUPS = (
    SuiteGroup("conv_1x1", 45, 110, _make_pointwise),
    SuiteGroup("conv_3x3", 30, 80, _convolution_maker((3,), 4, 512)),
    SuiteGroup("conv_5x5_7x7", 12, 35, _convolution_maker((5, 7), 4, 200)),
    SuiteGroup("conv_first", 24, 60, _make_first_layer),
    SuiteGroup("depthwise", 36, 90, _make_depthwise),
    SuiteGroup("fully_connected", 14, 40, _make_dense),
    *(
        SuiteGroup(f"{name.lower()}_{form}", 4, 8, _elementwise_maker(name, form))
        for name in ("ADD", "SUB", "MUL", "MINIMUM", "MAXIMUM")
        for form in ("same", "constant", "broadcast")
    ),
    SuiteGroup("average_pool", 7, 16, _pool_maker("AVERAGE_POOL_2D")),
    SuiteGroup("max_pool", 7, 16, _pool_maker("MAX_POOL_2D")),
    SuiteGroup("mean", 7, 16, _make_mean),
    SuiteGroup("pad", 6, 14, _move_maker("PAD")),
    SuiteGroup("concatenation", 5, 12, _move_maker("CONCATENATION")),
    SuiteGroup("reshape", 3, 8, _move_maker("RESHAPE")),
    SuiteGroup("dynamic_reshape", 6, 20, _make_reshape_chain),
    SuiteGroup("strided_slice", 3, 8, _move_maker("STRIDED_SLICE")),
    SuiteGroup("transpose", 3, 8, _move_maker("TRANSPOSE")),
    SuiteGroup("resize_bilinear", 4, 10, _move_maker("RESIZE_BILINEAR")),
    SuiteGroup("resize_nearest", 4, 10, _move_maker("RESIZE_NEAREST_NEIGHBOR")),
    SuiteGroup("softmax", 6, 14, _make_softmax),
    SuiteGroup("logistic", 5, 12, _unary_maker("LOGISTIC")),
    SuiteGroup("hard_swish", 4, 10, _unary_maker("HARD_SWISH")),
    SuiteGroup("relu", 4, 10, _unary_maker("RELU")),
    SuiteGroup("quantize", 8, 18, _conversion_maker("QUANTIZE")),
    SuiteGroup("dequantize", 5, 10, _conversion_maker("DEQUANTIZE")),
    SuiteGroup("inverted_residual", 16, 55, _make_inverted_residual, is_composite=True),
    SuiteGroup("residual", 10, 30, _make_residual, is_composite=True),
    SuiteGroup("separable", 12, 40, _make_separable, is_composite=True),
    SuiteGroup("stack", 8, 25, _make_stack, is_composite=True),
    SuiteGroup("classifier", 16, 50, _make_classifier, is_composite=True),
    SuiteGroup("dense_chain", 5, 12, _make_dense_chain, is_composite=True),
    SuiteGroup("pyramid", 5, 14, _make_pyramid, is_composite=True),
)
