"""Checks, weight by weight, that pruned zeros are zeros inside the .tflite.

A kernel is found in the file by its shape and direction: folded batch norms and later training change the norm and the
sign of an output channel's weights far more than their direction. All arrays are (output channels, positions, input
channels), the order in which TensorFlow Lite stores a convolution.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edgepipe.core.arrays import Array
from edgepipe.core.metric import Finding
from edgepipe.tflite.model import Model, Operator, Tensor

MIN_SIMILARITY = 0.5  # least mean |cosine| between channels for a tensor to be the kernel
COPY_SIMILARITY = 0.95  # the same for a further tensor to be a copy of it
SPARSITY_PATTERNS = ((1, 2), (1, 4), (2, 4), (1, 8), (2, 8), (4, 8))  # kept of each group
BLOCK_SIDES = (16, 8, 4, 2, 1)


@dataclass(frozen=True)
class PrunedKernel:
    """A kernel of the pruned model: its values, and the layer's name."""

    layer_name: str
    weights: Array

    @property
    def has_zeros(self) -> bool:
        """Whether any weight is zero; a float hardly ever is by accident."""
        return bool((self.weights == 0).any())


@dataclass(frozen=True)
class KernelCheck:
    """A pruned kernel compared with the file; `tensor` is empty if no tensor of the file is this kernel."""

    layer_name: str
    tensor_name: str
    zero_count: int  # weights that should be zero
    nonzero_positions: tuple[tuple[int, ...], ...]  # (output channel, position, input channel) of those that are not
    zero_pattern: str = ""  # what shape they have


def check_kernels(tflite_model: Model, pruned_kernels: list[PrunedKernel]) -> list[KernelCheck]:
    """Compare each kernel that has zeros with the constants of `lite` that it was converted to.

    A kernel that layers share may be stored once for each of its calls: then every copy is checked.
    """
    constants = list(_list_kernel_constants(tflite_model))
    owner_indices = _assign_owners(pruned_kernels, constants)
    kernel_checks = []
    for kernel_index, pruned_kernel in enumerate(pruned_kernels):
        copies = [constant for constant, owner in zip(constants, owner_indices, strict=True) if owner == kernel_index]
        if not pruned_kernel.has_zeros:
            continue
        if not copies:
            kernel_checks.append(KernelCheck(pruned_kernel.layer_name, "", int((pruned_kernel.weights == 0).sum()), ()))
        kernel_checks += [_check_copy(pruned_kernel, tensor, stored_weights) for tensor, stored_weights in copies]
    return kernel_checks


def _check_copy(pruned_kernel: PrunedKernel, tensor: Tensor, stored_weights: Array) -> KernelCheck:
    pruned_mask = pruned_kernel.weights == 0
    lost_positions = tuple(
        tuple(int(i) for i in position) for position in np.argwhere(pruned_mask & (stored_weights != 0))
    )
    return KernelCheck(
        pruned_kernel.layer_name, tensor.name, int(pruned_mask.sum()), lost_positions, describe_pattern(pruned_mask)
    )


def _assign_owners(pruned_kernels: list[PrunedKernel], constants: list[tuple[Tensor, Array]]) -> list[int | None]:
    """The kernel of each constant: the most similar pairs first, one per kernel; then the remaining copies."""
    scores = [
        [_kernel_similarity(kernel.weights, stored_weights) for _, stored_weights in constants]
        for kernel in pruned_kernels
    ]
    scored_pairs = sorted(
        ((score, -row, -column) for row, row_scores in enumerate(scores) for column, score in enumerate(row_scores)),
        reverse=True,
    )
    owner_indices: list[int | None] = [None] * len(constants)
    taken_kernels = set()
    for score, row, column in scored_pairs:
        if score >= MIN_SIMILARITY and -row not in taken_kernels and owner_indices[-column] is None:
            owner_indices[-column] = -row
            taken_kernels.add(-row)
    for score, row, column in scored_pairs:
        if score >= COPY_SIMILARITY and owner_indices[-column] is None:
            owner_indices[-column] = -row
    return owner_indices


def build_findings(checks: list[KernelCheck]) -> list[Finding]:
    """The kernels whose zeros did not survive."""
    return [_lost_zeros_finding(check) for check in checks if check.nonzero_positions]


