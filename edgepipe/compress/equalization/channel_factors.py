"""The factor of each channel (Nagel et al. 2019, arXiv 1906.04721, section 4.1), iterated until nothing changes.

Without samples, equation 11: s = sqrt(r1 r2) / r2, with r1 the range of the weights that make a channel and r2 of those
that read it. With samples, r1 is the range of the channel itself: TFLite gives each output channel of a kernel its own
scale, a whole activation only one. r2 is then relative to the largest weight of the same output channel, for the same
reason; a depthwise layer that reads a channel sets no bound at all, so that the channel's range becomes one.
"""

from dataclasses import dataclass

import numpy as np

from edgepipe.compress.equalization.scalable_channels import Channels, Part, raise_to
from edgepipe.core.arrays import Array

SETTLED = 1e-3  # largest relative change of a factor in the last round
ROUNDS = 200
CAP = 1e4  # between a channel's factor and the middle of its tensor's


@dataclass(frozen=True)
class Balance:
    """The factor of each label (1 for one that stays), rounds it took, the last change, and labels held by a guard."""

    scales: Array
    rounds: int
    change: float
    dead: Array
    capped: Array


def balanced(channels: Channels, sizes: Array | None, joints: list[Array]) -> Balance:
    """Factors for the free labels of `channels`; `sizes` are the ranges of labels on samples.

    Args:
        joints: the labels of each group that the same layers make and read. A dead channel, that no weight makes or
            reads or no sample reaches, takes the middle factor of its group; no factor is more than 1e4 from it.
    """
    free, scales, change, rounds = channels.free, np.ones(channels.number), np.inf, 0
    made, read = _ranges(channels.parts, scales, sizes)
    dead = free & ((made == 0) | (read == 0))
    live = free & ~dead
    while live.any() and change > SETTLED and rounds < ROUNDS:
        made, read = _ranges(channels.parts, scales, sizes)
        step = np.ones(channels.number)
        step[live] = _step(made[live], read[live])
        scales, rounds = scales * step, rounds + 1
        change = float(np.abs(np.log(step)).max())
    bounded = _bounded(scales, joints, dead)
    return Balance(bounded, rounds, 0.0 if np.isinf(change) else change, dead, live & ~np.isclose(bounded, scales))


def _step(made: Array, read: Array) -> Array:
    """Equation 11; where nothing bounds how a channel is read, its range becomes one."""
    return np.asarray(np.where(np.isinf(read), made, np.sqrt(made / np.where(np.isinf(read), 1.0, read))))


def _ranges(parts: tuple[Part, ...], scales: Array, sizes: Array | None) -> tuple[Array, Array]:
    """r1 and r2 of each label under `scales`; r2 is infinite where only depthwise layers read a measured channel."""
    made, read = np.zeros(len(scales)), np.zeros(len(scales))
    unbound = np.zeros(len(scales), bool)
    for part in parts:
        scaled = part.scaled(scales)
        raise_to(made, part.makes, scaled)
        if sizes is None:
            raise_to(read, part.reads, scaled)
        elif part.depthwise:
            unbound[part.reads[scaled.max(axis=1) > 0]] = True
        else:
            most = scaled.max(axis=0, keepdims=True)
            raise_to(read, part.reads, scaled / np.where(most > 0, most, 1.0))
    if sizes is None:
        return made, read
    return sizes / scales, np.where((read == 0) & unbound, np.inf, read)


def _bounded(scales: Array, joints: list[Array], dead: Array) -> Array:
    bounded = scales.copy()
    for labels in joints:
        live = labels[~dead[labels]]
        middle = float(np.exp(np.mean(np.log(scales[live])))) if len(live) else 1.0
        bounded[labels] = np.where(dead[labels], middle, np.clip(scales[labels], middle / CAP, middle * CAP))
    return bounded
