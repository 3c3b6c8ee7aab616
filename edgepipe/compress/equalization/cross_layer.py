"""Cross-layer equalization: channels of neighbouring layers scaled until all fit one range.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv 1906.04721, section
4.1. The model computes the same: W1' = W1 / s, b1' = b1 / s, W2' = W2 s, for each channel that W1 makes and W2 reads.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgepipe.compress.equalization.activation_limits import released
from edgepipe.compress.equalization.batch_norm_folding import Folded, Normal, rebuilt
from edgepipe.compress.equalization.channel_factors import CAP, SETTLED, Balance, balanced
from edgepipe.compress.equalization.input_arrays import difference, feeds, told
from edgepipe.compress.equalization.observed_ranges import by_label
from edgepipe.compress.equalization.scalable_channels import Channels, Part, channels_of, raise_to
from edgepipe.compress.equalization.weighted_layers import bias, kernel, pairs
from edgepipe.core.arrays import Array, Arrays

STEPS = 2**31 - 1  # the largest bias that TFLite's int32 holds


@dataclass(frozen=True)
class Joint:
    """Channels that the same layers make and the same layers read, and the spread of their ranges.

    The spread is the largest range over the median: of the channels on samples, of the weights that make them without.
    """

    makers: tuple[str, ...]
    readers: tuple[str, ...]
    channels: int
    before: float
    after: float


@dataclass(frozen=True)
class Equalized:
    """The equalized model, what was scaled, and what was left alone and why.

    `difference` is the largest of the outputs from those of the model given, relative to the largest output.
    """

    folded: Folded
    joints: tuple[Joint, ...]
    left: tuple[str, ...]
    notes: tuple[str, ...]
    difference: float

    @property
    def model(self) -> Any:
        """The tf_keras model."""
        return self.folded.model


def equalize(folded: Folded, samples: Arrays | None = None) -> Equalized:
    """`folded` with its channels equalized, by the weights alone or by the ranges that `samples` show.

    Activations with an upper limit become ReLU where the limit does nothing; others stop the scaling. Labels are never
    looked at.

    Raises:
        InputError: samples that do not fit; or the outputs differ by more than 1e-4, which is a bug.
    """
    fed = feeds(folded.model, samples)
    base, limits = released(folded, None if samples is None else fed)
    channels = channels_of(base)
    sizes = None if samples is None else by_label(base.model, channels, fed)
    groups = _groups(channels)
    balance = balanced(channels, sizes, [labels for _, _, labels in groups])
    model = _applied(base, channels.parts, balance.scales)
    # random inputs may pass a limit that the norm's statistics exclude, samples may not
    before = base if samples is None else folded
    changed = difference(before.model, model, fed)
    joints = [_joint(group, channels.parts, balance.scales, sizes) for group in groups]
    notes = (
        _how(balance, told(samples)), *(limit.text for limit in limits), *_guarded(groups, balance),
        *(() if sizes is None else _too_large(channels.parts, balance.scales, sizes)),
    )  # fmt: skip
    left = tuple(_left(channels))
    statistics = _statistics(base, channels.parts, balance.scales)
    return Equalized(replace(base, model=model, statistics=statistics), tuple(joints), left, notes, changed)


Group = tuple[tuple[str, ...], tuple[str, ...], Array]  # names of who makes and who reads them, labels


def _groups(channels: Channels) -> list[Group]:
    """The free labels, by who makes and who reads them."""
    made, read = _names(channels.parts, "makes"), _names(channels.parts, "reads")
    found: dict[tuple[tuple[str, ...], tuple[str, ...]], list[int]] = defaultdict(list)
    for label in np.flatnonzero(channels.free):
        found[tuple(made[int(label)]), tuple(read[int(label)])].append(int(label))
    return [(makers, readers, np.array(labels)) for (makers, readers), labels in found.items()]


def _names(parts: tuple[Part, ...], side: str) -> dict[int, list[str]]:
    found: dict[int, list[str]] = defaultdict(list)
    for part in parts:
        for label in np.unique(part.makes if side == "makes" else part.reads):
            found[int(label)].append(part.layer.name)
    return found


def _applied(folded: Folded, parts: tuple[Part, ...], scales: Array) -> Any:
    moved = [part for part in parts if (part.factors(scales) != 1).any() or (scales[part.made] != 1).any()]
    layers = {part.layer.name: type(part.layer).from_config(part.layer.get_config()) for part in moved}
    return rebuilt(folded.model, layers, {part.layer.name: _weights(part, scales) for part in moved})


def _weights(part: Part, scales: Array) -> list[Array]:
    layer = part.layer
    values = pairs(layer, pairs(layer, kernel(layer)) * part.factors(scales)).astype(np.float32)
    return [values, *([(bias(layer) / scales[part.made]).astype(np.float32)] if layer.use_bias else [])]


def _statistics(folded: Folded, parts: tuple[Part, ...], scales: Array) -> dict[str, Normal]:
    by_name = {part.layer.name: scales[part.made] for part in parts}
    return {
        name: Normal(known.mean / by_name.get(name, 1.0), known.deviation / by_name.get(name, 1.0))
        for name, known in folded.statistics.items()
    }


def _joint(group: Group, parts: tuple[Part, ...], scales: Array, sizes: Array | None) -> Joint:
    makers, readers, labels = group
    ones = np.ones(len(scales))
    before, after = (_made(parts, each) if sizes is None else sizes / each for each in (ones, scales))
    return Joint(makers, readers, len(labels), _spread(before[labels]), _spread(after[labels]))


def _made(parts: tuple[Part, ...], scales: Array) -> Array:
    found = np.zeros(len(scales))
    for part in parts:
        raise_to(found, part.makes, part.scaled(scales))
    return found


def _spread(ranges: Array) -> float:
    live = ranges[ranges > 0]
    return float(live.max() / np.median(live)) if len(live) else 1.0


def _how(balance: Balance, samples: str) -> str:
    settled = f"factors settled in {balance.rounds} rounds"
    if balance.change > SETTLED:
        settled = f"factors still changed by {balance.change:.1%} after {balance.rounds} rounds"
    return f"{samples}; {settled}"


def _guarded(groups: list[Group], balance: Balance) -> Iterator[str]:
    for makers, _, labels in groups:
        if dead := int(balance.dead[labels].sum()):
            yield f"{', '.join(makers)}: {dead} of {len(labels)} channels are dead; they take the middle factor"
        if capped := int(balance.capped[labels].sum()):
            yield f"{', '.join(makers)}: {capped} of {len(labels)} factors held at {CAP:g} times the middle one"


def _too_large(parts: tuple[Part, ...], scales: Array, sizes: Array) -> Iterator[str]:
    """Biases that int32 does not hold in steps of the scale of the input times that of the weights."""
    for part in parts:
        step = (sizes / scales)[part.reads].max() / 255 * _made((part,), scales)[part.made] / 127
        values = np.abs(bias(part.layer) / scales[part.made])
        if count := int((values > STEPS * step).sum()):
            yield f"{part.layer.name}: {count} of {len(values)} biases are beyond int32 in steps of int8's scales"


def _left(channels: Channels) -> Iterator[str]:
    """Layers with a kernel whose channels, or some of them, cannot be scaled, with the reasons."""
    yield from (f"{name}: {reason}" for name, reason in channels.stopped.items())
    for part in channels.parts:
        fixed = [channels.fixed[int(label)] for label in part.made if int(label) in channels.fixed]
        if fixed:
            count = "" if len(fixed) == len(part.made) else f" ({len(fixed)} of {len(part.made)} channels)"
            yield f"{part.layer.name}{count}: {'; '.join(dict.fromkeys(fixed))}"
