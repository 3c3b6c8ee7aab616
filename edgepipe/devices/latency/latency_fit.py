"""Fits the cost of each feature on a device to measured models, together with devices of the same kind.

    latency = sum over features of amount x rate
    rate = cycles of the kind x speed of the device x factor of the feature x the device's own factor / clock

Every factor is positive by construction (it is fitted as a logarithm), the error is relative (the logarithm of
predicted over measured), large errors count less (soft L1), and a prior pulls each factor towards the figures of the
processor kind: a maximum a posteriori estimate. Devices share the speed-independent factors, so that one table fills
gaps of another. The spread of the posterior (Laplace approximation) contributes to every interval.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgepipe.core.arrays import Array
from edgepipe.devices.latency.feature_names import Features
from edgepipe.devices.latency.processor_kinds import ProcessorKind

OUTLIER_DEVIATIONS = 2.0  # standard deviations beyond which an error counts linearly
MAX_STEPS = 60


@dataclass(frozen=True)
class FitRow:
    """One measurement: a model's features and the latency of an inference."""

    family: str  # models of a family are held out together
    group: str  # device and runtime
    model: str
    features: Features
    operators: frozenset[str]  # the operators that the model computes with
    seconds: float


@dataclass(frozen=True)
class Rates:
    """Seconds per unit of each feature, and their uncertainty: the covariance of the logarithms."""

    feature_names: tuple[str, ...]
    seconds: Array  # (features,)
    covariance: Array  # (features, features)
    noise: float  # standard deviation of the logarithm of a measurement

    def predict(self, amounts: Features) -> tuple[float, float]:
        """Seconds, and the standard deviation of their logarithm."""
        feature_seconds = self.seconds * feature_vector(self.feature_names, amounts)
        total = float(feature_seconds.sum())
        if total <= 0:
            return 0.0, self.noise
        shares = feature_seconds / total
        variance = max(
            0.0, float(shares @ self.covariance @ shares)
        )  # rounding of a stored covariance may make it negative
        return total, float(np.sqrt(variance + self.noise**2))


def feature_vector(feature_names: Sequence[str], amounts: Features) -> Array:
    """The amounts in the order of `feature_names`; 0 for those absent."""
    return np.array([amounts.get(name, 0.0) for name in feature_names])


def fit(kind: ProcessorKind, clocks: Mapping[str, float], rows: Sequence[FitRow]) -> dict[str, Rates]:
    """The rates of every group of `rows`; `clocks` gives each group's clock in hertz."""
    return FitProblem(kind, clocks, rows).solve()


class FitProblem:
    """The least-squares problem of a fit.

    Its parameters are logarithms: the speed of each group, the factor of each feature, and each group's own factor of
    each feature.
    """

    def __init__(self, kind: ProcessorKind, clocks: Mapping[str, float], rows: Sequence[FitRow]) -> None:
        self.kind, self.feature_names = kind, kind.feature_names
        self.groups = sorted({row.group for row in rows})
        self.group_indices = np.array([self.groups.index(row.group) for row in rows])
        self.log_seconds = np.log([row.seconds for row in rows])
        amounts = np.array([feature_vector(self.feature_names, row.features) for row in rows])
        periods = np.array([1 / clocks[group] for group in self.groups])
        self.prior_rates = feature_vector(self.feature_names, kind.cycles) * periods[:, None]  # (groups, features)
        self.prior_seconds = amounts * self.prior_rates[self.group_indices]
        self.spread = np.concatenate(
            [
                np.full(len(self.groups), kind.speed_spread),
                feature_vector(self.feature_names, kind.spread),
                np.full(len(self.groups) * len(self.feature_names), kind.device_spread),
            ]
        )

    def solve(self) -> dict[str, Rates]:
        """The rates of every group."""
        from scipy.optimize import least_squares

        start = np.zeros(len(self.spread))
        log_ratios = self.log_seconds - np.log(self.prior_seconds.sum(axis=1))
        start[: len(self.groups)] = [
            np.median(log_ratios[self.group_indices == group_index]) for group_index in range(len(self.groups))
        ]
        solution = least_squares(
            self.residuals, start, self.jacobian, loss="soft_l1", f_scale=OUTLIER_DEVIATIONS, max_nfev=MAX_STEPS
        )
        covariance = np.linalg.inv(solution.jac.T @ solution.jac)
        factors = np.exp(self._log_factors(solution.x))
        return {
            group: Rates(
                self.feature_names,
                self.prior_rates[group_index] * factors[group_index],
                self._group_covariance(group_index, covariance),
                self.kind.noise,
            )
            for group_index, group in enumerate(self.groups)
        }

    def _log_factors(self, parameters: Array) -> Array:
        """The logarithm of each group's factor on each feature, (groups, features)."""
        group_speeds, feature_factors, own_factors = np.split(
            parameters, (len(self.groups), len(self.groups) + len(self.feature_names))
        )
        return np.asarray(
            group_speeds[:, None] + feature_factors + own_factors.reshape(len(self.groups), len(self.feature_names))
        )

    def residuals(self, parameters: Array) -> Array:
        """Errors of the rows in units of the noise, then parameters in units of their prior spread."""
        predicted_seconds = (self.prior_seconds * np.exp(self._log_factors(parameters))[self.group_indices]).sum(axis=1)
        errors = (np.log(predicted_seconds) - self.log_seconds) / self.kind.noise
        return np.concatenate([errors, parameters / self.spread])

    def jacobian(self, parameters: Array) -> Array:
        """The derivatives of `residuals`, (residuals, parameters)."""
        feature_seconds = self.prior_seconds * np.exp(self._log_factors(parameters))[self.group_indices]
        shares = feature_seconds / feature_seconds.sum(axis=1, keepdims=True) / self.kind.noise
        row_count, group_count, feature_count = len(feature_seconds), len(self.groups), len(self.feature_names)
        errors = np.zeros((row_count, len(self.spread)))
        errors[np.arange(row_count), self.group_indices] = 1 / self.kind.noise
        errors[:, group_count : group_count + feature_count] = shares
        own_columns = (
            group_count + feature_count + self.group_indices[:, None] * feature_count + np.arange(feature_count)
        )
        errors[np.arange(row_count)[:, None], own_columns] = shares
        return np.vstack([errors, np.diag(1 / self.spread)])

    def _group_covariance(self, group_index: int, covariance: Array) -> Array:
        """The covariance of one group's factors, from that of all parameters."""
        group_count, feature_count = len(self.groups), len(self.feature_names)
        selection = np.zeros((feature_count, len(covariance)))
        selection[:, group_index] = 1
        selection[np.arange(feature_count), group_count + np.arange(feature_count)] = 1
        own_columns = group_count + (1 + group_index) * feature_count + np.arange(feature_count)
        selection[np.arange(feature_count), own_columns] = 1
        return np.asarray(selection @ covariance @ selection.T)
