"""Sparsity schedules: pruning progress at each training step, or after each of several rounds.

Zhu and Gupta 2017, "To prune, or not to prune" (arXiv 1710.01878): the polynomial schedule; with exponent 3, cubic.
"""

from dataclasses import dataclass
from typing import Literal

ScheduleName = Literal["one_shot", "constant", "polynomial", "cubic", "iterative"]
MASK_UPDATE_COUNT = 10  # along a polynomial; each recomputes the saliency


@dataclass(frozen=True)
class SparsitySchedule:
    """How progress grows from 0 to 1, the target."""

    name: ScheduleName = "polynomial"
    start_progress: float = 0.0  # initial progress of a polynomial
    power: float = 3.0
    ramp_share: float = 0.75  # share of the steps over which a polynomial grows
    round_count: int = 5

    def progress_by_step(self, steps: int) -> dict[int, float]:
        """Step -> progress, for `steps` training steps; the last progress is 1."""
        if self.name in ("one_shot", "constant"):
            return {0: 1.0}
        last_step = max(1, round(steps * self.ramp_share)) - 1
        update_steps = sorted(
            {round(last_step * number / MASK_UPDATE_COUNT) for number in range(MASK_UPDATE_COUNT + 1)}
        )
        return {step: self._polynomial_progress(step / last_step if last_step else 1.0) for step in update_steps}

    @property
    def exponent(self) -> float:
        """The exponent of the polynomial."""
        return 3.0 if self.name == "cubic" else self.power

    def _polynomial_progress(self, ramp_fraction: float) -> float:
        return float(1 - (1 - self.start_progress) * (1 - ramp_fraction) ** self.exponent)
