"""Fits what each feature costs on a device to measured models, together with devices of the same kind.

    latency = sum over features of amount x rate,   rate = cycles of the kind x speed x own factor / clock

Every factor is positive by construction (it is fitted as a logarithm), the error is relative (the logarithm of
predicted over measured), large errors count less (soft L1), and each factor is pulled towards what its kind of
processor is known for: a maximum a posteriori estimate. Devices share the speed-independent part of their rates, so
that what one table lacks another gives. The spread of the posterior (Laplace's approximation) goes into every interval.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgepipe.core.arrays import Array
from edgepipe.devices.latency.feature_names import Features
from edgepipe.devices.latency.processor_kinds import Kind

OUTLIER = 2.0  # from how many standard deviations on an error counts linearly
STEPS = 60


@dataclass(frozen=True)
class Row:
    """One measurement: a model's features, and how long an inference took."""

    family: str  # models that are held out together
    group: str  # device and runtime
    model: str
    features: Features
    operators: frozenset[str]  # the operators that the model computes with
    seconds: float


@dataclass(frozen=True)
class Rates:
    """Seconds that one unit of each feature takes, and how surely: the covariance of the logarithms."""

    features: tuple[str, ...]
    seconds: Array  # (features,)
    covariance: Array  # (features, features)
    noise: float

    def predict(self, amounts: Features) -> tuple[float, float]:
        """Seconds, and the standard deviation of their logarithm."""
        parts = self.seconds * vector(self.features, amounts)
        total = float(parts.sum())
        if total <= 0:
            return 0.0, self.noise
        shares = parts / total
        variance = max(0.0, float(shares @ self.covariance @ shares))  # a stored covariance is rounded
        return total, float(np.sqrt(variance + self.noise**2))


def vector(features: Sequence[str], amounts: Features) -> Array:
    """The amounts of `features`, in their order."""
    return np.array([amounts.get(name, 0.0) for name in features])


def fit(kind: Kind, clocks: Mapping[str, float], rows: Sequence[Row]) -> dict[str, Rates]:
    """The rates of every group of `rows`; `clocks` gives each group's clock in hertz."""
    problem = _Problem(kind, clocks, rows)
    return problem.solve()


class _Problem:
    """Parameters: the speed of each group, the factor of each feature, and each group's own factor of each feature."""

    def __init__(self, kind: Kind, clocks: Mapping[str, float], rows: Sequence[Row]) -> None:
        self.kind, self.features = kind, kind.features
        self.groups = sorted({row.group for row in rows})
        self.place = np.array([self.groups.index(row.group) for row in rows])
        self.log_seconds = np.log([row.seconds for row in rows])
        amounts = np.array([vector(self.features, row.features) for row in rows])
        period = np.array([1 / clocks[group] for group in self.groups])
        self.prior = vector(self.features, kind.cycles) * period[:, None]  # (groups, features)
        self.work = amounts * self.prior[self.place]
        self.spread = np.concatenate(
            [
                np.full(len(self.groups), kind.speed_spread),
                vector(self.features, kind.spread),
                np.full(len(self.groups) * len(self.features), kind.device_spread),
            ]
        )

    def solve(self) -> dict[str, Rates]:
        from scipy.optimize import least_squares

        start = np.zeros(len(self.spread))
        ratio = self.log_seconds - np.log(self.work.sum(axis=1))
        start[: len(self.groups)] = [np.median(ratio[self.place == place]) for place in range(len(self.groups))]
        found = least_squares(self._residuals, start, self._jacobian, loss="soft_l1", f_scale=OUTLIER, max_nfev=STEPS)
        spread = np.linalg.inv(found.jac.T @ found.jac)
        factors = np.exp(self._factors(found.x))
        return {
            group: Rates(self.features, self.prior[place] * factors[place], self._of(place, spread), self.kind.noise)
            for place, group in enumerate(self.groups)
        }

    def _factors(self, parameters: Array) -> Array:
        """The logarithm of each group's factor on each feature, (groups, features)."""
        speed, feature, own = np.split(parameters, (len(self.groups), len(self.groups) + len(self.features)))
        return np.asarray(speed[:, None] + feature + own.reshape(len(self.groups), len(self.features)))

    def _residuals(self, parameters: Array) -> Array:
        predicted = (self.work * np.exp(self._factors(parameters))[self.place]).sum(axis=1)
        errors = (np.log(predicted) - self.log_seconds) / self.kind.noise
        return np.concatenate([errors, parameters / self.spread])

    def _jacobian(self, parameters: Array) -> Array:
        parts = self.work * np.exp(self._factors(parameters))[self.place]
        shares = parts / parts.sum(axis=1, keepdims=True) / self.kind.noise
        rows, groups, features = len(parts), len(self.groups), len(self.features)
        errors = np.zeros((rows, len(self.spread)))
        errors[np.arange(rows), self.place] = 1 / self.kind.noise
        errors[:, groups : groups + features] = shares
        own = groups + features + self.place[:, None] * features + np.arange(features)
        errors[np.arange(rows)[:, None], own] = shares
        return np.vstack([errors, np.diag(1 / self.spread)])

    def _of(self, place: int, spread: Array) -> Array:
        """The covariance of one group's factors, from that of all parameters."""
        groups, features = len(self.groups), len(self.features)
        parts = np.zeros((features, len(spread)))
        parts[:, place] = 1
        parts[np.arange(features), groups + np.arange(features)] = 1
        parts[np.arange(features), groups + (1 + place) * features + np.arange(features)] = 1
        return np.asarray(parts @ spread @ parts.T)
