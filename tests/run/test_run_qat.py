"""A `qat` artifact written to disk and read back in a new process gives bit-identical outputs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from .conftest import environment

READ = """
import sys
import numpy as np
from pathlib import Path
from edgepipe.compress.qat.store import restore
model = restore(Path(sys.argv[1]))
np.save(sys.argv[3], model.predict(np.load(sys.argv[2]), verbose=0))
"""


@pytest.mark.slow
@pytest.mark.parametrize("keep", [False, True])
def test_round_trip(tmp_path: Path, keep: bool) -> None:
    from edgepipe.compress.qat.fake_quant import Recipe, fake_quant
    from edgepipe.compress.qat.store import save
    from edgepipe.models.bridge import bridge
    from edgepipe.training.fit import seeded
    from edgepipe.zoo import small_cnn

    seeded(1)
    base = bridge(small_cnn(input_shape=(8, 8, 1), classes=10, filters=(4, 6))).model
    model = fake_quant(base, Recipe(keep_zeros=keep)).model
    x = np.random.RandomState(0).rand(64, 8, 8, 1).astype(np.float32)
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(x, np.arange(64) % 10, epochs=2, verbose=0)
    save(model, base, Recipe(keep_zeros=keep), tmp_path / "qat")
    np.save(tmp_path / "x.npy", x)
    arguments = [tmp_path / "qat", tmp_path / "x.npy", tmp_path / "y.npy"]
    subprocess.run([sys.executable, "-c", READ, *map(str, arguments)], check=True, env=environment())
    assert np.array_equal(np.load(tmp_path / "y.npy"), model.predict(x, verbose=0))
