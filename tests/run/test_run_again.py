"""A report is enough to run it again: same digests from an empty cache, and a refusal of what has changed, by name."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import Command

import edgepipe
from edgepipe.core.errors import ConfigError, InputError
from edgepipe.devices.calibration.network_builder import NetworkBuilder
from edgepipe.render.next_step import closing_lines
from edgepipe.render.report import Report

from .conftest import ROOT

STAGE = """\
from typing import ClassVar, final

import helper

from edgepipe import Artifact, ArtifactKind, Outcome, Stage, StageContext


@final
class Grow(Stage):
    accepts: ClassVar = {ArtifactKind.TFLITE: ArtifactKind.TFLITE}
    modules: ClassVar = ("declared",)
    count: int = 2

    def run(self, context: StageContext) -> tuple[Artifact, Outcome]:
        target = context.output_folder / "model.tflite"
        target.write_bytes(context.artifact.path.read_bytes() + helper.PADDING * self.count)
        return Artifact.from_path(ArtifactKind.TFLITE, target), Outcome()
"""
PIPELINE = """\
name: again
model: m.tflite
data: {npz: samples.npz}
task: classification
stages:
  - grow:Grow
  - validate: {devices: [board.yaml, nucleo-l4r5zi], budget: {size: 64 KiB}}
allow_chance: true
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a pipeline that needs no TensorFlow, and everything that it names."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    network = NetworkBuilder(1)
    image = network.conv(network.input(4, 4, 2), 3, 1)
    network.set_outputs(network.softmax(network.mean(image)))
    Path("m.tflite").write_bytes(network.to_bytes())
    rng = np.random.default_rng(1)
    np.savez("samples.npz", x=rng.uniform(-6, 6, (60, 4, 4, 2)).astype("float32"), y=rng.integers(0, 3, 60))
    Path("grow.py").write_text(STAGE)
    Path("helper.py").write_text("PADDING = b'1'\n")
    Path("declared.py").write_text("# loaded by name while the stage runs\n")
    board = (ROOT / "devices" / "nucleo-l4r5zi.yaml").read_text()
    Path("board.yaml").write_text(board.replace("name: nucleo-l4r5zi", "name: board"))
    Path("again.yaml").write_text(PIPELINE)
    return folder


def digests(report: Report) -> dict[str, str]:
    return {stage.name: stage.digest for stage in report.stages}


@pytest.mark.slow
def test_the_same_digests_from_an_empty_cache(place: Path, shared_cache: Path, command: Command) -> None:
    """With an overridden option, from the folder of the runs, of the run and from its report."""
    settings = ["--set", "stages.Grow.count=5", "--set", "seed=3"]
    ended = command("run", "again.yaml", *settings, "--cache-dir", shared_cache, "--quiet")
    assert ended.code == 0, ended.err
    first = edgepipe.load_report("runs/again")
    assert first.definition is not None
    assert first.definition.settings == ("stages.Grow.count=5", "seed=3")
    assert first.definition.command == (
        "edgepipe", "run", "again.yaml", *settings, "--cache-dir", str(shared_cache), "--quiet",
    )  # fmt: skip
    Path("again.yaml").unlink()  # the report is enough
    assert first.folder is not None
    for name in (Path("runs/again"), first.folder, first.folder / "report.json"):
        ended = command("run", "--from", name, "--cache-dir", "c1", "--quiet")
        assert ended.code == 0, ended.err
        assert "reproduced: every artifact has the digest of" in ended.err
        again = edgepipe.load_report("runs/again")
        assert digests(again) == digests(first)
        assert {stage.status for stage in again.stages} == {"ran" if name == Path("runs/again") else "cached"}
        assert (again.seed, again.stage("Grow").options["count"]) == (3, 5)
        assert again.reproduction is not None
        assert again.reproduction.is_equal
    assert len(edgepipe.list_runs()) == 4


def _append(name: str, content: bytes = b"\n# changed\n") -> Callable[[], None]:
    def change() -> None:
        with Path(name).open("ab") as file:
            file.write(content)

    return change


