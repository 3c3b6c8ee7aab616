"""Pipelines and settings as mappings, from Python."""

from pathlib import Path
from typing import Any

import pytest

import edgepipe
from edgepipe.core.errors import ConfigError, InputError

DIGITS: dict[str, Any] = {
    "name": "digits",
    "model": "edgepipe.zoo:small_cnn",
    "data": "edgepipe.data:digits",
    "task": "classification",
    "seed": 7,
    "stages": [{"train": {"epochs": 2}}, {"prune": {"sparsity": 0.5}}, "convert"],
}


def test_a_mapping_is_the_pipeline_that_a_file_would_be(tmp_path: Path) -> None:
    text = (
        "name: digits\nmodel: edgepipe.zoo:small_cnn\ndata: edgepipe.data:digits\ntask: classification\nseed: 7\n"
        "stages:\n  - train: {epochs: 2}\n  - prune: {sparsity: 0.5}\n  - convert\n"
    )
    (tmp_path / "p.yaml").write_text(text)
    from_file, from_mapping = edgepipe.check(tmp_path / "p.yaml"), edgepipe.check(DIGITS)
    assert [(step.name, step.stage) for step in from_mapping.steps] == [
        (step.name, step.stage) for step in from_file.steps
    ]
    assert (from_mapping.seed, from_mapping.data, from_mapping.task) == (from_file.seed, from_file.data, from_file.task)


def test_paths_of_a_mapping_are_relative_to_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def net(input_shape, classes):\n    raise SystemExit\n")
    assert edgepipe.check({**DIGITS, "model": "mine:net"}).base_folder == tmp_path
    with pytest.raises(ConfigError, match=r"^the pipeline mapping: model: .*gone\.keras"):
        edgepipe.check({**DIGITS, "model": Path("gone.keras")})


SETTINGS = [
    {"stages.prune.sparsity": 0.8, "seed": 3},
    ["stages.prune.sparsity=0.8", "seed=3"],
    iter(["stages.prune.sparsity=0.8", "seed=3"]),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=["mapping", "list", "iterator"])
def test_check_takes_the_settings_that_run_takes(settings: Any, tmp_path: Path) -> None:
    checked = edgepipe.check(DIGITS, settings=settings)
    assert checked.seed == 3
    assert {step.name: step.stage.model_dump().get("sparsity") for step in checked.steps}["prune"] == 0.8


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"stages": [{"prune": {"sparsty": 0.5}}]}, "stages.0.prune.sparsty: unknown option; did you mean 'sparsity'?"),
    ({"stages": [{"convert": {"types": {}}}]}, "convert.types: unknown option; did you mean 'keep_float_types'?"),
    ({"seed": True}, "seed: must be an integer from 0 to 2147483647; found true"),
    ({"nmae": "x"}, "nmae: unknown option; did you mean 'name'?"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_problems_of_a_mapping_have_a_path_and_no_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        edgepipe.check({**DIGITS, **change})
    (line, *_) = str(caught.value).splitlines()
    assert line.startswith("the pipeline mapping: ")
    assert message in line


def test_what_yaml_cannot_hold_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"the pipeline mapping: found <object object .* of type object; only what YAML"
    ):
        edgepipe.check({**DIGITS, "seed": object()})


def test_a_mapping_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with the default output folder, which is relative to the current one."""
    monkeypatch.chdir(tmp_path)
    from edgepipe.devices.calibration.network_builder import NetworkBuilder

    network = NetworkBuilder(1)
    network.set_outputs(network.conv(network.input(1, 4, 4, 2), 3, 1))
    Path("m.tflite").write_bytes(network.to_bytes())
    pipeline = {"name": "mapped", "model": Path("m.tflite"), "stages": [{"validate": {"devices": ["nucleo-l4r5zi"]}}]}
    report = edgepipe.run(pipeline, cache_dir=tmp_path / "cache")
    assert (report.name, report.pipeline) == ("mapped", "the pipeline mapping")
    assert edgepipe.load_report(tmp_path / "runs" / "mapped") == report
