"""The shipped pipelines by name: found, listed, copied."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgepipe.cli import cli
from edgepipe.core.errors import InputError, StorageError
from edgepipe.core.shipped_files import shipped_folder
from edgepipe.pipeline import schema, shipped_pipelines


def test_a_name_is_the_shipped_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pipeline = schema.load("digits", ["seed=3"])
    assert pipeline.file == shipped_folder("pipelines") / "digits.yaml"
    assert (pipeline.name, pipeline.seed) == ("digits", 3)


def test_a_file_of_the_same_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").write_text("name: mine\nmodel: edgepipe.zoo:small_cnn\ntask: classification\n"
                                     "data: edgepipe.data:digits\nstages: [train]\n")  # fmt: skip
    assert schema.load("digits").name == "mine"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digitz", "'digitz' is neither a file nor a shipped pipeline; did you mean 'digits'?"),
        ("fashion-mnist", "'fashion-mnist' is neither a file nor a shipped pipeline; did you mean 'fashion_mnist'?"),
        ("zebra", "'zebra' is neither a file nor a shipped pipeline; allowed: activity, anomaly, digits"),
        ("digits.yaml", "digits.yaml: cannot be read: No such file or directory"),
        ("pipelines/digits", "pipelines/digits: cannot be read: No such file or directory"),
    ],
)
def test_what_is_no_pipeline_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        schema.load(name)
    assert str(caught.value).startswith(message)


def test_list_shows_every_shipped_pipeline() -> None:
    outcome = CliRunner().invoke(cli, ["pipelines", "list", "--json"])
    listed = json.loads(outcome.output)["pipelines"]
    assert [entry["name"] for entry in listed] == shipped_pipelines.pipeline_names()
    assert all(entry["description"] and entry["stages"][-1] in ("validate", "deploy") for entry in listed)
    assert "spoken_digits" in CliRunner().invoke(cli, ["pipelines", "list"]).output


def test_copy_writes_the_file_and_keeps_an_existing_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(cli, ["pipelines", "copy", "digits"]).output == "wrote digits.yaml\n"
    source_text = (shipped_folder("pipelines") / "digits.yaml").read_text()
    assert (tmp_path / "digits.yaml").read_text() == source_text
    (tmp_path / "digits.yaml").write_text("mine")
    outcome = CliRunner().invoke(cli, ["pipelines", "copy", "digits"])
    assert isinstance(outcome.exception, InputError)
    assert str(outcome.exception) == "digits.yaml: exists already; --force replaces it"
    assert (tmp_path / "digits.yaml").read_text() == "mine"
    assert CliRunner().invoke(cli, ["pipelines", "copy", "digits", "--force"]).exit_code == 0
    assert (tmp_path / "digits.yaml").read_text() == source_text


@pytest.mark.parametrize(
    ("target", "written"), [("own.yaml", "own.yaml"), ("new/own.yml", "new/own.yml"), ("new", "new/digits.yaml")]
)
def test_copy_writes_to_a_file_or_into_a_folder(tmp_path: Path, target: str, written: str) -> None:
    assert shipped_pipelines.copy_pipeline("digits", tmp_path / target) == tmp_path / written
    assert (tmp_path / written).is_file()


def test_copy_refuses_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot be written: .*(is a file, not a folder|Not a directory)"):
        shipped_pipelines.copy_pipeline("digits", tmp_path / "file" / "own.yaml")


@pytest.mark.parametrize("name", shipped_pipelines.pipeline_names())
def test_every_shipped_pipeline_is_named_as_its_file(name: str) -> None:
    content = (shipped_folder("pipelines") / f"{name}.yaml").read_text()
    assert f"\nname: {name}\n" in content
