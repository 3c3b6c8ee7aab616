"""Teacher outputs: computed once and cached, or for each batch if augmentation makes batches unique."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from edgepipe.core.arrays import Array, Arrays, count_samples, map_arrays, take_samples

MAX_CACHED_BYTES = 2**30  # of teacher outputs in memory; larger ones are recomputed in each epoch


@dataclass
class TeacherOutputs:
    """Runs `probe`, which computes all targets, in padded batches of one size, so that it is traced once.

    Cached targets equal recomputed ones up to the last bit: the position of a sample in its batch determines the order
    in which some kernels sum.
    """

    probe_fn: Any  # x -> list of (n, ...)
    batch_size: int
    _traced_probe: Any = field(init=False)
    _cached_targets: list[Array] | None = None

    def __post_init__(self) -> None:
        self._traced_probe = tf.function(lambda x: self.probe_fn(x))

    def compute_targets(self, x: Arrays) -> list[Array]:
        """The targets for all of `x`."""
        batch_outputs = [self._run_batch(take_samples(x, slice(start, start + self.batch_size)))
                 for start in range(0, count_samples(x), self.batch_size)]  # fmt: skip
        return [np.concatenate(output_batches) for output_batches in zip(*batch_outputs, strict=True)]

    def _run_batch(self, x: Arrays) -> list[Array]:
        sample_count = count_samples(x)
        padded_batch = map_arrays(
            lambda a: np.concatenate([a, np.repeat(a[-1:], self.batch_size - sample_count, axis=0)]), x
        )
        return [np.asarray(output)[:sample_count] for output in self._traced_probe(padded_batch)]

    def cache_targets(self, x: Arrays) -> int | None:
        """Compute the targets for all of `x` if they fit `MAX_CACHED_BYTES`; returns their bytes, or None."""
        bytes_per_sample = sum(output[:1].nbytes for output in self._run_batch(take_samples(x, slice(1))))
        if bytes_per_sample * count_samples(x) > MAX_CACHED_BYTES:
            return None
        self._cached_targets = self.compute_targets(x)
        return sum(target.nbytes for target in self._cached_targets)

    def batch_targets(self, indices: Array, x: Arrays) -> list[Array]:
        """The targets of a batch: cached ones of the samples `indices`, else computed from the batch `x`."""
        return (
            self.compute_targets(x)
            if self._cached_targets is None
            else [target[indices] for target in self._cached_targets]
        )
