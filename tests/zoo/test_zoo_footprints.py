"""The footprints that ship, counted again; published counts; every architecture in integers only."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from edgepipe import footprint, zoo
from edgepipe.compress.convert import convert
from edgepipe.compress.qat import biases, ranges
from edgepipe.compress.qat.fake_quant import Recipe, fake_quant
from edgepipe.errors import InputError
from edgepipe.models.bridge import bridge
from edgepipe.tflite.graph import read
from edgepipe.tflite.integer import findings
from edgepipe.tflite.interpreter import predict
from edgepipe.training.fit import seeded
from edgepipe.zoo import known

ROOT = Path(__file__).resolve().parents[2]


def stored(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return next(e for e in known.counted()["footprints"] if e["name"] == name and tuple(e["input"]) == shape)


@pytest.mark.parametrize(
    "case", [c for c in known.COUNTED if c[1] not in ((224, 224, 3), (49, 40, 1))], ids=lambda c: f"{c[0]}-{c[1]}"
)
def test_counted_again(case: tuple[str, tuple[int, ...], int, dict[str, Any]]) -> None:
    name, shape, classes, options = case
    found = footprint.of(name, shape, classes or 2, options)
    entry = stored(name, shape)
    assert {m.name: m.value for m in found.metrics} == {k: entry[k] for k in ("parameters", "macs", "flash", "ram")}
    assert {m.name: str(m.evidence) for m in found.metrics} == {
        "parameters": "exact", "macs": "exact", "flash": "exact",
        "ram": "simulated" if entry["ram"] is not None else "unavailable",
    }  # fmt: skip


def test_published_counts() -> None:
    assert stored("mobilenet_v1", (224, 224, 3))["parameters"] == 4_253_864
    assert stored("mobilenet_v1", (224, 224, 3))["macs"] == 568_740_352  # the paper: 569 M
    assert stored("mobilenet_v2", (224, 224, 3))["parameters"] == 3_538_984
    assert stored("mobilenet_v2", (224, 224, 3))["macs"] == pytest.approx(300e6, rel=0.01)  # the paper
    assert stored("resnet8", (32, 32, 3))["parameters"] == 78_666  # MLPerf Tiny's model
    assert stored("resnet8", (32, 32, 3))["macs"] == pytest.approx(12.5e6, rel=0.01)
    assert stored("autoencoder", (640,))["parameters"] == 269_992  # MLPerf Tiny's model
    assert {entry["name"] for entry in known.counted()["footprints"]} == set(known.PAPERS) == set(zoo.__all__)


@pytest.mark.parametrize(
    ("own", "theirs", "alpha"), [("mobilenet_v1", "MobileNet", 0.5), ("mobilenet_v2", "MobileNetV2", 0.35)]
)
def test_outputs_equal_those_of_keras_applications(own: str, theirs: str, alpha: float) -> None:
    """Even sizes are padded on the other side there, so the sides are odd here; weights are copied."""
    shape = (65, 65, 3)
    mine = getattr(zoo, own)(input_shape=shape, classes=7, alpha=alpha)
    other = getattr(keras.applications, theirs)(weights=None, input_shape=shape, classes=7, alpha=alpha)
    mine.set_weights([w.reshape(v.shape) for w, v in zip(other.get_weights(), mine.get_weights(), strict=True)])
    x = np.random.RandomState(0).rand(2, *shape).astype("float32")
    np.testing.assert_allclose(mine(x), np.asarray(other(x)), atol=1e-5)


SMALL: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
    ("small_cnn", (8, 8, 1), {}), ("ds_cnn", (49, 10, 1), {}), ("mobilenet_v1", (32, 32, 3), {}),
    ("mobilenet_v2", (32, 32, 1), {}), ("resnet8", (32, 32, 3), {}), ("temporal_cnn", (100, 6), {}),
    ("temporal_cnn", (29, 12), {"blocks": 2, "kernel": 3}), ("attention", (28, 28, 1), {}),
    ("attention", (49, 10, 1), {"heads": 4}), ("attention", (100, 6), {}),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape", "options"), [*SMALL, ("autoencoder", (640,), {"batch_norm": True})])
def test_integers_only(name: str, shape: tuple[int, ...], options: dict[str, Any], tmp_path: Path) -> None:
    """By calibration and by training; the fake-quant model and the int8 model agree."""
    seeded(1)
    model = getattr(zoo, name)(input_shape=shape, **options, **({} if name == "autoencoder" else {"classes": 4}))
    x = np.random.RandomState(0).rand(24, *shape).astype("float32")
    made = fake_quant(bridge(model).model, Recipe(), x[:2])
    ranges.initialise(made.model, x, 1, batch_statistics=True)
    biases.settle(made.model)
    assert [entry for entry in made.coverage if entry.by != "training"] == []
    for title, source in (("calibrated", model), ("trained", made.model)):
        path = tmp_path / f"{title}.tflite"
        path.write_bytes(convert(source, scheme="int8", samples=x, input_type="int8", output_type="int8"))
        assert findings(read(path)) == []
        wanted = np.asarray(source.predict(x, verbose=0))
        got = np.asarray(predict(path, x).values).reshape(wanted.shape)
        assert np.abs(got - wanted).mean() < 0.03 * max(1.0, float(np.abs(wanted).max()))


@pytest.mark.parametrize("name", [name for name, _, _ in SMALL if name not in ("small_cnn", "ds_cnn")])
def test_names_are_its_own(name: str) -> None:
    shape = next(shape for n, shape, _ in SMALL if n == name)
    first, second = ([layer.name for layer in getattr(zoo, name)(input_shape=shape, classes=3).layers] for _ in "ab")
    assert first == second
    assert len(set(first)) == len(first)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (7, 1), (128, 9)])
def test_windows_of_any_size(shape: tuple[int, ...]) -> None:
    for name in ("temporal_cnn", "attention"):
        model = getattr(zoo, name)(input_shape=shape, classes=3)
        np.testing.assert_allclose(np.asarray(model(np.ones((2, *shape), "f4"))).sum(axis=1), 1, rtol=1e-5)


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("mobilenet_v1", {"input_shape": (32, 32, 3), "classes": 3, "alpha": 0}, "alpha must be above zero, found 0"),
    ("mobilenet_v2", {"input_shape": (32, 32), "classes": 3}, "takes images"),
    ("resnet8", {"input_shape": (32, 32, 3), "classes": 1}, "at least 2 classes"),
    (
        "temporal_cnn",
        {"input_shape": (8, 8, 1), "classes": 3},
        r"takes windows \(time, channels\), found .*\(8, 8, 1\)",
    ),
    ("temporal_cnn", {"input_shape": (8, 3), "classes": 3, "kernel": 0}, "kernel must be above zero"),
    ("attention", {"input_shape": (8, 3), "classes": 3, "width": 30, "heads": 4}, "multiple of heads, found 30 and 4"),
    ("attention", {"input_shape": (8,), "classes": 3}, "takes images"),
]


@pytest.mark.parametrize(("name", "given", "message"), WRONG)
def test_refused(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        getattr(zoo, name)(**given)


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "edgepipe", "zoo", *words], capture_output=True, text=True, cwd=ROOT)


def test_the_list_loads_no_tensorflow() -> None:
    code = "import sys; sys.argv = ['edgepipe', 'zoo', '--json']; from edgepipe.cli import main; "
    code += "import atexit; atexit.register(lambda: print([m for m in ('tensorflow', 'keras') if m in sys.modules])); "
    code += "main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip().endswith("[]")
    assert json.loads(done.stdout.strip().removesuffix("[]"))["architectures"].keys() == set(zoo.__all__)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("ds_cn",), "no architecture 'ds_cn'; did you mean 'ds_cnn'?"),
        (("ds_cnn", "--input", "49,10,1"), "--input '49,10,1' is no shape"),
        (("ds_cnn", "--input", "49x10x1", "--set", "filtres=3"), "ds_cnn has no option 'filtres'; did you mean"),
        (("--set", "alpha=1"), "are for one architecture"),
        (("ds_cnn", "--input", "49x10x1", "--set", "filters"), "is not of the form option=value"),
        (("ds_cnn", "--input", "49x10x1", "--set", "filters=many"), "ds_cnn cannot be built with"),
    ],
)
def test_commands_refused(words: tuple[str, ...], message: str) -> None:
    done = command(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_one_for_an_input_of_the_users(tmp_path: Path) -> None:
    done = command("temporal_cnn", "--input", "64x3", "--classes", "5", "--device", "nucleo-l4r5zi", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["schema"] == "edgepipe.zoo/1"
    assert {m["name"] for m in found["devices"][0]["metrics"]} >= {"ram", "flash", "latency"}


def test_the_page_has_the_stored_table() -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import footprints
    finally:
        sys.path.pop(0)
    assert footprints.page(footprints.PAGE.read_text()) == footprints.PAGE.read_text()


ATTENTION = """\
name: attention
model: edgepipe.zoo:attention
data: edgepipe.data:digits
task: classification
seed: 1
stages:
  - train: {epochs: 25, decay: cosine}
  - quantize: {epochs: 4, decay: cosine, learning_rate: 0.0003}
  - convert
  - validate: {devices: [host], integer_only: true, budget: {accuracy: 94 %, accuracy_drop: 1 point}}
"""


@pytest.mark.slow
def test_attention_loses_at_most_a_point(tmp_path: Path) -> None:
    (tmp_path / "attention.yaml").write_text(ATTENTION)
    words = ["run", "attention.yaml", "--output-dir", "out", "--cache-dir", "cache"]
    done = subprocess.run([sys.executable, "-m", "edgepipe", *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_unknown_architecture() -> None:
    with pytest.raises(InputError, match="no architecture 'resnet'"):
        footprint.of("resnet", (8, 8, 1), 2, {})
