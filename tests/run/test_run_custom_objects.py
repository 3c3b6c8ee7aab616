"""`--custom-objects` of `init` and `run`."""

from pathlib import Path

import keras
import numpy as np
import pytest

from edgepipe.cli import cli
from edgepipe.commands import init
from edgepipe.core.errors import InputError
from edgepipe.pipeline import schema

MODULE = """
import keras


class Halved(keras.layers.Layer):
    def call(self, x):
        return x / 2


OBJECTS = {"Halved": Halved}
"""
PIPELINE = """
name: own
model: own.keras
data: {npz: data.npz}
stages: [convert]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model with a class of its own, the module of that class, data and a pipeline."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEPIPE_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "halving.py").write_text(MODULE)
    (tmp_path / "own.yaml").write_text(PIPELINE)
    np.savez("data.npz", x=np.random.default_rng(0).normal(size=(20, 4)).astype("float32"), y=np.arange(20) % 2)
    namespace = {"__name__": "halving"}
    exec(MODULE, namespace)
    layer = namespace["OBJECTS"]["Halved"](name="half")  # type: ignore[index]
    keras.Sequential([keras.Input((4,)), layer, keras.layers.Dense(2)]).save("own.keras")
    return tmp_path


def test_init_writes_the_classes_into_the_pipeline(folder: Path) -> None:
    init.write("own.keras", folder / "new.yaml", data="data.npz", custom_objects="halving:OBJECTS")
    text = (folder / "new.yaml").read_text()
    assert "  custom_objects: halving:OBJECTS" in text
    assert "allow_code" not in text
    assert schema.load(folder / "new.yaml").source.custom_objects == "halving:OBJECTS"


@pytest.mark.parametrize(
    ("model", "reference", "message"),
    [
        ("own.keras", "halving", r"custom_objects 'halving' is not of the form module:attribute"),
        ("own.keras", "halving:OBJECT", r"module 'halving' has no 'OBJECT'"),
        ("halving:Halved", "halving:OBJECTS", r"--custom-objects is for \.keras and \.h5 files; a function knows"),
    ],
)
def test_init_refuses_what_is_not_there(folder: Path, model: str, reference: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        init.write(model, folder / "new.yaml", custom_objects=reference)


@pytest.mark.slow
def test_run_takes_the_classes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"carries code in 'half' \(Halved from the Python module 'halving'\)"):
        cli(["run", "own.yaml"], standalone_mode=False)
    cli(["run", "own.yaml", "--custom-objects", "halving:OBJECTS", "--quiet"], standalone_mode=False)
    assert "convert" in capsys.readouterr().out
