"""TensorFlow Lite Micro: the arena it needs is exact, its outputs agree, its refusals are told."""

import importlib.util
import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from tflite_conversion import SAMPLES
from tflite_handmade import Op, T, write

from edgepipe.core.errors import InputError, ToolError
from edgepipe.core.metric import Evidence
from edgepipe.tflite import interpreter, parity, tflm_runtime, tflm_worker
from edgepipe.tflite.interpreter import Runtime

present = pytest.mark.skipif(importlib.util.find_spec("tflite_micro") is None, reason="tflite-micro is not installed")


@present
def test_the_arena_is_what_is_needed_and_no_more(int8_net: Path) -> None:
    """Independent of the record: bisect the smallest arena that the model runs in."""
    from tflite_micro.python.tflite_micro import runtime

    def runs(size: int) -> bool:
        try:
            made = runtime.Interpreter.from_file(str(int8_net), arena_size=size)
            made.set_input(np.zeros((1, 8, 8, 2), np.int8), 0)
            made.invoke()
        except RuntimeError:
            return False
        return True

    metric = tflm_runtime.measure_arena(int8_net, "nucleo-l4r5zi")
    low, high = 0, 1 << 20
    while high - low > 1:
        low, high = (low, (low + high) // 2) if runs((low + high) // 2) else ((low + high) // 2, high)
    assert metric.value is not None
    assert abs(metric.value - high) <= 64  # alignment of the arena's two ends
    assert metric.value == metric.details["head"] + metric.details["tail"]  # type: ignore[operator]
    assert (metric.name, metric.evidence, metric.device) == ("ram", Evidence.SIMULATED, "nucleo-l4r5zi")
    assert "64-bit host" in metric.how
    json.dumps(metric.model_dump(mode="json"))


@present
def test_outputs_agree_with_the_reference(int8_net: Path) -> None:
    reference = interpreter.predict(int8_net, SAMPLES, Runtime.REFERENCE)
    found = tflm_runtime.predict(int8_net, SAMPLES)
    agreement = parity.compare(reference, found)
    assert agreement.samples == len(SAMPLES)
    assert agreement.max_lsb is not None
    assert agreement.max_lsb <= 1
    assert found.provenance.startswith("TensorFlow Lite Micro 0.dev")


@present
def test_a_refusal_carries_its_reason(tmp_path: Path) -> None:
    tensors = [T("x", (1, 4)), T("y", (1, 4))]
    path = write(tmp_path / "m.tflite", tensors, [Op("TILE", ("x", "x"), ("y",))], ["x"], ["y"])
    metric = tflm_runtime.measure_arena(path)
    assert (metric.value, metric.evidence) == (None, Evidence.UNAVAILABLE)
    assert "Didn't find op for builtin opcode 'TILE'" in metric.how
    with pytest.raises(InputError, match=r"TensorFlow Lite Micro refuses the model: .*TILE"):
        tflm_runtime.predict(path, np.zeros((2, 4), np.int8))


@pytest.mark.slow
@present
def test_a_crash_is_no_crash_of_ours(tmp_path: Path) -> None:
    """An IF whose branch is the graph it stands in recurses until the stack is used up."""
    tensors = [T("c", (1,), "bool"), T("y", (1,), "float32")]
    path = write(tmp_path / "m.tflite", tensors, [Op("IF", ("c", "c"), ("y",), schema.IfOptionsT())], ["c"], ["y"])
    metric = tflm_runtime.measure_arena(path)
    assert metric.evidence is Evidence.UNAVAILABLE
    assert "TensorFlow Lite Micro: the child process crashed with SIGSEGV" in metric.how
    with pytest.raises(InputError, match=r"m\.tflite: TensorFlow Lite Micro: the child process crashed with SIGSEGV"):
        tflm_runtime.predict(path, np.ones((1,), bool))


def test_without_the_package_it_is_unavailable(int8_net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(tflm_runtime, "package_version", absent)
    metric = tflm_runtime.measure_arena(int8_net)
    assert metric.evidence is Evidence.UNAVAILABLE
    assert "pip install 'edgepipe[micro]'" in metric.how
    with pytest.raises(ToolError, match=r"pip install 'edgepipe\[micro\]'"):
        tflm_runtime.predict(int8_net, SAMPLES)


def test_damaged_files_are_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        tflm_runtime.measure_arena(tmp_path / "none.tflite")
    assert tflm_worker.ARENA_BYTES > 1 << 20
