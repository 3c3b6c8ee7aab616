"""Damages .tflite files in the ways that chance and malice do."""

import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers  # type: ignore[import-untyped]
import numpy as np
from ai_edge_litert import schema_py_generated as schema

HOSTILE = (0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0x7FFFFFF0, 0x10000000, 0x00FFFFFF, 0, 1, 4, 8)


def mutant(content: bytes, seed: int) -> bytes:
    """`content`, damaged in a way that `seed` decides; the identifier stays, so that it is read at all."""
    rng = random.Random(seed)
    return rng.choice(KINDS)(content, rng)


def _place(content: bytes, rng: random.Random) -> int:
    """A position behind the identifier: in four of five cases one whose neighbourhood is no constant data."""
    for _ in range(20):
        place = rng.randrange(8, len(content))
        around = content[max(0, place - 8) : place + 8]
        if around.count(0) >= 5 or rng.random() < 0.01:  # tables are full of zero bytes, weights are not
            return place
    return rng.randrange(8, len(content))


def _flipped(content: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8, 40))):
        damaged[_place(content, rng)] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def _overwritten(content: bytes, rng: random.Random) -> bytes:
    """Lengths, offsets, sizes and indices are 32-bit words at multiples of four."""
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = min(_place(content, rng) // 4 * 4, len(content) - 4)
        struct.pack_into("<I", damaged, max(8, place), rng.choice((*HOSTILE, rng.randrange(len(content)))))
    return bytes(damaged)


def _truncated(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(8, len(content))]


def _moved(content: bytes, rng: random.Random) -> bytes:
    """A piece copied over another place."""
    length = rng.choice((4, 16, 64, 400))
    start, end = rng.randrange(8, len(content)), _place(content, rng)
    piece = content[start : start + length]
    return (content[:end] + piece + content[end + len(piece) :])[: len(content)]


def _contradictory(content: bytes, rng: random.Random) -> bytes:
    """A well-formed flatbuffer whose numbers make no sense."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    for _ in range(rng.choice((1, 1, 2, 4))):
        graph = rng.choice(model.subgraphs)
        if graph.tensors and graph.operators:
            rng.choice(CONTRADICTIONS)(model, graph, rng)
    builder = flatbuffers.Builder(len(content))
    try:
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    except (struct.error, TypeError, OverflowError):
        return _flipped(content, rng)
    return bytes(builder.Output())


def _shape(model: Any, graph: Any, rng: random.Random) -> None:
    tensor = rng.choice(graph.tensors)
    shape = [int(size) for size in tensor.shape] if tensor.shape is not None else []
    value = rng.choice((2**31 - 1, 2**30, 65536, -1, -(2**31), 0, 3))
    if shape and rng.random() < 0.7:
        shape[rng.randrange(len(shape))] = value
    else:
        shape = [value] * rng.choice((1, 2, 4, 9, 300))
    tensor.shape = np.array(shape, np.int32)


def _operands(model: Any, graph: Any, rng: random.Random) -> None:
    operator = rng.choice(graph.operators)
    side = rng.choice(("inputs", "outputs"))
    given = getattr(operator, side)
    values = [] if given is None else [int(index) for index in given]
    change = rng.choice(("out", "none", "other", "drop", "more"))
    if change == "drop":
        values = values[:-1]
    elif change == "more":
        values += [rng.randrange(len(graph.tensors))] * rng.choice((1, 40))
    elif values:
        choices = {"out": 2**31 - 1, "none": -1, "other": rng.randrange(len(graph.tensors))}
        values[rng.randrange(len(values))] = choices[change]
    setattr(operator, side, np.array(values, np.int32))


def _body(model: Any, graph: Any, rng: random.Random) -> None:
    """Control flow that comes back to where it is, or leads nowhere."""
    for operator in graph.operators:
        for name in vars(operator.builtinOptions or object.__new__(schema.IfOptionsT)):
            if name.endswith("SubgraphIndex"):
                setattr(operator.builtinOptions, name, rng.choice((0, 1, 2, 99, -1, 2**31 - 1)))


def _kind(model: Any, graph: Any, rng: random.Random) -> None:
    code = rng.choice(model.operatorCodes)
    code.builtinCode = rng.choice((rng.randrange(0, 210), 32, 255, 118, 119, 129))
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)


def _type(model: Any, graph: Any, rng: random.Random) -> None:
    rng.choice(graph.tensors).type = rng.choice((*range(20), 100))


def _buffer(model: Any, graph: Any, rng: random.Random) -> None:
    rng.choice(graph.tensors).buffer = rng.choice((0, 1, len(model.buffers) - 1, 2**31, 2**32 - 1))


def _scales(model: Any, graph: Any, rng: random.Random) -> None:
    tensor = rng.choice(graph.tensors)
    made = schema.QuantizationParametersT()
    count = rng.choice((1, 3, 1000))
    made.scale = np.array([rng.choice((0.0, 1e30, -1.0, float("nan"), float("inf"), 1e-40))] * count, np.float32)
    made.zeroPoint = np.array([rng.choice((0, 2**40, -(2**63)))] * rng.choice((0, 1, count)), np.int64)
    made.quantizedDimension = rng.choice((0, 3, -1, 99))
    tensor.quantization = made


def _fields(model: Any, graph: Any, rng: random.Random) -> None:
    chosen = rng.choice(graph.operators).builtinOptions
    numbers = [name for name, value in vars(chosen).items() if type(value) is int] if chosen else []
    if numbers:
        setattr(chosen, rng.choice(numbers), rng.choice((0, -1, 127, 1, 2)))


def _interface(model: Any, graph: Any, rng: random.Random) -> None:
    side = rng.choice(("inputs", "outputs"))
    value = rng.choice((-1, 2**31 - 1, len(graph.tensors), rng.randrange(len(graph.tensors))))
    setattr(graph, side, np.array([value] * rng.choice((0, 1, 2, 50)), np.int32))


def _flags(model: Any, graph: Any, rng: random.Random) -> None:
    tensor = rng.choice(graph.tensors)
    tensor.isVariable = not tensor.isVariable


def _gone(model: Any, graph: Any, rng: random.Random) -> None:
    field = rng.choice(("tensors", "operators", "inputs", "outputs"))
    setattr(graph, field, None if rng.random() < 0.5 or field in ("inputs", "outputs") else getattr(graph, field)[:-1])


KINDS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(_flipped, _overwritten, _truncated, _moved),
    *(_contradictory, _contradictory, _overwritten),
)
CONTRADICTIONS: tuple[Callable[[Any, Any, random.Random], None], ...] = (
    *(_shape, _shape, _operands, _operands, _body, _kind, _type, _buffer, _scales, _fields, _interface, _flags, _gone),
)


def published(folder: Path | None) -> list[Path]:
    """Small real models, of which mutants are made too, where the folder of published ones is at hand."""
    return [] if folder is None else sorted(p for p in folder.glob("*.tflite") if p.stat().st_size < 60_000)
