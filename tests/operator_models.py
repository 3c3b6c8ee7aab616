"""Small float models, each around one operator of TFLite."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from tensorflow.compiler.tf2xla.python import xla

from edgepipe.compress.quantizer import flatbuffer_edits
from edgepipe.compress.quantizer.mutable_graph import MutableGraph
from edgepipe.compress.quantizer.operator_codes import ensure_code
from edgepipe.tflite.model import Model
from edgepipe.tflite.reader import read

X = np.random.default_rng(0).normal(size=(60, 4, 6, 4)).astype("float32")
STEPS = np.random.default_rng(1).integers(-127, 128, (1, 1, 4, 4))  # of weights, so that they lose nothing in 8 bits
STEPS[:, :, 0] = 127
KERNEL = (STEPS / 127).astype("float32")
SLOPES = np.array([[[0.1, 0.3, -0.2, 1.5]]], "float32")

RISING = np.array([0.0, 15.0, 30.0, 45.0], "float32")  # the last is the largest whatever is added in 8 bits

Body = Callable[[Any], Any]


def _rows(x: Any) -> Any:
    return tf.abs(tf.reshape(tf.reduce_max(x, axis=1, keepdims=True), (1, 6, 4)))


# What each operator is tried in. All get a convolution in front and one behind, so that both sides are integer.
BODIES: dict[str, Body] = {
    "ABS": tf.abs,
    "ARG_MAX": lambda x: x + tf.cast(tf.argmax(x + RISING, axis=3), tf.float32)[..., None],
    "ARG_MIN": lambda x: x + tf.cast(tf.argmin(x - RISING, axis=3), tf.float32)[..., None],
    "BATCH_TO_SPACE_ND": lambda x: tf.batch_to_space(tf.tile(x, (4, 1, 1, 1)), (2, 2), ((0, 0), (0, 0))),
    "DEPTH_TO_SPACE": lambda x: tf.tile(tf.nn.depth_to_space(x, 2), (1, 1, 1, 4)),
    "ELU": tf.nn.elu,
    "EXP": tf.exp,
    "EXPAND_DIMS": lambda x: tf.reshape(_rows(x), (1, 1, 6, 4)),
    "GREATER_EQUAL": lambda x: tf.where(x >= 0.25, x, tf.ones_like(x) * 0.25),
    "L2_NORMALIZATION": lambda x: tf.nn.l2_normalize(tf.abs(x) + 1.0, axis=-1),
    "LEAKY_RELU": lambda x: tf.nn.leaky_relu(x, 0.1),
    "LESS": lambda x: tf.where(x < tf.reverse(x, (1,)), x, tf.reverse(x, (1,))),
    "LOG": lambda x: tf.math.log(tf.sigmoid(x) + 0.1),
    "LOG_SOFTMAX": tf.nn.log_softmax,
    "MAXIMUM": lambda x: tf.maximum(x, tf.reverse(x, (1,))),
    "MINIMUM": lambda x: tf.minimum(tf.minimum(x, tf.constant([0.1, 2.0, -0.5, 0.3])), 2.0 * tf.reverse(x, (1,))),
    "PRELU": lambda x: tf.nn.relu(x) + tf.constant(-SLOPES) * tf.nn.relu(-x),
    "REDUCE_MAX": lambda x: tf.reduce_max(x, axis=1, keepdims=True),
    "REDUCE_MIN": lambda x: tf.reduce_min(x, axis=1, keepdims=True),
    "REDUCE_PROD": lambda x: tf.reduce_prod(0.3 * x + 1.0, axis=1, keepdims=True),
    "RELU6": lambda x: tf.nn.relu6(tf.reduce_max(x, axis=1, keepdims=True)),
    "RELU_N1_TO_1": lambda x: tf.clip_by_value(tf.reduce_max(x, axis=1, keepdims=True), -1.0, 1.0),
    "REVERSE_V2": lambda x: tf.reverse(x, (2,)),
    "SHAPE": lambda x: tf.reshape(tf.abs(tf.reshape(x, (tf.shape(x)[0], 24, 4))), (-1, 4, 6, 4)),
    "SPACE_TO_BATCH_ND": lambda x: tf.reduce_max(tf.space_to_batch(x, (2, 2), ((0, 0), (0, 0))), axis=0, keepdims=True),
    "SPACE_TO_DEPTH": lambda x: tf.nn.space_to_depth(x, 2)[..., 2:6],
    "SPLIT": lambda x: tf.concat(tf.split(x, 2, axis=3)[::-1], axis=3),
    "SPLIT_V": lambda x: tf.concat(tf.split(x, (3, 1), axis=3)[::-1], axis=3),
    "SQUARED_DIFFERENCE": lambda x: tf.math.squared_difference(x, tf.reverse(x, (1,))),
    "SQUEEZE": lambda x: tf.reshape(_rows(x), (1, 1, 6, 4)),
    "TILE": lambda x: tf.tile(x, (1, 2, 1, 1)),
    "TOPK_V2": lambda x: tf.math.top_k(x, 4).values,
    "ADD": lambda x: x + tf.reverse(x, (1,)),
    "AVERAGE_POOL_2D": lambda x: tf.nn.avg_pool2d(x, 2, 1, "SAME"),
    "BATCH_MATMUL": lambda x: tf.matmul(x, x, transpose_b=True)[..., :4],
    "BROADCAST_TO": lambda x: tf.broadcast_to(tf.reduce_max(x, axis=1, keepdims=True), (1, 4, 6, 4)),
    "CONCATENATION": lambda x: tf.concat([x[..., :2], tf.reverse(x, (1,))[..., :2]], axis=3),
    "CONV_2D": lambda x: tf.nn.conv2d(x, KERNEL, 1, "SAME"),
    "DEPTHWISE_CONV_2D": lambda x: tf.nn.depthwise_conv2d(x, KERNEL[..., :1], (1, 1, 1, 1), "SAME"),
    "DYNAMIC_UPDATE_SLICE": lambda x: xla.dynamic_update_slice(x, tf.reverse(x[:, :1], (2,)), [0, 1, 0, 0]),
    "EQUAL": lambda x: tf.where(tf.equal(tf.nn.relu(x), 0.0), 0.5 * x, x),
    "FULLY_CONNECTED": lambda x: tf.reshape(tf.matmul(tf.reshape(x, (24, 4)), KERNEL[0, 0]), (1, 4, 6, 4)),
    "GATHER": lambda x: tf.gather(x, [2, 0, 1], axis=1),
    "GATHER_ND": lambda x: tf.gather_nd(x, [[[0, 2], [0, 0], [0, 1]]]),
    "GELU": lambda x: tf.nn.gelu(x, approximate=True),
    "HARD_SWISH": lambda x: x * tf.nn.relu6(x + 3.0) * (1 / 6),
    "LOGISTIC": tf.sigmoid,
    "MAX_POOL_2D": lambda x: tf.nn.max_pool2d(x, 2, 1, "SAME"),
    "MEAN": lambda x: tf.reduce_mean(x, axis=1, keepdims=True),
    "MIRROR_PAD": lambda x: tf.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), "REFLECT"),
    "MUL": lambda x: x * tf.reverse(x, (1,)),
    "NOT_EQUAL": lambda x: tf.where(tf.not_equal(tf.nn.relu(x), 0.0), x, 0.5 * x),
    "ONE_HOT": lambda x: x + tf.one_hot(tf.argmax(x + RISING, axis=3), 4, 1.5, -0.5),
    "PACK": lambda x: tf.reshape(tf.stack([x, tf.reverse(x, (1,))], axis=1), (1, 8, 6, 4)),
    "PAD": lambda x: tf.pad(x, ((0, 0), (1, 0), (0, 1), (0, 0))),
    "PADV2": lambda x: tf.pad(x, ((0, 0), (1, 0), (0, 1), (0, 0)), constant_values=0.5),
    "RELU": lambda x: tf.nn.relu(tf.reduce_max(x, axis=1, keepdims=True)),
    "RESHAPE": lambda x: tf.reshape(x, (1, 6, 4, 4)),
    "RESIZE_BILINEAR": lambda x: tf.image.resize(x, (8, 12)),
    "RESIZE_NEAREST_NEIGHBOR": lambda x: tf.image.resize(x, (8, 12), "nearest"),
    "RSQRT": lambda x: tf.math.rsqrt(tf.abs(x) + 2.0),
    "SCATTER_ND": lambda x: tf.scatter_nd([[0], [2]], tf.transpose(x, (1, 0, 2, 3))[:2], (4, 1, 6, 4))[:, 0][None],
    "SELECT_V2": lambda x: tf.where(tf.reduce_max(x, axis=1, keepdims=True) > -9.0, x, 0.25),
    "SLICE": lambda x: tf.slice(x, (0, 1, 0, 0), (1, 2, 6, 4)),
    "SOFTMAX": tf.nn.softmax,
    "SQRT": lambda x: tf.sqrt(tf.abs(x) + 0.5),
    "STRIDED_SLICE": lambda x: x[:, ::2],
    "SUB": lambda x: x - 0.5 * tf.reverse(x, (1,)),
    "SUM": lambda x: x + 0.1 * tf.reduce_sum(x, axis=(1, 3), keepdims=True),  # of neighbouring axes: see DECOMPOSED
    "TANH": tf.tanh,
    "TRANSPOSE": lambda x: tf.transpose(x, (0, 2, 1, 3)),
    "TRANSPOSE_CONV": lambda x: tf.nn.conv2d_transpose(x, KERNEL, (1, 8, 12, 4), 2, "SAME"),
    "UNPACK": lambda x: tf.concat([row[:, None] for row in tf.unstack(x, axis=1)][::-1], axis=1),
}


def float_file(body: Body, folder: Path) -> Model:
    """A float .tflite with convolutions around `body`."""

    batch = None if body is BODIES["SHAPE"] else 1  # of a batch that is known the shape would be too

    @tf.function(input_signature=[tf.TensorSpec((batch, *X.shape[1:]))])
    def network(x: Any) -> Any:
        inner = body(tf.nn.conv2d(x, KERNEL, 1, "SAME"))
        return tf.nn.conv2d(inner, KERNEL, 1, "SAME")

    converter = tf.lite.TFLiteConverter.from_concrete_functions([network.get_concrete_function()], network)
    path = folder / "float.tflite"
    content = converter.convert()
    path.write_bytes(_rename_reshapes(content) if body in (BODIES["SQUEEZE"], BODIES["EXPAND_DIMS"]) else content)
    return read(path)


def _rename_reshapes(content: bytes) -> bytes:
    """Both RESHAPE operators of the model as SQUEEZE and EXPAND_DIMS, which TensorFlow's converter does not write."""
    graph = MutableGraph(flatbuffer_edits.unpack_model(content))
    squeeze, expand = (operator for operator in graph.operators if graph.kind(operator) == "RESHAPE")
    for operator, kind in ((squeeze, "SQUEEZE"), (expand, "EXPAND_DIMS")):
        operator.opcodeIndex, operator.builtinOptionsType, operator.builtinOptions = (
            ensure_code(graph.model, kind),
            0,
            None,
        )
    squeeze.builtinOptionsType, squeeze.builtinOptions = schema.BuiltinOptions.SqueezeOptions, schema.SqueezeOptionsT()
    squeeze.inputs, squeeze.builtinOptions.squeezeDims = [squeeze.inputs[0]], [1]
    axis = graph.tensor(expand.inputs[1])
    axis.shape = [1]
    graph.model.buffers[axis.buffer].data = np.frombuffer(np.int32(1).tobytes(), np.uint8)
    return flatbuffer_edits.pack_model(graph.model)
