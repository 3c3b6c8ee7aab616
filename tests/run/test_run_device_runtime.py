"""The demo's model on tflite-runtime 2.14, the runtime of older devices, in an environment of its own."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgepipe.data.data_spec import FunctionSpec
from edgepipe.data.dataset_loading import load
from edgepipe.data.split_names import Split
from edgepipe.tflite.interpreter import Runtime, predict

from .conftest import ROOT, FinishedRun

PYTHON = ROOT / ".venv-device" / "bin" / "python"
RUN = """
import json, sys
import numpy as np
from tflite_runtime import __version__
from tflite_runtime.interpreter import Interpreter
interpreter = Interpreter(sys.argv[1])
interpreter.allocate_tensors()
source, result = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
scale, zero = source["quantization"]
outputs = []
for sample in np.load(sys.argv[2]):
    interpreter.set_tensor(source["index"], np.clip(np.round(sample / scale) + zero, -128, 127).astype(np.int8)[None])
    interpreter.invoke()
    outputs.append(interpreter.get_tensor(result["index"])[0].tolist())
print(json.dumps({"version": __version__, "outputs": outputs}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-device: `make test` makes it where there is a Python 3.11")
def test_labels_equal_those_of_the_reference(demo: tuple[FinishedRun, Path], tmp_path: Path) -> None:
    model = demo[0].folder / "artifacts" / "4-convert.tflite"
    x = load(FunctionSpec(function="edgepipe.data:digits"), ROOT, 7, frozenset({Split.TEST})).test.x
    np.save(tmp_path / "x.npy", x)
    command = [str(PYTHON), "-c", RUN, str(model), str(tmp_path / "x.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    reference = predict(model, x, Runtime.REFERENCE)
    device = np.array(found["outputs"])
    assert found["version"] == "2.14.0"
    assert np.mean(device.argmax(axis=1) == reference.stored_values.argmax(axis=1)) >= 0.995
    assert np.abs(device - reference.stored_values.astype(int)).max() <= 2
