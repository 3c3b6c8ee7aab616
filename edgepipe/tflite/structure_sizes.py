"""Bytes of TensorFlow Lite Micro's structures, kernels' data and parsed options, in a 64-bit and in a 32-bit build.

The 64-bit build is the PyPI package 0.dev20261023182759 (commit 8f6596d) for x86-64: it records its allocations and can
decompress tensors. The 32-bit one is what a device runs: it does neither. Its enumerations have four bytes; compilers
for bare Arm cores take one, which saves eight bytes an input or output and a few bytes an operator.

Source: tensorflow/tflite-micro, micro_allocator.h, memory_planner, arena_allocator, core/c and kernels. The tests hold
the 64-bit sizes against the package, and the 32-bit ones against a 32-bit build (tests/tflite/test_arena_32_bit.py).
"""

from collections.abc import Mapping
from typing import NamedTuple

# fmt: off
# Bytes that a kernel's init allocates; size and alignment of an operator's parsed options.
KERNEL_BYTES_64_BIT = {
    "ADD": 60, "SUB": 52, "MUL": 36, "DIV": 28, "SQUARED_DIFFERENCE": 112,
    "CONV_2D": 80, "DEPTHWISE_CONV_2D": 80, "FULLY_CONNECTED": 72, "TRANSPOSE_CONV": 88, "BATCH_MATMUL": 32,
    "AVERAGE_POOL_2D": 32, "MAX_POOL_2D": 32, "CONCATENATION": 80, "SOFTMAX": 80, "PAD": 56, "PADV2": 56,
    **dict.fromkeys(("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_ALL"), 44),
    "QUANTIZE": 32, "DEQUANTIZE": 32, "STRIDED_SLICE": 84, "MIRROR_PAD": 20, "L2_NORMALIZATION": 4,
    "LOGISTIC": 16, "TANH": 16, "RELU": 28, "RELU6": 8, "HARD_SWISH": 20, "LEAKY_RELU": 24, "PRELU": 28, "ELU": 256,
    "ABS": 28, "RSQRT": 28, "SVDF": 36, "UNIDIRECTIONAL_SEQUENCE_LSTM": 688, "SPACE_TO_BATCH_ND": 4,
    "IF": 8, "WHILE": 8, "CALL_ONCE": 8, "VAR_HANDLE": 4,
    **dict.fromkeys(("EQUAL", "NOT_EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL"), 32),
    "EMBEDDING_LOOKUP": 16, "CUMSUM": 36, "SELECT_V2": 1, "ASSIGN_VARIABLE": 4,
}
OPTIONS_64_BIT = {
    "ADD": (8, 4), "SUB": (8, 4), "MUL": (4, 4), "DIV": (4, 4), "CONCATENATION": (8, 4), "PACK": (8, 4),
    "CONV_2D": (28, 4), "DEPTHWISE_CONV_2D": (28, 4), "FULLY_CONNECTED": (32, 8), "TRANSPOSE_CONV": (20, 4),
    "BATCH_MATMUL": (3, 1), "AVERAGE_POOL_2D": (40, 4), "MAX_POOL_2D": (40, 4), "L2_POOL_2D": (40, 4),
    "SOFTMAX": (4, 4), "RESHAPE": (36, 4), "SQUEEZE": (36, 4), "SHAPE": (4, 4), "STRIDED_SLICE": (24, 4),
    **dict.fromkeys(("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_ALL"), (1, 1)),
    "UNPACK": (8, 4), "SPLIT": (4, 4), "SPLIT_V": (4, 4), "GATHER": (8, 4), "ARG_MAX": (4, 4), "ARG_MIN": (4, 4),
    "CAST": (8, 4), "LEAKY_RELU": (4, 4), "MIRROR_PAD": (4, 4), "L2_NORMALIZATION": (4, 4), "CUMSUM": (2, 1),
    "DEPTH_TO_SPACE": (4, 4), "SPACE_TO_DEPTH": (4, 4), "RESIZE_BILINEAR": (2, 1),
    "RESIZE_NEAREST_NEIGHBOR": (2, 1), "SVDF": (12, 4), "UNIDIRECTIONAL_SEQUENCE_LSTM": (16, 4),
    "IF": (8, 4), "WHILE": (8, 4), "CALL_ONCE": (4, 4), "VAR_HANDLE": (16, 8),
}
# What takes fewer bytes where pointers have four; without tensor compression, as devices are built.
KERNEL_BYTES_32_BIT = {name: size for name, size in KERNEL_BYTES_64_BIT.items() if name != "ASSIGN_VARIABLE"} | {
    "CONV_2D": 56, "DEPTHWISE_CONV_2D": 56, "FULLY_CONNECTED": 48, "TRANSPOSE_CONV": 72, "BATCH_MATMUL": 16,
    "SOFTMAX": 56, "CONCATENATION": 24, "EMBEDDING_LOOKUP": 8,
}
OPTIONS_32_BIT = OPTIONS_64_BIT | {"FULLY_CONNECTED": (16, 4), "VAR_HANDLE": (8, 4)}
# fmt: on
DATALESS_OPERATORS = frozenset(  # neither kernel data nor options
    {
        *("MAXIMUM", "MINIMUM", "TRANSPOSE", "EXP", "LOG", "SQRT", "SQUARE", "NEG", "FLOOR", "CEIL", "ROUND", "SIN"),
        *("COS", "LOGICAL_AND", "LOGICAL_OR", "LOGICAL_NOT", "EXPAND_DIMS", "FILL", "ZEROS_LIKE", "BROADCAST_TO"),
        *("SLICE", "GATHER_ND", "LOG_SOFTMAX", "BROADCAST_ARGS", "READ_VARIABLE", "ASSIGN_VARIABLE", "REVERSE_V2"),
        *("BATCH_TO_SPACE_ND", "FLOOR_DIV", "FLOOR_MOD", "ADD_N"),
    }
)


class StructureSizes(NamedTuple):
    """Bytes of each structure in one build.

    `base` lists what is there before any model, with alignments; `builtin_allocator`, of parsed options, comes last.
    `table_length` counts the resource variables in the application's table; None: as many as the model has.
    """

    base: tuple[tuple[int, int], ...]
    builtin_allocator: int
    variable_table: int
    resource_variable: int
    subgraph: int
    eval_tensor: int
    node: int
    tensor: int
    quantization: int
    pointer: int
    scratch_request: int
    buffer_lifetime: int
    kernels: Mapping[str, int]
    options: Mapping[str, tuple[int, int]]
    table_length: int | None = None


# `base`: the arena's allocator, the planner, and the model's allocator.
SIZES_64_BIT = StructureSizes(
    base=((104, 8), (72, 8), (272, 8)), builtin_allocator=16, variable_table=16, resource_variable=40,
    subgraph=24, eval_tensor=24, node=64, tensor=64, quantization=24,
    pointer=8, scratch_request=16, buffer_lifetime=32, kernels=KERNEL_BYTES_64_BIT, options=OPTIONS_64_BIT,
)  # fmt: skip
SIZES_32_BIT = StructureSizes(
    base=((36, 4), (44, 4), (36, 4)), builtin_allocator=8, variable_table=12, resource_variable=20,
    subgraph=8, eval_tensor=12, node=32, tensor=40, quantization=12,
    pointer=4, scratch_request=12, buffer_lifetime=24, kernels=KERNEL_BYTES_32_BIT, options=OPTIONS_32_BIT,
)  # fmt: skip
