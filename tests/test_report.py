"""The report as text, Markdown and JSON: snapshots, the JSON Schema, and reports that cannot be read."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from commands import Command

from edgepipe import api
from edgepipe.core.artifact import ArtifactKind
from edgepipe.core.cost import Cost
from edgepipe.core.errors import InputError
from edgepipe.core.metric import Evidence, Finding, Limit, Metric, Suggestion, judge, unavailable_metric
from edgepipe.core.outcome import Outcome, Table
from edgepipe.core.units import Dimension
from edgepipe.pipeline.run_folders import REPORT_FILE
from edgepipe.render import markdown, report_schema, report_tables
from edgepipe.render import terminal as text
from edgepipe.render.report import SCHEMA, Report, StageReport, load
from edgepipe.render.report_suggestions import build_suggestions

SNAPSHOTS = Path(__file__).parent / "snapshots"
SCHEMA_FILE = Path(report_schema.__file__).with_name("report_schema.json")


def metric(name: str, value: float, unit: Dimension, evidence: Evidence, **more: Any) -> Metric:
    return Metric(name=name, value=value, unit=unit, evidence=evidence, how=more.pop("how", f"{name} by hand"), **more)


METRICS = (
    metric("accuracy", 0.975, Dimension.FRACTION, Evidence.MEASURED, details={"split": "test", "samples": 360}),
    metric("accuracy_drop", 0.0125, Dimension.FRACTION, Evidence.MEASURED, details={"against": "train"}),
    metric("size", 12345, Dimension.BYTES, Evidence.EXACT),
    metric("ram", 20480, Dimension.BYTES, Evidence.SIMULATED, device="board"),
    metric("latency", 0.00123, Dimension.SECONDS, Evidence.MEASURED, device="host", how="60 runs | 1 thread",
           details={"p5": 0.0012, "p50": 0.00123, "p95": 0.002}),
    metric("latency", 0.02, Dimension.SECONDS, Evidence.ESTIMATED, device="far", interval=(0.018, 0.023)),
    unavailable_metric("latency", Dimension.SECONDS, "no board is connected", "board"),
)  # fmt: skip


def limit(name: str, unit: Dimension, value: float, bound: str = "max", **more: Any) -> Limit:
    return Limit.model_validate({"metric": name, "unit": unit, "value": value, "bound": bound, **more})


LIMITS = (
    limit("accuracy", Dimension.FRACTION, 0.97, "min"),
    limit("accuracy_drop", Dimension.FRACTION, 0.01),
    limit("ram", Dimension.BYTES, 65536, device="board"),
    limit("latency", Dimension.SECONDS, 0.02, device="board"),
    limit("latency", Dimension.SECONDS, 0.02, device="board", optional=True),
    limit("latency", Dimension.SECONDS, 0.02, device="far"),
)


def stage(name: str, kind: ArtifactKind, outcome: Outcome, **more: Any) -> StageReport:
    cost = Cost(wall=1.25, cpu=2.5, peak_memory=more.pop("peak", 3 * 2**20))
    given = {"type": name, "status": "ran", "artifact": f"artifacts/{name}", "digest": "ab" * 32, **more}
    return StageReport(name=name, kind=kind, made="2026-11-23T19:00:00+00:00", cost=cost, outcome=outcome, **given)


def report(met: bool = False) -> Report:
    """A report with one of everything that can stand in one."""
    trained = Outcome(
        metrics=(
            metric("accuracy", 0.9875, Dimension.FRACTION, Evidence.MEASURED, details={"split": "validation"}),
            metric("parameters", 1234567, Dimension.COUNT, Evidence.EXACT),
        )
    )
    pruned = Outcome(
        notes=("layer 'a|b' is excluded",),
        tables=(
            Table(title="Zeros", columns=("layer", "zeros", "share"), rows=(("a|b", 1200, 0.75), ("[c]", 3, 0.5))),
        ),
    )
    broken = (
        Finding(
            rule="integer-only",
            place="operator 3 (CONV_2D)",
            observed="tensor 'x' is float32",
            suggestion="quantize it",
        ),
    )
    validated = Outcome(
        metrics=METRICS,
        verdicts=() if met else tuple(judge(one, list(METRICS)) for one in LIMITS),
        findings=() if met else broken,
    )
    stages = (
        stage("train", ArtifactKind.KERAS, trained),
        stage("prune", ArtifactKind.FLOAT, pruned, status="cached", peak=None),
        stage("validate", ArtifactKind.TFLITE, validated),
    )
    return Report(
        name="hand-made", description="Everything [once].", pipeline="[p].yaml", seed=7,
        created="2026-11-23T20:00:00+00:00", versions={"edgepipe": "0.1.0"}, stages=stages, met=met,
    )  # fmt: skip


def check(name: str, found: str) -> None:
    """Hold `found` against the snapshot `name`; to accept a change, write `found` there."""
    assert [line.rstrip() for line in found.splitlines()] == (SNAPSHOTS / name).read_text().splitlines(), found


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    text.show_report(report(), full=True)
    check("report.txt", capsys.readouterr().out)


def test_markdown() -> None:
    check("report.md", markdown.render(report()))


VERDICT_LINES = [  # indices of LIMITS, rules broken, the last line
    ((), 0, "no budget was set; no rule was broken"),
    ((), 2, "no budget was set; 2 rules broken"),
    ((0, 2), 0, "budget met: 2 of 2 limits"),
    ((0, 2), 1, "budget met: 2 of 2 limits, 1 rule broken"),
    ((0, 4), 0, "budget met: 1 of 2 limits, 1 optional limit not met"),
    ((0, 1), 0, "budget not met: 1 of 2 limits missed"),
    ((0, 3), 0, "budget not met: 1 of 2 limits unknown"),
    ((1, 3), 1, "budget not met: 1 of 2 limits missed, 1 of 2 limits unknown, 1 rule broken"),
]


@pytest.mark.parametrize(("limits", "broken", "line"), VERDICT_LINES)
def test_the_last_line(limits: tuple[int, ...], broken: int, line: str) -> None:
    outcome = Outcome(
        verdicts=tuple(judge(LIMITS[index], list(METRICS)) for index in limits),
        findings=(Finding(rule="integer-only", place="input 'x'", observed="is float32"),) * broken,
    )
    stages = (stage("validate", ArtifactKind.TFLITE, outcome),)
    assert report_tables.verdict_line(report().model_copy(update={"stages": stages})) == line


def test_every_row_of_markdown_has_as_many_cells_as_its_head() -> None:
    rows = [line.replace("\\|", "") for line in markdown.render(report()).splitlines()]
    for head, rule, first in zip(rows, rows[1:], rows[2:], strict=False):
        if rule.startswith("|-"):
            assert head.count("|") == rule.count("|") == first.count("|")


def test_json_reads_back(tmp_path: Path) -> None:
    (tmp_path / REPORT_FILE).write_text(report().json())
    assert load(tmp_path) == load(tmp_path / REPORT_FILE) == api.load_report(tmp_path) == report()
    assert report().stage("validate").metric("ram", "board") == METRICS[3]
    with pytest.raises(KeyError):
        report().stage("gone")


def test_the_schema_in_the_repository_is_that_of_the_code() -> None:
    assert SCHEMA_FILE.read_text() == report_schema.schema_text(), (
        "python -m edgepipe.render.report_schema > edgepipe/render/report_schema.json"
    )


@pytest.mark.parametrize("met", [True, False])
def test_a_report_is_what_the_schema_says(met: bool) -> None:
    described = json.loads(SCHEMA_FILE.read_text())
    jsonschema.Draft202012Validator.check_schema(described)
    jsonschema.validate(json.loads(report(met).json()), described)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("schema",), "edgepipe.report/2"),
        (("met",), "yes"),
        (("more",), 1),
        (("seed",), None),
        (("stages", 0, "status"), "skipped"),
        (("stages", 2, "outcome", "metrics", 0, "evidence"), "guessed"),
        (("stages", 2, "outcome", "metrics", 0, "unit"), "KiB"),
    ],
)
def test_the_schema_and_the_reader_refuse_the_same(place: tuple[str | int, ...], value: object, tmp_path: Path) -> None:
    data: Any = json.loads(report().json())
    inner = data
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, json.loads(SCHEMA_FILE.read_text()))
    (tmp_path / REPORT_FILE).write_text(json.dumps(data))
    with pytest.raises(InputError, match=SCHEMA):
        load(tmp_path)


UNREADABLE = {
    "no report": (None, "{folder}: holds no report.json; give the folder of a run that has ended, or its report.json"),
    "cut off": (b'{"schema": ', "{file}: not JSON: Expecting value: line 1 column 12 (char 11)"),
    "nested": (b"[" * 100_000, "{file}: not a report: it nests too deep"),
    "a list": (b"[]", "{file}: expected a report of schema 'edgepipe.report/1', found nothing"),
    "another JSON": (b'{"a": 1}', "{file}: expected a report of schema 'edgepipe.report/1', found nothing"),
    "a later version": (
        b'{"schema": "edgepipe.report/2"}',
        "{file}: expected a report of schema 'edgepipe.report/1', found the text 'edgepipe.report/2'",
    ),
    "incomplete": (
        b'{"schema": "edgepipe.report/1"}', "{file}: not what schema edgepipe.report/1 says: name: Field required",
    ),
    "not UTF-8": (b"\xff\xfe", "{file}:1:1: not UTF-8 text: found the byte 0xff"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_report_that_cannot_be_read(content: bytes | None, message: str, tmp_path: Path, command: Command) -> None:
    if content is not None:
        (tmp_path / REPORT_FILE).write_bytes(content)
    ended = command("report", tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == f"edgepipe: {message.format(folder=tmp_path, file=tmp_path / REPORT_FILE)}\n"


def test_the_command(tmp_path: Path, command: Command) -> None:
    (tmp_path / REPORT_FILE).write_text(report().json())
    ended = command("report", tmp_path, "--full")
    assert (ended.code, ended.err) == (0, "")
    short = command("report", tmp_path).out
    assert len(short.splitlines()) < len(ended.out.splitlines())
    assert short.splitlines()[-3:] == [
        f"all details: edgepipe report {tmp_path} --full", *ended.out.splitlines()[-2:],
    ]  # fmt: skip
    check("report.txt", ended.out)
    check("report.md", command("report", tmp_path, "--format", "markdown").out)
    assert command("report", tmp_path / REPORT_FILE, "--format", "json").out == report().json()
    assert command("report", tmp_path / "gone").err == (
        f"edgepipe: {tmp_path / 'gone'}: cannot be read: No such file or directory\n"
    )


def _without_new_keys(now: Any, earlier: Any) -> Any:
    """`now` without the keys that the earlier report does not have; later versions may add keys with a default."""
    if isinstance(now, dict) and isinstance(earlier, dict):
        return {key: _without_new_keys(now[key], earlier[key]) for key in now if key in earlier}
    if isinstance(now, list) and isinstance(earlier, list) and len(now) == len(earlier):
        return [_without_new_keys(*pair) for pair in zip(now, earlier, strict=True)]
    return now


def test_a_report_of_an_earlier_version_is_still_read(command: Command) -> None:
    """Written by the code before modules and names changed; its fields and values are unchanged."""
    file = SNAPSHOTS / "report_of_an_earlier_version.json"
    earlier = json.loads(file.read_text())
    loaded = load(file)
    assert _without_new_keys(json.loads(loaded.json()), earlier) == earlier
    assert loaded.stage("validate").metric("ram", "nucleo-l4r5zi").text() == "1.0 KiB"
    assert "nucleo-l4r5zi ram <= 64.0 KiB" in command("report", file, "--full").out


QUALITY = [  # accuracy on the validation split after train, prune and convert; the limit; the suggestion
    ((0.99, 0.95, 0.94), limit("accuracy", Dimension.FRACTION, 0.98, "min"),
     "most is lost in 'prune' (99.00 % to 95.00 % on the validation split): a lower sparsity, or more epochs"),
    ((0.99, 0.985, 0.94), limit("accuracy", Dimension.FRACTION, 0.98, "min"),
     "most is lost in 'convert' (98.50 % to 94.00 % on the validation split): `quantize` before it trains for 8 bits; "
     "`scheme: mixed` keeps the most sensitive layers finer"),
    ((0.95, 0.95, 0.94), limit("accuracy", Dimension.FRACTION, 0.98, "min"),
     "'train' itself reaches 95.00 % on the validation split: more epochs, a larger model or more data; compression is "
     "not the cause"),
    ((0.95, 0.90, 0.90), limit("accuracy_drop", Dimension.FRACTION, 0.01),
     "most is lost in 'prune' (95.00 % to 90.00 % on the validation split): a lower sparsity, or more epochs"),
    ((0.99, 0.99, 0.99), limit("accuracy", Dimension.FRACTION, 0.98, "min"), None),  # lost on the test split only
    ((0.99, 0.95, 0.94), limit("accuracy", Dimension.FRACTION, 0.5, "min"), None),  # met
    ((0.99, 0.95, 0.94), limit("mae", Dimension.NUMBER, 0.5), None),
]  # fmt: skip


@pytest.mark.parametrize(("qualities", "missed", "text"), QUALITY)
def test_suggestions_for_quality(qualities: tuple[float, ...], missed: Limit, text: str | None) -> None:
    validation = {"details": {"split": "validation"}}
    trained = [
        stage(name, ArtifactKind.KERAS, Outcome(metrics=(
            metric("accuracy", value, Dimension.FRACTION, Evidence.MEASURED, **validation),)))
        for name, value in zip(("train", "prune", "convert"), qualities, strict=True)
    ]  # fmt: skip
    tested = (
        metric("accuracy", qualities[-1] - 0.02, Dimension.FRACTION, Evidence.MEASURED),
        metric("accuracy_drop", 0.06, Dimension.FRACTION, Evidence.MEASURED),
        metric("mae", 2.0, Dimension.NUMBER, Evidence.MEASURED),
    )
    validated = stage("validate", ArtifactKind.TFLITE, Outcome(verdicts=(judge(missed, list(tested)),)))
    found = build_suggestions((*trained, validated), None)
    assert found == (() if text is None else (Suggestion(limit=missed.text(), text=text),))
