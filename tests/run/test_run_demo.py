"""The demo's promises, held against the int8 model itself: nothing here trusts edgepipe's own reading of it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from jsonschema import Draft202012Validator

from edgepipe.data.data_spec import FunctionSpec
from edgepipe.data.dataset_loading import load
from edgepipe.data.split_names import Split

from .conftest import ROOT, FinishedRun, environment

pytestmark = pytest.mark.slow
SEED = 7  # of pipelines/digits.yaml
INTEGERS = {"int8", "int32"}


@pytest.fixture(scope="module")
def model(demo: tuple[FinishedRun, Path]) -> Path:
    return demo[0].folder / "artifacts" / "4-convert.tflite"


@pytest.fixture(scope="module")
def test_split() -> tuple[np.ndarray, np.ndarray]:
    splits = load(FunctionSpec(function="edgepipe.data:digits"), ROOT, SEED, frozenset({Split.TEST}))
    return splits.test.x, splits.test.y


def _labels(path: Path, x: np.ndarray, resolver: OpResolverType) -> np.ndarray:
    interpreter = Interpreter(str(path), experimental_op_resolver_type=resolver)
    interpreter.allocate_tensors()
    source, result = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    scale, zero = source["quantization"]
    found = []
    for sample in x:
        stored = np.clip(np.round(sample / scale) + zero, -128, 127).astype(np.int8)
        interpreter.set_tensor(source["index"], stored[None])
        interpreter.invoke()
        found.append(interpreter.get_tensor(result["index"])[0].argmax())
    return np.array(found)


def test_the_budget_is_met(demo: tuple[FinishedRun, Path]) -> None:
    ended, _ = demo
    assert ended.code == 0, ended.stdout + ended.stderr
    assert ended.report["met"]
    assert "budget met: 6 of 6 limits" in ended.stdout


def test_accuracy_on_digits_that_nothing_has_read(model: Path, test_split: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = test_split
    assert len(y) >= 350
    for resolver in (OpResolverType.BUILTIN_REF, OpResolverType.AUTO):
        assert np.mean(_labels(model, x, resolver) == y) >= 0.97


def test_reported_accuracy_is_what_a_plain_loop_finds(
    demo: tuple[FinishedRun, Path], model: Path, test_split: tuple[np.ndarray, np.ndarray]
) -> None:
    x, y = test_split
    found = np.mean(_labels(model, x, OpResolverType.AUTO) == y)
    assert demo[0].metric("validate", "accuracy")["value"] == pytest.approx(found, abs=1e-9)


def test_the_drop_from_float_is_at_most_a_point(demo: tuple[FinishedRun, Path]) -> None:
    assert demo[0].metric("validate", "accuracy_drop")["value"] <= 0.01


def test_three_quarters_of_the_weights_are_zero_inside_the_file(demo: tuple[FinishedRun, Path], model: Path) -> None:
    interpreter = Interpreter(str(model), experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    interpreter.allocate_tensors()
    layers = [op for op in interpreter._get_ops_details() if op["op_name"] in ("CONV_2D", "FULLY_CONNECTED")]
    kernels = [interpreter.get_tensor(op["inputs"][1]) for op in layers]
    pruned = kernels[:-1]
    share = sum(int((k == 0).sum()) for k in pruned) / sum(k.size for k in pruned)
    assert len(pruned) == 3
    assert share >= 0.75
    assert demo[0].metric("validate", "sparsity")["value"] == pytest.approx(share)
    everything = sum(int((k == 0).sum()) for k in kernels) / sum(k.size for k in kernels)
    assert demo[0].metric("validate", "sparsity_all_weights")["value"] == pytest.approx(everything)
    assert "in the first 3 of 4 CONV_2D and FULLY_CONNECTED layers" in demo[0].metric("validate", "sparsity")["how"]


def test_every_tensor_is_an_integer(model: Path) -> None:
    interpreter = Interpreter(str(model), experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    interpreter.allocate_tensors()
    assert {np.dtype(t["dtype"]).name for t in interpreter.get_tensor_details()} <= INTEGERS
    assert interpreter.get_input_details()[0]["dtype"] == np.int8
    assert interpreter.get_output_details()[0]["dtype"] == np.int8


def test_three_runtimes_agree_and_the_histogram_is_printed(demo: tuple[FinishedRun, Path]) -> None:
    tables = next(s for s in demo[0].report["stages"] if s["name"] == "validate")["outcome"]["tables"]
    runtimes = {row[0]: row for row in tables[0]["rows"]}
    assert set(runtimes) == {"reference", "xnnpack", "tflite-micro"}
    for row in runtimes.values():
        assert float(row[2].rstrip("%")) >= 99.5
        assert "0: " in row[5]


def test_the_report_fits_its_schema(demo: tuple[FinishedRun, Path]) -> None:
    schema = json.loads((ROOT / "edgepipe" / "render" / "report_schema.json").read_text())
    Draft202012Validator(schema).validate(demo[0].report)


def test_again_everything_is_cached_and_nothing_heavy_is_imported(demo: tuple[FinishedRun, Path]) -> None:
    ended, cache = demo
    arguments = [
        "run",
        str(ROOT / "pipelines" / "digits.yaml"),
        "--output-dir",
        str(ended.folder),
        "--cache-dir",
        str(cache),
    ]
    code = f"""
import sys
sys.argv = ["edgepipe", *{arguments!r}]
from edgepipe.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
loaded_packages = {{name.partition(".")[0] for name in sys.modules}}
print(sorted(loaded_packages & {{"tensorflow", "keras", "tf_keras", "sklearn", "numpy"}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert set(ended.statuses().values()) == {"cached"}


def test_int8_agrees_with_fake_quant(
    demo: tuple[FinishedRun, Path], model: Path, test_split: tuple[np.ndarray, np.ndarray]
) -> None:
    """On digits that nothing has read, in a comparison of its own."""
    from edgepipe.compress.qat.qat_store import restore_model

    x, _ = test_split
    fake = restore_model(demo[0].folder / "artifacts" / "3-quantize")
    labels = fake.predict(x, verbose=0).argmax(axis=1)
    assert np.mean(_labels(model, x, OpResolverType.BUILTIN_REF) == labels) >= 0.99
    convert = next(stage for stage in demo[0].report["stages"] if stage["name"] == "convert")
    (table,) = convert["outcome"]["tables"]
    logits = next(row for row in table["rows"] if row[0] == "probabilities")
    assert logits[table["columns"].index("p99 LSB")] <= 2
    assert {row[-1] for row in table["rows"]} == {""}  # every fake-quantized tensor was compared
