"""What a sceptical first user found: crashes, leftovers and exit codes that were not edgepipe's own."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest

import edgepipe
from edgepipe.compress.qat.fake_quant import QatRecipe, activation_quantize_layers, build_fake_quant
from edgepipe.core.errors import InputError
from edgepipe.models.bridge import bridge

from .conftest import TINY, Workplace


def _saved(folder: Path, model: keras.Model) -> Path:
    model.save(folder / "own.keras")
    return folder / "own.keras"


def _embedding() -> keras.Model:
    ids = keras.Input((5,), dtype="int32", name="ids")
    x = keras.layers.Flatten(name="flat")(keras.layers.Embedding(7, 3, name="table")(ids))
    return keras.Model(ids, keras.layers.Dense(2, name="out")(x), name="words")


def test_integer_inputs_are_compared_without_samples(tmp_path: Path) -> None:
    done = edgepipe.convert(_saved(tmp_path, _embedding()), scheme="float16", out=tmp_path / "o.tflite")
    assert next(m.value for m in done.metrics if m.name == "max_difference") < 0.01


def test_integer_inputs_are_not_fake_quantized() -> None:
    model = build_fake_quant(bridge(_embedding()).model, QatRecipe()).model
    assert [layer.name for layer in activation_quantize_layers(model)] == ["table_fake_quant", "out_fake_quant"]


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    model = _embedding()
    model.get_layer("out").bias.assign([np.nan, 0.0])
    with pytest.raises(InputError, match=r"weights hold NaN or infinity: .*out.*bias"):
        edgepipe.convert(_saved(tmp_path, model), scheme="float32", out=tmp_path / "o.tflite")


LOADERS = """
import numpy as np


def loud():
    print("the user prints")
    return np.random.RandomState(0).rand(60, 8, 8, 1).astype("float32"), np.arange(60) % 3


def leaves():
    raise SystemExit(5)
"""


def _place(folder: Path, loader: str, stages: str) -> Workplace:
    (folder / "user.py").write_text(LOADERS)
    head = TINY.split("stages:")[0].replace("edgepipe.data:digits", f"user:{loader}")
    return Workplace(folder, f"{head}stages:\n{stages}")


@pytest.mark.slow
def test_stdout_is_the_report_alone(tmp_path: Path) -> None:
    ended = _place(tmp_path, "loud", "  - train: {epochs: 1}\n").run("--json", "--quiet")
    assert ended.code == 0, ended.stderr
    assert json.loads(ended.stdout)["schema"] == "edgepipe.report/1"
    assert "the user prints" in ended.stderr


def test_user_code_cannot_end_the_process(tmp_path: Path) -> None:
    ended = _place(tmp_path, "leaves", "  - train: {epochs: 1}\n").run()
    assert ended.code == 2
    assert "called exit(5)" in ended.stderr


@pytest.mark.slow
def test_artifacts_of_the_former_run_are_removed_and_nothing_else(tmp_path: Path) -> None:
    place = _place(tmp_path, "loud", "  - train: {epochs: 1}\n  - convert\n")
    first = place.run()
    (first.folder / "artifacts" / "mine.txt").write_text("not edgepipe's")
    place.pipeline.write_text(place.pipeline.read_text().replace("  - train: {epochs: 1}\n", ""))
    second = place.run()
    listed = {Path(stage["artifact"]).name for stage in second.report["stages"]}
    assert {file.name for file in (second.folder / "artifacts").iterdir()} == {*listed, "mine.txt"}
