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
from edgepipe.compress.qat.qat_store import restore_model
model = restore_model(Path(sys.argv[1]))
np.save(sys.argv[3], model.predict(np.load(sys.argv[2]), verbose=0))
"""


@pytest.mark.slow
@pytest.mark.parametrize("keep", [False, True])
def test_round_trip(tmp_path: Path, keep: bool) -> None:
    from edgepipe.compress.qat.fake_quant import QatRecipe, build_fake_quant
    from edgepipe.compress.qat.qat_store import save
    from edgepipe.models.bridge import bridge
    from edgepipe.training.training_loop import set_seeds
    from edgepipe.zoo import small_cnn

    set_seeds(1)
    base = bridge(small_cnn(input_shape=(8, 8, 1), classes=10, filters=(4, 6))).model
    model = build_fake_quant(base, QatRecipe(keep_zeros=keep)).model
    x = np.random.RandomState(0).rand(64, 8, 8, 1).astype(np.float32)
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(x, np.arange(64) % 10, epochs=2, verbose=0)
    save(model, base, QatRecipe(keep_zeros=keep), tmp_path / "qat")
    np.save(tmp_path / "x.npy", x)
    arguments = [tmp_path / "qat", tmp_path / "x.npy", tmp_path / "y.npy"]
    subprocess.run([sys.executable, "-c", READ, *map(str, arguments)], check=True, env=environment())
    assert np.array_equal(np.load(tmp_path / "y.npy"), model.predict(x, verbose=0))


LOAD = """
import sys
import numpy as np
from pathlib import Path
from edgepipe.models.startup import load_tensorflow
load_tensorflow()
from edgepipe.models.model_files import load_model
for stage in ("train", "prune"):
    model = load_model(Path(sys.argv[1]) / f"{stage}.keras")
    np.save(f"{sys.argv[3]}.{stage}.npy", model.predict(np.load(sys.argv[2]), verbose=0))
"""


@pytest.mark.slow
def test_what_train_and_prune_store_comes_back(tmp_path: Path) -> None:
    from edgepipe.models.bridge import bridge
    from edgepipe.models.model_files import save_float, save_keras
    from edgepipe.training.training_loop import set_seeds
    from edgepipe.zoo import small_cnn

    set_seeds(1)
    x = np.random.RandomState(0).rand(64, 8, 8, 1).astype(np.float32)
    trained = small_cnn(input_shape=(8, 8, 1), classes=10, filters=(4, 6))
    trained.compile("adam", "sparse_categorical_crossentropy")
    trained.fit(x, np.arange(64) % 10, epochs=1, verbose=0)
    pruned = bridge(trained).model
    for layer in pruned.layers:
        layer.set_weights([np.where(np.abs(w) < 0.05, 0, w) if w.ndim == 4 else w for w in layer.get_weights()])
    save_keras(trained, tmp_path / "train.keras")
    save_float(pruned, tmp_path / "prune.keras")
    np.save(tmp_path / "x.npy", x)
    arguments = [tmp_path, tmp_path / "x.npy", tmp_path / "y"]
    subprocess.run([sys.executable, "-c", LOAD, *map(str, arguments)], check=True, env=environment())
    for stage, model in (("train", trained), ("prune", pruned)):
        assert np.array_equal(np.load(tmp_path / f"y.{stage}.npy"), model.predict(x, verbose=0))
