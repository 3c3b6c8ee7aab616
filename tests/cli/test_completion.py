"""Shell completion, as bash, zsh and fish ask for it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgepipe.devices.device_profile import device_names
from edgepipe.pipeline.shipped_pipelines import pipeline_names


def edgepipe(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgepipe"], capture_output=True, text=True, timeout=60, check=False, cwd=folder,
        env={**os.environ, **environment},
    )  # fmt: skip


def complete(folder: Path, *words: str) -> list[str]:
    """What bash is offered for the last of `words`, as `type,value`."""
    line = " ".join(["edgepipe", *words])
    finished = edgepipe(folder, _EDGEPIPE_COMPLETE="bash_complete", COMP_WORDS=line, COMP_CWORD=str(len(words)))
    assert (finished.returncode, finished.stderr) == (0, "")
    return finished.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("ver",), ["plain,verify"]),
        (("verify", "--int"), ["plain,--integer-only"]),
        (("run", "anom"), ["plain,anomaly"]),
        (("run", "own"), ["file,own"]),
        (("pipelines", "copy", ""), [f"plain,{name}" for name in pipeline_names()]),
        (("device", "show", "nucleo-l4"), ["plain,nucleo-l4r5zi", "plain,nucleo-l4r5zi-x-cube-ai"]),
        (("profile", "m.tflite", "--device", "host"), ["plain,host"]),
        (("stages", "pr"), ["plain,prune"]),
        (("zoo", "mob"), ["plain,mobilenet_v1", "plain,mobilenet_v2"]),
        (("convert", "--scheme", "int8"), ["plain,int8"]),
    ],
)
def test_what_is_offered(words: tuple[str, ...], offered: list[str], tmp_path: Path) -> None:
    assert complete(tmp_path, *words) == offered


def test_every_device_is_offered(tmp_path: Path) -> None:
    assert complete(tmp_path, "device", "show", "") == [f"plain,{name}" for name in device_names()]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_script(shell: str, tmp_path: Path) -> None:
    finished = edgepipe(tmp_path, _EDGEPIPE_COMPLETE=f"{shell}_source")
    assert finished.returncode == 0
    assert f"_EDGEPIPE_COMPLETE={shell}_complete" in finished.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_with_the_script(tmp_path: Path) -> None:
    (tmp_path / "edgepipe").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m edgepipe "$@"\n')
    (tmp_path / "edgepipe").chmod(0o755)
    script = edgepipe(tmp_path, _EDGEPIPE_COMPLETE="bash_source").stdout
    ask = 'COMP_WORDS=(edgepipe run anom); COMP_CWORD=2; _edgepipe_completion edgepipe; echo "${COMPREPLY[@]}"'
    finished = subprocess.run(
        ["bash", "--norc", "-c", f"{script}\n{ask}"], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert finished.stdout == "anomaly\n"


def test_an_unknown_shell_is_refused(tmp_path: Path) -> None:
    finished = edgepipe(tmp_path, _EDGEPIPE_COMPLETE="csh_source")
    assert (finished.returncode, finished.stdout) == (2, "")
    assert "_EDGEPIPE_COMPLETE=csh_source: must be bash_source, zsh_source or fish_source" in finished.stderr
