"""Fits the cost of each feature on a device to measured models, together with devices of the same kind.

    latency = sum over features of amount x rate
    rate = cycles of the kind x speed of the device x factor of the feature x the device's own factor / clock

Every factor is positive by construction (it is fitted as a logarithm), the error is relative (the logarithm of
predicted over measured), large errors count less (soft L1), and a prior pulls each factor towards the figures of the
processor kind: a maximum a posteriori estimate. Devices share the speed-independent factors, so that one table fills
gaps of another. To the uncertainty of a prediction contribute the spread of the posterior (Laplace approximation), the
noise of measurements, and how unlike the fitted layers those of the model are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgepipe.core.arrays import Array
from edgepipe.devices.latency.feature_names import FeatureAmounts
from edgepipe.devices.latency.layer_shapes import Layer
from edgepipe.devices.latency.processor_kinds import ProcessorKind

OUTLIER_DEVIATIONS = 2.0  # standard deviations beyond which an error counts linearly
MAX_SOLVER_STEPS = 60
NOVELTY_SPREAD = 0.13  # standard deviation of the log error for each e-fold of distance to the fitted layers


@dataclass(frozen=True)
class FitRow:
    """One measurement: a model's features and the latency of an inference."""

    family: str  # models of a family are held out together
    group: str  # device and runtime
    model_name: str
    features: FeatureAmounts
    operator_names: frozenset[str]  # the operators that the model computes with
    seconds: float
    layers: tuple[Layer, ...] = ()


@dataclass(frozen=True)
class Rates:
    """Seconds per unit of each feature, and their uncertainty: the covariance of the logarithms."""

    feature_names: tuple[str, ...]
    seconds_per_unit: Array  # (features,)
    covariance: Array  # (features, features)
    noise: float  # standard deviation of the logarithm of a measurement

    def predict(self, feature_amounts: FeatureAmounts, novelty: float = 0.0) -> tuple[float, float]:
        """Seconds, and the standard deviation of their logarithm; `novelty` is the distance to the fitted layers."""
        feature_seconds = self.seconds_per_unit * feature_vector(self.feature_names, feature_amounts)
        total_seconds = float(feature_seconds.sum())
        if total_seconds <= 0:
            return 0.0, self.noise
        feature_shares = feature_seconds / total_seconds
        variance = max(
            0.0, float(feature_shares @ self.covariance @ feature_shares)
        )  # rounding of a stored covariance may make it negative
        return total_seconds, float(np.sqrt(variance + self.noise**2 + (NOVELTY_SPREAD * novelty) ** 2))

    def predict_layers(self, layers: Sequence[Layer]) -> Array:
        """Seconds of each layer, (layers,)."""
        amounts = [feature_vector(self.feature_names, layer.amounts) for layer in layers]
        return np.reshape(amounts, (len(layers), len(self.feature_names))) @ self.seconds_per_unit


def feature_vector(feature_names: Sequence[str], feature_amounts: FeatureAmounts) -> Array:
    """The amounts in the order of `feature_names`; 0 for those absent."""
    return np.array([feature_amounts.get(name, 0.0) for name in feature_names])


def fit(kind: ProcessorKind, clock_by_group: Mapping[str, float], fit_rows: Sequence[FitRow]) -> dict[str, Rates]:
    """The rates of every group of `rows`; `clocks` gives each group's clock in hertz."""
    return FitProblem(kind, clock_by_group, fit_rows).solve()


