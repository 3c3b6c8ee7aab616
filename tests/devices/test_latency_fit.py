"""The fit finds rates that are known, and says how sure it is; intervals hold; wrong tables get one clear error."""

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
from edgepipe.devices.latency.processor_kinds import KINDS
from edgepipe.devices.latency.profile_fragment import FitRequest
from edgepipe.tflite import reader

KIND = KINDS["cortex-m"]
CLOCK = 1e8


def _truth(seed: int) -> dict[str, float]:
    """Cycles of each feature on a made-up processor: those of the kind, each off by its own factor."""
    random = np.random.default_rng(seed)
    return {name: cycles * math.exp(random.normal(0, 0.7)) for name, cycles in KIND.cycles.items()}


def _rows(truth: dict[str, float], group: str, seed: int, families: int = 12, noise: float = 0.02) -> list[FitRow]:
    """Models whose features are spread over two decades, four a family, with noisy latencies."""
    random = np.random.default_rng(seed)
    found = []
    for family in range(families):
        mixture = {name: 10 ** random.uniform(-1.5, 1) for name in truth}
        for size in range(3):
            amounts = {name: mixture[name] * 2**size * 1e6 / cycles for name, cycles in KIND.cycles.items()}
            seconds = sum(truth[name] * amount for name, amount in amounts.items()) / CLOCK
            seconds *= math.exp(random.normal(0, noise))
            found.append(
                FitRow(f"family {family}", group, f"{family}.{size}", amounts, frozenset({"CONV_2D"}), seconds)
            )
    return found


def test_the_jacobian_is_that_of_the_residuals() -> None:
    rows = _rows(_truth(1), "a", 1) + _rows(_truth(2), "b", 2)
    problem = latency_fit._FitProblem(KIND, {"a": CLOCK, "b": CLOCK}, rows)
    at = np.random.default_rng(0).normal(0, 0.2, len(problem.spread))
    step = 1e-6
    sides = [problem._residuals(at + sign * step * unit) for unit in np.eye(len(at)) for sign in (1, -1)]
    numeric = (np.array(sides[::2]) - np.array(sides[1::2])).T / (2 * step)
    np.testing.assert_allclose(problem._jacobian(at), numeric, atol=1e-4)


def test_unseen_families_of_a_known_processor_are_predicted_well() -> None:
    rows = _rows(_truth(3), "a", 3)
    held_out = cross_validation.leave_families_out(KIND, {"a": CLOCK}, rows)
    assert len(held_out) == len(rows)
    assert cross_validation.summarize_errors(held_out).median < 0.15
    plain = [abs(sum(KIND.cycles[n] * v for n, v in row.features.items()) / CLOCK / row.seconds - 1) for row in rows]
    assert (
        cross_validation.summarize_errors(held_out).median < np.median(plain) / 2
    )  # than by the figures of the kind alone


def test_a_neighbour_tells_what_a_device_has_not_shown() -> None:
    truth = _truth(4)
    twice = {name: 2 * cycles for name, cycles in truth.items()}
    own, neighbour = _rows(twice, "slow", 5, families=2), _rows(truth, "fast", 6, families=20)
    unseen = _rows(twice, "slow", 7)
    clocks = {"slow": CLOCK, "fast": CLOCK}

    def error(rows: list[FitRow]) -> float:
        rates = latency_fit.fit(KIND, clocks, rows)["slow"]
        return float(np.median([abs(rates.predict(row.features)[0] / row.seconds - 1) for row in unseen]))

    assert error(own + neighbour) < error(own)


def test_a_kind_of_operator_that_no_model_has_widens_the_interval() -> None:
    rows = [replace(row, features={**row.features, "resized_outputs": 0.0}) for row in _rows(_truth(5), "a", 8)]
    rates = latency_fit.fit(KIND, {"a": CLOCK}, rows)["a"]
    usual = rows[0].features
    unusual = {**usual, "resized_outputs": 5e6}
    assert rates.predict(unusual)[1] > 2 * rates.predict(usual)[1]


def test_intervals_hold_at_their_rate_for_families_never_seen() -> None:
    inside = []
    for seed in range(4):
        rows = _rows(_truth(20 + seed), "a", 30 + seed, noise=0.05)
        held_out = cross_validation.leave_families_out(KIND, {"a": CLOCK}, rows)
        reach = cross_validation.interval_factors(held_out)
        inside += [one.standardized_error <= reach[one.row.family] for one in held_out]
    assert 0.8 <= np.mean(inside) <= 0.99


