"""Whether the zeros that pruning made are zeros inside the .tflite, weight by weight.

A kernel is found in the file by its shape and its direction: batch norms that were folded into it, and training that
came after, change the length of what one output channel reads, and its sign, far more than its direction. All arrays
are (output channels, positions, input channels), the order in which TensorFlow Lite stores a convolution.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edgepipe.core.arrays import Array
from edgepipe.core.metric import Finding
from edgepipe.tflite.model import Model, Operator, Tensor

SIMILAR = 0.5  # mean |cosine| between channels from which on a tensor can be the kernel's
COPY = 0.95  # from which on a further tensor is a copy of it
PATTERNS = ((1, 2), (1, 4), (2, 4), (1, 8), (2, 8), (4, 8))  # kept of each group
SIDES = (16, 8, 4, 2, 1)


@dataclass(frozen=True)
class Kernel:
    """A kernel of the pruned model: its values, and the layer's name."""

    layer: str
    values: Array

    @property
    def pruned(self) -> bool:
        """Whether anything of it is zero: by accident a float is hardly ever."""
        return bool((self.values == 0).any())


@dataclass(frozen=True)
class Checked:
    """A pruned kernel held against the file; `tensor` is empty where no tensor of the file is this kernel."""

    layer: str
    tensor: str
    wanted: int  # weights that should be zero
    lost: tuple[tuple[int, ...], ...]  # (output channel, position, input channel) of those that are not
    pattern: str = ""  # what shape they have


def check(lite: Model, kernels: list[Kernel]) -> list[Checked]:
    """Each kernel of `kernels` that holds zeros, held against the constants of `lite` that it has become.

    A kernel that layers share may be stored once for each of its calls: then every copy is checked.
    """
    stored = list(_stored(lite))
    owners = _owners(kernels, stored)
    found = []
    for number, kernel in enumerate(kernels):
        copies = [place for place, owner in zip(stored, owners, strict=True) if owner == number]
        if not kernel.pruned:
            continue
        if not copies:
            found.append(Checked(kernel.layer, "", int((kernel.values == 0).sum()), ()))
        found += [_held(kernel, tensor, real) for tensor, real in copies]
    return found


def _held(kernel: Kernel, tensor: Tensor, real: Array) -> Checked:
    wanted = kernel.values == 0
    lost = tuple(tuple(int(i) for i in place) for place in np.argwhere(wanted & (real != 0)))
    return Checked(kernel.layer, tensor.name, int(wanted.sum()), lost, pattern(wanted))


def _owners(kernels: list[Kernel], stored: list[tuple[Tensor, Array]]) -> list[int | None]:
    """For each constant which kernel it is: the likest pairs first, one each; then the copies that are left."""
    scores = [[_similarity(kernel.values, real) for _, real in stored] for kernel in kernels]
    pairs = sorted(
        ((score, -row, -column) for row, line in enumerate(scores) for column, score in enumerate(line)), reverse=True
    )
    owners: list[int | None] = [None] * len(stored)
    taken = set()
    for score, row, column in pairs:
        if score >= SIMILAR and -row not in taken and owners[-column] is None:
            owners[-column] = -row
            taken.add(-row)
    for score, row, column in pairs:
        if score >= COPY and owners[-column] is None:
            owners[-column] = -row
    return owners


def findings(checked: list[Checked]) -> list[Finding]:
    """The kernels whose zeros did not survive."""
    return [
        Finding(
            rule="pruned-zeros",
            place=entry.layer,
            observed=f"{len(entry.lost)} of {entry.wanted} pruned weights are not zero in tensor '{entry.tensor}', the "
            f"first at output {entry.lost[0][0]}, position {entry.lost[0][1]}, input {entry.lost[0][2]}",
            suggestion="a stage after `prune` trained them again, or the file was changed",
        )
        for entry in checked
        if entry.lost
    ]


def pattern(zero: Array) -> str:
    """The strictest shape that all zeros (of an array like a kernel) have: `2:4`, `block 4x1`, or single weights."""
    for kept, group in PATTERNS:
        if zero.shape[2] % group == 0 and (zero.reshape(-1, group).sum(-1) >= group - kept).all():
            return f"{kept}:{group}"
    blocks = [(m * n, m, n) for m in SIDES for n in SIDES if m * n > 1 and _in_blocks(zero, m, n)]
    return f"block {max(blocks)[1]}x{max(blocks)[2]}" if blocks else "single weights"


def _in_blocks(zero: Array, outputs: int, inputs: int) -> bool:
    if zero.shape[0] % outputs or zero.shape[2] % inputs:
        return False
    cut = zero.reshape(zero.shape[0] // outputs, outputs, zero.shape[1], zero.shape[2] // inputs, inputs)
    return bool((cut.any((1, 4)) == cut.all((1, 4))).all())


def _stored(lite: Model) -> Iterator[tuple[Tensor, Array]]:
    """Each constant that an operator uses as kernel, 0 exactly where the weight is 0."""
    seen = set()
    made_by = {(t.subgraph, t.index): op for op in lite.operators for t in op.outputs if t is not None}
    for operator in lite.operators:
        for position in _KERNELS.get(operator.name, ()):
            tensor = operator.input(position)
            source = made_by.get((tensor.subgraph, tensor.index)) if tensor is not None else None
            if source is not None and source.name == "DEQUANTIZE":
                tensor = source.input(0)
            if tensor is None or not tensor.constant or (tensor.subgraph, tensor.index) in seen:
                continue
            seen.add((tensor.subgraph, tensor.index))
            yield from ((tensor, rows) for rows in _rows(operator, lite.centred(tensor)))


_KERNELS = {
    **dict.fromkeys(("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "CONV_3D", "FULLY_CONNECTED"), (1,)),
    "BATCH_MATMUL": (0, 1),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": tuple(range(1, 9)),
}


def _rows(operator: Operator, values: Array) -> Iterator[Array]:
    """`values` as (outputs, positions, inputs); both ways round where the file does not say which it is."""
    if operator.name == "DEPTHWISE_CONV_2D":
        yield values.reshape(-1, values.shape[-1]).T[:, :, None]
    elif operator.name == "CONV_3D":
        yield np.moveaxis(values, -1, 0).reshape(values.shape[-1], -1, values.shape[-2])
    elif operator.name == "BATCH_MATMUL":
        matrix = values.reshape(-1, values.shape[-1])
        yield matrix[:, None, :]
        yield matrix.T[:, None, :]
    else:
        yield values.reshape(values.shape[0], -1, values.shape[-1])


def _similarity(a: Array, b: Array) -> float:
    """The mean |cosine| over output channels, less the share of zeros of `a` that `b` lacks; -1 for other shapes.

    Zeros decide where directions cannot: channels that read one weight all have the same.
    """
    if a.shape != b.shape:
        return -1.0
    lost = float(np.mean((a == 0) & (b != 0)))
    rows = [part.reshape(len(part), -1).astype(np.float64) for part in (a, b)]
    norms = [np.linalg.norm(part, axis=1) for part in rows]
    used = (norms[0] > 0) & (norms[1] > 0)
    if not used.any():
        return 1.0 if not norms[0].any() and not norms[1].any() else -1.0
    cosines = np.abs((rows[0] * rows[1]).sum(1)[used] / (norms[0] * norms[1])[used])
    return float(cosines.mean()) - lost
