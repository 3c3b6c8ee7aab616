"""Coral's published pairs of a model and what the Edge TPU compiler made of it: `coral_pairs.json`, as models.

Only facts are in the file: operators, shapes, types and which operators stayed on the CPU; weights are zeros here.
`tools/coral_pairs.py` remakes it.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from edgepipe.tflite.model import BITS_BY_DTYPE, Model, Operator, Subgraph, Tensor

DATA_PATH = Path(__file__).parent / "coral_pairs.json"
SOURCE = "Coral's published pairs (github.com/google-coral/test_data)"


@dataclass(frozen=True)
class CompiledPair:
    """A model, and the indices of the operators that the compiler left on the CPU."""

    name: str
    model: Model
    cpu_indices: frozenset[int]


@cache
def read_pairs() -> tuple[CompiledPair, ...]:
    """All pairs, by name."""
    pair_by_name = json.loads(DATA_PATH.read_text(encoding="utf-8"))["pairs"]
    return tuple(
        CompiledPair(name, _build_model(name, pair), frozenset(pair["cpu"])) for name, pair in pair_by_name.items()
    )


def _build_model(name: str, pair: dict[str, Any]) -> Model:
    contents: list[bytes] = []
    tensors = tuple(_build_tensor(index, row, contents) for index, row in enumerate(pair["tensors"]))
    operators = tuple(_build_operator(index, row, tensors) for index, row in enumerate(pair["operators"]))
    inputs, outputs = (tuple(tensors[index] for index in pair[side]) for side in ("inputs", "outputs"))
    content = b"".join(contents)
    subgraph = Subgraph(0, "", inputs, outputs, tensors, operators)
    path = Path(f"{name}.tflite")
    return Model(path, len(content), "", operators, tensors, inputs, outputs, (), content, (subgraph,))


def _build_tensor(index: int, row: list[Any], contents: list[bytes]) -> Tensor:
    dtype, shape, flags, *values = row
    start = sum(map(len, contents))
    contents.append(np.asarray(values[0] if values else [], np.int32).tobytes())
    return Tensor(
        index=index,
        subgraph_index=0,
        name=f"tensor {index}",
        shape=tuple(shape),
        dtype=dtype,
        is_constant="constant" in flags,
        bytes=int(np.prod(shape)) * BITS_BY_DTYPE[dtype] // 8,
        quantization=None,
        is_variable="variable" in flags,
        byte_extent=(start, len(contents[-1])),
    )


def _build_operator(index: int, row: list[Any], tensors: tuple[Tensor, ...]) -> Operator:
    name, version, inputs, outputs, options, *custom = row
    input_tensors, output_tensors = (
        tuple(tensors[position] if position >= 0 else None for position in positions) for positions in (inputs, outputs)
    )
    return Operator(
        index, 0, name, input_tensors, output_tensors, 0, is_custom=bool(custom), options=options, version=version
    )
