"""`runner.py` runs on devices: old syntax, no imports but the standard library's, one JSON document."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgepipe.deploy import runner
from edgepipe.deploy.health_check import runner_source

MODULES = {"argparse", "base64", "datetime", "glob", "json", "os", "platform", "re", "sys", "time", "zlib", "typing"}


def test_it_is_python_3_7_and_imports_the_standard_library_only() -> None:
    tree = ast.parse(runner_source(), feature_version=(3, 7))
    imported = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert imported - {"__future__"} <= MODULES
    later = [node for node in ast.walk(tree) if isinstance(node, (ast.NamedExpr, ast.Match))]
    assert later == []


def test_it_prints_one_document_whatever_else_is_printed(model: Path) -> None:
    line = [sys.executable, runner.__file__, str(model), "--runs", "3"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    (document,) = [json.loads(text) for text in done.stdout.splitlines() if text.strip()]
    assert document["schema"] == runner.SCHEMA
    assert document["latency"]["runs"] >= 3
    assert document["host"]["emulator"] == ""


@pytest.mark.parametrize("content", [b"", b"not a model", bytes(100)])
def test_a_file_that_is_no_model_is_refused_in_the_document(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.tflite").write_bytes(content)
    line = [sys.executable, runner.__file__, str(tmp_path / "m.tflite")]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["refused"]


def test_the_firmware_of_a_pi_tells_throttling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "get_throttled"
    monkeypatch.setattr(runner, "THROTTLED_FILES", (str(file),))
    assert runner.throttling() is None
    for text, flags in (
        ("0", []),
        ("50005", ["under-voltage", "throttled"]),
        ("80000", []),
    ):  # the high bits are the past
        file.write_text(text + "\n")
        assert runner.throttling() == flags
