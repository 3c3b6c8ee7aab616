"""What README.md and docs/ show is true: commands end as said, pipelines pass `check`, references are up to date.

In a page, from top to bottom, in a folder of the page's own:

- each line of a ```console block that begins with `$ ` is run as a shell would; the lines below it are its output;
- of a ```python block the imports run, and the names of `edgepipe` that it uses exist;
- a ```yaml block with `stages:` is a whole pipeline and must pass `edgepipe.check`; one of `model:` or `task:` alone,
  and a list of stages, must do so within a pipeline.

The line before a block may say more, parted by `;`: `<!-- exit 3 -->` the exit code of its last command (0 otherwise),
`<!-- exact -->` that each line shown is printed so, spaces aside, `<!-- file NAME -->` write the block there first,
`<!-- wrong -->` a pipeline that must not pass, `<!-- not run: why -->` leave it alone, `<!-- slow -->` the page takes
long, as each does that trains or converts.

The folder has `pipelines/`, and of a small network for scikit-learn's digits `model.keras`, `model.tflite` (int8) and
`data.npz` (arrays x and y), an LSTM for them in `recurrent.keras`, and a SavedModel in `saved/`. Stages are cached for
all pages together. Where a page has `ssh://`, `raspberrypi` is an ssh server of this machine, by the user's ssh
configuration.
"""

import ast
import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import ssh_server

import edgepipe
from edgepipe import cli
from edgepipe.core import config
from edgepipe.core.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GENERATED = ("cli.md", "stages.md")
HEAVY = ("edgepipe run", "edgepipe convert", "edgepipe sensitivity")
_BLOCK = re.compile(r"(?:^<!-- (?P<said>[^\n]+) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_SAID = re.compile(r"exit \d+|exact|slow|wrong|file \S+|not run: .+")


@dataclass(frozen=True)
class Block:
    """A fenced block: its kind, its text, what the comment before it says, and its line."""

    kind: str
    text: str
    said: str
    line: int

    @property
    def commands(self) -> list[tuple[str, list[str]]]:
        """Each command with the output shown below it."""
        found: list[tuple[str, list[str]]] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif found:
                found[-1][1].append(line)
        return found

    def option(self, word: str) -> str | None:
        """What stands behind `word` in the comment: "" if nothing, None if it is not there."""
        parts = (part.strip() for part in self.said.split(";"))
        return next((part[len(word) :].strip() for part in parts if part.split()[:1] == [word]), None)


def _blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(m["kind"], m["text"], m["said"] or "", text.count("\n", 0, m.start("kind")) + 1)
        for m in _BLOCK.finditer(text)
    ]


def _is_slow(block: Block) -> bool:
    """Whether it says so, or runs a command that trains or converts."""
    runs = block.kind == "console" and block.option("not") is None
    heavy = runs and any(command.startswith(HEAVY) for command, _ in block.commands)
    return heavy or block.option("slow") is not None


def _cases() -> list[object]:
    cases: list[object] = []
    for page in PAGES:
        slow = any(_is_slow(block) for block in _blocks(page))
        cases.append(pytest.param(page, id=page.name, marks=[pytest.mark.slow] if slow else []))
    return cases


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that every page's own is a copy of."""
    import keras
    import numpy as np
    import tensorflow as tf

    from edgepipe.data import digits
    from edgepipe.zoo import small_cnn

    folder = tmp_path_factory.mktemp("docs")
    x, y = digits()
    np.savez(folder / "data.npz", x=x[:900], y=y[:900])
    keras.utils.set_random_seed(1)
    model = small_cnn(input_shape=(8, 8, 1), classes=10)
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(x[:1400], y[:1400], epochs=12, verbose=0)
    model.save(folder / "model.keras")
    edgepipe.convert(folder / "model.keras", data=x[:200], out=folder / "model.tflite")
    rows = [keras.Input((8, 8, 1)), keras.layers.TimeDistributed(keras.layers.Flatten())]
    rows += [keras.layers.LSTM(8, name="lstm"), keras.layers.Dense(10)]
    keras.Sequential(rows).save(folder / "recurrent.keras")
    tf.saved_model.save(tf.Module(), str(folder / "saved"))
    shutil.copytree(ROOT / "pipelines", folder / "pipelines")
    return folder


