"""TensorFlow operations that TFLite has no operator for, spelled in others before conversion.

Pooling in three dimensions is pooling of each picture, then over depth; bicubic resizing is a product with one matrix
per axis; a dilated kernel is a larger one with zeros; the error function is a GELU or a tanh (`error_function`).
`keras.ops.argmax` reads the sign bit of zeros, to order -0 below 0, which TFLite cannot; here they are equal. All give
the same floats, up to rounding.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from edgepipe.models.error_function import error_function, gelu_argument
from edgepipe.models.keras_types import Tensor, TfFunction

Operation = Any  # a tf.Operation
LOOP_TYPE = "LoopCond"


def replace_unsupported_operations(function: TfFunction) -> TfFunction:
    """The frozen `function` with the operations in `FORMS` replaced; the same function if it has none."""
    operations = function.graph.get_operations()
    is_replaceable = any(operation.type in FORMS and _needs_form(operation) for operation in operations)
    if not is_replaceable or any(map(_is_control_flow, operations)):
        return function

    results = [each.op.inputs[0] if each.op.type == "Identity" else each for each in function.outputs]  # named anew
    output_names = {each.name for each in function.outputs} - {each.name for each in results}

    def rebuild(*tensors: Tensor) -> list[Tensor]:
        value_by_name = dict(zip((each.name for each in function.inputs), tensors, strict=True))
        for operation in operations:
            if not all(output.name in value_by_name or output.name in output_names for output in operation.outputs):
                inputs = [value_by_name[each.name] for each in _form_inputs(operation)]
                form = FORMS[operation.type] if _needs_form(operation) else _copy
                value_by_name |= zip((each.name for each in operation.outputs), form(operation, inputs), strict=True)
        return [value_by_name[each.name] for each in results]

    specs = [tf.TensorSpec(each.shape, each.dtype, name=each.op.name) for each in function.inputs]
    return tf.function(rebuild, autograph=False).get_concrete_function(*specs)


def _form_inputs(operation: Operation) -> list[Tensor]:
    """The tensors that an operation, or the form that replaces it, reads."""
    x = gelu_argument(operation)
    return list(operation.inputs) if x is None else [x]


def _is_control_flow(operation: Operation) -> bool:
    """Whether an operation calls a function, or belongs to a loop, whose operations are not in order."""
    calls_function = any(attribute.HasField("func") for attribute in operation.node_def.attr.values())
    return operation.type == LOOP_TYPE or calls_function


def _copy(operation: Operation, inputs: list[Tensor]) -> list[Tensor]:
    attributes = dict(operation.node_def.attr)
    output_types = [output.dtype for output in operation.outputs]
    graph = tf.compat.v1.get_default_graph()
    copied_operation = graph.create_op(
        operation.type, inputs, output_types, name=f"{operation.name}/", attrs=attributes, op_def=operation.op_def
    )
    return list(copied_operation.outputs)


def _needs_form(operation: Operation) -> bool:
    match operation.type:
        case "Conv2DBackpropInput":
            return bool(max(operation.get_attr("dilations")) > 1 and operation.get_attr("data_format") == b"NHWC")
        case "MaxPool3D" | "AvgPool3D":
            return bool(operation.get_attr("data_format") == b"NDHWC")
        case "SelectV2":
            return _reads_sign_bit(operation)
        case "Erf" | "Erfc":
            return True
        case "Mul" | "RealDiv":
            return gelu_argument(operation) is not None
        case "MatrixDiagV3":  # the kernel of keras.ops.image.extract_patches is an identity matrix
            return all(tf.get_static_value(each) is not None for each in operation.inputs)
        case "ResizeBicubic":
            return tf.get_static_value(operation.inputs[1]) is not None
    return False


def _reads_sign_bit(operation: Operation) -> bool:
    """Whether a choice depends on the bits of floats: the one that keras.ops.argmax puts before ArgMax."""
    condition = operation.inputs[0].op
    ancestors = [condition, *(each.op for each in condition.inputs)]
    for _ in range(2):
        ancestors += [each.op for ancestor in ancestors for each in ancestor.inputs]
    return condition.type == "LogicalAnd" and any(ancestor.type == "Bitcast" for ancestor in ancestors)


def _argmax_choice(operation: Operation, inputs: list[Tensor]) -> list[Tensor]:
    return [inputs[2]]


def _erf(operation: Operation, inputs: list[Tensor]) -> list[Tensor]:
    value = error_function(inputs[0])
    return [value if operation.type == "Erf" else 1.0 - value]


def _gelu(operation: Operation, inputs: list[Tensor]) -> list[Tensor]:
    return [tf.nn.gelu(inputs[0], approximate=False)]


def _constant_diagonal(operation: Operation, inputs: list[Tensor]) -> list[Tensor]:
    arguments = [tf.get_static_value(each) for each in operation.inputs]
    with tf.init_scope():
        matrix = tf.raw_ops.MatrixDiagV3(
            **dict(zip(("diagonal", "k", "num_rows", "num_cols", "padding_value"), arguments, strict=True)),
            align=operation.get_attr("align").decode(),
        ).numpy()
    return [tf.constant(matrix)]


def _pool_3d(operation: Operation, inputs: list[Tensor]) -> list[Tensor]:
    """Pooling of (batch, depth, height, width, channels): each picture, then over depth."""
    pool = tf.nn.max_pool2d if operation.type == "MaxPool3D" else tf.nn.avg_pool2d
    (_, *sizes, _), (_, *strides, _) = operation.get_attr("ksize"), operation.get_attr("strides")
    padding = operation.get_attr("padding").decode()
    batch, depth, height, width, channels = inputs[0].shape
    pictures = tf.reshape(inputs[0], (batch * depth, height, width, channels))
    pictures = pool(pictures, sizes[1:], strides[1:], padding)
    _, height, width, _ = pictures.shape
    columns = tf.reshape(pictures, (batch, depth, height * width, channels))
    columns = pool(columns, (sizes[0], 1), (strides[0], 1), padding)
    return [tf.reshape(columns, (batch, columns.shape[1], height, width, channels))]


def _resize_bicubic(operation: Operation, inputs: list[Tensor]) -> list[Tensor]:
    """M_height x M_width^T, for pictures of (batch, height, width, channels)."""
    batch, height, width, channels = inputs[0].shape
    new_height, new_width = (int(size) for size in tf.get_static_value(operation.inputs[1]))
    rows = tf.reshape(inputs[0], (batch, height, width * channels))
    rows = tf.matmul(_bicubic_matrix(operation, height, new_height)[None], rows)
    pictures = tf.reshape(rows, (batch * new_height, width, channels))
    pictures = tf.matmul(_bicubic_matrix(operation, width, new_width)[None], pictures)
    return [tf.reshape(pictures, (batch, new_height, new_width, channels))]


def _bicubic_matrix(operation: Operation, size: int, new_size: int) -> Any:
    """The weights of each old position, (new size, size): what resizing does to unit vectors."""
    with tf.init_scope():
        unit_vectors = tf.constant(np.eye(size, dtype="float32")[None, :, None])
        columns = tf.raw_ops.ResizeBicubic(
            images=unit_vectors,
            size=[new_size, 1],
            align_corners=operation.get_attr("align_corners"),
            half_pixel_centers=operation.get_attr("half_pixel_centers"),
        )
        return columns.numpy()[0, :, 0]


def _dilated_transposed_convolution(operation: Operation, inputs: list[Tensor]) -> list[Tensor]:
    """With the kernel, (height, width, outputs, inputs), spread by zeros."""
    sizes, kernel, x = inputs
    _, *dilations, _ = operation.get_attr("dilations")
    height, width, *channels = kernel.shape
    spaced_kernel = tf.pad(
        tf.reshape(kernel, (height, 1, width, 1, *channels)),
        ((0, 0), (0, dilations[0] - 1), (0, 0), (0, dilations[1] - 1), (0, 0), (0, 0)),
    )
    dense_kernel = tf.reshape(spaced_kernel, (height * dilations[0], width * dilations[1], *channels))
    cut_kernel = dense_kernel[: (height - 1) * dilations[0] + 1, : (width - 1) * dilations[1] + 1]
    return [
        tf.raw_ops.Conv2DBackpropInput(
            input_sizes=sizes,
            filter=cut_kernel,
            out_backprop=x,
            strides=operation.get_attr("strides"),
            padding=operation.get_attr("padding").decode(),
            explicit_paddings=operation.get_attr("explicit_paddings"),
        )
    ]


FORMS: dict[str, Callable[[Operation, list[Tensor]], list[Tensor]]] = {
    "AvgPool3D": _pool_3d,
    "Erf": _erf,
    "Erfc": _erf,
    "Conv2DBackpropInput": _dilated_transposed_convolution,
    "MatrixDiagV3": _constant_diagonal,
    "MaxPool3D": _pool_3d,
    "Mul": _gelu,
    "RealDiv": _gelu,
    "ResizeBicubic": _resize_bicubic,
    "SelectV2": _argmax_choice,
}
