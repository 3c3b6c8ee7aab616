"""What the tests of deployments share: packages, devices, and whether what runs there is whole."""

import hashlib
import json
from pathlib import Path

from edgepipe.deploy.backends import ConnectionOptions, connect
from edgepipe.deploy.deployment import Deployment, deploy
from edgepipe.deploy.device import Device
from edgepipe.deploy.golden_vectors import GoldenOptions, build_golden_vectors
from edgepipe.deploy.proof import DeploymentOptions, Package
from edgepipe.deploy.target_url import parse_url
from edgepipe.tflite import reader


def package(model_path: Path, samples: int = 20) -> Package:
    """A model with golden vectors of random numbers."""
    golden = build_golden_vectors(reader.read(model_path), GoldenOptions(max_samples=samples))
    return Package(model_path.name, model_path.read_bytes(), golden)


def open_device(url: str, python: str = "python3") -> Device:
    """A device, connected."""
    return connect(parse_url(url), ConnectionOptions(python=python))


def deploy_once(url: str, content: Package, python: str = "python3", wait_seconds: float = 20.0) -> Deployment:
    """One deployment over a connection of its own."""
    device = open_device(url, python)
    try:
        return deploy(device, content, DeploymentOptions(wait_seconds=wait_seconds), lambda _: None)
    finally:
        device.transport.close()


def printed_by_runner(url: str, content: Package) -> str:
    """What the runner prints for a package, without a deployment."""
    device = open_device(url)
    for name, data in content.files(runs_python=True).items():
        device.run('mkdir -p trial && cat > "trial/$1"', name, input_bytes=data)
    result = device.run("cd trial && python3 runner.py model.tflite --golden golden.npz --runs 3")
    device.transport.close()
    return result.output


def recorded_python(folder: Path, printed: str) -> str:
    """A program that stands for `python3` and prints at once what the runner printed before."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "printed").write_text(printed)
    program = folder / "recorded-python"
    program.write_text(f"#!/bin/sh\ncat {folder}/printed\n")
    program.chmod(0o755)
    return str(program)


def running_version(folder: Path) -> str:
    """The version that `current` leads to; it is whole, proved, and what its manifest says."""
    target = (folder / "current").readlink()
    assert target.parent == Path("versions"), target
    assert not target.name.endswith(".part"), target
    manifest = json.loads((folder / target / "manifest.json").read_text())
    assert set(manifest["digests"]) == {"model.tflite", "golden.npz", "runner.py"}
    for name, digest in manifest["digests"].items():
        assert hashlib.sha256((folder / target / name).read_bytes()).hexdigest() == digest, name
    return target.name
