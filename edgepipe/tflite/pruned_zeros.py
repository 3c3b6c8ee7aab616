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

    layer: str
    weights: Array

    @property
    def has_zeros(self) -> bool:
        """Whether any weight is zero; a float hardly ever is by accident."""
        return bool((self.weights == 0).any())


@dataclass(frozen=True)
class KernelCheck:
    """A pruned kernel compared with the file; `tensor` is empty if no tensor of the file is this kernel."""

    layer: str
    tensor: str
    zeros: int  # weights that should be zero
    nonzeros: tuple[tuple[int, ...], ...]  # (output channel, position, input channel) of those that are not
    pattern: str = ""  # what shape they have


def check_kernels(lite: Model, kernels: list[PrunedKernel]) -> list[KernelCheck]:
    """Compare each kernel that has zeros with the constants of `lite` that it was converted to.

    A kernel that layers share may be stored once for each of its calls: then every copy is checked.
    """
    constants = list(_list_constants(lite))
    owners = _assign_owners(kernels, constants)
    checks = []
    for number, kernel in enumerate(kernels):
        copies = [constant for constant, owner in zip(constants, owners, strict=True) if owner == number]
        if not kernel.has_zeros:
            continue
        if not copies:
            checks.append(KernelCheck(kernel.layer, "", int((kernel.weights == 0).sum()), ()))
        checks += [_check_copy(kernel, tensor, stored_weights) for tensor, stored_weights in copies]
    return checks


def _check_copy(kernel: PrunedKernel, tensor: Tensor, stored_weights: Array) -> KernelCheck:
    pruned_mask = kernel.weights == 0
    lost = tuple(tuple(int(i) for i in position) for position in np.argwhere(pruned_mask & (stored_weights != 0)))
    return KernelCheck(kernel.layer, tensor.name, int(pruned_mask.sum()), lost, describe_pattern(pruned_mask))


def _assign_owners(kernels: list[PrunedKernel], constants: list[tuple[Tensor, Array]]) -> list[int | None]:
    """The kernel of each constant: the most similar pairs first, one per kernel; then the remaining copies."""
    scores = [[_similarity(kernel.weights, stored_weights) for _, stored_weights in constants] for kernel in kernels]
    pairs = sorted(
        ((score, -row, -column) for row, line in enumerate(scores) for column, score in enumerate(line)), reverse=True
    )
    owners: list[int | None] = [None] * len(constants)
    taken_kernels = set()
    for score, row, column in pairs:
        if score >= MIN_SIMILARITY and -row not in taken_kernels and owners[-column] is None:
            owners[-column] = -row
            taken_kernels.add(-row)
    for score, row, column in pairs:
        if score >= COPY_SIMILARITY and owners[-column] is None:
            owners[-column] = -row
    return owners


def build_findings(checks: list[KernelCheck]) -> list[Finding]:
    """The kernels whose zeros did not survive."""
    return [_lost_zeros_finding(check) for check in checks if check.nonzeros]


def _lost_zeros_finding(check: KernelCheck) -> Finding:
    output, position, channel = check.nonzeros[0]
    return Finding(
        rule="pruned-zeros",
        place=check.layer,
        observed=f"{len(check.nonzeros)} of {check.zeros} pruned weights are not zero in tensor '{check.tensor}', "
        f"the first at output {output}, position {position}, input {channel}",
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
    blocks = [
        (m * n, m, n) for m in BLOCK_SIDES for n in BLOCK_SIDES if m * n > 1 and _has_block_pattern(zero_mask, m, n)
    ]
    return f"block {max(blocks)[1]}x{max(blocks)[2]}" if blocks else "single weights"


def _has_block_pattern(zero_mask: Array, outputs: int, inputs: int) -> bool:
    if zero_mask.shape[0] % outputs or zero_mask.shape[2] % inputs:
        return False
    blocks = zero_mask.reshape(
        zero_mask.shape[0] // outputs, outputs, zero_mask.shape[1], zero_mask.shape[2] // inputs, inputs
    )
    return bool((blocks.any((1, 4)) == blocks.all((1, 4))).all())


def _list_constants(lite: Model) -> Iterator[tuple[Tensor, Array]]:
    """Each constant that an operator uses as kernel, 0 exactly where the weight is 0."""
    seen_keys = set()
    for operator in lite.operators:
        for position in operator.facts.kernel_inputs:
            tensor = lite.find_constant(operator.input(position))
            if tensor is None or tensor.key in seen_keys:
                continue
            seen_keys.add(tensor.key)
            yield from ((tensor, rows) for rows in _kernel_layouts(operator, lite.read_centred_values(tensor)))


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


def _similarity(a: Array, b: Array) -> float:
    """The mean |cosine| over output channels, less the share of zeros of `a` that `b` lacks; -1 for other shapes.

    Zeros decide where directions cannot: channels of one weight all have the same.
    """
    if a.shape != b.shape:
        return -1.0
    lost_share = float(np.mean((a == 0) & (b != 0)))
    rows = [kernel.reshape(len(kernel), -1).astype(np.float64) for kernel in (a, b)]
    norms = [np.linalg.norm(kernel, axis=1) for kernel in rows]
    nonzero_rows = (norms[0] > 0) & (norms[1] > 0)
    if not nonzero_rows.any():
        return 1.0 if not norms[0].any() and not norms[1].any() else -1.0
    cosines = np.abs((rows[0] * rows[1]).sum(1)[nonzero_rows] / (norms[0] * norms[1])[nonzero_rows])
    return float(cosines.mean()) - lost_share
