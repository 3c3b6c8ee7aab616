"""What is stored and read back in a new process gives bit-identical outputs: `qat` folders and model files."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .conftest import environment

READ = """
import sys
import numpy as np
from pathlib import Path
from edgepipe.models.startup import load_tensorflow
load_tensorflow()
from edgepipe.compress.qat.qat_store import restore_model
from edgepipe.models.model_files import load_model
folder = Path(sys.argv[1])
for name in ("train.keras", "prune.keras", "qat", "qat-zeros"):
    model = load_model(folder / name) if name.endswith(".keras") else restore_model(folder / name)
    np.save(folder / f"{name}.npy", model.predict(np.load(folder / "x.npy"), verbose=0))
"""


def _fitted(model: Any, x: np.ndarray) -> Any:
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(x, np.arange(len(x)) % 10, epochs=2, verbose=0)
    return model


def _stored(folder: Path, x: np.ndarray) -> dict[str, Any]:
    """The models that were saved in `folder`, by the name of the file or folder."""
    from edgepipe.compress.qat.fake_quant import QatRecipe, build_fake_quant
    from edgepipe.compress.qat.qat_store import save
    from edgepipe.models.bridge import bridge
    from edgepipe.models.model_files import save_float, save_keras
    from edgepipe.zoo import small_cnn

    trained = _fitted(small_cnn(input_shape=(8, 8, 1), classes=10, filters=(4, 6)), x)
    pruned = bridge(trained).model
    for layer in pruned.layers:
        layer.set_weights([np.where(np.abs(w) < 0.05, 0, w) if w.ndim == 4 else w for w in layer.get_weights()])
    save_keras(trained, folder / "train.keras")
    save_float(pruned, folder / "prune.keras")
    models = {"train.keras": trained, "prune.keras": pruned}
    for name, keep in (("qat", False), ("qat-zeros", True)):
        models[name] = _fitted(build_fake_quant(pruned, QatRecipe(keep_zeros=keep)).model, x)
        save(models[name], pruned, QatRecipe(keep_zeros=keep), folder / name)
    return models


@pytest.mark.slow
def test_what_a_stage_stores_comes_back_in_another_process(tmp_path: Path) -> None:
    from edgepipe.training.training_loop import set_seeds

    set_seeds(1)
    x = np.random.RandomState(0).rand(64, 8, 8, 1).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    models = _stored(tmp_path, x)
    subprocess.run([sys.executable, "-c", READ, str(tmp_path)], check=True, env=environment())
    for name, model in models.items():
        assert np.array_equal(np.load(tmp_path / f"{name}.npy"), model.predict(x, verbose=0)), name
