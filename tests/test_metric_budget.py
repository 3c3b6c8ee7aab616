"""Metrics that cannot lie, limits, and the budgets that a file or a command line sets."""

from typing import Any

import pytest
from pydantic import ValidationError

from edgepipe.core.budget import BudgetNames, parse_max_options, read_limits
from edgepipe.core.config import parse
from edgepipe.core.errors import ConfigError
from edgepipe.core.metric import Evidence, Finding, Judgement, Limit, Metric, judge, judge_all, unavailable_metric
from edgepipe.core.units import Dimension

KNOWN = BudgetNames(
    {"accuracy": (Dimension.FRACTION, True), "rmse": (Dimension.NUMBER, False)}, ["host"], ["model", "train"]
)


def metric(value: float | None = 0.5, **changes: Any) -> Metric:
    given = {"name": "accuracy", "unit": Dimension.FRACTION, "evidence": Evidence.MEASURED, "how": "counted by hand"}
    return Metric(**{**given, "value": value, **changes})


def limit(value: float, bound: str = "min", **changes: Any) -> Limit:
    return Limit(**{"metric": "accuracy", "unit": Dimension.FRACTION, "bound": bound, "value": value, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"value": None},
        {"evidence": Evidence.UNAVAILABLE},
        {"evidence": Evidence.ESTIMATED},
        {"value": float("nan")},
        {"value": float("inf")},
        {"unknown": 1},
    ],
)
def test_a_metric_that_would_lie_cannot_be_made(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        metric(**changes)


def test_texts() -> None:
    assert metric(0.975).text() == "97.50 %"
    estimate = metric(0.02, unit=Dimension.SECONDS, evidence=Evidence.ESTIMATED, interval=(0.018, 0.023))
    assert estimate.text() == "20.00 ms (18.00 ms .. 23.00 ms)"
    assert unavailable_metric("latency", Dimension.SECONDS, "no board").text() == "unavailable"
    assert limit(0.97).text() == "accuracy >= 97.00 %"
    assert metric(-0.005, name="accuracy_drop").text() == "-0.50 points"
    assert limit(0.01, "max", metric="accuracy_drop").text() == "accuracy_drop <= 1.00 points"
    assert limit(0.4, "max", metric="mae_drop", unit=Dimension.NUMBER).text() == "mae_drop <= 0.4"
    board = limit(65536, "max", metric="ram", unit=Dimension.BYTES, device="board", evidence=Evidence.SIMULATED)
    assert board.text() == "board ram <= 64.0 KiB, simulated"
    assert str(Finding(rule="r", place="p", observed="o")) == "r: p: o"
    assert str(Finding(rule="r", place="p", observed="o", suggestion="s")) == "r: p: o; s"


OVER, UNDER = "is over the limit", "is under the limit"
JUDGED = [  # limit, metric, met, reason
    (limit(0.5), metric(0.5), True, ""),
    (limit(0.5), metric(0.49999), False, f"50.00 % {UNDER}"),
    (limit(0.5, "max"), metric(0.5), True, ""),
    (limit(0.5, "max"), metric(0.6), False, f"60.00 % {OVER}"),
    (limit(0.01, "max"), metric(0.98 - 0.97), True, ""),  # a point, and a rounding error of binary numbers
    (limit(0.0, "max"), metric(0.1 + 0.2 - 0.3), True, ""),
    (limit(0.5), None, False, "this metric was not computed"),
    (limit(0.5, optional=True), None, True, "this metric was not computed"),
    (limit(0.5), "none", False, "no board"),
    (limit(0.5, optional=True), "none", True, "no board"),
    (limit(0.5, optional=True), metric(0.4), False, f"40.00 % {UNDER}"),
    (limit(0.5, evidence=Evidence.MEASURED), metric(0.6), True, ""),
    (limit(0.5, evidence=Evidence.EXACT), metric(0.6), False, "the evidence is 'measured', the budget demands 'exact'"),
    (limit(0.5, device="host"), metric(0.6), False, "this metric was not computed"),
    (limit(0.5, device="host"), metric(0.6, device="host"), True, ""),
]


@pytest.mark.parametrize(("held", "found", "met", "reason"), JUDGED)
def test_judge(held: Limit, found: Metric | str | None, met: bool, reason: str) -> None:
    if isinstance(found, str):
        found = unavailable_metric("accuracy", Dimension.FRACTION, "no board")
    verdict = judge(held, [found] if found is not None else [])
    assert (verdict.met, verdict.reason) == (met, reason)
    has_value = verdict.metric is not None and verdict.metric.value is not None
    assert verdict.judgement is (Judgement.MET if met else Judgement.NOT_MET if has_value else Judgement.UNKNOWN)


@pytest.mark.parametrize(
    ("judgements", "expected"),
    [("", "met"), ("mm", "met"), ("mu", "unknown"), ("un", "not met"), ("nu", "not met"), ("u", "unknown")],
)
def test_what_is_broken_outweighs_what_is_unknown(judgements: str, expected: str) -> None:
    verdict_by_letter = {
        "m": judge(limit(0.5), [metric(0.6)]), "n": judge(limit(0.5), [metric(0.4)]), "u": judge(limit(0.5), []),
    }  # fmt: skip
    verdicts = [verdict_by_letter[letter] for letter in judgements]
    findings = [
        Finding(rule="runs", place="m.tflite", observed="crashed", judgement=verdict.judgement)
        for verdict in verdicts
        if not verdict.met
    ]
    assert judge_all(verdicts, []) == expected
    assert judge_all([], findings) == expected


@pytest.mark.parametrize(("value", "met"), [(0.021, False), (0.024, True)])
def test_an_estimate_is_held_to_the_worse_end_of_its_interval(value: float, met: bool) -> None:
    time = {"metric": "latency", "unit": Dimension.SECONDS}
    estimate = metric(
        0.02, name="latency", unit=Dimension.SECONDS, evidence=Evidence.ESTIMATED, interval=(0.018, 0.023)
    )
    above = judge(limit(value, "max", **time), [estimate])
    assert above.met is met
    assert above.reason == ("" if met else "the worse end of the interval, 23.00 ms, is over the limit")
    below = judge(limit(value - 0.004, "min", **time), [estimate])
    assert below.met is (value - 0.004 <= 0.018)
    assert below.reason in ("", "the worse end of the interval, 18.00 ms, is under the limit")


def read(text: str, known: BudgetNames = KNOWN) -> tuple[list[Limit], list[str]]:
    document = parse(text, "f")
    found = read_limits(document, (), document.content, known)
    return found, [str(problem) for problem in document.problems]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("accuracy: 57 %", ("accuracy", "min", 0.57, None)),
        ("accuracy: '>= 97 %'", ("accuracy", "min", 0.97, None)),
        ("accuracy: {max: 99 %}", ("accuracy", "max", 0.99, None)),
        ("accuracy_drop: 1 point", ("accuracy_drop", "max", 0.01, None)),
        ("rmse: 3", ("rmse", "max", 3.0, None)),
        ("rmse_drop: {max: -0.1}", ("rmse_drop", "max", -0.1, None)),
        ("sparsity: 75 %", ("sparsity", "min", 0.75, None)),
        ("size: 10 KiB", ("size", "max", 10240.0, None)),
        ("macs: '<= 5 M'", ("macs", "max", 5e6, None)),
        ("host: {latency: 1 ms}", ("latency", "max", 0.001, "host")),
        ("host: {flash: '>= 1 B'}", ("flash", "min", 1.0, "host")),
        ("host: {npu_operators: 100 %}", ("npu_operators", "min", 1.0, "host")),
        ("host: {npu_operators: {max: 50 %}}", ("npu_operators", "max", 0.5, "host")),
    ],
)
def test_a_line_of_a_budget(text: str, expected: tuple[str, str, float, str | None]) -> None:
    found, problems = read(text)
    assert problems == []
    assert [(one.metric, one.bound, one.value, one.device) for one in found] == [expected]


