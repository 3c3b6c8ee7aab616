"""Terms of operators, the fit to them, and estimates from it."""

from pathlib import Path

import numpy as np
import pytest

from edgepipe.core.metric import Evidence
from edgepipe.devices.calibration import calibrated_latency as estimating
from edgepipe.devices.calibration import calibration_fit as fitting
from edgepipe.devices.calibration.calibration_fit import FitSample
from edgepipe.devices.calibration.calibration_record import DeviceCalibration, PredictionErrors, SuiteMeasurement
from edgepipe.devices.calibration.cost_terms import OperatorCost, compute_operator_costs, sum_terms
from edgepipe.devices.calibration.network_builder import NetworkBuilder
from edgepipe.tflite import reader
from edgepipe.tflite.host_fingerprint import fingerprint
from edgepipe.tflite.model import Model


def _read(net: NetworkBuilder, folder: Path) -> Model:
    path = folder / "model.tflite"
    path.write_bytes(net.to_bytes())
    return reader.read(path)


def test_terms_of_a_convolution_by_hand(tmp_path: Path) -> None:
    """3x3 over 10x10x70 to 65 filters: 100 rows are 7 tiles, 65 filters 2 blocks, 70 channels 2 blocks deep."""
    net = NetworkBuilder(0)
    (cost,) = compute_operator_costs(_read(net.set_outputs(net.conv(net.input(10, 10, 70), 65, 3)), tmp_path))
    assert cost.kind == "conv"
    assert cost.term_amounts["rows"] == 100
    assert cost.term_amounts["row_taps"] == 900
    assert cost.term_amounts["tile_blocks"] == 7 * 2
    assert cost.term_amounts["tile_work"] == 7 * 2 * 9 * 2
    assert cost.term_amounts["tile_tap_blocks_deep"] == 7 * 2 * 9
    assert cost.term_amounts["weights"] == 65 * 9 * 70
    assert cost.term_amounts["weights_again"] == 65 * 9 * 70 * 6  # they exceed the L1 cache
    assert cost.term_amounts["work"] == 100 * 65 * 9 * 70


@pytest.mark.parametrize(
    ("size", "cin", "cout", "kernel", "kind"),
    [(1, 8, 8, 1, "vector"), (4, 8, 8, 1, "pointwise"), (2, 8, 8, 3, "conv_few"), (4, 8, 8, 3, "conv"),
     (4, 1, 1, 3, "depthwise")],
)  # fmt: skip
def test_kinds_of_convolutions(size: int, cin: int, cout: int, kernel: int, kind: str, tmp_path: Path) -> None:
    net = NetworkBuilder(0)
    assert (
        compute_operator_costs(_read(net.set_outputs(net.conv(net.input(size, size, cin), cout, kernel)), tmp_path))[
            0
        ].kind
        == kind
    )


def test_a_padding_is_fused_unless_its_output_is_shared(tmp_path: Path) -> None:
    net = NetworkBuilder(0)
    x = net.pad(net.input(8, 8, 4), 0, 1)
    costs = compute_operator_costs(_read(net.set_outputs(net.depthwise(x, 3, 2, valid_padding=True)), tmp_path))
    assert [cost.kind for cost in costs] == ["pad_fused", "depthwise"]
    net = NetworkBuilder(0)
    x = net.pad(net.input(8, 8, 4), 0, 1)
    shared_pad_costs = compute_operator_costs(
        _read(net.set_outputs(net.depthwise(x, 3, 2, valid_padding=True), net.pool(x, "MAX_POOL_2D", 3, 3)), tmp_path)
    )
    assert [cost.kind for cost in shared_pad_costs] == ["pad", "depthwise", "max_pool_2d"]


def test_a_dynamic_reshape_is_a_separate_kind(tmp_path: Path) -> None:
    net = NetworkBuilder(0)
    costs = compute_operator_costs(_read(net.set_outputs(net.dynamic_reshape(net.input(2, 2, 4), 16)), tmp_path))
    assert [cost.kind for cost in costs] == ["shape_int32", "strided_slice_int32", "pack_int32", "reshape_computed"]
    net = NetworkBuilder(0)
    assert (
        compute_operator_costs(_read(net.set_outputs(net.reshape(net.input(2, 2, 4), 16)), tmp_path))[0].kind
        == "reshape"
    )


