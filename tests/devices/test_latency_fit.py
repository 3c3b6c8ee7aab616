"""The fit recovers known rates with their uncertainty; intervals cover; wrong tables get one clear error."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import Command

from edgepipe.core.errors import InputError
from edgepipe.core.metric import Evidence
from edgepipe.devices import device_profile
from edgepipe.devices.latency import (
    cross_validation,
    fit_domain,
    latency_estimate,
    latency_fit,
    measurement_table,
    processor_kinds,
    profile_fragment,
)
from edgepipe.devices.latency.latency_estimate import FitTransfer
from edgepipe.devices.latency.latency_fit import FitRow
from edgepipe.devices.latency.latency_record import LatencyFit
from edgepipe.devices.latency.layer_shapes import FittedLayers, Layer, LayerShape
from edgepipe.devices.latency.processor_kinds import PROCESSOR_KINDS
from edgepipe.devices.latency.profile_fragment import FitRequest
from edgepipe.tflite import reader

KIND = PROCESSOR_KINDS["cortex-m"]
CLOCK = 1e8


def _true_cycles(seed: int) -> dict[str, float]:
    """Cycles of each feature on a made-up processor: those of the kind, each times a random factor."""
    random = np.random.default_rng(seed)
    return {name: cycles * math.exp(random.normal(0, 0.7)) for name, cycles in KIND.cycles_by_feature.items()}


def _rows(
    true_cycles: dict[str, float], group: str, seed: int, families: int = 12, noise: float = 0.02
) -> list[FitRow]:
    """Models whose features are spread over two decades, three per family, with noisy latencies."""
    random = np.random.default_rng(seed)
    rows = []
    for family in range(families):
        mixture = {name: 10 ** random.uniform(-1.5, 1) for name in true_cycles}
        for size in range(3):
            amounts = {name: mixture[name] * 2**size * 1e6 / cycles for name, cycles in KIND.cycles_by_feature.items()}
            seconds = sum(true_cycles[name] * amount for name, amount in amounts.items()) / CLOCK
            seconds *= math.exp(random.normal(0, noise))
            rows.append(FitRow(f"family {family}", group, f"{family}.{size}", amounts, frozenset({"CONV_2D"}), seconds))
    return rows


def test_the_jacobian_matches_the_residuals() -> None:
    rows = _rows(_true_cycles(1), "a", 1) + _rows(_true_cycles(2), "b", 2)
    problem = latency_fit.FitProblem(KIND, {"a": CLOCK, "b": CLOCK}, rows)
    parameters = np.random.default_rng(0).normal(0, 0.2, len(problem.prior_spreads))
    step = 1e-6
    shifted_residuals = [
        problem.residuals(parameters + sign * step * unit) for unit in np.eye(len(parameters)) for sign in (1, -1)
    ]
    numeric_jacobian = (np.array(shifted_residuals[::2]) - np.array(shifted_residuals[1::2])).T / (2 * step)
    np.testing.assert_allclose(problem.jacobian(parameters), numeric_jacobian, atol=1e-4)


def test_unseen_families_of_a_known_processor_are_predicted_well() -> None:
    rows = _rows(_true_cycles(3), "a", 3)
    held_out = cross_validation.leave_families_out(KIND, {"a": CLOCK}, rows)
    assert len(held_out) == len(rows)
    assert cross_validation.summarize_errors(held_out).median < 0.15
    prior_errors = [
        abs(
            sum(KIND.cycles_by_feature[name] * amount for name, amount in row.features.items()) / CLOCK / row.seconds
            - 1
        )
        for row in rows
    ]
    assert (
        cross_validation.summarize_errors(held_out).median < np.median(prior_errors) / 2
    )  # than by the figures of the kind alone


def test_a_neighbour_improves_a_fit_with_few_rows() -> None:
    true_cycles = _true_cycles(4)
    doubled_cycles = {name: 2 * cycles for name, cycles in true_cycles.items()}
    own_rows, neighbour_rows = _rows(doubled_cycles, "slow", 5, families=2), _rows(true_cycles, "fast", 6, families=20)
    test_rows = _rows(doubled_cycles, "slow", 7)
    clocks = {"slow": CLOCK, "fast": CLOCK}

    def error(rows: list[FitRow]) -> float:
        rates = latency_fit.fit(KIND, clocks, rows)["slow"]
        return float(np.median([abs(rates.predict(row.features)[0] / row.seconds - 1) for row in test_rows]))

    assert error(own_rows + neighbour_rows) < error(own_rows)


def test_a_kind_of_operator_that_no_model_has_widens_the_interval() -> None:
    rows = [replace(row, features={**row.features, "resized_outputs": 0.0}) for row in _rows(_true_cycles(5), "a", 8)]
    rates = latency_fit.fit(KIND, {"a": CLOCK}, rows)["a"]
    usual_amounts = rows[0].features
    unusual_amounts = {**usual_amounts, "resized_outputs": 5e6}
    assert rates.predict(unusual_amounts)[1] > 2 * rates.predict(usual_amounts)[1]


def test_intervals_cover_their_rate_of_unseen_families() -> None:
    is_inside = []
    for seed in range(4):
        rows = _rows(_true_cycles(20 + seed), "a", 30 + seed, noise=0.05)
        held_out = cross_validation.leave_families_out(KIND, {"a": CLOCK}, rows)
        factor_by_family = cross_validation.interval_factors(held_out)
        is_inside += [
            prediction.standardized_error <= factor_by_family[prediction.fit_row.family] for prediction in held_out
        ]
    assert 0.8 <= np.mean(is_inside) <= 0.99


def test_an_outlier_moves_the_fit_little() -> None:
    rows = _rows(_true_cycles(6), "a", 9)
    outlier_rows = [replace(rows[0], seconds=10 * rows[0].seconds), *rows[1:]]
    clean_rates, outlier_rates = (
        latency_fit.fit(KIND, {"a": CLOCK}, fit_rows)["a"] for fit_rows in (rows, outlier_rows)
    )
    changes = [outlier_rates.predict(row.features)[0] / clean_rates.predict(row.features)[0] - 1 for row in rows[1:]]
    assert np.median(np.abs(changes)) < 0.05


def test_the_factor_follows_the_held_out_errors_and_few_families_keep_it_wide() -> None:
    rows = _rows(_true_cycles(7), "a", 10)
    held_out = cross_validation.leave_families_out(KIND, {"a": CLOCK}, rows)
    exact = [replace(prediction, predicted_seconds=prediction.fit_row.seconds) for prediction in held_out]
    far = [replace(prediction, predicted_seconds=2 * prediction.fit_row.seconds) for prediction in held_out]
    factors = [cross_validation.interval_factor(predictions) for predictions in (exact, held_out, far)]
    assert factors == sorted(factors)
    assert factors[2] > 2 * factors[0]
    without_any, with_one, with_all = (cross_validation.interval_factor(exact[:count]) for count in (0, 3, len(exact)))
    assert without_any == pytest.approx(2.353, abs=1e-3)  # the 95 % quantile of a t distribution with 3 degrees
    assert without_any > with_one > with_all


def test_rows_of_one_family_count_once() -> None:
    rows = _rows(_true_cycles(7), "a", 10, families=3)
    held_out = cross_validation.leave_families_out(KIND, {"a": CLOCK}, rows)
    assert cross_validation.interval_factor([*held_out, *held_out]) == cross_validation.interval_factor(held_out)


def test_one_wrong_row_does_not_make_an_interval_useless() -> None:
    rows = _rows(_true_cycles(7), "a", 10, families=6)
    held_out = cross_validation.leave_families_out(KIND, {"a": CLOCK}, rows)
    wrong = [replace(held_out[0], predicted_seconds=1e6), *held_out[1:]]
    assert cross_validation.interval_factor(wrong) < 3 * cross_validation.interval_factor(held_out)


def test_the_largest_of_each_device_are_predicted_without_any_of_them() -> None:
    rows = [*_rows(_true_cycles(3), "a", 3), *_rows(_true_cycles(3), "b", 4), *_rows(_true_cycles(3), "few", 5)[:3]]
    held_out = cross_validation.leave_largest_out(KIND, dict.fromkeys(("a", "b", "few"), CLOCK), rows)
    for group in ("a", "b"):
        held_out_seconds = [one.fit_row.seconds for one in held_out if one.fit_row.group == group]
        other_seconds = [row.seconds for row in rows if row.group == group and row.seconds not in held_out_seconds]
        assert len(held_out_seconds) == 9
        assert min(held_out_seconds) > max(other_seconds)
    assert all(one.fit_row.group != "few" for one in held_out)
    assert cross_validation.summarize_errors(held_out).median < 0.15


CONVOLUTION = Layer("CONV_2D", LayerShape(32, 64, 100, 9), {})
FITTED = FittedLayers(
    {"CONV_2D": [LayerShape(16, 32, 400, 9), LayerShape(32, 64, 100, 9)], "ADD": [LayerShape(1, 1, 80, 1)]}
)


@pytest.mark.parametrize(
    ("layer", "factor"),
    [
        (CONVOLUTION, 1.0),
        (CONVOLUTION._replace(shape=LayerShape(32, 128, 100, 9)), 2.0),
        (CONVOLUTION._replace(shape=LayerShape(16, 32, 100, 9)), 2.0),  # from the second, not 4 from the first
        (CONVOLUTION._replace(shape=LayerShape(64, 64, 50, 9)), 2.0),  # the largest difference, not their product
        (CONVOLUTION._replace(shape=LayerShape(32, 64, 100, 1)), 9.0),
        (Layer("ADD", LayerShape(1, 1, 20, 1), {}), 4.0),
        (Layer("ADD", LayerShape(1, 1, 10**7, 1), {}), math.exp(3)),
        (Layer("CONV_2D 1x1", LayerShape(32, 64, 100, 1), {}), math.exp(3)),
    ],
)
def test_the_distance_of_a_layer_is_that_to_the_nearest_fitted_one(layer: Layer, factor: float) -> None:
    assert math.exp(FITTED.distance(layer)) == pytest.approx(factor)


def test_novelty_weighs_layers_by_their_share_of_the_latency() -> None:
    layers = [CONVOLUTION, Layer("EXP", LayerShape(1, 1, 10, 1), {})]
    assert FITTED.novelty(layers, np.array([3e-3, 1e-3])) == pytest.approx(3.0 / 4)
    assert FITTED.novelty([], np.zeros(0)) == 0.0


def test_fitted_layers_are_stored_as_texts() -> None:
    assert FITTED.to_texts() == {"ADD": "1x1x80x1", "CONV_2D": "16x32x400x9 32x64x100x9"}
    assert FittedLayers.from_texts(FITTED.to_texts()).shapes_by_kind == FITTED.shapes_by_kind


def test_a_model_of_unseen_shapes_gets_a_wider_interval(table: Path, models: Path) -> None:
    fit = profile_fragment.fit_table(table, models, FitRequest("board, 1.0", "cortex-m", 1e8, "test")).fit
    model = reader.read(models / "int8.tflite")
    assert set(fit.layers) >= {"CONV_2D", "FULLY_CONNECTED"}
    unlike_layers = dict.fromkeys(fit.layers, "1x1x1x1")
    widths = [
        estimate.high_seconds / estimate.seconds
        for estimate in (
            latency_estimate.estimate(fit, model),
            latency_estimate.estimate(fit.model_copy(update={"layers": unlike_layers}), model),
            latency_estimate.estimate(fit, model, outside_reasons=["activations lie off the chip"]),
        )
    ]
    assert widths[1] > 1.1 * widths[0]
    assert widths[2] == pytest.approx(widths[0] ** 2)


@pytest.mark.parametrize("text", ["3x16x9", "3x16x0x9", "axbxcxd", "3x16x12x9,1x1x1x1", "-3x1x1x1"])
def test_a_stored_layer_that_is_none_is_refused(table: Path, models: Path, text: str) -> None:
    fit = profile_fragment.fit_table(table, models, FitRequest("board, 1.0", "cortex-m", 1e8, "test")).fit
    with pytest.raises(ValueError, match="is not four sizes, such as 16x32x196x9"):
        LatencyFit.model_validate({**fit.model_dump(), "layers": {"CONV_2D": f"1x1x1x1 {text}"}})


def test_reasons_for_extrapolation_are_named() -> None:
    rows = _rows(_true_cycles(8), "a", 11)
    domain = fit_domain.build_domain(rows, KIND.feature_names)
    rates = {name: cycles / CLOCK for name, cycles in KIND.cycles_by_feature.items()}
    assert domain.extrapolation_reasons(rows[0].features, rates, {"CONV_2D"}) == ()
    large_amounts = {name: 1000 * amount for name, amount in rows[0].features.items()}
    reasons = domain.extrapolation_reasons(large_amounts, rates, {"CONV_2D", "TRANSPOSE_CONV"})
    assert reasons[0] == "no fitted model has TRANSPOSE_CONV"
    assert any("the fitted models have at most" in reason for reason in reasons)
    assert "the fitted models took" in reasons[-1]


def test_every_kind_prices_known_features_and_spreads_all_of_them() -> None:
    for name, kind in processor_kinds.PROCESSOR_KINDS.items():
        assert set(kind.cycles_by_feature) == set(kind.feature_names) == set(kind.spread_by_feature), name
        assert all(cycles > 0 for cycles in kind.cycles_by_feature.values()), name


@pytest.fixture
def table(tmp_path: Path, models: Path) -> Path:
    """A table of two families, measured on a made-up board: the int8 model of the tests and copies of it."""
    rows = [
        ("small", "board", "1.0", "int8", "int8.tflite", 2.0),
        ("copy", "board", "1.0", "again", "int8.tflite", 2.1),
        ("copy", "board", "1.0", "lost", "lost.tflite", 9.0),
        ("small", "other", "", "int8", "int8.tflite", 1.0),
    ]
    path = tmp_path / "table.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("family", "device", "runtime", "model", "file", "latency_ms"))
        writer.writerows(rows)
    return path


def test_device_fit_writes_a_part_that_a_profile_inherits(
    tmp_path: Path, table: Path, models: Path, command: Command
) -> None:
    out = tmp_path / "fit.yaml"
    cli_result = command(
        "device",
        "fit",
        table,
        "--models",
        models,
        "--target",
        "board, 1.0",
        "--kind",
        "cortex-m",
        "--clock",
        "100 MHz",
        "--neighbour",
        "other=200 MHz",
        "-o",
        out,
    )
    assert cli_result.code == 0, cli_result.err
    assert "skipped: line 4: lost: no file lost.tflite" in cli_result.err
    (tmp_path / "mine.yaml").write_text(
        "name: mine\ndescription: a board\ninherit: fit\nsources: [measured]\n"
        "system: {core: Cortex-M4, architecture: Armv7E-M, clock: 100 MHz}\n"
        "runtime: {name: tflite-micro, version: '1'}\ndtypes: [int8, int32]\noperators: all\n"
        "ram: {evidence: unavailable, reason: none}\nflash: {evidence: exact, by: file}\n"
    )
    (tmp_path / "twin.yaml").write_text(
        "name: twin\ndescription: half the clock\ninherit: mine\nsources: [measured]\nsystem: {clock: 50 MHz}\n"
        "latency: {evidence: estimated, by: transfer, transfer: {device: mine.yaml, scale: 1.5, error: 0.1, points: 3, "
        "source: 'three models'}}\n"
    )
    for name, milliseconds in (("mine", 2.0), ("twin", 6.0)):
        cli_result = command("verify", models / "int8.tflite", "--device", tmp_path / f"{name}.yaml", "--json")
        metric = next(m for m in json.loads(cli_result.out)["metrics"] if m["name"] == "latency")
        assert metric["evidence"] == Evidence.ESTIMATED
        assert metric["value"] == pytest.approx(milliseconds * 1e-3, rel=0.15)
        assert metric["interval"][0] < metric["value"] < metric["interval"][1]


def test_a_fit_is_for_one_dtype_only(table: Path, models: Path) -> None:
    device_fit = profile_fragment.fit_table(table, models, FitRequest("board, 1.0", "cortex-m", 1e8, "test"))
    metric = latency_estimate.metric(device_fit.fit, reader.read(models / "float.tflite"), "board")
    assert metric.evidence is Evidence.UNAVAILABLE
    assert "computes in float32" in metric.how


def test_a_transfer_scales_by_clock_and_factor_and_widens(table: Path, models: Path) -> None:
    fit = profile_fragment.fit_table(table, models, FitRequest("board, 1.0", "cortex-m", 1e8, "test")).fit
    model = reader.read(models / "int8.tflite")
    own_estimate, transferred_estimate = (
        latency_estimate.estimate(fit, model),
        latency_estimate.estimate(fit, model, FitTransfer("board", 5e7, 1.5, 0.3)),
    )
    assert transferred_estimate.seconds == pytest.approx(3 * own_estimate.seconds)
    assert (
        transferred_estimate.high_seconds / transferred_estimate.seconds
        > own_estimate.high_seconds / own_estimate.seconds
    )
    assert sum(seconds for _, seconds in own_estimate.operator_seconds) <= own_estimate.seconds


def test_the_factor_of_a_transfer_is_measured(table: Path, models: Path) -> None:
    fit = profile_fragment.fit_table(table, models, FitRequest("board, 1.0", "cortex-m", 1e8, "test")).fit
    transfer = profile_fragment.measure_transfer(fit, table, models, "other", 2e8)
    assert transfer.point_count == 1
    predicted_seconds = latency_estimate.estimate(fit, reader.read(models / "int8.tflite")).seconds / 2
    assert transfer.scale == pytest.approx(1e-3 / predicted_seconds, rel=1e-3)


WRONG_TABLES = [
    ("family,device,model\n", "1: no column runtime, latency_ms; needed: family, device, runtime, model, latency_ms"),
    ("family,device,runtime,model,latency_ms\na,b,c,d,fast\n", "2: latency_ms is 'fast'; must be a positive number"),
    ("family,device,runtime,model,latency_ms\na,b,c,d,-1\n", "2: latency_ms is '-1'"),
    ("family,device,runtime,model,latency_ms\na,b,c,d,inf\n", "2: latency_ms is 'inf'"),
    ("family,device,runtime,model,latency_ms\n,b,c,d,1\n", "2: family is empty"),
    (
        "family,device,runtime,model,latency_ms\na,b,c,d,1\na,x,c,d,1\n",
        "2 devices and runtimes; choose one with --target",
    ),
    ("family,device,runtime,model,latency_ms\n", "0 devices and runtimes"),
    (
        "family,device,runtime,model,latency_ms\na,b,c,d,1\n",
        "no model file for 'b, c' found: line 2: d: no file",
    ),
    ("\0", "no column family"),
]


@pytest.mark.parametrize(("text", "message"), WRONG_TABLES)
def test_a_wrong_table_is_one_clear_error(tmp_path: Path, command: Command, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    cli_result = command(
        "device",
        "fit",
        tmp_path / "t.csv",
        "--models",
        tmp_path,
        "--kind",
        "cortex-m",
        "--clock",
        "1 MHz",
        "-o",
        tmp_path / "out.yaml",
    )
    assert cli_result.code == 2
    assert message in cli_result.err
    assert "Traceback" not in cli_result.err
    assert not (tmp_path / "out.yaml").exists()


WRONG_OPTIONS = [
    (("--kind", "cortex-x"), "unknown kind of processor 'cortex-x'"),
    (("--clock", "fast"), "--clock: 'fast'"),
    (("--clock", "0 MHz"), "--clock: 0 MHz is not positive"),
    (("--target", "bord, 1.0"), "no rows of 'bord, 1.0'; did you mean 'board, 1.0'?"),
    (("--neighbour", "other"), "--neighbour 'other': expected TARGET=CLOCK"),
    (("--on-chip", "much"), "--on-chip: 'much'"),
]


@pytest.mark.parametrize(("option", "message"), WRONG_OPTIONS)
def test_a_wrong_option_is_one_clear_error(
    tmp_path: Path, table: Path, models: Path, command: Command, option: tuple[str, str], message: str
) -> None:
    valid_options = {
        "--models": models,
        "--kind": "cortex-m",
        "--clock": "1 MHz",
        "--target": "board, 1.0",
        "-o": "out.yaml",
    }
    arguments = [word for pair in {**valid_options, option[0]: option[1]}.items() for word in pair]
    cli_result = command("device", "fit", table, *arguments)
    assert cli_result.code == 2
    assert message in cli_result.err


def test_a_table_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    text = 'family,device,runtime,model,latency_ms\r\n"a, b","c, d",1,m,2.5\r\n'
    (tmp_path / "t.csv").write_text(text, encoding="utf-8-sig", newline="")
    (line,) = measurement_table.read(tmp_path / "t.csv")
    assert (line.family, line.group, line.seconds) == ("a, b", "c, d, 1", 2.5e-3)


def test_a_missing_table_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        measurement_table.read(tmp_path / "none.csv")


WRONG_TRANSFERS = [
    ("a.yaml", "'a' cannot use the latency of another device: 'a.yaml' has no fitted latency"),
    ("b.yaml", "'a' cannot use the latency of another device: 'b.yaml' has no fitted latency"),
    ("host", "'a' cannot use the latency of another device: 'host' has no fitted latency"),
    ("hots", "latency.transfer.device: unknown device 'hots'; did you mean 'host'?"),
]


@pytest.mark.parametrize(("device", "message"), WRONG_TRANSFERS)
def test_a_transfer_needs_a_fit(tmp_path: Path, device: str, message: str) -> None:
    for name, origin in (("a", device), ("b", "a.yaml")):
        (tmp_path / f"{name}.yaml").write_text(
            f"name: {name}\ndescription: a board\ninherit: stm32h747i-disco\nlatency: {{evidence: estimated, "
            f"by: transfer, transfer: {{device: {origin}, error: 0.1, points: 1, source: measured}}}}\n"
        )
    with pytest.raises(InputError) as error:
        device_profile.load("a.yaml", tmp_path)
    assert str(error.value).startswith(f"{tmp_path}/a.yaml: latency.transfer")
    assert message in str(error.value)