def test_everything_a_limit_can_say() -> None:
    found, problems = read("accuracy_drop: {max: 1 point, against: train, evidence: measured, optional: true}")
    assert problems == []
    assert found[0].model_dump(exclude={"unit", "bound", "value"}) == {
        "metric": "accuracy_drop", "device": None, "evidence": "measured", "against": "train", "optional": True,
    }  # fmt: skip


def test_a_wrong_line_is_told_and_left_out() -> None:
    found, problems = read("accuracy: 97\nsize: 1 KiB\nhost: {ram: 3}\n")
    assert [one.metric for one in found] == ["size"]
    assert problems == [
        "f:1:11: accuracy: 97 is 9700.00 %; write '97 %' or a fraction of one",
        "f:3:13: host.ram: '3' has no unit; allowed: B, KiB, MiB, GiB, kB, KB, MB, GB",
    ]


def test_a_task_of_the_users_own_takes_any_name_and_tells_shares_by_their_sign() -> None:
    found, problems = read("surprise: 3\nsurprise_drop: 1 %\nfit: {min: 90 %}\n", BudgetNames(None, [], []))
    assert problems == []
    assert [(one.metric, one.bound, one.value, one.unit) for one in found] == [
        ("surprise", "min", 3, Dimension.NUMBER),
        ("surprise_drop", "max", 0.01, Dimension.FRACTION),
        ("fit", "min", 0.9, Dimension.FRACTION),
    ]


def test_words_of_the_command_line() -> None:
    found = parse_max_options(["ram=64KiB", "flash=256 KiB", "latency=5ms", "macs=3M"])
    assert [(one.metric, one.value) for one in found] == [
        ("ram", 65536), ("flash", 262144), ("latency", 0.005), ("macs", 3e6),
    ]  # fmt: skip


def test_words_that_are_no_limits_are_all_told() -> None:
    allowed = "; allowed: flash, latency, macs, nonzero_parameters, parameters, ram, size, size_deflate, size_zstd"
    with pytest.raises(ConfigError) as caught:
        parse_max_options(["ram", "flsh=3KiB", "flash=3ms", "size=-3B", "sparsity=50%", "npu_operators=1", "=3"])
    assert [problem.message for problem in caught.value.problems] == [
        f"'=3': expected METRIC=LIMIT{allowed}",
        "'flsh=3KiB': expected METRIC=LIMIT; did you mean 'flash'?",
        f"'npu_operators=1': expected METRIC=LIMIT{allowed}",
        "'ram': expected METRIC=LIMIT; the limit is missing",
        f"'sparsity=50%': expected METRIC=LIMIT{allowed}",
        "'ms' is not a unit of bytes; allowed: B, KiB, MiB, GiB, kB, KB, MB, GB",
        "-3B is negative",
    ]