def _lost_zeros_finding(check: KernelCheck) -> Finding:
    output, position, channel = check.nonzero_positions[0]
    return Finding(
        rule="pruned-zeros",
        place=check.layer_name,
        observed=f"{len(check.nonzero_positions)} of {check.zero_count} pruned weights are not zero "
        f"in tensor '{check.tensor_name}', the first at output {output}, position {position}, input {channel}",
        suggestion="a stage after `prune` trained them again, or the file was changed",
    )


def describe_pattern(zero_mask: Array) -> str:
    """The strictest shape that all zeros (of an array like a kernel) have: `2:4`, `block 4x1`, or single weights."""
    for kept_count, group_size in SPARSITY_PATTERNS:
        if (
            zero_mask.shape[2] % group_size == 0
            and (zero_mask.reshape(-1, group_size).sum(-1) >= group_size - kept_count).all()
        ):
            return f"{kept_count}:{group_size}"
    block_shapes = [
        (m * n, m, n) for m in BLOCK_SIDES for n in BLOCK_SIDES if m * n > 1 and _has_block_pattern(zero_mask, m, n)
    ]
    return f"block {max(block_shapes)[1]}x{max(block_shapes)[2]}" if block_shapes else "single weights"


def _has_block_pattern(zero_mask: Array, block_outputs: int, block_inputs: int) -> bool:
    if zero_mask.shape[0] % block_outputs or zero_mask.shape[2] % block_inputs:
        return False
    weight_blocks = zero_mask.reshape(
        zero_mask.shape[0] // block_outputs,
        block_outputs,
        zero_mask.shape[1],
        zero_mask.shape[2] // block_inputs,
        block_inputs,
    )
    return bool((weight_blocks.any((1, 4)) == weight_blocks.all((1, 4))).all())


def _list_kernel_constants(tflite_model: Model) -> Iterator[tuple[Tensor, Array]]:
    """Each constant that an operator uses as kernel, 0 exactly where the weight is 0."""
    seen_keys = set()
    for operator in tflite_model.operators:
        for position in operator.traits.kernel_positions:
            tensor = tflite_model.find_constant(operator.input(position))
            if tensor is None or tensor.key in seen_keys:
                continue
            seen_keys.add(tensor.key)
            yield from (
                (tensor, kernel_layout)
                for kernel_layout in _kernel_layouts(operator, tflite_model.read_centred_values(tensor))
            )


def _kernel_layouts(operator: Operator, weights: Array) -> Iterator[Array]:
    """`weights` as (outputs, positions, inputs); in both orders where the file does not say which one it has."""
    if operator.name == "DEPTHWISE_CONV_2D":
        yield weights.reshape(-1, weights.shape[-1]).T[:, :, None]
    elif operator.name == "CONV_3D":
        yield np.moveaxis(weights, -1, 0).reshape(weights.shape[-1], -1, weights.shape[-2])
    elif operator.name == "BATCH_MATMUL":
        matrix = weights.reshape(-1, weights.shape[-1])
        yield matrix[:, None, :]
        yield matrix.T[:, None, :]
    else:
        yield weights.reshape(weights.shape[0], -1, weights.shape[-1])


def _kernel_similarity(a: Array, b: Array) -> float:
    """The mean |cosine| over output channels, less the share of zeros of `a` that `b` lacks; -1 for other shapes.

    Zeros decide where directions cannot: channels of one weight all have the same.
    """
    if a.shape != b.shape:
        return -1.0
    lost_share = float(np.mean((a == 0) & (b != 0)))
    channel_rows = [kernel.reshape(len(kernel), -1).astype(np.float64) for kernel in (a, b)]
    norms = [np.linalg.norm(kernel, axis=1) for kernel in channel_rows]
    nonzero_rows = (norms[0] > 0) & (norms[1] > 0)
    if not nonzero_rows.any():
        return 1.0 if not norms[0].any() and not norms[1].any() else -1.0
    cosines = np.abs((channel_rows[0] * channel_rows[1]).sum(1)[nonzero_rows] / (norms[0] * norms[1])[nonzero_rows])
    return float(cosines.mean()) - lost_share
