"""The shapes in which weights are removed: single ones, blocks, or all but n of every m.

A granularity cuts a kernel into units. Scores of weights become scores of units; removed units become a mask.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, final

import numpy as np

from edgepipe.core.arrays import Array

if TYPE_CHECKING:
    from edgepipe.compress.pruning.prunable_kernels import Kernel
    from edgepipe.compress.pruning.saliency import Reduction


class Granularity(Protocol):
    """How a kernel is cut into units."""

    least: ClassVar[int]  # units of a kernel that stay

    def refuses(self, kernel: "Kernel") -> str:
        """Why `kernel` cannot be cut so; empty if it can."""

    def units(self, kernel: "Kernel", values: Array, scores: Array, reduction: "Reduction") -> Array:
        """The score of each unit, from the values and the scores of each weight (shaped as the kernel)."""

    def removed(self, kernel: "Kernel", scores: Array, units: Array) -> Array:
        """Which weights go when the units marked in `units` do; `scores` and the result are shaped as the kernel."""

    def weights(self, kernel: "Kernel") -> int:
        """How many weights go with one unit."""

    def most(self, kernel: "Kernel") -> int:
        """How many weights go when all units do."""

    def broken(self, kernel: "Kernel", zero: Array) -> int:
        """How many units hold zeros that are not of this shape, where `zero` marks all zeros of the kernel."""


@final
@dataclass(frozen=True)
class Weight:
    """Single weights."""

    least: ClassVar = 1

    def refuses(self, kernel: "Kernel") -> str:
        """Any kernel can be pruned weight by weight."""
        return ""

    def units(self, kernel: "Kernel", values: Array, scores: Array, reduction: "Reduction") -> Array:
        """Each weight is a unit."""
        return scores

    def removed(self, kernel: "Kernel", scores: Array, units: Array) -> Array:
        """The units themselves."""
        return units

    def weights(self, kernel: "Kernel") -> int:
        """One."""
        return 1

    def most(self, kernel: "Kernel") -> int:
        """All."""
        return kernel.size

    def broken(self, kernel: "Kernel", zero: Array) -> int:
        """No pattern to break."""
        return 0


@final
@dataclass(frozen=True)
class Block:
    """Blocks of `outputs` x `inputs` neighbouring channels at one position of the kernel."""

    outputs: int
    inputs: int
    least: ClassVar = 1

    def refuses(self, kernel: "Kernel") -> str:
        """Channels that are no multiple of the block's."""
        rows = kernel.rows(np.zeros(kernel.shape, bool)).shape
        found = [
            f"its {number} {side} channels are no multiple of {size}"
            for number, side, size in ((rows[0], "output", self.outputs), (rows[2], "input", self.inputs))
            if number % size
        ]
        return " and ".join(found)

    def units(self, kernel: "Kernel", values: Array, scores: Array, reduction: "Reduction") -> Array:
        """(output blocks, positions, input blocks)."""
        return reduction(self._blocks(kernel.rows(values)))

    def removed(self, kernel: "Kernel", scores: Array, units: Array) -> Array:
        """Whole blocks."""
        return kernel.back(units.repeat(self.outputs, 0).repeat(self.inputs, 2))

    def weights(self, kernel: "Kernel") -> int:
        """The block's."""
        return self.outputs * self.inputs

    def most(self, kernel: "Kernel") -> int:
        """All."""
        return kernel.size

    def broken(self, kernel: "Kernel", zero: Array) -> int:
        """Blocks of which some weights are zero and some are not."""
        blocks = self._blocks(kernel.rows(zero))
        return int((blocks.any(-1) & ~blocks.all(-1)).sum())

    def _blocks(self, rows: Array) -> Array:
        outputs, positions, inputs = rows.shape
        cut = rows.reshape(outputs // self.outputs, self.outputs, positions, inputs // self.inputs, self.inputs)
        return cut.transpose(0, 2, 3, 1, 4).reshape(cut.shape[0], positions, cut.shape[3], -1)


@final
@dataclass(frozen=True)
class NofM:
    """At most `kept` of every `group` neighbouring input channels stay (2:4 and the like; Mishra et al. 2021)."""

    kept: int
    group: int
    least: ClassVar = 0  # every group keeps some weights

    def refuses(self, kernel: "Kernel") -> str:
        """Input channels that are no multiple of the group."""
        inputs = kernel.rows(np.zeros(kernel.shape, bool)).shape[2]
        return f"its {inputs} input channels are no multiple of {self.group}" if inputs % self.group else ""

    def units(self, kernel: "Kernel", values: Array, scores: Array, reduction: "Reduction") -> Array:
        """(output channels, positions, groups): the score of the weights that would go from each group."""
        order = self._groups(kernel, scores).argsort(-1, kind="stable")[..., : self.group - self.kept]
        return reduction(np.take_along_axis(self._groups(kernel, values), order, -1))

    def removed(self, kernel: "Kernel", scores: Array, units: Array) -> Array:
        """The weights of least score of each marked group."""
        groups = self._groups(kernel, scores)
        rank = groups.argsort(-1, kind="stable").argsort(-1, kind="stable")
        gone = (rank < self.group - self.kept) & units[..., None]
        return kernel.back(gone.reshape(*gone.shape[:2], -1))

    def weights(self, kernel: "Kernel") -> int:
        """Those that go."""
        return self.group - self.kept

    def most(self, kernel: "Kernel") -> int:
        """All but those that the pattern keeps."""
        return kernel.size * (self.group - self.kept) // self.group

    def broken(self, kernel: "Kernel", zero: Array) -> int:
        """Groups with fewer zeros than the pattern asks for."""
        return int((self._groups(kernel, zero).sum(-1) < self.group - self.kept).sum())

    def _groups(self, kernel: "Kernel", values: Array) -> Array:
        rows = kernel.rows(values)
        return rows.reshape(*rows.shape[:2], -1, self.group)


def parse(text: str) -> Granularity:
    """`weight`, `block 4x1` (outputs x inputs) or `2:4`.

    Raises:
        ValueError: none of these, or sizes that make no sense.
    """
    if text == "weight":
        return Weight()
    if block := re.fullmatch(r"block (\d+)\s*x\s*(\d+)", text):
        outputs, inputs = int(block[1]), int(block[2])
        if outputs * inputs > 1:
            return Block(outputs, inputs)
    if pattern := re.fullmatch(r"(\d+):(\d+)", text):
        kept, group = int(pattern[1]), int(pattern[2])
        if 0 < kept < group:
            return NofM(kept, group)
    raise ValueError(f"found '{text}'; allowed: weight, channel, block MxN (outputs x inputs, as 1x4), N:M (as 2:4)")
