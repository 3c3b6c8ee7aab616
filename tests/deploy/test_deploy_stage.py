"""The stage `deploy`: last in a pipeline, never from the cache, and only for a model that met its budget."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deploying import running_version

import edgepipe
from edgepipe.core.errors import ToolError
from edgepipe.render.report import Report

pytestmark = pytest.mark.slow


def _run(model: Path, tmp_path: Path, deploy: dict[str, Any], size: str = "1 MiB", allow_chance: bool = True) -> Report:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.uniform(-6, 6, (400, 64)).astype("f4"), y=rng.integers(0, 10, 400))
    pipeline = {
        "name": "p",
        "allow_chance": allow_chance,  # the labels are random
        "model": str(model),
        "data": {"npz": str(tmp_path / "data.npz")},
        "task": "classification",
        "stages": [{"validate": {"devices": ["raspberry-pi-4"], "budget": {"size": size}}}, {"deploy": deploy}],
    }
    return edgepipe.run(pipeline, output_dir=tmp_path / "run", cache_dir=tmp_path / "cache")


def test_the_report_has_what_the_device_computed_and_measured(model: Path, tmp_path: Path) -> None:
    deploy = {"to": [f"host://{tmp_path}/app"], "device": "host", "latency": "1 s", "samples": 50}
    report = _run(model, tmp_path, deploy)
    assert report.met
    stage = report.stage("deploy")
    latency = stage.metric("latency", "host")
    assert latency is not None
    assert (str(latency.evidence), latency.details["threads"]) == ("measured", 1)
    assert [verdict.met for verdict in stage.outcome.verdicts] == [True]
    devices, golden = stage.outcome.tables
    assert devices.rows == ((f"host:///{str(tmp_path)[1:]}/app", "deployed", running_version(tmp_path / "app"), ""),)
    assert "50 calls with samples" in golden.title
    counts = [int(pair.split(": ")[1]) for pair in str(golden.rows[0][-1]).split(", ")]
    assert sum(counts) == 50 * 10
    again = _run(model, tmp_path, deploy)
    assert [stage.status for stage in again.stages] == ["cached", "cached", "ran"]
    assert running_version(tmp_path / "app").startswith("0002-")


def test_what_missed_its_budget_is_not_deployed_unless_that_is_wanted(model: Path, tmp_path: Path) -> None:
    deploy: dict[str, Any] = {"to": [f"host://{tmp_path}/app"], "samples": 5}
    report = _run(model, tmp_path, deploy, size="1 B")
    (finding,) = report.stage("deploy").outcome.findings
    assert "not deployed: 'validate' is not met" in finding.observed
    assert not (tmp_path / "app").exists()
    report = _run(model, tmp_path, deploy, allow_chance=False)
    assert "not deployed: 'quality' is not met" in report.stage("deploy").outcome.findings[0].observed
    assert not (tmp_path / "app").exists()
    report = _run(model, tmp_path, {**deploy, "even_if_not_met": True}, size="1 B")
    assert not report.met
    assert running_version(tmp_path / "app")


def test_a_device_that_fails_is_an_error_alone_and_a_finding_among_others(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    urls = [f"host://{tmp_path}/app", f"host://{tmp_path}/file"]
    with pytest.raises(ToolError, match="cannot create"):
        _run(model, tmp_path, {"to": urls[1:], "samples": 5})
    report = _run(model, tmp_path, {"to": urls, "samples": 5})
    assert not report.met
    (finding,) = report.stage("deploy").outcome.findings
    assert (finding.rule, finding.place.endswith("/file")) == ("deployed", True)
    assert running_version(tmp_path / "app")