def test_dtypes_are_kinds_and_returns_to_the_delegate_are_counted(tmp_path: Path) -> None:
    net = NetworkBuilder(0)
    x = net.quantize(net.input(4, 4, 3, dtype="uint8"))
    x = net.softmax(net.dense(net.mean(net.conv(x, 4)), 2))
    costs = compute_operator_costs(_read(net.set_outputs(net.dequantize(x)), tmp_path))
    kinds = [cost.kind for cost in costs]
    assert kinds == ["quantize_uint8_int8", "pointwise", "mean", "vector", "softmax", "dequantize_int8_float32"]
    terms = sum_terms(costs)
    assert (terms["call"], terms["call_matrix"], terms["change"]) == (1, 1, 2)  # after QUANTIZE, and after SOFTMAX


TRUE_SECONDS = {"call": 2e-6, "a.one": 1e-6, "a.bytes": 3e-9, "b.rows": 5e-8}


def _samples(count: int, noise: float, seed: int = 0) -> list[FitSample]:
    """Models of one to six operators of two kinds, whose times follow `TRUE` up to a relative noise."""
    random = np.random.default_rng(seed)
    samples = []
    for number in range(count):
        costs = tuple(
            OperatorCost("X", "a", {"one": 1.0, "bytes": float(random.uniform(10, 1e5))})
            if random.random() < 0.5
            else OperatorCost("Y", "b", {"rows": float(random.uniform(1, 2e3)), "idle": float(random.uniform(1, 10))})
            for _ in range(random.integers(1, 7))
        )
        exact_seconds = sum(TRUE_SECONDS.get(name, 0.0) * amount for name, amount in sum_terms(list(costs)).items())
        seconds = exact_seconds * float(np.exp(noise * random.standard_normal()))
        samples.append(FitSample(f"m{number}", f"g{number % 4}", number % 2 == 0, costs, seconds))
    return samples


def test_the_fit_recovers_the_true_seconds_and_none_is_negative() -> None:
    """Fitted to noisy times, one in twenty of them four times too long; compared with exact times."""
    samples, test_samples = _samples(300, 0.02), _samples(100, 0.0, seed=1)
    disturbed_samples = [
        FitSample(s.name, s.group, s.is_composite, s.operator_costs, s.seconds * (1 if n % 20 else 4))
        for n, s in enumerate(samples)
    ]
    for training_samples, max_error in ((samples, 0.03), (disturbed_samples, 0.06)):
        fitted_terms = fitting.fit(training_samples)
        assert fitted_terms.seconds_per_unit.min() >= 0
        predicted_times = fitted_terms.predict(fitting.design_matrix(test_samples, fitted_terms.term_names)[1])
        assert fitting.summarize_errors(predicted_times, np.array([s.seconds for s in test_samples])).worst < max_error
        seconds_by_term = dict(zip(fitted_terms.term_names, fitted_terms.seconds_per_unit.tolist(), strict=True))
        for name in ("a.bytes", "b.rows"):  # these dominate the times; the others hardly matter
            assert seconds_by_term[name] == pytest.approx(TRUE_SECONDS[name], rel=max_error)


def test_held_out_groups_are_not_in_the_fit() -> None:
    """A group that is four times slower than its terms say is predicted at a quarter when held out."""
    samples = [
        FitSample(s.name, s.group, s.is_composite, s.operator_costs, s.seconds * (4 if s.group == "g3" else 1))
        for s in _samples(200, 0.01)
    ]
    held_out_times = fitting.predict_held_out(samples, 0)
    ratios = np.array(
        [p / s.seconds for p, s in zip(held_out_times.unseen_group_times, samples, strict=True) if s.group == "g3"]
    )
    assert np.median(ratios) == pytest.approx(0.25, rel=0.05)
    assert fitting.summarize_errors(held_out_times.random_fold_times, held_out_times.random_fold_times).worst == 0


