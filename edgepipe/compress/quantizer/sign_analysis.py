"""Which tensors of a float graph cannot be negative, whatever the samples: by the operators that compute them."""

from edgepipe.compress.quantizer.graph_index import GraphIndex

NONNEGATIVE_OPERATORS = frozenset(
    {
        *("ABS", "EXP", "LOGISTIC", "RELU", "RELU6", "RELU_0_TO_1", "RSQRT", "SOFTMAX", "SQRT", "SQUARE"),
        "SQUARED_DIFFERENCE",
    }
)
# outputs cannot be negative if no float input can
SIGN_KEEPING_OPERATORS = frozenset(
    {
        *("ADD", "ADD_N", "CUMSUM", "DIV", "FLOOR", "MEAN", "MINIMUM", "POW", "REDUCE_PROD", "SUM"),
        *("AVERAGE_POOL_2D", "MAX_POOL_2D", "REDUCE_MAX", "REDUCE_MIN", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"),
        *("BATCH_MATMUL", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"),
        *("BATCH_TO_SPACE_ND", "BROADCAST_TO", "CONCATENATION", "DEPTH_TO_SPACE", "EXPAND_DIMS", "GATHER", "GATHER_ND"),
        *("MIRROR_PAD", "PACK", "PAD", "PADV2", "RESHAPE", "REVERSE_V2", "SELECT", "SELECT_V2", "SLICE"),
        *("SPACE_TO_BATCH_ND", "SPACE_TO_DEPTH", "SPLIT", "SPLIT_V", "SQUEEZE", "STRIDED_SLICE", "TILE", "TRANSPOSE"),
        *("TOPK_V2", "UNPACK"),
    }
)
NONNEGATIVE_ACTIVATIONS = (1, 3)  # RELU and RELU6 of the schema's ActivationFunctionType


def nonnegative_tensors(index: GraphIndex) -> set[int]:
    """The float tensors of a graph that cannot be negative, constants among them."""
    nonnegative = {
        tensor
        for tensor in index.float_tensors
        if (constant := index.constant(tensor)) is not None and bool((constant >= 0).all())
    }
    for number in range(len(index.operators)):
        if _is_nonnegative(index, number, nonnegative):
            nonnegative.update(index.float_outputs(number))
    return nonnegative


def _is_nonnegative(index: GraphIndex, number: int, nonnegative: set[int]) -> bool:
    kind, options = index.kinds[number], index.operators[number].builtinOptions
    if kind in NONNEGATIVE_OPERATORS or getattr(options, "fusedActivationFunction", 0) in NONNEGATIVE_ACTIVATIONS:
        return True
    factors = [index.inputs[number][position] for position in index.float_inputs(number)]
    if kind == "CAST":
        return index.graph.dtype(index.inputs[number][0]) == "bool"
    if kind == "MAXIMUM":
        return any(tensor in nonnegative for tensor in factors)
    if kind == "MUL" and factors[0] == factors[1]:
        return True
    return kind in (*SIGN_KEEPING_OPERATORS, "MUL") and all(tensor in nonnegative for tensor in factors)