class FitProblem:
    """The least-squares problem of a fit.

    Its parameters are logarithms: the speed of each group, the factor of each feature, and each group's own factor of
    each feature.
    """

    def __init__(self, kind: ProcessorKind, clock_by_group: Mapping[str, float], fit_rows: Sequence[FitRow]) -> None:
        self.kind, self.feature_names = kind, kind.feature_names
        self.group_names = sorted({row.group for row in fit_rows})
        self.group_indices = np.array([self.group_names.index(row.group) for row in fit_rows])
        self.log_seconds = np.log([row.seconds for row in fit_rows])
        feature_amounts = np.array([feature_vector(self.feature_names, row.features) for row in fit_rows])
        clock_periods = np.array([1 / clock_by_group[group] for group in self.group_names])
        self.prior_rates = (
            feature_vector(self.feature_names, kind.cycles_by_feature) * clock_periods[:, None]
        )  # (groups, features)
        self.prior_seconds = feature_amounts * self.prior_rates[self.group_indices]
        self.prior_spreads = np.concatenate(
            [
                np.full(len(self.group_names), kind.speed_spread),
                feature_vector(self.feature_names, kind.spread_by_feature),
                np.full(len(self.group_names) * len(self.feature_names), kind.device_spread),
            ]
        )

    def solve(self) -> dict[str, Rates]:
        """The rates of every group."""
        from scipy.optimize import least_squares

        initial_parameters = np.zeros(len(self.prior_spreads))
        log_ratios = self.log_seconds - np.log(self.prior_seconds.sum(axis=1))
        initial_parameters[: len(self.group_names)] = [
            np.median(log_ratios[self.group_indices == group_index]) for group_index in range(len(self.group_names))
        ]
        solution = least_squares(
            self.residuals,
            initial_parameters,
            self.jacobian,
            loss="soft_l1",
            f_scale=OUTLIER_DEVIATIONS,
            max_nfev=MAX_SOLVER_STEPS,
        )
        parameter_covariance = np.linalg.inv(solution.jac.T @ solution.jac)
        rate_factors = np.exp(self._log_factors(solution.x))
        return {
            group: Rates(
                self.feature_names,
                self.prior_rates[group_index] * rate_factors[group_index],
                self._group_covariance(group_index, parameter_covariance),
                self.kind.noise,
            )
            for group_index, group in enumerate(self.group_names)
        }

    def _log_factors(self, parameters: Array) -> Array:
        """The logarithm of each group's factor on each feature, (groups, features)."""
        group_speeds, feature_factors, group_feature_factors = np.split(
            parameters, (len(self.group_names), len(self.group_names) + len(self.feature_names))
        )
        return np.asarray(
            group_speeds[:, None]
            + feature_factors
            + group_feature_factors.reshape(len(self.group_names), len(self.feature_names))
        )

    def residuals(self, parameters: Array) -> Array:
        """Errors of the rows in units of the noise, then parameters in units of their prior spread."""
        predicted_seconds = (self.prior_seconds * np.exp(self._log_factors(parameters))[self.group_indices]).sum(axis=1)
        scaled_errors = (np.log(predicted_seconds) - self.log_seconds) / self.kind.noise
        return np.concatenate([scaled_errors, parameters / self.prior_spreads])

    def jacobian(self, parameters: Array) -> Array:
        """The derivatives of `residuals`, (residuals, parameters)."""
        feature_seconds = self.prior_seconds * np.exp(self._log_factors(parameters))[self.group_indices]
        scaled_shares = feature_seconds / feature_seconds.sum(axis=1, keepdims=True) / self.kind.noise
        row_count, group_count, feature_count = len(feature_seconds), len(self.group_names), len(self.feature_names)
        residual_derivatives = np.zeros((row_count, len(self.prior_spreads)))
        residual_derivatives[np.arange(row_count), self.group_indices] = 1 / self.kind.noise
        residual_derivatives[:, group_count : group_count + feature_count] = scaled_shares
        group_feature_columns = (
            group_count + feature_count + self.group_indices[:, None] * feature_count + np.arange(feature_count)
        )
        residual_derivatives[np.arange(row_count)[:, None], group_feature_columns] = scaled_shares
        return np.vstack([residual_derivatives, np.diag(1 / self.prior_spreads)])

    def _group_covariance(self, group_index: int, parameter_covariance: Array) -> Array:
        """The covariance of one group's factors, from that of all parameters."""
        group_count, feature_count = len(self.group_names), len(self.feature_names)
        selection_matrix = np.zeros((feature_count, len(parameter_covariance)))
        selection_matrix[:, group_index] = 1
        selection_matrix[np.arange(feature_count), group_count + np.arange(feature_count)] = 1
        group_feature_columns = group_count + (1 + group_index) * feature_count + np.arange(feature_count)
        selection_matrix[np.arange(feature_count), group_feature_columns] = 1
        return np.asarray(selection_matrix @ parameter_covariance @ selection_matrix.T)
