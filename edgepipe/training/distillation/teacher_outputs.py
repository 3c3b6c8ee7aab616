"""What teachers say of samples: computed once and kept, or anew for each batch that is never seen twice."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from edgepipe.core.arrays import Array, Arrays, count, each, take

KEPT = 2**30  # bytes of teacher outputs that are kept in memory; more are computed anew in each epoch


@dataclass
class Teachers:
    """Runs `probe`, a model of everything that is learned from, in batches of one size, padded: it is traced once.

    What is kept equals what is computed anew but for the last bit: where a sample stands in its batch decides in
    which order some kernels sum.
    """

    probe: Any  # x -> list of (n, ...)
    batch_size: int
    _run: Any = field(init=False)
    _kept: list[Array] | None = None

    def __post_init__(self) -> None:
        self._run = tf.function(lambda x: self.probe(x))

    def of(self, x: Arrays) -> list[Array]:
        """The targets for all of `x`."""
        parts = [self._batch(take(x, slice(start, start + self.batch_size)))
                 for start in range(0, count(x), self.batch_size)]  # fmt: skip
        return [np.concatenate(rows) for rows in zip(*parts, strict=True)]

    def _batch(self, x: Arrays) -> list[Array]:
        number = count(x)
        full = each(lambda a: np.concatenate([a, np.repeat(a[-1:], self.batch_size - number, axis=0)]), x)
        return [np.asarray(value)[:number] for value in self._run(full)]

    def keep(self, x: Arrays) -> int | None:
        """Compute the targets of all of `x` now, if they fit `KEPT`; their bytes, or None."""
        each_one = sum(value[:1].nbytes for value in self._batch(take(x, slice(1))))
        if each_one * count(x) > KEPT:
            return None
        self._kept = self.of(x)
        return sum(value.nbytes for value in self._kept)

    def targets(self, chosen: Array, x: Arrays) -> list[Array]:
        """The targets of a batch: those kept of the samples `chosen`, else computed from `x`, which these became."""
        return self.of(x) if self._kept is None else [value[chosen] for value in self._kept]
