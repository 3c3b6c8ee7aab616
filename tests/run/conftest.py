"""Whole runs of `edgepipe run`: in this process, which has TensorFlow loaded, or in one of their own."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgepipe import cli

ROOT = Path(__file__).resolve().parents[2]

TINY = """\
name: tiny
model: {function: "edgepipe.zoo:small_cnn", args: {filters: [4, 6]}}
data: edgepipe.data:digits
task: classification
allow_chance: true
seed: 3
stages:
  - train: {epochs: 1, batch_size: 256}
  - prune: {epochs: 1, batch_size: 256, sparsity: 0.5}
  - quantize: {epochs: 1, batch_size: 256}
  - convert
  - validate: {devices: [host, DEVICE]}
"""


@dataclass
class FinishedRun:
    """A run that has ended: exit code, what it printed, its report."""

    code: int
    stdout: str
    stderr: str
    folder: Path

    @property
    def report(self) -> dict[str, Any]:
        return json.loads((self.folder / "report.json").read_text())

    def statuses(self) -> dict[str, str]:
        return {stage["name"]: stage["status"] for stage in self.report["stages"]}

    def digests(self) -> dict[str, str]:
        return {stage["name"]: stage["digest"] for stage in self.report["stages"]}

    def metric(self, stage: str, name: str, device: str | None = None) -> dict[str, Any]:
        outcome = next(s["outcome"] for s in self.report["stages"] if s["name"] == stage)
        return next(m for m in outcome["metrics"] if m["name"] == name and m["device"] == device)


class Workplace:
    """A folder with a pipeline, a device profile, a cache and outputs of its own."""

    def __init__(self, folder: Path, pipeline: str = TINY) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.pipeline = folder / "tiny.yaml"
        self.device = folder / "board.yaml"
        shutil.copyfile(ROOT / "devices" / "nucleo-l4r5zi.yaml", self.device)
        self.device.write_text(self.device.read_text().replace("name: nucleo-l4r5zi", "name: board"))
        self.pipeline.write_text(pipeline.replace("DEVICE", "board.yaml"))

    def command(self, *extra: str, output: str = "out") -> list[str]:
        folders = ["--output-dir", str(self.folder / output), "--cache-dir", str(self.cache)]
        return [sys.executable, "-m", "edgepipe", "run", str(self.pipeline), *folders, *extra]

    def run(self, *extra: str, output: str = "out") -> FinishedRun:
        """Run the pipeline through the command's entry point, in this process."""
        words = self.command(*extra, output=output)[3:]
        stdout, stderr = io.StringIO(), io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stderr),
        ):
            patch.chdir(self.folder)
            patch.setattr(sys, "argv", ["edgepipe", *words])
            code = 0
            try:
                cli.main()
            except SystemExit as ended:
                code = int(ended.code or 0)
        return FinishedRun(code, stdout.getvalue(), stderr.getvalue(), self.folder / output)

    def run_process(self, *extra: str, output: str = "out", package: Path = ROOT) -> FinishedRun:
        """Run the pipeline in a process of its own, with the edgepipe of `package`."""
        done = subprocess.run(
            self.command(*extra, output=output),
            capture_output=True,
            text=True,
            env=environment(package),
            cwd=self.folder,
        )
        return FinishedRun(done.returncode, done.stdout, done.stderr, self.folder / output)

    def python(self, code: str, *words: str) -> None:
        """Run `code` in the folder of the pipeline."""
        command = [sys.executable, "-c", code, *words]
        subprocess.run(command, check=True, capture_output=True, env=environment(), cwd=self.folder)


def environment(package: Path = ROOT) -> dict[str, str]:
    """The environment of a user who has the edgepipe of `package`."""
    return {**os.environ, "PYTHONPATH": str(package), "TF_CPP_MIN_LOG_LEVEL": "3"}


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    return Workplace(tmp_path)


@pytest.fixture(scope="session")
def demo(trained_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[FinishedRun, Path]:
    """`make demo`'s run, a second time, and the shared cache that the first one filled."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "edgepipe", "run", str(ROOT / "pipelines" / "digits.yaml")]
    folders = ["--output-dir", str(folder / "out"), "--cache-dir", str(trained_digits)]
    done = subprocess.run([*command, *folders], capture_output=True, text=True, env=environment(), cwd=folder)
    return FinishedRun(done.returncode, done.stdout, done.stderr, folder / "out"), trained_digits