def test_an_outlier_moves_the_fit_little() -> None:
    rows = _rows(_truth(6), "a", 9)
    wrong = [replace(rows[0], seconds=10 * rows[0].seconds), *rows[1:]]
    clean, dirty = (latency_fit.fit(KIND, {"a": CLOCK}, given)["a"] for given in (rows, wrong))
    moved = [dirty.predict(row.features)[0] / clean.predict(row.features)[0] - 1 for row in rows[1:]]
    assert np.median(np.abs(moved)) < 0.05


def test_of_few_held_out_rows_the_worst_counts() -> None:
    rows = _rows(_truth(7), "a", 10, families=2)[::3]
    held_out = cross_validation.leave_families_out(KIND, {"a": CLOCK}, rows)
    assert len(held_out) == 2
    assert cross_validation.interval_factor(held_out) >= max(
        cross_validation.NORMAL_QUANTILE, *(one.standardized_error for one in held_out)
    )
    assert cross_validation.interval_factor([]) == cross_validation.NORMAL_QUANTILE


def test_what_lies_outside_is_named() -> None:
    rows = _rows(_truth(8), "a", 11)
    seen = fit_domain.build_domain(rows, KIND.feature_names)
    rates = {name: cycles / CLOCK for name, cycles in KIND.cycles.items()}
    assert seen.extrapolation_reasons(rows[0].features, rates, {"CONV_2D"}) == ()
    far = {name: 1000 * amount for name, amount in rows[0].features.items()}
    reasons = seen.extrapolation_reasons(far, rates, {"CONV_2D", "TRANSPOSE_CONV"})
    assert reasons[0] == "no fitted model has TRANSPOSE_CONV"
    assert any("the fitted models have at most" in reason for reason in reasons)
    assert "the fitted models took" in reasons[-1]


def test_every_kind_prices_known_features_and_spreads_all_of_them() -> None:
    for name, kind in processor_kinds.KINDS.items():
        assert set(kind.cycles) == set(kind.feature_names) == set(kind.spread), name
        assert all(cycles > 0 for cycles in kind.cycles.values()), name


@pytest.fixture
def measured(tmp_path: Path, models: Path) -> Path:
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
    tmp_path: Path, measured: Path, models: Path, command: Command
) -> None:
    out = tmp_path / "fit.yaml"
    ended = command("device", "fit", measured, "--models", models, "--target", "board, 1.0", "--kind", "cortex-m",
                    "--clock", "100 MHz", "--neighbour", "other=200 MHz", "-o", out)  # fmt: skip
    assert ended.code == 0, ended.err
    assert "left out: line 4: lost: no file lost.tflite" in ended.err
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
    for name, expected in (("mine", 2.0), ("twin", 6.0)):
        ended = command("verify", models / "int8.tflite", "--device", tmp_path / f"{name}.yaml", "--json")
        metric = next(m for m in json.loads(ended.out)["metrics"] if m["name"] == "latency")
        assert metric["evidence"] == Evidence.ESTIMATED
        assert metric["value"] == pytest.approx(expected * 1e-3, rel=0.15)
        assert metric["interval"][0] < metric["value"] < metric["interval"][1]


def test_a_fit_holds_for_its_type_only(measured: Path, models: Path) -> None:
    built = profile_fragment.fit_table(measured, models, FitRequest("board, 1.0", "cortex-m", 1e8, "test"))
    metric = latency_estimate.metric(built.fit, reader.read(models / "float.tflite"), "board")
    assert metric.evidence is Evidence.UNAVAILABLE
    assert "computes in float32" in metric.how


def test_a_transfer_stretches_by_clock_and_factor_and_widens(measured: Path, models: Path) -> None:
    found = profile_fragment.fit_table(measured, models, FitRequest("board, 1.0", "cortex-m", 1e8, "test")).fit
    model = reader.read(models / "int8.tflite")
    own, carried = (
        latency_estimate.estimate(found, model),
        latency_estimate.estimate(found, model, FitTransfer("board", 5e7, 1.5, 0.3)),
    )
    assert carried.seconds == pytest.approx(3 * own.seconds)
    assert carried.high_seconds / carried.seconds > own.high_seconds / own.seconds
    assert sum(seconds for _, seconds in own.operator_seconds) <= own.seconds


