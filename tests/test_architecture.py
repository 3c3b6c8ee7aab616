"""The architecture that CONTRIBUTING.md describes is the one that the linters enforce."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import edgepipe
from edgepipe.stages.registry import STAGE_REFERENCES

ROOT = Path(__file__).resolve().parents[1]
TOOL = ROOT / "tools" / "check_imports.py"
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]


def contract(name: str) -> dict[str, Any]:
    (found,) = [entry for entry in CONTRACTS if entry["name"] == name]
    return found


def test_the_table_of_layers_is_the_contract() -> None:
    table = (ROOT / "CONTRIBUTING.md").read_text().partition("| layer |")[2].partition("\n\n")[0]
    described = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert described == list(reversed(contract("Lower layers never import upper ones")["layers"]))


def test_the_modules_of_core_are_those_of_its_contract() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("Inside `core`, low to high:")[2].partition(".\n")[0]
    described = [re.findall(r"`(\w+)`", level) for level in text.split(";")]
    layers = [level.split(" | ") for level in contract("Lower modules of core never import upper ones")["layers"]]
    assert [sorted(level) for level in described] == [sorted(level) for level in reversed(layers)]


def test_every_stage_is_independent_of_the_others() -> None:
    independent = set(contract("Stages never import each other")["modules"])
    assert independent == {reference.partition(":")[0] for reference in STAGE_REFERENCES.values()}


def test_every_module_named_in_contributing_exists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`((?:edgepipe/)?(?:\w+/)+\w+\.py)`", text)
    missing = [name for name in named if not (ROOT / name).exists() and not (ROOT / "edgepipe" / name).exists()]
    assert [name for name in missing if "NAME" not in name] == []


def check_imports(folder: Path) -> tuple[int, str]:
    done = subprocess.run([sys.executable, str(TOOL), str(folder)], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr.strip()


def test_there_is_no_import_cycle() -> None:
    assert check_imports(ROOT / "edgepipe") == (0, "")


PLANTED = {
    "at the top": ("import pkg.b", "from pkg import a"),
    "inside a function": ("def f():\n    from pkg.b import g", "import pkg.a"),
    "for type checking only": (
        "from pkg import b",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pkg.a import f",
    ),
    "relative": ("from . import b", "from .a import f"),
}


@pytest.mark.parametrize("place", PLANTED)
def test_a_planted_cycle_is_found(place: str, tmp_path: Path) -> None:
    package = tmp_path / "pkg"
    package.mkdir()
    # lazy exports of the root package are exempt
    (package / "__init__.py").write_text("def __getattr__(name):\n    from pkg import a, b\n")
    (package / "a.py").write_text("")
    (package / "b.py").write_text("from pkg import a\n")
    assert check_imports(package) == (0, "")
    for module, text in zip("ab", PLANTED[place], strict=True):
        (package / f"{module}.py").write_text(text)
    code, error = check_imports(package)
    assert code == 1
    assert re.fullmatch(r"import cycle: (pkg\.a -> pkg\.b -> pkg\.a|pkg\.b -> pkg\.a -> pkg\.b)", error)


@pytest.mark.parametrize("name", edgepipe.__all__)
def test_every_public_name_is_documented_and_typed(name: str) -> None:
    exported = getattr(edgepipe, name)
    assert (exported.__doc__ or "").strip()
    if not isinstance(exported, type):
        assert "return" in exported.__annotations__
        parameters = [key for key in exported.__annotations__ if key != "return"]
        assert len(parameters) < 2 or "Args:" in exported.__doc__
        assert all(f"{key}: " in exported.__doc__ for key in parameters) or len(parameters) < 2


def test_every_public_function_is_exported() -> None:
    from edgepipe import api

    functions = {
        name
        for name, value in vars(api).items()
        if not name.startswith("_") and callable(value) and getattr(value, "__module__", "") == "edgepipe.api"
    }
    assert functions - set(edgepipe.__all__) == set()
    assert importlib.util.find_spec("edgepipe.api") is not None
