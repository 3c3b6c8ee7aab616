"""Stages that edgepipe does not have: from an installed package, and from a module beside the pipeline."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import Command, CommandResult

from edgepipe.devices.calibration.network_builder import NetworkBuilder

PACKAGE = Path(__file__).parent / "clip_package"
PIPELINE = """\
name: clipped
model: {function: "edgepipe.zoo:small_cnn", args: {filters: [2, 2], classes: 3, input_shape: [8, 8, 1]}}
stages:
  - clip_weights: {limit: 0.05}
  - convert: {scheme: float32}
"""
STAMP = '''\
"""A stage beside the pipeline."""

from typing import ClassVar, final

from pydantic import Field

import stamp_text
from edgepipe import Artifact, ArtifactKind, Outcome, Stage, StageContext


@final
class Stamp(Stage):
    """Append a text to a .tflite, and say so."""

    accepts: ClassVar = {ArtifactKind.TFLITE: ArtifactKind.TFLITE}

    text: str = Field(default="stamp", min_length=2, description="what is appended")

    def run(self, context: StageContext) -> tuple[Artifact, Outcome]:
        """Write the stamped file."""
        target = context.output_folder / "model.tflite"
        content = context.artifact.path.read_bytes() + stamp_text.encode(self.text)
        target.write_bytes(content)
        return Artifact.from_path(ArtifactKind.TFLITE, target), Outcome(notes=(f"stamped with {self.text}",))
'''
HELPER = "def encode(text):\n    return text.encode()\n"


def install(source: Path, target: Path) -> None:
    """Install the package in the folder `source` into `target`, from nothing but what is there."""
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(source)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def clip_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example package installed."""
    folder = tmp_path_factory.mktemp("clip")
    shutil.copytree(PACKAGE, folder / "source")
    install(folder / "source", folder / "site")
    return folder / "site"


@pytest.fixture
def site(clip_site: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(clip_site, tmp_path / "site"))


@pytest.fixture
def edgepipe(tmp_path: Path, site: Path) -> Command:
    """Runs `edgepipe ARGUMENTS` in `tmp_path`, with the packages of `site` installed."""

    def run(*arguments: str) -> CommandResult:
        environment = {**os.environ, "PYTHONPATH": str(site), "EDGEPIPE_CACHE_DIR": str(tmp_path / "cache")}
        line = [sys.executable, "-m", "edgepipe", *arguments]
        done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        return CommandResult(done.returncode, done.stdout, done.stderr)

    return run


def statuses(ended: CommandResult) -> dict[str, str]:
    assert ended.code == 0, ended.err
    return {stage["name"]: stage["status"] for stage in json.loads(ended.out)["stages"]}


@pytest.mark.slow
def test_a_stage_of_an_installed_package_runs_and_is_cached(edgepipe: Command, tmp_path: Path, site: Path) -> None:
    (tmp_path / "p.yaml").write_text(PIPELINE)
    first = edgepipe("run", "p.yaml", "--json")
    assert statuses(first) == {"model": "ran", "clip_weights": "ran", "convert": "ran"}
    (stage,) = [s for s in json.loads(first.out)["stages"] if s["name"] == "clip_weights"]
    assert stage["outcome"]["notes"][-1].endswith("weights clipped to 0.05")
    assert set(statuses(edgepipe("run", "p.yaml", "--json")).values()) == {"cached"}


@pytest.mark.slow
def test_it_is_listed_with_its_package(edgepipe: Command) -> None:
    listing = edgepipe("stages")
    assert listing.code == 0, listing.err
    (row,) = [line for line in listing.out.splitlines() if line.strip().startswith("clip_weights")]
    assert "edgepipe-clip 1.2.0" in row
    assert "keras, float" in row
    body = json.loads(edgepipe("stages", "--json").out)["stages"]
    assert (body["clip_weights"]["package"], body["clip_weights"]["version"]) == ("edgepipe-clip", "1.2.0")
    assert body["train"]["package"] == "edgepipe"
    options = edgepipe("stages", "clip_weights")
    assert "largest magnitude that a weight keeps" in options.out