@pytest.fixture(scope="session")
def environment(shared_cache: Path) -> dict[str, str]:
    """Where `edgepipe` is found, and one cache for all pages and tests."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "EDGEPIPE_CACHE_DIR": str(shared_cache), "TF_CPP_MIN_LOG_LEVEL": "3"}


@pytest.fixture
def ssh_home(tmp_path: Path) -> Iterator[Path]:
    """The home folder of a user whose ssh configuration knows the board `raspberrypi`, which is empty."""
    if ssh_server.SSHD is None:
        pytest.skip(ssh_server.MISSING)
    home = tmp_path / "home"
    with ssh_server.running(tmp_path / "board", home) as server:
        (home / ".ssh" / "config").write_text(f"Host raspberrypi\n  HostName 127.0.0.1\n  Port {server.port}\n")
        yield home


@pytest.mark.slow
@pytest.mark.parametrize("page", _cases())
def test_the_page_is_true(
    page: Path,
    prepared: Path,
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    environment = {**environment, **_prepare(page, request, monkeypatch)}
    folder = tmp_path / "page"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    for block in _blocks(page):
        where = f"{page.name}:{block.line}"
        if (name := block.option("file")) is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(block.text)
        if block.option("not") is not None:
            continue
        if block.kind == "yaml":
            _check_yaml(block, where, folder)
        if block.kind == "python":
            _check_python(block, where)
        if block.kind == "console":
            _run(block, where, folder, environment)


def _prepare(page: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the commands of a page need besides the folder; variables for those that a shell runs."""
    text = page.read_text(encoding="utf-8")
    if "$ edgepipe run pipelines/digits.yaml" in text:
        request.getfixturevalue("trained_digits")  # trained under a lock, not here and by another worker
    if "ssh://" not in text:
        return {}
    home = str(request.getfixturevalue("ssh_home"))
    monkeypatch.setenv("HOME", home)
    return {"HOME": home}


_AROUND = "name: shown\nmodel: model.keras\ndata: {npz: data.npz}\ntask: classification\n"


def _check_yaml(block: Block, where: str, folder: Path) -> None:
    data = config.parse(block.text, where).content
    if isinstance(data, list):
        block = replace(block, text=f"{_AROUND}stages:\n{block.text}")
        data = {"stages": data}
    if "stages" not in data and not set(data) <= {"model", "task"}:
        return  # a device, or a dataset: the tests of these pages hold for them
    rest = {"name": "shown", "model": "model.keras", "stages": [{"convert": {"scheme": "float32"}}]}
    file = folder / "shown.yaml"
    missing = {} if "stages" in data else {key: value for key, value in rest.items() if key not in data}
    file.write_text(block.text + "".join(f"{key}: {json.dumps(value)}\n" for key, value in missing.items()))
    if block.option("wrong") is None:
        edgepipe.check(file)
        return
    with pytest.raises(ConfigError):
        edgepipe.check(file)


def _check_python(block: Block, where: str) -> None:
    """It compiles, and what it imports from edgepipe is there; public names of `edgepipe` that it uses, too."""
    tree = ast.parse(block.text, where)
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    exec(compile(ast.Module(imports, []), where, "exec"), {})
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "edgepipe"
    }
    assert used <= set(edgepipe.__all__), f"{where}: not public: {used - set(edgepipe.__all__)}"


SHELL_CHARACTERS = re.compile(r"[|&;<>$`*?]")


def _execute(command: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command line as a shell would; `edgepipe` alone in this process, which has TensorFlow loaded."""
    if not command.startswith("edgepipe ") or SHELL_CHARACTERS.search(command):
        return subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
    stdout, stderr = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(stdout), redirect_stderr(stderr):
        patch.chdir(folder)
        patch.setattr(sys, "argv", shlex.split(command))
        patch.setenv("EDGEPIPE_CACHE_DIR", environment["EDGEPIPE_CACHE_DIR"])
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
    return subprocess.CompletedProcess(command, code, stdout.getvalue(), stderr.getvalue())


def _run(block: Block, where: str, folder: Path, environment: dict[str, str]) -> None:
    assert block.commands, f"{where}: a console block without a line that begins with '$ '"
    for number, (command, shown) in enumerate(block.commands, 1):
        done = _execute(command, folder, environment)
        last = number == len(block.commands)
        expected = int(block.option("exit") or 0) if last else 0
        assert done.returncode == expected, f"{where}: $ {command}\n{done.stdout}{done.stderr}"
        if block.option("exact") is not None:
            printed = {" ".join(line.split()) for line in (done.stdout + done.stderr).splitlines()}
            missing = [line for line in shown if " ".join(line.split()) not in printed]
            assert not missing, f"{where}: $ {command}\nshown, but not printed: {missing}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_comments_before_blocks_are_known(page: Path) -> None:
    for block in _blocks(page):
        for part in filter(None, (part.strip() for part in block.said.split(";"))):
            if not part.startswith("made by"):
                assert _SAID.fullmatch(part), f"{page.name}:{block.line}: '{part}' means nothing here"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: no {target}"


@pytest.mark.parametrize("file", GENERATED)
def test_the_reference_is_up_to_date(file: str) -> None:
    made = runpy.run_path(str(ROOT / "tools" / "reference.py"))["pages"]()[file]
    assert (ROOT / "docs" / file).read_text(encoding="utf-8") == made, "run: python tools/reference.py"
