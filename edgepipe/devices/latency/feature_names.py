"""The names of what is counted, apart from the counting: a profile is read without numpy."""

from typing import NamedTuple

Features = dict[str, float]

FEATURES = {
    "inference": "one, for what an inference costs whatever the model",
    "operators": "operators that compute something",
    "pointwise_macs": "MACs of 1x1 convolutions",
    "kernel_macs": "MACs of convolutions with larger kernels, the first layer's included",
    "conv_macs": "MACs of convolutions of any kernel, without the first layer's",
    "first_macs": "MACs of a convolution with a larger kernel on four channels or fewer",
    "patch_elements": "elements copied to lay patches side by side (im2col): positions x kernel volume",
    "depthwise_macs": "MACs of depthwise convolutions",
    "depthwise3_macs": "MACs of 3x3 depthwise convolutions, which most libraries have a kernel of their own for",
    "depthwise_other_macs": "MACs of other depthwise convolutions",
    "dense_macs": "MACs of dense layers, of 1x1 convolutions on one position, and of other products",
    "conv_outputs": "outputs of convolutions: each is requantized and stored",
    "first_outputs": "outputs of the first layer",
    "depthwise_outputs": "outputs of depthwise convolutions",
    "arithmetic_outputs": "outputs of elementwise arithmetic (ADD, MUL, MAXIMUM, ...)",
    "reduced_inputs": "inputs of MEAN, SUM, REDUCE_MAX",
    "moved_outputs": "outputs of PAD, CONCATENATION, SPLIT, TRANSPOSE and others that only move",
    "looked_up_outputs": "outputs of SOFTMAX, LOGISTIC, TANH, HARD_SWISH and other curves",
    "requantized_outputs": "outputs of QUANTIZE and DEQUANTIZE",
    "pooled_elements": "outputs of pools x their window",
    "resized_outputs": "outputs of RESIZE_BILINEAR and RESIZE_NEAREST_NEIGHBOR",
    "activations": "activations read and written by all operators",
    "weights": "weights and biases",
    "spilled_weights": "weights and biases of a model whose weights do not fit the memory on the chip",
}
"""Every feature with what it counts."""


class Tile(NamedTuple):
    """The channels that a matrix unit computes at once: others are padded to a multiple."""

    outputs: int = 1
    inputs: int = 1


SCALAR_TILE = Tile()