def _change_samples() -> None:
    arrays = dict(np.load("samples.npz"))
    np.savez("samples.npz", x=arrays["x"] * 0.5, y=arrays["y"])


CHANGES: dict[str, tuple[Callable[[], None], str]] = {
    "the model": (_append("m.tflite", b"1"), r"report\.json: model m\.tflite: has changed since this run \(SHA-256 "),
    "no model": (lambda: Path("m.tflite").unlink(), r"again\.yaml:2:8: model: .*m\.tflite: no such file"),
    "the data": (_change_samples, r"report\.json: data samples\.npz: has changed since this run"),
    "no data": (lambda: Path("samples.npz").unlink(), r"again\.yaml:3:13: data\.npz: no such file: .*samples\.npz"),
    "a module": (_append("grow.py"), r"report\.json: module grow \(grow\.py\): has changed since this run"),
    "what a module imports": (_append("helper.py"), r"report\.json: module helper \(helper\.py\): has changed"),
    "a module that a stage declares": (_append("declared.py"), r"module declared \(declared\.py\): has changed"),
    "a module that imports more": (
        lambda: (_append("other.py")(), _append("helper.py", b"import other\n")())[0],
        r"module helper \(helper\.py\): has changed .*\n.*module other \(other\.py\): is read now, but was not then",
    ),
    "a device profile": (_append("board.yaml", b"system: {memory: {ram: 320 KiB, banks: []}}\n"),
                         r"report\.json: device board\.yaml: has changed since this run"),
    "the folder": (lambda: shutil.move(str(Path.cwd()), "../moved"), r"project: no such folder; the paths of .*"
                   r"report\.json start from it: name the folder of the pipeline with --pipeline-folder"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_what_has_changed_is_refused_by_name(
    change: Callable[[], None], message: str, place: Path, shared_cache: Path
) -> None:
    first = edgepipe.run("again.yaml", output_dir=place.parent / "out", cache_dir=shared_cache)
    change()
    with pytest.raises(InputError, match=message):
        edgepipe.reproduce(place.parent / "out", output_dir=place.parent / "out2", cache_dir=shared_cache)
    assert not (place.parent / "out2" / "report.json").exists()
    assert first == edgepipe.load_report(place.parent / "out")


DATA = {
    "a function with a file": ("{function: 'own:load', files: [samples.npz]}", _change_samples, "data samples.npz"),
    "a function's source": ("'own:load'", _append("own.py"), "module own (own.py)"),
    "a folder of tables": ("{csv: tables, channels: [a, b], label: y}", _append("tables/0.csv", b"3,3,1\n"),
                           "data tables/0.csv"),
}  # fmt: skip
OWN_DATA = """\
def load():
    import numpy as np

    arrays = np.load("samples.npz")
    return arrays["x"], arrays["y"]
"""


@pytest.mark.parametrize(("data", "change", "name"), DATA.values(), ids=DATA)
def test_every_kind_of_data_has_a_name(
    data: str, change: Callable[[], None], name: str, place: Path, shared_cache: Path
) -> None:
    Path("own.py").write_text(OWN_DATA)
    Path("tables").mkdir()
    for number in range(3):
        Path(f"tables/{number}.csv").write_text("a,b,y\n" + "1,2,0\n2,1,1\n" * 10)
    Path("again.yaml").write_text(
        f"name: again\nmodel: m.tflite\ndata: {data}\ntask: classification\nstages: ['grow:Grow']\n"
    )
    if "csv" in data:
        network = NetworkBuilder(1)
        network.set_outputs(network.softmax(network.dense(network.input(2), 2)))
        Path("m.tflite").write_bytes(network.to_bytes())
    edgepipe.run("again.yaml", output_dir="out", cache_dir=shared_cache)
    change()
    with pytest.raises(InputError, match=rf"report\.json: {re.escape(name)}: has changed since this run"):
        edgepipe.reproduce("out", cache_dir=shared_cache)


def test_a_project_that_moved(place: Path, shared_cache: Path) -> None:
    first = edgepipe.run("again.yaml", cache_dir=shared_cache)
    moved = place.parent / "moved"
    shutil.move(str(place), moved)
    again = edgepipe.reproduce(
        moved / "runs" / "again", pipeline_folder=moved, output_dir=place.parent / "out", cache_dir=shared_cache
    )
    assert digests(again) == digests(first)


def test_other_results_are_said(place: Path, command: Command, shared_cache: Path) -> None:
    """As from another processor: the report is changed by hand."""
    edgepipe.run("again.yaml", output_dir="out", cache_dir=shared_cache)
    report = json.loads(Path("out/report.json").read_text())
    report["stages"][1]["digest"] = "ab" * 32
    report["versions"]["keras"] = "3.0.0"
    Path("out/report.json").write_text(json.dumps(report))
    ended = command("run", "--from", "out", "--cache-dir", shared_cache, "--quiet")
    assert ended.code == 3
    assert ended.err.startswith("not reproduced: Grow differ from out/report.json; versions: keras 3.0.0 -> ")


NO_RERUN = [
    ([], "give a pipeline, or an earlier report with --from REPORT, and not both"),
    (["again.yaml", "--from", "out"], "give a pipeline, or an earlier report with --from REPORT, and not both"),
    (["--from", "out", "--set", "seed=1"], "--from runs what the report says; for other options run the pipeline file"),
    (["again.yaml", "--pipeline-folder", "."], "--pipeline-folder is for --from REPORT; the paths of a pipeline file"),
    (["--from", "gone"], "gone: cannot be read: No such file or directory"),
    (["--from", ROOT / "tests" / "snapshots" / "report_of_an_earlier_version.json"],
     f"{ROOT / 'tests' / 'snapshots' / 'report.json'}: written by edgepipe 0.1.0, which did not store the pipeline"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), NO_RERUN)
def test_what_cannot_be_run_again(arguments: list[object], message: str, place: Path, command: Command) -> None:
    ended = command("run", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"edgepipe: {message}")


def test_a_mapping_runs_again(place: Path, shared_cache: Path) -> None:
    first = edgepipe.run(
        {"name": "mapped", "model": "m.tflite", "stages": [{"grow:Grow": {"count": 1}}]},
        settings={"stages.Grow.count": 4},
        cache_dir=shared_cache,
    )
    assert digests(edgepipe.reproduce("runs/mapped", cache_dir=shared_cache)) == digests(first)


def test_a_report_whose_pipeline_is_wrong_is_refused_with_its_place(place: Path, shared_cache: Path) -> None:
    edgepipe.run("again.yaml", output_dir="out", cache_dir=shared_cache)
    report = json.loads(Path("out/report.json").read_text())
    report["definition"]["text"] = report["definition"]["text"].replace("size:", "sise:")
    Path("out/report.json").write_text(json.dumps(report))
    with pytest.raises(ConfigError, match=r"again\.yaml:7:63: stages\.1\.validate\.budget\.sise: neither"):
        edgepipe.reproduce("out", cache_dir=shared_cache)


def test_the_run_ends_with_what_to_do_next(place: Path, shared_cache: Path, command: Command) -> None:
    """The verdict, the one file to deploy with its size, and a command that works as it is."""
    ended = command("run", "again.yaml", "--cache-dir", shared_cache, "--quiet")
    report = edgepipe.load_report("runs/again")
    assert report.model_path is not None
    verdict, model, following = ended.out.splitlines()[-3:]
    assert verdict == "budget met: 1 of 1 limit"
    assert model == f"model to deploy: {report.model_path} (1.2 KiB)"
    name, *arguments = shlex.split(following.removeprefix("next: "))
    assert (name, arguments[:2]) == ("edgepipe", ["verify", str(report.model_path)])
    assert command(*arguments).code == 0
    assert command("report", "runs/again").out.splitlines()[-3:] == [verdict, model, following]
    heading, _, first, _, second = (report.model_path.parent / "report.md").read_text().splitlines()[:5]
    assert (heading, first) == ("# again", f"**{verdict}**")
    assert second == "Model to deploy: `model.tflite` (1.2 KiB)."


def test_a_classifier_tells_what_it_confuses(place: Path, shared_cache: Path) -> None:
    report = edgepipe.run("again.yaml", output_dir="out", cache_dir=shared_cache)
    tables = {table.title: table for table in report.stage("validate").outcome.tables}
    matrix = tables["Confusion matrix: classes in rows, predictions in columns"]
    samples = sum(int(count) for row in matrix.rows for count in row[1:])
    right = sum(int(row[index + 1]) for index, row in enumerate(matrix.rows))
    accuracy = report.stage("validate").metric("accuracy")
    assert accuracy is not None
    assert accuracy.value == pytest.approx(right / samples)
    assert len(tables["Classes on the test split"].rows) == 3


def test_one_copy_for_each_content_and_one_to_deploy(place: Path, shared_cache: Path) -> None:
    """A stage that returns its input has no copy of its own; a later run into the same folder removes what is stale."""
    report = edgepipe.run("again.yaml", output_dir="out", cache_dir=shared_cache)
    assert [stage.artifact for stage in report.stages] == [
        "artifacts/0-model.tflite", "artifacts/1-Grow.tflite", "artifacts/1-Grow.tflite",
    ]  # fmt: skip
    assert Path("out/model.tflite").read_bytes() == Path("out/artifacts/1-Grow.tflite").read_bytes()
    assert sorted(path.name for path in Path("out").rglob("*.tflite")) == [
        "0-model.tflite", "1-Grow.tflite", "model.tflite",
    ]  # fmt: skip
    edgepipe.run({"name": "again", "model": "m.tflite", "stages": ["validate"]}, output_dir="out",
                 cache_dir=shared_cache)  # fmt: skip
    assert sorted(path.name for path in Path("out").rglob("*.tflite")) == ["0-model.tflite", "model.tflite"]


def test_without_a_tflite_there_is_no_model_to_deploy(place: Path, shared_cache: Path) -> None:
    report = edgepipe.run("again.yaml", output_dir="out", cache_dir=shared_cache)
    last = report.stages[-1].model_copy(update={"kind": "keras"})
    assert closing_lines(report.model_copy(update={"model": None, "stages": (last,)})) == [
        "no model to deploy: the pipeline ends with a model of kind keras; a .tflite needs the stage `convert`"
    ]


@pytest.mark.slow
def test_a_trained_model_from_an_empty_cache(tmp_path: Path) -> None:
    """Training, a teacher file and an integer conversion give the same digests; a changed teacher is refused."""
    from edgepipe.zoo import small_cnn

    teacher = tmp_path / "teacher.keras"
    small_cnn(input_shape=(8, 8, 1), classes=10, filters=(4,)).save(teacher)
    pipeline = {
        "name": "trained",
        "model": {"function": "edgepipe.zoo:small_cnn", "args": {"filters": [4]}},
        "data": "edgepipe.data:digits",
        "task": "classification",
        "stages": [{"train": {"epochs": 1, "batch_size": 256, "teacher": {"model": str(teacher)}}}, "convert"],
    }
    first = edgepipe.run(pipeline, output_dir=tmp_path / "first", cache_dir=tmp_path / "c1")
    again = edgepipe.reproduce(tmp_path / "first", output_dir=tmp_path / "again", cache_dir=tmp_path / "c2")
    assert digests(again) == digests(first)
    (epoch,) = first.stage("train").outcome.learning_curve
    accuracy = first.stage("train").metric("accuracy")
    assert accuracy is not None
    assert epoch.values.keys() == {"train loss", "validation accuracy"}
    assert epoch.values["validation accuracy"] == accuracy.value
    assert "## train: learning curve" in (tmp_path / "first" / "report.md").read_text()
    small_cnn(input_shape=(8, 8, 1), classes=10, filters=(5,)).save(teacher)
    with pytest.raises(ConfigError, match=f"file {teacher}: has changed since this run"):
        edgepipe.reproduce(tmp_path / "first", output_dir=tmp_path / "out", cache_dir=tmp_path / "c1")