def test_the_interval_covers_its_rate() -> None:
    random = np.random.default_rng(3)
    is_inside = []
    for _ in range(200):
        ratios = np.exp(0.1 * random.standard_normal(101))
        low, high = fitting.conformal_interval(np.ones(100), ratios[:100])
        is_inside.append(low <= ratios[100] <= high)
    assert 0.85 <= np.mean(is_inside) <= 0.96


def _calibration(**fields: object) -> DeviceCalibration:
    errors = PredictionErrors(models=10, median=0.02, p90=0.06, worst=0.2)
    host = fingerprint()
    content = {
        "measured": SuiteMeasurement(
            host=host.text(), host_digest=host.digest, runtime="ai-edge-litert 2.3.0", threads=1, suite="quick, seed 7",
            models=10, sustained=1.0, at="2026-11-24T11:00:00+00:00"
        ),
        "seconds": {"call": 1e-6, "add.written": 1e-9, "pointwise.work": 1e-10, "pointwise.rows": 1e-15},
        "largest": {"add": {"one": 1, "written": 1000, "read": 2000}, "pointwise": {"work": 1e6, "rows": 50}},
        "within": errors, "across": errors, "operators": errors, "groups": {}, "interval": (0.9, 1.2), **fields,
    }  # fmt: skip
    return DeviceCalibration.model_validate(content)


def _pointwise(folder: Path, size: int) -> Model:
    net = NetworkBuilder(0)
    return _read(net.set_outputs(net.conv(net.input(size, size, 16), 16)), folder)


def test_an_estimate_inside_the_range(tmp_path: Path) -> None:
    """49 rows of 16 x 16: 12,544 units of work."""
    estimate = estimating.estimate(_calibration(), _pointwise(tmp_path, 7))
    assert estimate.seconds == pytest.approx(1e-6 + 1e-10 * 12_544, rel=1e-6)
    assert (estimate.low_seconds, estimate.high_seconds) == pytest.approx(
        (0.9 * estimate.seconds, 1.2 * estimate.seconds)
    )
    assert estimate.extrapolation_reasons == ()
    metric = estimating.metric(_calibration(), _pointwise(tmp_path, 7), "mine")
    assert (metric.evidence, metric.interval) == (Evidence.ESTIMATED, (estimate.low_seconds, estimate.high_seconds))
    assert metric.details["extrapolates"] == "no"


def test_a_size_outside_the_range_is_reported_if_it_matters(tmp_path: Path) -> None:
    """70 x 70 rows: `rows` is far out but costs nothing; `work` is 1.25 times the largest, at 90 x 90 it is 2 times."""
    assert estimating.estimate(_calibration(), _pointwise(tmp_path, 70)).extrapolation_reasons == ()
    estimate = estimating.estimate(_calibration(), _pointwise(tmp_path, 90))
    assert estimate.extrapolation_reasons == ("CONV_2D #0: work of pointwise is 2.07e+06, the suite has up to 1e+06",)
    assert (estimate.low_seconds, estimate.high_seconds) == pytest.approx(
        (0.81 * estimate.seconds, 1.44 * estimate.seconds)
    )  # widened
    metric = estimating.metric(_calibration(), _pointwise(tmp_path, 90), "mine")
    assert "extrapolates, interval widened: CONV_2D #0: work of pointwise" in metric.how


def test_an_unknown_operator_is_reported(tmp_path: Path) -> None:
    net = NetworkBuilder(0)
    estimate = estimating.estimate(
        _calibration(), _read(net.set_outputs(net.unary("HARD_SWISH", net.input(5, 5, 4))), tmp_path)
    )
    assert estimate.extrapolation_reasons == ("HARD_SWISH #0: 'hard_swish' is not in the suite; estimated as 'add'",)
    assert estimate.seconds == pytest.approx(1e-6 + 100 * 1e-9)


def test_another_machine_is_reported(tmp_path: Path) -> None:
    other_measurement = _calibration().measured.model_copy(update={"host_digest": "0" * 64, "host": "a Pi"})
    metric = estimating.metric(_calibration(measured=other_measurement), _pointwise(tmp_path, 7), "mine")
    assert metric.how.endswith("; calibrated on another machine: a Pi")
