"""The shapes in which weights are removed: single weights, blocks, or all but n of every m.

A granularity divides a kernel into units. Scores of weights become scores of units; removed units become a mask.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, final

import numpy as np

from edgepipe.core.arrays import Array
from edgepipe.core.errors import did_you_mean

if TYPE_CHECKING:
    from edgepipe.compress.pruning.prunable_kernels import PrunableKernel
    from edgepipe.compress.pruning.saliency import Reduction


class Granularity(Protocol):
    """How a kernel is divided into units."""

    min_units: ClassVar[int]  # units of a kernel that always stay

    def refusal_reason(self, kernel: "PrunableKernel") -> str:
        """Why `kernel` cannot be divided into these units; empty if it can."""

    def unit_scores(self, kernel: "PrunableKernel", saliencies: Array, scores: Array, reduction: "Reduction") -> Array:
        """The score of each unit.

        Args:
            kernel: the kernel to divide.
            saliencies: of each weight, shaped as the kernel.
            scores: of each weight alone, shaped as the kernel; -inf where it is already zero.
            reduction: combines the saliencies of a unit's weights into its score.
        """

    def removal_mask(self, kernel: "PrunableKernel", scores: Array, unit_mask: Array) -> Array:
        """The weights removed with the units in `unit_mask`; `scores` and the result are shaped as the kernel."""

    def weights_per_unit(self, kernel: "PrunableKernel") -> int:
        """How many weights are removed with one unit."""

    def max_zero_count(self, kernel: "PrunableKernel") -> int:
        """How many weights are zero when all units are removed."""

    def count_broken_units(self, kernel: "PrunableKernel", zero_mask: Array) -> int:
        """How many units break the pattern, where `zero_mask` marks all zeros of the kernel."""


@final
@dataclass(frozen=True)
class WeightGranularity:
    """Single weights."""

    min_units: ClassVar = 1

    def refusal_reason(self, kernel: "PrunableKernel") -> str:
        """Any kernel can be pruned weight by weight."""
        return ""

    def unit_scores(self, kernel: "PrunableKernel", saliencies: Array, scores: Array, reduction: "Reduction") -> Array:
        """Each weight is a unit."""
        return scores

    def removal_mask(self, kernel: "PrunableKernel", scores: Array, unit_mask: Array) -> Array:
        """The units themselves."""
        return unit_mask

    def weights_per_unit(self, kernel: "PrunableKernel") -> int:
        """One."""
        return 1

    def max_zero_count(self, kernel: "PrunableKernel") -> int:
        """All."""
        return kernel.size

    def count_broken_units(self, kernel: "PrunableKernel", zero_mask: Array) -> int:
        """No pattern to break."""
        return 0


@final
@dataclass(frozen=True)
class BlockGranularity:
    """Blocks of `outputs` x `inputs` neighbouring channels at one position of the kernel."""

    block_outputs: int
    block_inputs: int
    min_units: ClassVar = 1

    def refusal_reason(self, kernel: "PrunableKernel") -> str:
        """Channel counts that are not a multiple of the block size."""
        rows_shape = kernel.to_rows(np.zeros(kernel.shape, bool)).shape
        reasons = [
            f"its {number} {side} channels are not a multiple of {size}"
            for number, side, size in (
                (rows_shape[0], "output", self.block_outputs),
                (rows_shape[2], "input", self.block_inputs),
            )
            if number % size
        ]
        return " and ".join(reasons)

    def unit_scores(self, kernel: "PrunableKernel", saliencies: Array, scores: Array, reduction: "Reduction") -> Array:
        """Scores of shape (output blocks, positions, input blocks)."""
        return reduction(self._split_blocks(kernel.to_rows(saliencies)))

    def removal_mask(self, kernel: "PrunableKernel", scores: Array, unit_mask: Array) -> Array:
        """All weights of the marked blocks."""
        return kernel.from_rows(unit_mask.repeat(self.block_outputs, 0).repeat(self.block_inputs, 2))

    def weights_per_unit(self, kernel: "PrunableKernel") -> int:
        """The block size."""
        return self.block_outputs * self.block_inputs

    def max_zero_count(self, kernel: "PrunableKernel") -> int:
        """All."""
        return kernel.size

    def count_broken_units(self, kernel: "PrunableKernel", zero_mask: Array) -> int:
        """Blocks with some weights zero and some not."""
        blocks = self._split_blocks(kernel.to_rows(zero_mask))
        return int((blocks.any(-1) & ~blocks.all(-1)).sum())

    def _split_blocks(self, kernel_rows: Array) -> Array:
        outputs, positions, inputs = kernel_rows.shape
        block_rows = kernel_rows.reshape(
            outputs // self.block_outputs, self.block_outputs, positions, inputs // self.block_inputs, self.block_inputs
        )
        return block_rows.transpose(0, 2, 3, 1, 4).reshape(block_rows.shape[0], positions, block_rows.shape[3], -1)


@final
@dataclass(frozen=True)
class NofMGranularity:
    """At most n of every m neighbouring input channels stay, as 2:4 (Mishra et al. 2021)."""

    kept_per_group: int
    group_size: int
    min_units: ClassVar = 0  # every group keeps some weights

    def refusal_reason(self, kernel: "PrunableKernel") -> str:
        """Input channels that are not a multiple of the group size."""
        input_count = kernel.to_rows(np.zeros(kernel.shape, bool)).shape[2]
        return (
            f"its {input_count} input channels are not a multiple of {self.group_size}"
            if input_count % self.group_size
            else ""
        )

    def unit_scores(self, kernel: "PrunableKernel", saliencies: Array, scores: Array, reduction: "Reduction") -> Array:
        """Scores of shape (output channels, positions, groups), of the weights that each group would lose."""
        lost_indices = self._split_groups(kernel, scores).argsort(-1, kind="stable")[
            ..., : self.group_size - self.kept_per_group
        ]
        return reduction(np.take_along_axis(self._split_groups(kernel, saliencies), lost_indices, -1))

    def removal_mask(self, kernel: "PrunableKernel", scores: Array, unit_mask: Array) -> Array:
        """The weights of lowest score in each marked group."""
        grouped_scores = self._split_groups(kernel, scores)
        score_ranks = grouped_scores.argsort(-1, kind="stable").argsort(-1, kind="stable")
        removed_mask = (score_ranks < self.group_size - self.kept_per_group) & unit_mask[..., None]
        return kernel.from_rows(removed_mask.reshape(*removed_mask.shape[:2], -1))

    def weights_per_unit(self, kernel: "PrunableKernel") -> int:
        """The weights that a group loses."""
        return self.group_size - self.kept_per_group

    def max_zero_count(self, kernel: "PrunableKernel") -> int:
        """All but those that the pattern keeps."""
        return kernel.size * (self.group_size - self.kept_per_group) // self.group_size

    def count_broken_units(self, kernel: "PrunableKernel", zero_mask: Array) -> int:
        """Groups with fewer zeros than the pattern requires."""
        return int((self._split_groups(kernel, zero_mask).sum(-1) < self.group_size - self.kept_per_group).sum())

    def _split_groups(self, kernel: "PrunableKernel", array: Array) -> Array:
        kernel_rows = kernel.to_rows(array)
        return kernel_rows.reshape(*kernel_rows.shape[:2], -1, self.group_size)


def parse_granularity(text: str) -> Granularity:
    """`weight`, `block 4x1` (outputs x inputs) or `2:4`.

    Raises:
        ValueError: none of these, or sizes that make no sense.
    """
    if text == "weight":
        return WeightGranularity()
    if block_match := re.fullmatch(r"block (\d+)\s*x\s*(\d+)", text):
        block_outputs, block_inputs = int(block_match[1]), int(block_match[2])
        if block_outputs * block_inputs > 1:
            return BlockGranularity(block_outputs, block_inputs)
    if pattern_match := re.fullmatch(r"(\d+):(\d+)", text):
        kept_per_group, group_size = int(pattern_match[1]), int(pattern_match[2])
        if 0 < kept_per_group < group_size:
            return NofMGranularity(kept_per_group, group_size)
    hint = did_you_mean(text, ("weight", "channel", "block 1x4", "2:4"))
    raise ValueError(
        f"found '{text}'; allowed: weight, channel, block MxN (outputs x inputs, as 1x4), N:M (as 2:4)"
        + (hint if hint.startswith("; did") else "")
    )
