"""The names of the counted features, in a module without numpy, which reading a profile does not need."""

from typing import NamedTuple

FeatureAmounts = dict[str, float]

FEATURE_DESCRIPTIONS = {
    "inference": "one, for the constant cost of an inference",
    "operators": "operators that compute something",
    "pointwise_macs": "MACs of 1x1 convolutions",
    "kernel_macs": "MACs of convolutions with larger kernels, including the first layer",
    "conv_macs": "MACs of convolutions with any kernel, without the first layer",
    "first_macs": "MACs of the first layer: a larger kernel on at most four channels",
    "patch_elements": "elements copied by im2col: positions x kernel volume",
    "depthwise_macs": "MACs of depthwise convolutions",
    "depthwise3_macs": "MACs of 3x3 depthwise convolutions, for which most libraries have a dedicated kernel",
    "depthwise_other_macs": "MACs of other depthwise convolutions",
    "dense_macs": "MACs of dense layers, of 1x1 convolutions on one position, and of other products",
    "conv_outputs": "outputs of convolutions: each is requantized and stored",
    "first_outputs": "outputs of the first layer",
    "depthwise_outputs": "outputs of depthwise convolutions",
    "arithmetic_outputs": "outputs of elementwise arithmetic (ADD, MUL, MAXIMUM, ...)",
    "reduced_inputs": "inputs of MEAN, SUM, REDUCE_MAX",
    "moved_outputs": "outputs of PAD, CONCATENATION, SPLIT, TRANSPOSE and others that only move data",
    "looked_up_outputs": "outputs of SOFTMAX, LOGISTIC, TANH, HARD_SWISH and other nonlinear functions",
    "requantized_outputs": "outputs of QUANTIZE and DEQUANTIZE",
    "pooled_elements": "outputs of pools x window size",
    "resized_outputs": "outputs of RESIZE_BILINEAR and RESIZE_NEAREST_NEIGHBOR",
    "activations": "activations read and written by all operators",
    "weights": "weights and biases",
    "spilled_weights": "weights and biases of a model whose weights exceed on-chip memory",
}
"""Every feature and what it counts."""


class ChannelTile(NamedTuple):
    """The channels that a matrix unit computes at once; channel counts are padded to multiples of it."""

    output_channels: int = 1
    input_channels: int = 1


SCALAR_TILE = ChannelTile()