WRONG = {
    "an unknown option": (
        "{limit: 0.05}", "{limitt: 0.05}",
        "p.yaml:4:20: stages.0.clip_weights.limitt: unknown option; did you mean 'limit'?",
    ),
    "a wrong value": (
        "{limit: 0.05}", "{limit: -1}",
        "p.yaml:4:27: stages.0.clip_weights.limit: should be greater than 0; found the number -1",
    ),
    "what its own check finds": (
        "{limit: 0.05}", "{after: train}",
        "p.yaml:4:27: stages.0.clip_weights.after: no earlier stage is named 'train'; allowed: model",
    ),
    "a kind it does not take": (
        "  - clip_weights: {limit: 0.05}\n  - convert: {scheme: float32}\n",
        "  - convert: {scheme: float32}\n  - clip_weights: {limit: 0.05}\n",
        "p.yaml:5:5: stages.1.clip_weights: 'clip_weights' takes a float Keras model, but 'convert' before it gives a "
        "TFLite model; move 'clip_weights' before 'convert'",
    ),
    "a misspelled name": (
        "clip_weights", "clip_weight",
        "p.yaml:4:5: stages.0.clip_weight: unknown stage; did you mean 'clip_weights'?",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", WRONG)
def test_wrong_options_have_line_and_column(case: str, edgepipe: Command, tmp_path: Path) -> None:
    old, new, message = WRONG[case]
    (tmp_path / "p.yaml").write_text(PIPELINE.replace(old, new))
    ended = edgepipe("check", "p.yaml")
    assert (ended.code, ended.err.splitlines()[0]) == (2, message)


@pytest.mark.slow
def test_a_package_that_cannot_be_imported_breaks_nothing_but_its_own_use(
    edgepipe: Command, tmp_path: Path, site: Path
) -> None:
    (site / "edgepipe_clip" / "__init__.py").write_text("import a_module_that_is_missing\n")
    (tmp_path / "plain.yaml").write_text(PIPELINE.replace("  - clip_weights: {limit: 0.05}\n", ""))
    assert edgepipe("check", "plain.yaml").code == 0
    listing = edgepipe("stages")
    assert listing.code == 0
    assert "cannot be used" in listing.out
    (tmp_path / "p.yaml").write_text(PIPELINE)
    ended = edgepipe("check", "p.yaml")
    assert ended.code == 2
    assert ended.err.startswith(
        "p.yaml:4:5: stages.0.clip_weights: stage 'clip_weights' of the package edgepipe-clip 1.2.0"
    )
    assert "No module named 'a_module_that_is_missing'" in ended.err
    assert "Traceback" not in ended.err


def second_package(site: Path, name: str, stage: str = "edgepipe_clip:ClipWeights") -> Path:
    """Another installed distribution, with `stage` under the name `name`; its metadata file."""
    folder = site / "another-0.1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: another\nVersion: 0.1\n")
    (folder / "entry_points.txt").write_text(f"[edgepipe.stages]\n{name} = {stage}\n")
    return folder / "METADATA"


def test_two_packages_with_one_name_are_refused(edgepipe: Command, tmp_path: Path, site: Path) -> None:
    second_package(site, "clip_weights")
    (tmp_path / "p.yaml").write_text(PIPELINE)
    ended = edgepipe("check", "p.yaml")
    assert ended.code == 2
    assert "both have a stage 'clip_weights'" in ended.err
    assert "another 0.1 (edgepipe_clip:ClipWeights)" in ended.err
    (tmp_path / "named.yaml").write_text(PIPELINE.replace("clip_weights", "edgepipe_clip:ClipWeights"))
    assert edgepipe("check", "named.yaml").code == 0  # by its class it is still to be had


def test_a_package_cannot_replace_a_stage_of_edgepipe(edgepipe: Command, tmp_path: Path, site: Path) -> None:
    second_package(site, "convert")
    (tmp_path / "p.yaml").write_text(PIPELINE)
    ended = edgepipe("check", "p.yaml")
    assert ended.code == 2
    assert "p.yaml:5:5: stages.1.convert: 'convert' is a stage of edgepipe, and the package another 0.1" in ended.err


STAMPED = "name: stamped\nmodel: m.tflite\nstages:\n  - stamp:Stamp: {text: hello}\n"


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A folder with a stage in a module, a .tflite, and a pipeline."""
    network = NetworkBuilder(1)
    x = network.input(1, 4, 4, 2)
    network.set_outputs(network.conv(x, 3, 1))
    (tmp_path / "m.tflite").write_bytes(network.to_bytes())
    (tmp_path / "stamp.py").write_text(STAMP)
    (tmp_path / "stamp_text.py").write_text(HELPER)
    (tmp_path / "p.yaml").write_text(STAMPED)
    return tmp_path


def test_a_stage_beside_the_pipeline_is_listed(edgepipe: Command, beside: Path) -> None:
    listing = edgepipe("stages")
    (row,) = [line for line in listing.out.splitlines() if line.strip().startswith("stamp:Stamp")]
    assert "stamp.py" in row
    assert "what is appended" in edgepipe("stages", "stamp:Stamp").out


@pytest.mark.slow
def test_a_stage_beside_the_pipeline_runs_and_is_cached(edgepipe: Command, beside: Path) -> None:
    first = edgepipe("run", "p.yaml", "--json", "--output-dir", "out")
    assert statuses(first) == {"model": "ran", "Stamp": "ran"}
    stage = json.loads(first.out)["stages"][1]
    assert (stage["type"], stage["outcome"]["notes"]) == ("stamp:Stamp", ["stamped with hello"])
    assert (beside / "out" / stage["artifact"]).read_bytes().endswith(b"hello")
    assert set(statuses(edgepipe("run", "p.yaml", "--json")).values()) == {"cached"}
    (beside / "stamp_text.py").write_text(HELPER.replace("text.encode()", "text.upper().encode()"))
    again = edgepipe("run", "p.yaml", "--json", "--output-dir", "out")
    assert statuses(again) == {"model": "cached", "Stamp": "ran"}
    assert (beside / "out" / stage["artifact"]).read_bytes().endswith(b"HELLO")
    ended = edgepipe("run", "p.yaml", "--json", "--set", "stages.Stamp.text=there")
    assert json.loads(ended.out)["stages"][1]["outcome"]["notes"] == ["stamped with there"]


@pytest.mark.slow
def test_a_changed_package_runs_its_stage_again(edgepipe: Command, beside: Path, site: Path) -> None:
    """A changed module that the stage imports when it runs, and another version; TensorFlow is not needed."""
    metadata = second_package(site, "stamp", "stamps:Stamp")
    (site / "stamps").mkdir()
    late = STAMP.replace("import stamp_text\n", "").replace(
        "  target =", "  from stamps import stamp_text\n\n        target ="
    )
    (site / "stamps" / "__init__.py").write_text(late)
    helper = site / "stamps" / "stamp_text.py"
    helper.write_text(HELPER)
    (beside / "p.yaml").write_text(STAMPED.replace("stamp:Stamp", "stamp"))
    assert statuses(edgepipe("run", "p.yaml", "--json")) == {"model": "ran", "stamp": "ran"}
    helper.write_text(HELPER + "\nSIDE_EFFECTS = 0\n")
    assert statuses(edgepipe("run", "p.yaml", "--json")) == {"model": "cached", "stamp": "ran"}
    metadata.write_text(metadata.read_text().replace("Version: 0.1", "Version: 0.2"))
    assert statuses(edgepipe("run", "p.yaml", "--json")) == {"model": "cached", "stamp": "ran"}
    assert set(statuses(edgepipe("run", "p.yaml", "--json")).values()) == {"cached"}


MODULES = {
    "a wrong option": (
        ("{text: hello}", "{txt: hello}"), (),
        "p.yaml:4:19: stages.0.stamp:Stamp.txt: unknown option; did you mean 'text'?",
    ),
    "a value that is too short": (
        ("{text: hello}", "{text: h}"), (),
        "p.yaml:4:25: stages.0.stamp:Stamp.text: string should have at least 2 characters; found the text 'h'",
    ),
    "no such class": (
        ("stamp:Stamp", "stamp:Stomp"), (),
        "p.yaml:4:5: stages.0.stamp:Stomp: module 'stamp' has no 'Stomp'",
    ),
    "no such module": (
        ("stamp:Stamp", "stomp:Stamp"), (),
        "p.yaml:4:5: stages.0.stomp:Stamp: no module 'stomp' beside the pipeline ({folder}) or on Python's path",
    ),
    "a class that is no stage": (
        (), ("class Stamp(Stage)", "class Stamp"),
        "p.yaml:4:5: stages.0.stamp:Stamp: stage 'stamp:Stamp': 'stamp:Stamp' is not a subclass of edgepipe.Stage",
    ),
    "a stage that does nothing": (
        (), ("def run(", "def walk("),
        "p.yaml:4:5: stages.0.stamp:Stamp: stage 'stamp:Stamp': 'stamp:Stamp' does not define run",
    ),
    "a stage that takes nothing": (
        (), ("    accepts: ClassVar = {ArtifactKind.TFLITE: ArtifactKind.TFLITE}\n", ""),
        "p.yaml:4:5: stages.0.stamp:Stamp: stage 'stamp:Stamp': 'stamp:Stamp' does not say which kinds it takes and "
        "gives: `accepts: ClassVar = {{ArtifactKind.KERAS: ArtifactKind.KERAS}}`",
    ),
    "a module with an error": (
        (), ("import stamp_text", "import stamp_text\n1 / 0"),
        "p.yaml:4:5: stages.0.stamp:Stamp: stage 'stamp:Stamp': 'stamp:Stamp' cannot be loaded: ZeroDivisionError: "
        "division by zero",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", MODULES)
def test_what_is_wrong_with_a_module_is_one_line(case: str, edgepipe: Command, beside: Path) -> None:
    in_pipeline, in_module, message = MODULES[case]
    if in_pipeline:
        (beside / "p.yaml").write_text(STAMPED.replace(*in_pipeline))
    if in_module:
        (beside / "stamp.py").write_text(STAMP.replace(*in_module))
    ended = edgepipe("check", "p.yaml")
    assert (ended.code, ended.err.splitlines()) == (2, [message.format(folder=beside)])
