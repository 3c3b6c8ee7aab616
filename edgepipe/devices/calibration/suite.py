"""The models that a device is calibrated on: single operators over many shapes, and small composites.

Shapes are drawn at random from those of mobile networks and limited by work, so that no model takes long. For a given
effort and seed the suite is byte-identical everywhere.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from edgepipe.devices.calibration.network_builder import NetworkBuilder, Node

SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224)
CHANNELS = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 72, 80, 96, 100, 112, 120, 128, 144, 160,
            192, 200, 240, 256, 288, 320, 336, 384, 448, 480, 512, 576, 640, 672, 768, 960, 1024, 1280)  # fmt: skip
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
    composite: bool
    build: Callable[[int], NetworkBuilder]

    def model_bytes(self, seed: int) -> bytes:
        """The .tflite file; equal for equal seeds."""
        case_seed = int.from_bytes(hashlib.sha256(f"{seed}:{self.name}".encode()).digest()[:8], "big")
        return self.build(case_seed).to_bytes()


@dataclass(frozen=True)
class ShapeDraw:
    """Random shapes, one stream per group."""

    random: np.random.Generator

    def pick(self, *choices: int) -> int:
        """One of `choices`."""
        return int(self.random.choice(choices))

    def channels(self, low: int = 1, high: int = 1280) -> int:
        """A number of channels: mostly a common one, sometimes any."""
        if self.random.random() < 0.2:
            return int(np.exp(self.random.uniform(np.log(low), np.log(high))))
        return self.pick(*(c for c in CHANNELS if low <= c <= high))

    def size(self, most_pixels: float, low: int = 1) -> int:
        """A height and width with at most `most_pixels`, drawn uniformly from common ones."""
        return self.pick(*(s for s in SIZES if s == low or (s > low and s * s <= most_pixels)))


CaseMaker = Callable[[ShapeDraw], tuple[str, Callable[[int], NetworkBuilder]]]


def build_suite(effort: Effort, seed: int) -> tuple[SuiteCase, ...]:
    """The cases of `effort`: about 380 for quick, 970 for full; the full suite contains the quick one."""
    return tuple(case for group in GROUPS for case in _draw_cases(group, effort, seed))


@dataclass(frozen=True)
class SuiteGroup:
    """How to draw the cases of one operator or composite."""

    name: str
    quick_count: int
    full_count: int
    make_case: CaseMaker
    composite: bool = False


def _draw_cases(group: SuiteGroup, effort: Effort, seed: int) -> Iterator[SuiteCase]:
    digest = hashlib.sha256(f"{seed}:{group.name}".encode()).digest()
    draw = ShapeDraw(np.random.default_rng(int.from_bytes(digest[:8], "big")))
    labels: set[str] = set()
    target_count, tries = (group.quick_count if effort is Effort.QUICK else group.full_count), 0
    while len(labels) < target_count and tries < 20 * target_count:
        tries += 1
        label, build = group.make_case(draw)
        if label not in labels:
            labels.add(label)
            yield SuiteCase(f"{group.name}_{label}", group.name, group.composite, build)


# ---- single operators


def _make_pointwise(draw: ShapeDraw) -> tuple[str, Callable[[int], NetworkBuilder]]:
    cin, cout = draw.channels(), draw.channels()
    cout = min(cout, MAX_WEIGHTS // cin)
    size = draw.size(min(MAX_MACS / cin / cout, MAX_ELEMENTS / max(cin, cout)))
    act = str(draw.random.choice(["", "relu6"]))

    def build(seed: int) -> NetworkBuilder:
        net = NetworkBuilder(seed)
        return net.output(net.conv(net.input(size, size, cin), cout, 1, act=act))

    return f"{size}x{size}x{cin}_{cout}{act}", build


def _convolution_maker(kernels: tuple[int, ...], low: int, high: int) -> CaseMaker:
    def make(draw: ShapeDraw) -> tuple[str, Callable[[int], NetworkBuilder]]:
        kernel, stride, cin = draw.pick(*kernels), draw.pick(1, 1, 2), draw.channels(low, high)
        cout = min(draw.channels(4, 320), max(1, MAX_WEIGHTS // (cin * kernel**2)))
        pixels = min(MAX_MACS / (cin * cout * kernel**2), MAX_ELEMENTS / max(cout, cin * stride**2), 150**2)
        size = stride * draw.size(pixels)

        def build(seed: int) -> NetworkBuilder:
            net = NetworkBuilder(seed)
            return net.output(net.conv(net.input(size, size, cin), cout, kernel, stride))

        return f"k{kernel}s{stride}_{size}x{size}x{cin}_{cout}", build

    return make


def _make_first_layer(draw: ShapeDraw) -> tuple[str, Callable[[int], NetworkBuilder]]:
    cin, cout = draw.pick(1, 3, 3), draw.pick(4, 6, 8, 12, 16, 24, 32, 64)
    height, width = (draw.pick(3, 3, 3, 4, 5, 7, 7), draw.pick(0, 0, 0, 0, 4, 10))
    kernel = (height, height) if not width else (width, height)
    stride = draw.pick(1, 2, 2)
    size = stride * draw.size(min(MAX_MACS / (cin * cout * kernel[0] * kernel[1]), MAX_ELEMENTS / cout), 8)
    valid = draw.pick(0, 1) == 1 and size > max(kernel)

    def build(seed: int) -> NetworkBuilder:
        net = NetworkBuilder(seed)
        x = net.input(max(size, kernel[0]), max(size, kernel[1]), cin)
        return net.output(net.conv(x, cout, kernel, stride, "relu", valid))

    return f"k{kernel[0]}x{kernel[1]}s{stride}_{size}x{size}x{cin}_{cout}{'v' if valid else ''}", build


def _make_depthwise(draw: ShapeDraw) -> tuple[str, Callable[[int], NetworkBuilder]]:
    kernel, stride, channels = draw.pick(3, 3, 3, 5), draw.pick(1, 1, 2), draw.channels(4, 1280)
    size = stride * draw.size(MAX_ELEMENTS / channels / stride**2)
    valid = draw.pick(0, 0, 1) == 1 and size > kernel

    def build(seed: int) -> NetworkBuilder:
        net = NetworkBuilder(seed)
        return net.output(net.depthwise(net.input(size, size, channels), kernel, stride, valid=valid))

    return f"k{kernel}s{stride}_{size}x{size}x{channels}{'v' if valid else ''}", build


def _make_dense(draw: ShapeDraw) -> tuple[str, Callable[[int], NetworkBuilder]]:
    cin = draw.channels(4, 1280) * draw.pick(1, 1, 1, 4)
    units = min(draw.pick(1, 2, 5, 8, 10, 12, 16, 35, 64, 101, 128, 256, 512, 640, 1000), MAX_WEIGHTS // cin)

    def build(seed: int) -> NetworkBuilder:
        net = NetworkBuilder(seed)
        return net.output(net.dense(net.input(cin), units))

    return f"{cin}_{units}", build


def _elementwise_maker(name: str, form: str) -> CaseMaker:
    """`form` is the second operand: `same` shape, a per-channel `constant`, or a `broadcast` per-channel tensor."""

    def make(draw: ShapeDraw) -> tuple[str, Callable[[int], NetworkBuilder]]:
        channels = draw.channels(4, 640)
        size = draw.size(MAX_ELEMENTS / channels, 2)

        def build(seed: int) -> NetworkBuilder:
            net = NetworkBuilder(seed)
            x = net.input(size, size, channels)
            if form == "constant":
                return net.output(net.binary_constant(name, x))
            y = net.input(1, 1, channels) if form == "broadcast" else net.input(size, size, channels)
            return net.output(net.binary(name, x, y))

        return f"{size}x{size}x{channels}", build

    return make


def _unary_maker(name: str) -> CaseMaker:
    def make(draw: ShapeDraw) -> tuple[str, Callable[[int], NetworkBuilder]]:
        channels = draw.channels(2, 640)
        size = draw.size(MAX_ELEMENTS / channels)

        def build(seed: int) -> NetworkBuilder:
            net = NetworkBuilder(seed)
            return net.output(net.unary(name, net.input(size, size, channels)))

        return f"{size}x{size}x{channels}", build

    return make


def _pool_maker(name: str) -> CaseMaker:
    def make(draw: ShapeDraw) -> tuple[str, Callable[[int], NetworkBuilder]]:
        channels, is_global = draw.channels(4, 640), draw.pick(0, 1)
        kernel = draw.pick(2, 3, 4, 5, 7) if is_global else draw.pick(2, 2, 3)
        stride = kernel if is_global else draw.pick(1, 2)
        size = kernel * (1 if is_global else draw.size(MAX_ELEMENTS / channels / kernel**2))

        def build(seed: int) -> NetworkBuilder:
            net = NetworkBuilder(seed)
            return net.output(net.pool(net.input(size, size, channels), name, kernel, stride))

        return f"k{kernel}s{stride}_{size}x{size}x{channels}", build

    return make


def _make_mean(draw: ShapeDraw) -> tuple[str, Callable[[int], NetworkBuilder]]:
    channels, keep_dims = draw.channels(4, 1280), draw.pick(0, 1) == 1
    size = draw.size(min(MAX_ELEMENTS / channels, 40**2), 2)

    def build(seed: int) -> NetworkBuilder:
        net = NetworkBuilder(seed)
        return net.output(net.mean(net.input(size, size, channels), keep_dims))

    return f"{size}x{size}x{channels}{'k' if keep_dims else ''}", build


def _move_maker(name: str) -> CaseMaker:
    """PAD, CONCATENATION, RESHAPE, STRIDED_SLICE, TRANSPOSE and the resizes: operators that only move data."""

    def make(draw: ShapeDraw) -> tuple[str, Callable[[int], NetworkBuilder]]:
        channels, option = draw.channels(1, 320), draw.pick(1, 2, 3)
        size = draw.size(MAX_ELEMENTS / channels / (4 if name.startswith("RESIZE") else 1), 2)

        def build(seed: int) -> NetworkBuilder:
            net = NetworkBuilder(seed)
            x = net.input(size, size, channels)
            return net.output(_apply_move(net, x, name, option))

        return f"{size}x{size}x{channels}_{option}", build

    return make


def _apply_move(net: NetworkBuilder, x: Node, name: str, option: int) -> Node:
    size, channels = x.shape[1], x.channels
    move_by_name: dict[str, Callable[[], Node]] = {
        "PAD": lambda: net.pad(x, option // 2, (option + 1) // 2),
        "CONCATENATION": lambda: net.concat(x, *(net.input(size, size, channels) for _ in range(option))),
        "RESHAPE": lambda: net.reshape(x, size * size * channels),
        "STRIDED_SLICE": lambda: net.strided_slice(x, max(1, size - option), max(1, size - 1)),
        "TRANSPOSE": lambda: net.transpose(x),
        "RESIZE_BILINEAR": lambda: net.resize(name, x, 2),
        "RESIZE_NEAREST_NEIGHBOR": lambda: net.resize(name, x, 2),
    }
    return move_by_name[name]()


def _make_softmax(draw: ShapeDraw) -> tuple[str, Callable[[int], NetworkBuilder]]:
    rows, classes = draw.pick(1, 1, 1, 16, 64, 400), draw.pick(2, 3, 5, 10, 12, 20, 35, 101, 256, 1000)

    def build(seed: int) -> NetworkBuilder:
        net = NetworkBuilder(seed)
        return net.output(net.softmax(net.input(rows, classes) if rows > 1 else net.input(classes)))

    return f"{rows}x{classes}", build


def _conversion_maker(name: str) -> CaseMaker:
    def make(draw: ShapeDraw) -> tuple[str, Callable[[int], NetworkBuilder]]:
        channels = draw.pick(1, 3, 3, 10, 64, 101)
        size = draw.pick(32, 48, 96, 128, 160, 192, 224, 256, 320) if channels == 3 else draw.size(4000)
        dtype = str(draw.random.choice(["uint8", "float32"])) if name == "QUANTIZE" else "int8"

        def build(seed: int) -> NetworkBuilder:
            net = NetworkBuilder(seed)
            x = net.input(size, size, channels, dtype=dtype)
            return net.output(net.quantize(x) if name == "QUANTIZE" else net.dequantize(x))

        return f"{dtype}_{size}x{size}x{channels}", build

    return make


# ---- composites


def _make_inverted_residual(draw: ShapeDraw) -> tuple[str, Callable[[int], NetworkBuilder]]:
    channels, expansion, kernel = draw.channels(4, 160), draw.pick(2, 3, 4, 6), draw.pick(3, 3, 5)
    stride, count, excite = draw.pick(1, 1, 2), draw.pick(1, 2, 3), draw.pick(0, 0, 0, 1, 2)
    expanded_channels = channels * expansion
    size = stride * draw.size(
        min(MAX_ELEMENTS / expanded_channels / stride**2, MAX_MACS / (expanded_channels * channels * 2)), 2
    )

    def build(seed: int) -> NetworkBuilder:
        net = NetworkBuilder(seed)
        x = net.input(size, size, channels)
        for block in range(count):
            block_stride = stride if block == count - 1 else 1
            y = net.depthwise(net.conv(x, expanded_channels), kernel, block_stride)
            y = _squeeze_excite(net, y, excite == 2) if excite else y
            y = net.conv(y, channels, act="")
            x = net.binary("ADD", x, y) if block_stride == 1 else y
        return net.output(x)

    return f"{count}x_k{kernel}s{stride}_{size}x{size}x{channels}x{expansion}{['', 'e', 'h'][excite]}", build


def _squeeze_excite(net: NetworkBuilder, x: Node, hard_sigmoid: bool) -> Node:
    """Squeeze and excitation (arXiv 1709.01507), with a sigmoid or a clipped gate (arXiv 1905.02244)."""
    squeeze = net.conv(net.mean(x, keep_dims=True), max(1, x.channels // 4), act="relu")
    gate = net.conv(squeeze, x.channels, act="")
    if hard_sigmoid:
        gate = net.binary_constant("MAXIMUM", net.binary_constant("MINIMUM", gate))
    return net.binary("MUL", x, gate if hard_sigmoid else net.unary("LOGISTIC", gate))


def _make_residual(draw: ShapeDraw) -> tuple[str, Callable[[int], NetworkBuilder]]:
    channels, count, form = draw.channels(4, 128), draw.pick(1, 2, 3), draw.pick(0, 1, 2)
    size = draw.size(min(MAX_ELEMENTS / channels, MAX_MACS / (channels**2 * 18)), 2)

    def build(seed: int) -> NetworkBuilder:
        net = NetworkBuilder(seed)
        x = net.input(size, size, channels)
        for _ in range(count):
            if form == 2:  # a bottleneck
                y = net.conv(net.conv(net.conv(x, max(1, channels // 4)), max(1, channels // 4), 3), channels, act="")
            else:
                y = net.conv(net.conv(x, channels, 3, act="relu"), channels, 3, act="")
            x = net.binary("ADD", x, y, "relu") if form else net.unary("RELU", net.binary("ADD", x, y))
        return net.output(x)

    return f"{count}x_{form}_{size}x{size}x{channels}", build


def _make_separable(draw: ShapeDraw) -> tuple[str, Callable[[int], NetworkBuilder]]:
    input_channels, count, size = (
        draw.pick(4, 8, 8, 16, 24, 32),
        draw.pick(2, 4, 6, 8),
        draw.pick(8, 14, 16, 24, 28, 32, 48, 56),
    )
    strides = [draw.pick(1, 1, 2) for _ in range(count)]
    explicit_padding = draw.pick(0, 1) == 1

    def build(seed: int) -> NetworkBuilder:
        net = NetworkBuilder(seed)
        x, channels = net.input(size, size, input_channels), input_channels
        for stride in strides:
            channels = min(channels * stride, 320)
            if explicit_padding and stride == 2:
                x = net.depthwise(net.pad(x, 0, 1), 3, 2, valid=True) if x.shape[1] > 2 else net.depthwise(x)
            else:
                x = net.depthwise(x, 3, stride)
            x = net.conv(x, channels)
        return net.output(x)

    return f"{'p' if explicit_padding else ''}{''.join(map(str, strides))}_{size}x{size}x{input_channels}", build


def _make_stack(draw: ShapeDraw) -> tuple[str, Callable[[int], NetworkBuilder]]:
    channels, count = draw.channels(8, 96), draw.pick(2, 3, 4, 6)
    size = draw.size(min(MAX_ELEMENTS / channels, MAX_MACS / (channels**2 * 9 * count)), 4)
    kernels = [draw.pick(1, 3) for _ in range(count)]
    ends_in_pool = draw.pick(0, 1) == 1

    def build(seed: int) -> NetworkBuilder:
        net = NetworkBuilder(seed)
        x = net.input(size, size, channels)
        for kernel in kernels:
            x = net.conv(x, channels, kernel, act="relu")
        return net.output(net.pool(x, "MAX_POOL_2D", 2, 2) if ends_in_pool else x)

    return f"{''.join(map(str, kernels))}_{size}x{size}x{channels}{'p' if ends_in_pool else ''}", build


def _make_classifier(draw: ShapeDraw) -> tuple[str, Callable[[int], NetworkBuilder]]:
    """A complete small network: image in, probabilities out, with the dtypes that applications use."""
    cin, size, first_filters = draw.pick(1, 3, 3), draw.pick(24, 32, 48, 64, 96, 128, 160, 224), draw.pick(8, 8, 16, 24)
    count, classes, kernel = draw.pick(2, 3, 5), draw.pick(2, 5, 10, 101), draw.pick(3, 3, 5, 7)
    converts_dtypes, flatten_kind, is_separable = draw.pick(0, 1, 1) == 1, draw.pick(0, 1, 2, 3), draw.pick(0, 1) == 1

    def build(seed: int) -> NetworkBuilder:
        net = NetworkBuilder(seed)
        x = net.input(size, size, cin, dtype="uint8" if converts_dtypes else "int8")
        x = net.conv(net.quantize(x) if converts_dtypes else x, first_filters, kernel, 2)
        for block in range(count):
            stride = 2 if block % 2 == 0 else 1
            filters = min(x.channels * stride, 256)
            x = net.conv(net.depthwise(x, 3, stride), filters) if is_separable else net.conv(x, filters, 3, stride)
        x = net.softmax(net.dense(_flatten(net, x, flatten_kind), classes))
        return net.output(net.dequantize(x) if converts_dtypes else x)

    kind = f"{'u' if converts_dtypes else 'i'}{flatten_kind}{'d' if is_separable else 'c'}"
    return f"{kind}{count}_k{kernel}_{size}x{size}x{cin}_{first_filters}_{classes}", build


def _flatten(net: NetworkBuilder, x: Node, flatten_kind: int) -> Node:
    if flatten_kind == 0:
        return net.mean(x)
    if flatten_kind == 1:
        x = net.pool(x, "AVERAGE_POOL_2D", x.shape[1], 1)
    elements = x.shape[1] * x.shape[2] * x.channels
    return net.dynamic_reshape(x, elements) if flatten_kind == 3 else net.reshape(x, elements)


def _make_reshape_chain(draw: ShapeDraw) -> tuple[str, Callable[[int], NetworkBuilder]]:
    """Convolutions with dynamic reshapes between them: operators that no delegate runs."""
    channels, size, count = draw.channels(4, 128), draw.pick(1, 2, 4, 7, 14), draw.pick(1, 2, 4)

    def build(seed: int) -> NetworkBuilder:
        net = NetworkBuilder(seed)
        x = net.input(size, size, channels)
        for _ in range(count):
            x = net.conv(x, channels)
            x = net.dynamic_reshape(net.dynamic_reshape(x, size * size * channels), size, size, channels)
        return net.output(net.conv(x, channels))

    return f"{count}x_{size}x{size}x{channels}", build


def _make_dense_chain(draw: ShapeDraw) -> tuple[str, Callable[[int], NetworkBuilder]]:
    units, count, inputs = draw.pick(16, 32, 64, 128, 256, 512), draw.pick(2, 4, 8), draw.channels(16, 1280)

    def build(seed: int) -> NetworkBuilder:
        net = NetworkBuilder(seed)
        x = net.input(inputs)
        for _ in range(count):
            x = net.dense(x, units, "relu")
        return net.output(x)

    return f"{count}x{units}_{inputs}", build


def _make_pyramid(draw: ShapeDraw) -> tuple[str, Callable[[int], NetworkBuilder]]:
    channels, size = draw.pick(8, 16, 24, 32, 64), draw.pick(4, 6, 8, 12, 16, 24)
    name = str(draw.random.choice(["RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"]))

    def build(seed: int) -> NetworkBuilder:
        net = NetworkBuilder(seed)
        x = net.input(size * 2, size * 2, channels)
        low_res = net.conv(x, channels * 2, 3, 2)
        pyramid = net.concat(net.resize(name, net.conv(low_res, channels), 2), x)
        return net.output(net.conv(pyramid, channels, 3))

    return f"{name[7]}{size}x{channels}", build


GROUPS = (
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
    SuiteGroup("inverted_residual", 16, 55, _make_inverted_residual, composite=True),
    SuiteGroup("residual", 10, 30, _make_residual, composite=True),
    SuiteGroup("separable", 12, 40, _make_separable, composite=True),
    SuiteGroup("stack", 8, 25, _make_stack, composite=True),
    SuiteGroup("classifier", 16, 50, _make_classifier, composite=True),
    SuiteGroup("dense_chain", 5, 12, _make_dense_chain, composite=True),
    SuiteGroup("pyramid", 5, 14, _make_pyramid, composite=True),
)
