"""CONV_3D, which has no integer kernel, as a CONV_2D over pictures."""

from typing import Any

import numpy as np

from edgepipe.compress.quantizer.operator_replacement import OperatorReplacement


def convolve_volume(replacement: OperatorReplacement) -> None:
    """A CONV_2D over pictures, whose channels are those of the pictures that the kernel spans in depth."""
    options, kernel = replacement.operator.builtinOptions, replacement.graph.constant(replacement.input_indices[1])
    shape = [int(size) for size in replacement.graph.tensor(replacement.input_indices[0]).shape]
    output_shape = [int(size) for size in replacement.graph.tensor(replacement.output_index).shape]
    if kernel is None or shape[0] != 1:
        return
    depth_offsets = [position * int(options.dilationDFactor) for position in range(len(kernel))]
    pictures = replacement.append_operator(
        "RESHAPE", [replacement.input_indices[0], replacement.add_int_list(shape[1:])], shape[1:]
    )
    padding = max((output_shape[1] - 1) * options.strideD + depth_offsets[-1] + 1 - shape[1], 0)
    if padding:
        pictures = _pad_depth(replacement, pictures, padding // 2, padding - padding // 2)
    slices = [_slice_depth(replacement, pictures, offset, options.strideD, output_shape[1]) for offset in depth_offsets]
    spanned_shape = [output_shape[1], *shape[2:4], len(kernel) * shape[4]]
    spanned = replacement.append_operator("CONCATENATION", slices, spanned_shape) if len(slices) > 1 else slices[0]
    if len(slices) > 1:
        replacement.new_operators[-1].builtinOptions.axis = 3
    flat_kernel = kernel.transpose(4, 1, 2, 0, 3).reshape(kernel.shape[4], *kernel.shape[1:3], -1)
    kernel_index = replacement.graph.add_float_tensor(
        replacement.intermediate_name("KERNEL"), list(flat_kernel.shape), flat_kernel
    )
    convolution = replacement.append_operator(
        "CONV_2D", [spanned, kernel_index, _bias_index(replacement, kernel.shape[4])], output_shape[1:]
    )
    _copy_convolution_options(replacement, replacement.new_operators[-1].builtinOptions)
    replacement.append_output_operator("RESHAPE", [convolution, replacement.add_int_list(output_shape)])


def _bias_index(replacement: OperatorReplacement, filter_count: int) -> int:
    if len(replacement.input_indices) > 2 and replacement.input_indices[2] >= 0:
        return replacement.input_indices[2]
    return replacement.graph.add_float_tensor(
        replacement.intermediate_name("BIAS"), [filter_count], np.zeros(filter_count)
    )


def _copy_convolution_options(replacement: OperatorReplacement, new_options: Any) -> None:
    for name in ("padding", "strideH", "strideW", "dilationHFactor", "dilationWFactor", "fusedActivationFunction"):
        setattr(new_options, name, getattr(replacement.operator.builtinOptions, name))


def _pad_depth(replacement: OperatorReplacement, pictures: int, start_count: int, end_count: int) -> int:
    """Append pictures of zeros at both ends of (depth, height, width, channels)."""
    shape = [int(size) for size in replacement.graph.tensor(pictures).shape]
    paddings = replacement.add_int_list([start_count, end_count, 0, 0, 0, 0, 0, 0])
    replacement.graph.tensor(paddings).shape = [4, 2]
    return replacement.append_operator("PAD", [pictures, paddings], [shape[0] + start_count + end_count, *shape[1:]])


def _slice_depth(replacement: OperatorReplacement, pictures: int, offset: int, stride: int, count: int) -> int:
    """Append every `stride`-th picture from an offset."""
    shape = [int(size) for size in replacement.graph.tensor(pictures).shape]
    limits = [[offset, 0, 0, 0], [offset + (count - 1) * stride + 1, *shape[1:]], [stride, 1, 1, 1]]
    return replacement.append_operator(
        "STRIDED_SLICE", [pictures, *(replacement.add_int_list(numbers) for numbers in limits)], [count, *shape[1:]]
    )
