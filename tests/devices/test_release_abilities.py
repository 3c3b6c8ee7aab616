"""The table of what releases of runtimes do, and what it says of releases and operators that were not tried."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from click.testing import CliRunner
from tflite_handmade import Op, T, write

from edgepipe import cli
from edgepipe.core.errors import InputError
from edgepipe.devices.runtimes.abilities import AbilityTable, KernelState, find_form_ability, load_table
from edgepipe.devices.runtimes.operator_form import OperatorForm
from edgepipe.devices.runtimes.releases import Release, parse_release, standing_releases
from edgepipe.tflite.minimum_runtimes import first_release

PER_CHANNEL, ROWS = ("per channel",), ("per channel", "several rows")
DENSE_HYBRID = OperatorForm("FULLY_CONNECTED", 12, "float32 int8 float32 -> float32", PER_CHANNEL)
DENSE_HYBRID_1 = OperatorForm("FULLY_CONNECTED", 1, "float32 int8 float32 -> float32", PER_CHANNEL)
DENSE_INT8 = OperatorForm("FULLY_CONNECTED", 4, "int8 int8 int32 -> int8", PER_CHANNEL)
DENSE_INT8_PER_TENSOR = OperatorForm("FULLY_CONNECTED", 4, "int8 int8 int32 -> int8")
DENSE_INT16 = OperatorForm("FULLY_CONNECTED", 11, "int16 int8 int64 -> int16", PER_CHANNEL)
DENSE_INT16_ROWS = OperatorForm("FULLY_CONNECTED", 11, "int16 int8 int64 -> int16", ROWS)
ARGUMENT_64 = OperatorForm("ARG_MAX", 2, "int8 int32 -> int64")
CONVOLUTION_16 = OperatorForm("CONV_2D", 8, "int16 int8 int64 -> int16", PER_CHANNEL)
SKIPPING_CONVOLUTION = OperatorForm("CONV_2D", 1, "float32 float32 float32 -> float32", ("stride over kernel",))
OPEN_BATCH = OperatorForm("SPACE_TO_BATCH_ND", 3, "float32 int32 int32 -> float32", ("open batch",))

# what bug reports and edgepipe's own history say
KNOWN = [
    ("tflite-runtime==2.14", DENSE_HYBRID, KernelState.REFUSES),
    ("tflite-runtime==2.14", DENSE_HYBRID_1, KernelState.WRONG),
    ("tflite-runtime==2.14", DENSE_INT8, KernelState.RUNS),
    ("tflite-runtime==2.14", CONVOLUTION_16, KernelState.REFUSES),
    ("litert==1.0", DENSE_HYBRID, KernelState.RUNS),
    ("litert==2.3", CONVOLUTION_16, KernelState.RUNS),
    ("litert==1.0", DENSE_INT16, KernelState.RUNS),
    ("litert==1.0", DENSE_INT16_ROWS, KernelState.WRONG),
    ("litert==1.2", DENSE_INT16_ROWS, KernelState.RUNS),
    ("tflite-micro==2026-10", ARGUMENT_64, KernelState.REFUSES),
    ("tflite-micro==2023-10-10", DENSE_INT8, KernelState.WRONG),
    ("tflite-micro==2023-10-10", DENSE_INT8_PER_TENSOR, KernelState.RUNS),
    ("tflite-micro==2024-05", DENSE_INT8, KernelState.WRONG),  # between a release that is wrong and one that refuses it
    ("tflite-micro==2024-08-19", DENSE_INT8, KernelState.REFUSES),
    ("tflite-micro==2024-12", DENSE_INT8, KernelState.UNKNOWN),  # between one that refuses it and one that runs it
    ("tflite-micro==2025-06-04", DENSE_INT8, KernelState.RUNS),
    ("tflite-runtime==2.14", SKIPPING_CONVOLUTION, KernelState.WRONG),
    ("litert==2.3", SKIPPING_CONVOLUTION, KernelState.RUNS),
    ("tflite-micro==2026-10", OPEN_BATCH, KernelState.WRONG),
    ("litert==2.3", OPEN_BATCH, KernelState.RUNS),
]


@pytest.mark.parametrize(("release", "form", "state"), KNOWN, ids=lambda part: str(part).split(",")[0])
def test_known_abilities(release: str, form: OperatorForm, state: KernelState) -> None:
    ability = find_form_ability(parse_release(release), form)
    assert ability.state is state, ability
    assert state is KernelState.UNKNOWN or load_table().tried in ability.provenance


def test_the_table_is_large_and_says_where_it_is_from() -> None:
    table = load_table()
    assert len(table.releases) >= 10
    assert len({(row.form.name, row.form.types, row.form.features) for row in table.rows}) >= 60
    assert {release.package for release in table.releases} == {
        "tflite-runtime", "tensorflow", "ai-edge-litert", "tflite-micro"
    }  # fmt: skip
    assert table.tried
    assert "2.3.0" in table.reference


def test_the_newest_litert_runs_what_edgepipe_writes() -> None:
    """The reference itself, and so whatever has a case, except what even it computes differently in two ways."""
    newest = parse_release("litert==2.3")
    states = {row.form: find_form_ability(newest, row.form).state for row in load_table().rows}
    assert {form.name for form, state in states.items() if state is not KernelState.RUNS} == set()


def test_refusals_for_a_version_agree_with_tflites_own_table() -> None:
    """A release of TensorFlow runs no version that came later by its own table, but for one that came earlier."""
    table = load_table()
    surprises = {
        (str(release), row.form.name, row.form.version)
        for row in table.rows
        for release in table.releases
        if release.family == "tensorflow"
        and (first := first_release(row.form.name, row.form.version)) is not None
        and parse_release(f"tensorflow=={first}").numbers[:2] > release.numbers[:2]
        and row.result_by_release[release] not in ("refuses", "crashes")
    }
    assert surprises == {("tensorflow 2.12.1", "TRANSPOSE_CONV", 4)}


def _fake_table(results: dict[str, str]) -> Callable[[], AbilityTable]:
    from edgepipe.devices.runtimes.abilities import AbilityRow

    result_by_release = {parse_release(text): result for text, result in results.items()}
    row = AbilityRow(DENSE_INT8, "FULLY_CONNECTED int8", result_by_release)
    return lambda: AbilityTable("2026-11-28", "a reference", tuple(result_by_release), (row,))


@pytest.mark.parametrize(
    ("release", "state"),
    [
        ("litert==1.1", KernelState.RUNS),  # both neighbours run it
        ("litert==1.3", KernelState.UNKNOWN),  # one does, the other is wrong
        ("litert==1.5", KernelState.WRONG),  # only the one before is known
        ("litert==1.2", KernelState.RUNS),
        ("tflite-micro==2024", KernelState.UNKNOWN),  # nothing of the kind was tried
    ],
)
def test_neighbours_stand_for_a_release(release: str, state: KernelState, monkeypatch: pytest.MonkeyPatch) -> None:
    results = {"litert==1.0": "0", "litert==1.2": "1", "litert==1.4": "43"}
    monkeypatch.setattr("edgepipe.devices.runtimes.abilities.load_table", _fake_table(results))
    assert find_form_ability.__wrapped__(parse_release(release), DENSE_INT8).state is state


def test_packages_of_one_family_stand_for_each_other() -> None:
    tried = [parse_release(text) for text in ("tensorflow==2.13.1", "tensorflow==2.15.1", "litert==1.0.1")]
    assert [str(r) for r in standing_releases(parse_release("tflite-runtime==2.13"), tried)] == ["tensorflow 2.13.1"]
    between = standing_releases(parse_release("tensorflow-cpu 2.14"), tried)
    assert [str(release) for release in between] == ["tensorflow 2.13.1", "tensorflow 2.15.1"]


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("tflite-runtime 2.14", Release("tflite-runtime", "2.14")),
        ("litert == 1.0.1", Release("ai-edge-litert", "1.0.1")),
        ("tflite-micro==0.dev20231010131554", Release("tflite-micro", "2023.10.10")),
        ("tflite-micro 2024-08", Release("tflite-micro", "2024.08")),
    ],
)
def test_ways_to_write_a_release(text: str, release: Release) -> None:
    assert parse_release(text) == release


@pytest.mark.parametrize("text", ["", "2.14", "tflite-runtime", "litert==", "tflite-micro==1.2", "torch==2.1"])
def test_what_is_no_release(text: str) -> None:
    with pytest.raises(InputError, match=r"^runtime '.*': (unknown package|the version must be)"):
        parse_release(text)


def test_an_operator_that_was_not_tried_is_unknown_or_too_new() -> None:
    release = parse_release("tflite-runtime==2.14")
    later = OperatorForm("FULLY_CONNECTED", 14, "float32 int2 float32 -> float32")
    ability = find_form_ability(release, later)
    assert (ability.state, ability.observed) == (
        KernelState.REFUSES,
        "FULLY_CONNECTED version 14 came with TensorFlow Lite 2.21.0",
    )
    odd = OperatorForm("BITCAST", 1, "float32 -> int32")
    assert find_form_ability(release, odd).state is KernelState.UNKNOWN


def test_verify_says_which_operators_a_release_does_not_run(tmp_path: Path) -> None:
    path = _dense_hybrid(tmp_path)
    done = CliRunner().invoke(cli.cli, ["verify", str(path), "--runtime", "tflite-runtime==2.14", "--json"])
    assert done.exit_code == 3
    (finding,) = json.loads(done.output)["findings"]
    assert "FULLY_CONNECTED version 12" in finding["observed"]
    assert finding["device"] == "tflite-runtime 2.14"
    assert CliRunner().invoke(cli.cli, ["verify", str(path), "--runtime", "litert==2.3"]).exit_code == 0


def test_a_profile_names_its_release(tmp_path: Path) -> None:
    path = _dense_hybrid(tmp_path)
    for device, exit_code in (("raspberry-pi-4-tflite-runtime", 3), ("raspberry-pi-4", 0)):
        done = CliRunner().invoke(cli.cli, ["verify", str(path), "--device", device])
        assert done.exit_code == exit_code, done.output


def _dense_hybrid(folder: Path) -> Path:
    """A dense layer in float with int8 weights, one scale for each filter."""
    tensors = [
        T("x", (1, 4), "float32"),
        T("w", (3, 4), "int8", np.ones((3, 4), np.int8), (0.1, 0.2, 0.3), (0, 0, 0)),
        T("b", (3,), "float32", np.zeros(3, np.float32)),
        T("y", (1, 3), "float32"),
    ]
    dense = Op("FULLY_CONNECTED", ("x", "w", "b"), ("y",), schema.FullyConnectedOptionsT(), version=12)
    return write(folder / "dense.tflite", tensors, [dense], ["x"], ["y"])
