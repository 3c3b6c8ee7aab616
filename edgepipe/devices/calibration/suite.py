"""The models that a device is calibrated on: single operators over many shapes, and small composites.

Shapes are drawn at random from those that mobile networks have, and limited by work, so that no model takes long. The
suite of one effort and seed is the same everywhere, byte for byte.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from edgepipe.devices.calibration.network_builder import Net, Node

SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224)
CHANNELS = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 72, 80, 96, 100, 112, 120, 128, 144, 160,
            192, 200, 240, 256, 288, 320, 336, 384, 448, 480, 512, 576, 640, 672, 768, 960, 1024, 1280)  # fmt: skip
MOST_MACS = 40e6
MOST_ELEMENTS = 600_000  # of one activation
MOST_WEIGHTS = 3_000_000


class Effort(StrEnum):
    """How many models the suite has."""

    QUICK = "quick"
    FULL = "full"


@dataclass(frozen=True)
class Case:
    """One model of the suite: `group` is the operator or composite it is about."""

    name: str
    group: str
    composite: bool
    build: Callable[[int], Net]

    def content(self, seed: int) -> bytes:
        """The .tflite file; equal for equal seeds."""
        mixed = int.from_bytes(hashlib.sha256(f"{seed}:{self.name}".encode()).digest()[:8], "big")
        return self.build(mixed).bytes()


@dataclass(frozen=True)
class Draw:
    """Random shapes, one stream for each group."""

    random: np.random.Generator

    def pick(self, *values: int) -> int:
        """One of `values`."""
        return int(self.random.choice(values))

    def channels(self, low: int = 1, high: int = 1280) -> int:
        """A number of channels: mostly one that networks use, sometimes any."""
        if self.random.random() < 0.2:
            return int(np.exp(self.random.uniform(np.log(low), np.log(high))))
        return self.pick(*(c for c in CHANNELS if low <= c <= high))

    def size(self, most_pixels: float, low: int = 1) -> int:
        """A height and width with at most `most_pixels`, drawn evenly from those that networks use."""
        return self.pick(*(s for s in SIZES if s == low or (s > low and s * s <= most_pixels)))


Maker = Callable[[Draw], tuple[str, Callable[[int], Net]]]


def suite(effort: Effort, seed: int) -> tuple[Case, ...]:
    """The cases of `effort`: about 400 for quick, 900 for full; the quick ones are among the full ones."""
    return tuple(case for group in GROUPS for case in _cases(group, effort, seed))


@dataclass(frozen=True)
class Group:
    """How to make the cases about one operator or composite."""

    name: str
    quick: int
    full: int
    make: Maker
    composite: bool = False


def _cases(group: Group, effort: Effort, seed: int) -> Iterator[Case]:
    digest = hashlib.sha256(f"{seed}:{group.name}".encode()).digest()
    draw = Draw(np.random.default_rng(int.from_bytes(digest[:8], "big")))
    seen: set[str] = set()
    wanted, tries = (group.quick if effort is Effort.QUICK else group.full), 0
    while len(seen) < wanted and tries < 20 * wanted:
        tries += 1
        label, build = group.make(draw)
        if label not in seen:
            seen.add(label)
            yield Case(f"{group.name}_{label}", group.name, group.composite, build)


# ---- single operators


def _pointwise(draw: Draw) -> tuple[str, Callable[[int], Net]]:
    cin, cout = draw.channels(), draw.channels()
    cout = min(cout, MOST_WEIGHTS // cin)
    size = draw.size(min(MOST_MACS / cin / cout, MOST_ELEMENTS / max(cin, cout)))
    act = str(draw.random.choice(["", "relu6"]))

    def build(seed: int) -> Net:
        net = Net(seed)
        return net.output(net.conv(net.input(size, size, cin), cout, 1, act=act))

    return f"{size}x{size}x{cin}_{cout}{act}", build


def _convolution(kernels: tuple[int, ...], low: int, high: int) -> Maker:
    def make(draw: Draw) -> tuple[str, Callable[[int], Net]]:
        kernel, stride, cin = draw.pick(*kernels), draw.pick(1, 1, 2), draw.channels(low, high)
        cout = min(draw.channels(4, 320), max(1, MOST_WEIGHTS // (cin * kernel**2)))
        pixels = min(MOST_MACS / (cin * cout * kernel**2), MOST_ELEMENTS / max(cout, cin * stride**2), 150**2)
        size = stride * draw.size(pixels)

        def build(seed: int) -> Net:
            net = Net(seed)
            return net.output(net.conv(net.input(size, size, cin), cout, kernel, stride))

        return f"k{kernel}s{stride}_{size}x{size}x{cin}_{cout}", build

    return make


def _first_layer(draw: Draw) -> tuple[str, Callable[[int], Net]]:
    cin, cout = draw.pick(1, 3, 3), draw.pick(4, 6, 8, 12, 16, 24, 32, 64)
    height, width = (draw.pick(3, 3, 3, 4, 5, 7, 7), draw.pick(0, 0, 0, 0, 4, 10))
    kernel = (height, height) if not width else (width, height)
    stride = draw.pick(1, 2, 2)
    size = stride * draw.size(min(MOST_MACS / (cin * cout * kernel[0] * kernel[1]), MOST_ELEMENTS / cout), 8)
    valid = draw.pick(0, 1) == 1 and size > max(kernel)

    def build(seed: int) -> Net:
        net = Net(seed)
        x = net.input(max(size, kernel[0]), max(size, kernel[1]), cin)
        return net.output(net.conv(x, cout, kernel, stride, "relu", valid))

    return f"k{kernel[0]}x{kernel[1]}s{stride}_{size}x{size}x{cin}_{cout}{'v' if valid else ''}", build


def _depthwise(draw: Draw) -> tuple[str, Callable[[int], Net]]:
    kernel, stride, channels = draw.pick(3, 3, 3, 5), draw.pick(1, 1, 2), draw.channels(4, 1280)
    size = stride * draw.size(MOST_ELEMENTS / channels / stride**2)
    valid = draw.pick(0, 0, 1) == 1 and size > kernel

    def build(seed: int) -> Net:
        net = Net(seed)
        return net.output(net.depthwise(net.input(size, size, channels), kernel, stride, valid=valid))

    return f"k{kernel}s{stride}_{size}x{size}x{channels}{'v' if valid else ''}", build


def _dense(draw: Draw) -> tuple[str, Callable[[int], Net]]:
    cin = draw.channels(4, 1280) * draw.pick(1, 1, 1, 4)
    units = min(draw.pick(1, 2, 5, 8, 10, 12, 16, 35, 64, 101, 128, 256, 512, 640, 1000), MOST_WEIGHTS // cin)

    def build(seed: int) -> Net:
        net = Net(seed)
        return net.output(net.dense(net.input(cin), units))

    return f"{cin}_{units}", build


def _elementwise(name: str, form: str) -> Maker:
    """Two tensors of one size, or a `constant` or another tensor of one value a channel for the second."""

    def make(draw: Draw) -> tuple[str, Callable[[int], Net]]:
        channels = draw.channels(4, 640)
        size = draw.size(MOST_ELEMENTS / channels, 2)

        def build(seed: int) -> Net:
            net = Net(seed)
            x = net.input(size, size, channels)
            if form == "constant":
                return net.output(net.binary_constant(name, x))
            y = net.input(1, 1, channels) if form == "broadcast" else net.input(size, size, channels)
            return net.output(net.binary(name, x, y))

        return f"{size}x{size}x{channels}", build

    return make


def _unary(name: str) -> Maker:
    def make(draw: Draw) -> tuple[str, Callable[[int], Net]]:
        channels = draw.channels(2, 640)
        size = draw.size(MOST_ELEMENTS / channels)

        def build(seed: int) -> Net:
            net = Net(seed)
            return net.output(net.unary(name, net.input(size, size, channels)))

        return f"{size}x{size}x{channels}", build

    return make


def _pool(name: str) -> Maker:
    def make(draw: Draw) -> tuple[str, Callable[[int], Net]]:
        channels, whole = draw.channels(4, 640), draw.pick(0, 1)
        kernel = draw.pick(2, 3, 4, 5, 7) if whole else draw.pick(2, 2, 3)
        stride = kernel if whole else draw.pick(1, 2)
        size = kernel * (1 if whole else draw.size(MOST_ELEMENTS / channels / kernel**2))

        def build(seed: int) -> Net:
            net = Net(seed)
            return net.output(net.pool(net.input(size, size, channels), name, kernel, stride))

        return f"k{kernel}s{stride}_{size}x{size}x{channels}", build

    return make


def _mean(draw: Draw) -> tuple[str, Callable[[int], Net]]:
    channels, keep = draw.channels(4, 1280), draw.pick(0, 1) == 1
    size = draw.size(min(MOST_ELEMENTS / channels, 40**2), 2)

    def build(seed: int) -> Net:
        net = Net(seed)
        return net.output(net.mean(net.input(size, size, channels), keep))

    return f"{size}x{size}x{channels}{'k' if keep else ''}", build


def _moved(name: str) -> Maker:
    """PAD, CONCATENATION, RESHAPE, STRIDED_SLICE, TRANSPOSE and the resizes: bytes that move."""

    def make(draw: Draw) -> tuple[str, Callable[[int], Net]]:
        channels, option = draw.channels(1, 320), draw.pick(1, 2, 3)
        size = draw.size(MOST_ELEMENTS / channels / (4 if name.startswith("RESIZE") else 1), 2)

        def build(seed: int) -> Net:
            net = Net(seed)
            x = net.input(size, size, channels)
            return net.output(_move(net, x, name, option))

        return f"{size}x{size}x{channels}_{option}", build

    return make


def _move(net: Net, x: Node, name: str, option: int) -> Node:
    size, channels = x.shape[1], x.channels
    moves: dict[str, Callable[[], Node]] = {
        "PAD": lambda: net.pad(x, option // 2, (option + 1) // 2),
        "CONCATENATION": lambda: net.concat(x, *(net.input(size, size, channels) for _ in range(option))),
        "RESHAPE": lambda: net.reshape(x, size * size * channels),
        "STRIDED_SLICE": lambda: net.strided_slice(x, max(1, size - option), max(1, size - 1)),
        "TRANSPOSE": lambda: net.transpose(x),
        "RESIZE_BILINEAR": lambda: net.resize(name, x, 2),
        "RESIZE_NEAREST_NEIGHBOR": lambda: net.resize(name, x, 2),
    }
    return moves[name]()


def _softmax(draw: Draw) -> tuple[str, Callable[[int], Net]]:
    rows, classes = draw.pick(1, 1, 1, 16, 64, 400), draw.pick(2, 3, 5, 10, 12, 20, 35, 101, 256, 1000)

    def build(seed: int) -> Net:
        net = Net(seed)
        return net.output(net.softmax(net.input(rows, classes) if rows > 1 else net.input(classes)))

    return f"{rows}x{classes}", build


def _converted(name: str) -> Maker:
    def make(draw: Draw) -> tuple[str, Callable[[int], Net]]:
        channels = draw.pick(1, 3, 3, 10, 64, 101)
        size = draw.pick(32, 48, 96, 128, 160, 192, 224, 256, 320) if channels == 3 else draw.size(4000)
        dtype = str(draw.random.choice(["uint8", "float32"])) if name == "QUANTIZE" else "int8"

        def build(seed: int) -> Net:
            net = Net(seed)
            x = net.input(size, size, channels, dtype=dtype)
            return net.output(net.quantize(x) if name == "QUANTIZE" else net.dequantize(x))

        return f"{dtype}_{size}x{size}x{channels}", build

    return make


# ---- composites


def _inverted_residual(draw: Draw) -> tuple[str, Callable[[int], Net]]:
    channels, expansion, kernel = draw.channels(4, 160), draw.pick(2, 3, 4, 6), draw.pick(3, 3, 5)
    stride, count, excite = draw.pick(1, 1, 2), draw.pick(1, 2, 3), draw.pick(0, 0, 0, 1, 2)
    wide = channels * expansion
    size = stride * draw.size(min(MOST_ELEMENTS / wide / stride**2, MOST_MACS / (wide * channels * 2)), 2)

    def build(seed: int) -> Net:
        net = Net(seed)
        x = net.input(size, size, channels)
        for place in range(count):
            last = stride if place == count - 1 else 1
            y = net.depthwise(net.conv(x, wide), kernel, last)
            y = _excited(net, y, excite == 2) if excite else y
            y = net.conv(y, channels, act="")
            x = net.binary("ADD", x, y) if last == 1 else y
        return net.output(x)

    return f"{count}x_k{kernel}s{stride}_{size}x{size}x{channels}x{expansion}{['', 'e', 'h'][excite]}", build


def _excited(net: Net, x: Node, hard: bool) -> Node:
    """Squeeze and excitation (arXiv 1709.01507), with a sigmoid or clipped between two constants (arXiv 1905.02244)."""
    squeezed = net.conv(net.mean(x, keep=True), max(1, x.channels // 4), act="relu")
    gate = net.conv(squeezed, x.channels, act="")
    if hard:
        gate = net.binary_constant("MAXIMUM", net.binary_constant("MINIMUM", gate))
    return net.binary("MUL", x, gate if hard else net.unary("LOGISTIC", gate))


def _residual(draw: Draw) -> tuple[str, Callable[[int], Net]]:
    channels, count, form = draw.channels(4, 128), draw.pick(1, 2, 3), draw.pick(0, 1, 2)
    size = draw.size(min(MOST_ELEMENTS / channels, MOST_MACS / (channels**2 * 18)), 2)

    def build(seed: int) -> Net:
        net = Net(seed)
        x = net.input(size, size, channels)
        for _ in range(count):
            if form == 2:  # a bottleneck
                y = net.conv(net.conv(net.conv(x, max(1, channels // 4)), max(1, channels // 4), 3), channels, act="")
            else:
                y = net.conv(net.conv(x, channels, 3, act="relu"), channels, 3, act="")
            x = net.binary("ADD", x, y, "relu") if form else net.unary("RELU", net.binary("ADD", x, y))
        return net.output(x)

    return f"{count}x_{form}_{size}x{size}x{channels}", build


def _separable(draw: Draw) -> tuple[str, Callable[[int], Net]]:
    first, count, size = draw.pick(4, 8, 8, 16, 24, 32), draw.pick(2, 4, 6, 8), draw.pick(8, 14, 16, 24, 28, 32, 48, 56)
    strides = [draw.pick(1, 1, 2) for _ in range(count)]
    padded = draw.pick(0, 1) == 1

    def build(seed: int) -> Net:
        net = Net(seed)
        x, channels = net.input(size, size, first), first
        for stride in strides:
            channels = min(channels * stride, 320)
            if padded and stride == 2:
                x = net.depthwise(net.pad(x, 0, 1), 3, 2, valid=True) if x.shape[1] > 2 else net.depthwise(x)
            else:
                x = net.depthwise(x, 3, stride)
            x = net.conv(x, channels)
        return net.output(x)

    return f"{'p' if padded else ''}{''.join(map(str, strides))}_{size}x{size}x{first}", build


def _stack(draw: Draw) -> tuple[str, Callable[[int], Net]]:
    first, count = draw.channels(8, 96), draw.pick(2, 3, 4, 6)
    size = draw.size(min(MOST_ELEMENTS / first, MOST_MACS / (first**2 * 9 * count)), 4)
    kernels = [draw.pick(1, 3) for _ in range(count)]
    pooled = draw.pick(0, 1) == 1

    def build(seed: int) -> Net:
        net = Net(seed)
        x = net.input(size, size, first)
        for kernel in kernels:
            x = net.conv(x, first, kernel, act="relu")
        return net.output(net.pool(x, "MAX_POOL_2D", 2, 2) if pooled else x)

    return f"{''.join(map(str, kernels))}_{size}x{size}x{first}{'p' if pooled else ''}", build


def _classifier(draw: Draw) -> tuple[str, Callable[[int], Net]]:
    """A whole small network: image in, probabilities out, in the types that applications use."""
    cin, size, first = draw.pick(1, 3, 3), draw.pick(24, 32, 48, 64, 96, 128, 160, 224), draw.pick(8, 8, 16, 24)
    count, classes, kernel = draw.pick(2, 3, 5), draw.pick(2, 5, 10, 101), draw.pick(3, 3, 5, 7)
    outer, ending, deep = draw.pick(0, 1, 1) == 1, draw.pick(0, 1, 2, 3), draw.pick(0, 1) == 1

    def build(seed: int) -> Net:
        net = Net(seed)
        x = net.input(size, size, cin, dtype="uint8" if outer else "int8")
        x = net.conv(net.quantize(x) if outer else x, first, kernel, 2)
        for place in range(count):
            stride = 2 if place % 2 == 0 else 1
            wide = min(x.channels * stride, 256)
            x = net.conv(net.depthwise(x, 3, stride), wide) if deep else net.conv(x, wide, 3, stride)
        x = net.softmax(net.dense(_flat(net, x, ending), classes))
        return net.output(net.dequantize(x) if outer else x)

    kind = f"{'u' if outer else 'i'}{ending}{'d' if deep else 'c'}"
    return f"{kind}{count}_k{kernel}_{size}x{size}x{cin}_{first}_{classes}", build


def _flat(net: Net, x: Node, ending: int) -> Node:
    if ending == 0:
        return net.mean(x)
    if ending == 1:
        x = net.pool(x, "AVERAGE_POOL_2D", x.shape[1], 1)
    elements = x.shape[1] * x.shape[2] * x.channels
    return net.dynamic_reshape(x, elements) if ending == 3 else net.reshape(x, elements)


def _reshaped(draw: Draw) -> tuple[str, Callable[[int], Net]]:
    """Between two convolutions, a reshape whose target is computed: operators that no delegate takes."""
    channels, size, times = draw.channels(4, 128), draw.pick(1, 2, 4, 7, 14), draw.pick(1, 2, 4)

    def build(seed: int) -> Net:
        net = Net(seed)
        x = net.input(size, size, channels)
        for _ in range(times):
            x = net.conv(x, channels)
            x = net.dynamic_reshape(net.dynamic_reshape(x, size * size * channels), size, size, channels)
        return net.output(net.conv(x, channels))

    return f"{times}x_{size}x{size}x{channels}", build


def _dense_chain(draw: Draw) -> tuple[str, Callable[[int], Net]]:
    units, count, first = draw.pick(16, 32, 64, 128, 256, 512), draw.pick(2, 4, 8), draw.channels(16, 1280)

    def build(seed: int) -> Net:
        net = Net(seed)
        x = net.input(first)
        for _ in range(count):
            x = net.dense(x, units, "relu")
        return net.output(x)

    return f"{count}x{units}_{first}", build


def _pyramid(draw: Draw) -> tuple[str, Callable[[int], Net]]:
    channels, size = draw.pick(8, 16, 24, 32, 64), draw.pick(4, 6, 8, 12, 16, 24)
    name = str(draw.random.choice(["RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"]))

    def build(seed: int) -> Net:
        net = Net(seed)
        x = net.input(size * 2, size * 2, channels)
        low = net.conv(x, channels * 2, 3, 2)
        joined = net.concat(net.resize(name, net.conv(low, channels), 2), x)
        return net.output(net.conv(joined, channels, 3))

    return f"{name[7]}{size}x{channels}", build


GROUPS = (
    Group("conv_1x1", 45, 110, _pointwise),
    Group("conv_3x3", 30, 80, _convolution((3,), 4, 512)),
    Group("conv_5x5_7x7", 12, 35, _convolution((5, 7), 4, 200)),
    Group("conv_first", 24, 60, _first_layer),
    Group("depthwise", 36, 90, _depthwise),
    Group("fully_connected", 14, 40, _dense),
    *(
        Group(f"{name.lower()}_{form}", 4, 8, _elementwise(name, form))
        for name in ("ADD", "SUB", "MUL", "MINIMUM", "MAXIMUM")
        for form in ("same", "constant", "broadcast")
    ),
    Group("average_pool", 7, 16, _pool("AVERAGE_POOL_2D")),
    Group("max_pool", 7, 16, _pool("MAX_POOL_2D")),
    Group("mean", 7, 16, _mean),
    Group("pad", 6, 14, _moved("PAD")),
    Group("concatenation", 5, 12, _moved("CONCATENATION")),
    Group("reshape", 3, 8, _moved("RESHAPE")),
    Group("dynamic_reshape", 6, 20, _reshaped),
    Group("strided_slice", 3, 8, _moved("STRIDED_SLICE")),
    Group("transpose", 3, 8, _moved("TRANSPOSE")),
    Group("resize_bilinear", 4, 10, _moved("RESIZE_BILINEAR")),
    Group("resize_nearest", 4, 10, _moved("RESIZE_NEAREST_NEIGHBOR")),
    Group("softmax", 6, 14, _softmax),
    Group("logistic", 5, 12, _unary("LOGISTIC")),
    Group("hard_swish", 4, 10, _unary("HARD_SWISH")),
    Group("relu", 4, 10, _unary("RELU")),
    Group("quantize", 8, 18, _converted("QUANTIZE")),
    Group("dequantize", 5, 10, _converted("DEQUANTIZE")),
    Group("inverted_residual", 16, 55, _inverted_residual, composite=True),
    Group("residual", 10, 30, _residual, composite=True),
    Group("separable", 12, 40, _separable, composite=True),
    Group("stack", 8, 25, _stack, composite=True),
    Group("classifier", 16, 50, _classifier, composite=True),
    Group("dense_chain", 5, 12, _dense_chain, composite=True),
    Group("pyramid", 5, 14, _pyramid, composite=True),
)
