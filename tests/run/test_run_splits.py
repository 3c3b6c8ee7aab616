"""No stage before `validate` can read the test split."""

from pathlib import Path

import pytest

import edgepipe
from edgepipe.data.split_names import Split
from edgepipe.stages.registry import STAGE_REFERENCES, find_stage, load_stage_class

USER = """
import pathlib
import numpy as np

SIZES = {"train": 60, "validation": 23, "test": 37}  # the size tells which split a metric was given


def data():
    random = np.random.RandomState(0)
    return {name: (random.rand(n, 6).astype("float32"), np.arange(n) % 3) for name, n in SIZES.items()}


def model(input_shape, classes):
    import keras

    inputs = keras.Input(input_shape, name="sample")
    return keras.Model(inputs, keras.layers.Dense(classes, activation="softmax", name="dense")(inputs), name="user")


def seen(y, outputs):
    with (pathlib.Path(__file__).parent / "seen.txt").open("a") as log:
        log.write(f"{len(y)}\\n")
    return float((outputs.argmax(axis=1) == y).mean())
"""
PIPELINE = """
name: user
model: user:model
data: user:data
task: {kind: classification, custom_metrics: {seen: {function: "user:seen"}}}
stages:
  - train: {epochs: 2}
  - prune: {schedule: iterative, rounds: 2, epochs: 1, saliency: taylor2, max_drop: 90 points, exclude_last: false}
  - quantize: {epochs: 1}
  - convert
  - validate
"""


def test_only_validate_asks_for_the_test_split() -> None:
    readers = {name for name in STAGE_REFERENCES if Split.TEST in load_stage_class(find_stage(name, Path())).splits}
    assert readers == {"validate"}


@pytest.mark.slow
def test_the_test_split_is_read_last(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(USER)
    (tmp_path / "p.yaml").write_text(PIPELINE)
    report = edgepipe.run(tmp_path / "p.yaml", output_dir=tmp_path / "out", cache_dir=tmp_path / "cache")
    sizes = [int(line) for line in (tmp_path / "seen.txt").read_text().split()]
    first = sizes.index(37)
    assert set(sizes[:first]) == {23}
    assert set(sizes[first:]) == {37}
    assert report.stage("validate").metric("seen") is not None