def test_one_factor_carries_a_fit_over(measured: Path, models: Path) -> None:
    found = profile_fragment.fit_table(measured, models, FitRequest("board, 1.0", "cortex-m", 1e8, "test")).fit
    carried = profile_fragment.measure_transfer(found, measured, models, "other", 2e8)
    assert carried.points == 1
    predicted = latency_estimate.estimate(found, reader.read(models / "int8.tflite")).seconds / 2
    assert carried.scale == pytest.approx(1e-3 / predicted, rel=1e-3)


WRONG = [
    ("family,device,model\n", "1: no column runtime, latency_ms; needed: family, device, runtime, model, latency_ms"),
    ("family,device,runtime,model,latency_ms\na,b,c,d,fast\n", "2: latency_ms is 'fast'; a positive number"),
    ("family,device,runtime,model,latency_ms\na,b,c,d,-1\n", "2: latency_ms is '-1'"),
    ("family,device,runtime,model,latency_ms\na,b,c,d,inf\n", "2: latency_ms is 'inf'"),
    ("family,device,runtime,model,latency_ms\n,b,c,d,1\n", "2: family is empty"),
    ("family,device,runtime,model,latency_ms\na,b,c,d,1\na,x,c,d,1\n", "2 devices and runtimes; say which by --target"),
    ("family,device,runtime,model,latency_ms\n", "0 devices and runtimes"),
    (
        "family,device,runtime,model,latency_ms\na,b,c,d,1\n",
        "no model of 'b, c' is at hand: line 2: d: no file",
    ),
    ("\0", "no column family"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_a_wrong_table_is_one_clear_error(tmp_path: Path, command: Command, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    ended = command("device", "fit", tmp_path / "t.csv", "--models", tmp_path, "--kind", "cortex-m", "--clock",
                    "1 MHz", "-o", tmp_path / "out.yaml")  # fmt: skip
    assert ended.code == 2
    assert message in ended.err
    assert "Traceback" not in ended.err
    assert not (tmp_path / "out.yaml").exists()


OPTIONS = [
    (("--kind", "cortex-x"), "unknown kind of processor 'cortex-x'"),
    (("--clock", "fast"), "--clock: 'fast'"),
    (("--clock", "0 MHz"), "--clock: 0 MHz is not positive"),
    (("--target", "bord, 1.0"), "no rows of 'bord, 1.0'; did you mean 'board, 1.0'?"),
    (("--neighbour", "other"), "--neighbour 'other': expected TARGET=CLOCK"),
    (("--on-chip", "much"), "--on-chip: 'much'"),
]


@pytest.mark.parametrize(("words", "message"), OPTIONS)
def test_a_wrong_option_is_one_clear_error(
    tmp_path: Path, measured: Path, models: Path, command: Command, words: tuple[str, str], message: str
) -> None:
    usual = {"--models": models, "--kind": "cortex-m", "--clock": "1 MHz", "--target": "board, 1.0", "-o": "out.yaml"}
    given = [word for pair in {**usual, words[0]: words[1]}.items() for word in pair]
    ended = command("device", "fit", measured, *given)
    assert ended.code == 2
    assert message in ended.err


def test_a_table_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    text = 'family,device,runtime,model,latency_ms\r\n"a, b","c, d",1,m,2.5\r\n'
    (tmp_path / "t.csv").write_text(text, encoding="utf-8-sig", newline="")
    (line,) = measurement_table.read(tmp_path / "t.csv")
    assert (line.family, line.group, line.seconds) == ("a, b", "c, d, 1", 2.5e-3)


def test_a_missing_table_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        measurement_table.read(tmp_path / "none.csv")


CARRIED = [
    ("a.yaml", "'a' cannot carry its latency over: 'a.yaml' has no fitted latency"),
    ("b.yaml", "'a' cannot carry its latency over: 'b.yaml' has no fitted latency"),
    ("host", "'a' cannot carry its latency over: 'host' has no fitted latency"),
    ("hots", "latency.transfer.device: unknown device 'hots'; did you mean 'host'?"),
]


@pytest.mark.parametrize(("device", "message"), CARRIED)
def test_a_latency_is_carried_over_from_a_fit_only(tmp_path: Path, device: str, message: str) -> None:
    for name, origin in (("a", device), ("b", "a.yaml")):
        (tmp_path / f"{name}.yaml").write_text(
            f"name: {name}\ndescription: a board\ninherit: stm32h747i-disco\nlatency: {{evidence: estimated, "
            f"by: transfer, transfer: {{device: {origin}, error: 0.1, points: 1, source: measured}}}}\n"
        )
    with pytest.raises(InputError) as caught:
        device_profile.load("a.yaml", tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}/a.yaml: latency.transfer")
    assert message in str(caught.value)
