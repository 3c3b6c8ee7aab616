"""The JSON Schemas accept what `check` accepts, and refuse what an editor should mark."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner
from malformed_pipelines import CASES, GOOD

from edgepipe.cli import cli
from edgepipe.core import config
from edgepipe.core.shipped_files import shipped_folder
from edgepipe.devices.json_schema import device_schema
from edgepipe.pipeline.json_schema import pipeline_schema

ROOT = Path(__file__).resolve().parents[2]
PIPELINE = jsonschema.Draft202012Validator(pipeline_schema())
DEVICE = jsonschema.Draft202012Validator(device_schema())
PIPELINE_BLOCK = re.compile(r"(?:^<!-- ([^\n]+) -->\n)?^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def content_of(text: str) -> Any:
    return config.parse(text, "text").content


def documented_pipelines() -> list[Any]:
    """Every whole pipeline that README and docs/ show as a good one."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    blocks = [match for page in pages for match in PIPELINE_BLOCK.findall(page.read_text())]
    return [text for comment, text in blocks if "\nstages:" in f"\n{text}" and "\nname:" in f"\n{text}"
            and "wrong" not in comment]  # fmt: skip


@pytest.mark.parametrize("validator", [PIPELINE, DEVICE])
def test_the_schemas_are_valid_schemas(validator: Any) -> None:
    jsonschema.Draft202012Validator.check_schema(validator.schema)


@pytest.mark.parametrize("file", sorted(shipped_folder("pipelines").glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_pipelines_are_valid(file: Path) -> None:
    assert [error.message for error in PIPELINE.iter_errors(content_of(file.read_text()))] == []


@pytest.mark.parametrize("file", sorted(shipped_folder("devices").rglob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_devices_are_valid(file: Path) -> None:
    assert [error.message for error in DEVICE.iter_errors(content_of(file.read_text()))] == []


@pytest.mark.parametrize("text", documented_pipelines())
def test_documented_pipelines_are_valid(text: str) -> None:
    assert [error.message for error in PIPELINE.iter_errors(content_of(text))] == []


def test_there_are_documented_pipelines() -> None:
    assert len(documented_pipelines()) >= 10


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("- convert\n", "- convert:\n"),
        ("- convert\n", "- convert: {as: small, scheme: int16x8}\n"),
        ("- train: {epochs: 2}", "- train: {epochs: 2, teacher: model}"),
        ("- train: {epochs: 2}", "- train: {epochs: 2, teacher: [model, model]}"),
        ("- train: {epochs: 2}", "- own_module:OwnStage: {strength: 3}"),
        ("- train: {epochs: 2}", "- distill: {student: edgepipe.zoo:small_cnn}"),
        ("model: edgepipe.zoo:small_cnn", "model: {path: m.keras, allow_code: true}"),
        ("data: edgepipe.data:digits", "data: {spoken_digits: }"),
        ("data: edgepipe.data:digits", "data: {images: photos, size: [96, 96], test: 0.2}"),
        ("task: classification", "task: {kind: regression, metrics: [rmse]}"),
        ("task: classification", "task: own_module:task"),
        ("sparsity: 0.5", "sparsity: 30 %"),
        ("name: p", "name: p\nallow_chance: true"),
    ],
)
def test_forms_that_are_allowed(old: str, new: str) -> None:
    assert old in GOOD
    assert [error.message for error in PIPELINE.iter_errors(content_of(GOOD.replace(old, new)))] == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("task:", "tsak:"),
        ("- convert", "- convret"),
        ("sparsity: 0.5", "sparsty: 0.5"),
        ("sparsity: 0.5", "sparsity: 30 percent"),
        ("name: p", "name: p\nallow_chance: 1"),
        ("epochs: 2", "epochs: 0"),
        ("epochs: 2", "epochs: many"),
        ("epochs: 2", "decay: linear"),
        ("- convert", "- distill"),
        ("- convert", "- {convert: , export: }"),
        ("data: edgepipe.data:digits", "data: {npz: }"),
        ("data: edgepipe.data:digits", "data: {npz: a.npz, sise: 3}"),
        ("data: edgepipe.data:digits", "data: photos"),
        ("task: classification", "task: clasification"),
        ("name: p", "name: a/b"),
        ("name: p", "seed: 1"),
        ("name: p", "name: p\nseed: -1"),
    ],
)
def test_what_an_editor_marks(old: str, new: str) -> None:
    assert old in GOOD
    assert list(PIPELINE.iter_errors(content_of(GOOD.replace(old, new)))) != []


def test_nothing_is_marked_that_check_accepts() -> None:
    """Cases of `check` whose only problems are about names and files, which a schema cannot know, stay valid."""
    assert [error.message for error in PIPELINE.iter_errors(content_of(GOOD))] == []
    unknown_option_cases = [case for case in CASES if any("unknown option; did you mean" in line for line in case[3])]
    assert len(unknown_option_cases) >= 5
    for name, old, new, _ in unknown_option_cases:
        assert list(PIPELINE.iter_errors(content_of(GOOD.replace(old, new, 1)))) != [], name


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("{inherit: nucleo-l4r5zi, system: {clock: 80 MHz}}", True),
        ("{inherit: [host, rp2040-pico], abstract: true, sources: [a datasheet of the board]}", True),
        ("{inherit: host, sources: {system.clock: a datasheet}}", True),
        ("{inherit: host, sytem: {}}", False),
        ("{inherit: host, system: {clok: 80 MHz}}", False),
        ("{inherit: host, sources: 3}", False),
        ("{inherit: 3}", False),
    ],
)
def test_device_profiles(text: str, valid: bool) -> None:
    assert (list(DEVICE.iter_errors(content_of(text))) == []) is valid


@pytest.mark.parametrize("kind", ["pipeline", "device"])
def test_the_command_prints_the_schema(kind: str) -> None:
    schema = json.loads(CliRunner().invoke(cli, ["schema", kind]).output)
    assert schema == (pipeline_schema() if kind == "pipeline" else device_schema())


def test_every_option_has_a_description() -> None:
    definitions = PIPELINE.schema["$defs"]
    for stage in ("Train", "Prune", "Convert", "Validate"):
        assert all("description" in option for option in definitions[stage]["properties"].values()), stage
