"""The wheel: it holds what edgepipe needs, and runs the demo where no repository is beside it."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def imported_packages() -> set[str]:
    """The top-level packages that any module of edgepipe imports, wherever the statement stands."""
    packages: set[str] = set()
    for file in (REPOSITORY / "edgepipe").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            packages |= {name.split(".")[0] for name in names}
    # pydantic_core is half of pydantic, which demands one exact version of it.
    return packages - set(sys.stdlib_module_names) - {"edgepipe", "pydantic_core"}


def plain_name(distribution: str) -> str:
    """A distribution's name as PyPI compares it, without version and marker."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s<>=!~;\[]", distribution, maxsplit=1)[0]).lower()


def test_every_imported_package_is_a_dependency() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    requirements = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    declared_names = {plain_name(requirement) for requirement in requirements}
    distributions_by_package = packages_distributions()
    undeclared_packages = {
        package
        for package in imported_packages()
        if not declared_names & {plain_name(name) for name in distributions_by_package.get(package, [package])}
    }
    assert undeclared_packages == set()


@pytest.mark.slow
def test_the_wheel_runs_the_demo_outside_of_the_repository() -> None:
    command = ["sh", str(REPOSITORY / "tools" / "check_wheel.sh"), sys.executable]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert finished.stdout.splitlines()[-1] == "check_wheel: the wheel runs the demo"
