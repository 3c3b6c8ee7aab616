"""What was done to samples is inside the .tflite that a pipeline makes."""

import numpy as np
import pytest

from edgepipe.tflite.metadata import read_preprocessing
from edgepipe.tflite.reader import read
from tests.run.conftest import Workplace

PIPELINE = """\
name: bytes
model: {function: "edgepipe.zoo:small_cnn", args: {filters: [4]}}
data: {npz: a.npz, rescale: signed}
task: classification
allow_chance: true  # nothing is trained
stages:
  - convert
"""


@pytest.mark.slow
def test_convert_keeps_what_the_data_went_through(workplace: Workplace) -> None:
    random = np.random.RandomState(0)
    x, y = random.randint(0, 256, (60, 8, 8, 1)).astype("uint8"), np.arange(60) % 3
    np.savez(workplace.folder / "a.npz", x=x, y=y)
    workplace.pipeline.write_text(PIPELINE)
    ended = workplace.run()
    assert ended.code == 0, ended.stderr
    made = next((ended.folder / "artifacts").glob("*.tflite"))
    known = read_preprocessing(read(made))
    assert known is not None
    assert known.pixels is not None
    assert (known.pixels.stored, known.pixels.given, known.pixels.shape) == ((0, 255), (-1, 1), (8, 8, 1))
    assert known.sound is known.windows is known.standardize is None
    assert ended.metric("convert", "size")["value"] == made.stat().st_size
