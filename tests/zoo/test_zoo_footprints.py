"""The footprints that ship, counted again; published counts; every architecture in integers only."""

import functools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from commands import Command

from edgepipe import zoo
from edgepipe.commands import footprint
from edgepipe.compress.keras_to_tflite import convert, convert_keras
from edgepipe.compress.qat import bias_limits, range_initialization
from edgepipe.compress.qat.fake_quant import QatRecipe, build_fake_quant
from edgepipe.compress.quantizer.quantization import QuantizationRequest
from edgepipe.core.errors import InputError
from edgepipe.models.bridge import bridge
from edgepipe.models.perturb import perturb
from edgepipe.tflite import tflm_runtime
from edgepipe.tflite.integer_check import check_integer_only
from edgepipe.tflite.interpreter import predict
from edgepipe.tflite.reader import read
from edgepipe.training.training_loop import set_seeds
from edgepipe.zoo import published_footprints

ROOT = Path(__file__).resolve().parents[2]


def stored_footprint(name: str, shape: tuple[int, ...], **options: Any) -> dict[str, Any]:
    """The one entry of that architecture and input, with at least these options."""
    (found,) = [
        entry
        for entry in published_footprints.read_footprints()["footprints"]
        if (entry["name"], tuple(entry["input"])) == (name, shape) and options.items() <= entry["options"].items()
        and bool(options) == bool(entry["options"])
    ]  # fmt: skip
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape", "classes", "options"),
    [
        case
        for case in published_footprints.FOOTPRINT_CASES
        if case[1] in ((8, 8, 1), (96, 96, 3), (32, 32, 3), (640,), (29, 12))
    ],
)
def test_counted_again(name: str, shape: tuple[int, ...], classes: int | None, options: dict[str, Any]) -> None:
    found = footprint.measure_footprint(name, shape, classes, options)
    entry = stored_footprint(name, shape, **options)
    assert {m.name: m.value for m in found.metrics} == {k: entry[k] for k in ("parameters", "macs", "flash", "ram")}
    evidence = {"parameters": "exact", "macs": "exact", "flash": "exact", "ram": "simulated"}
    assert {m.name: str(m.evidence) for m in found.metrics} == evidence


def test_every_number_is_there() -> None:
    entries = published_footprints.read_footprints()["footprints"]
    assert {entry["name"] for entry in entries} == set(published_footprints.PAPER_BY_ARCHITECTURE) == set(zoo.__all__)
    assert [entry for entry in entries if None in (entry["flash"], entry["ram"])] == []
    assert [(e["name"], tuple(e["input"]), e["classes"], e["options"]) for e in entries] == list(
        published_footprints.FOOTPRINT_CASES
    )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape"), [("temporal_cnn", (29, 12)), ("attention", (8, 8, 1))])
def test_a_trained_model_is_as_large(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    """What is told before training is what comes out of it, to the byte."""
    entry = stored_footprint(name, shape)
    set_seeds(2)
    model = getattr(zoo, name)(input_shape=shape, classes=entry["classes"])
    random = np.random.RandomState(0)
    y = random.randint(0, entry["classes"], 32)
    x = (random.rand(32, *shape) + y.reshape(-1, *[1] * len(shape)) / 4).astype("float32")
    model.compile("adam", "sparse_categorical_crossentropy", run_eagerly=True)
    model.fit(x, y, epochs=1, verbose=0)
    path = tmp_path / "trained.tflite"
    path.write_bytes(convert(model, scheme="int8", samples=x[:8], input_type="int8", output_type="int8"))
    assert (path.stat().st_size, tflm_runtime.measure_arena(path).value) == (entry["flash"], entry["ram"])


PUBLISHED = [  # architecture, input, options, what, the published count, how near (a paper gives two or three digits)
    ("mobilenet_v1", (224, 224, 3), {"alpha": 1.0}, "parameters", 4_253_864, 0),  # keras.applications
    ("mobilenet_v1", (224, 224, 3), {"alpha": 1.0}, "macs", 569e6, 0.001),  # table 8 of the paper
    ("mobilenet_v1", (224, 224, 3), {"alpha": 0.25}, "macs", 41e6, 0.02),  # table 6
    ("mobilenet_v1", (96, 96, 3), {"alpha": 0.25}, "macs", 7.5e6, 0.01),  # MLPerf Tiny
    ("mobilenet_v2", (224, 224, 3), {"alpha": 1.0}, "parameters", 3_538_984, 0),  # keras.applications
    ("mobilenet_v2", (224, 224, 3), {"alpha": 1.0}, "macs", 300e6, 0.01),  # table 4
    ("resnet8", (32, 32, 3), {}, "parameters", 78_666, 0),  # MLPerf Tiny
    ("resnet8", (32, 32, 3), {}, "macs", 12.5e6, 0.001),
    ("autoencoder", (640,), {"batch_norm": True}, "parameters", 269_992, 0),  # MLPerf Tiny
    ("ds_cnn", (49, 10, 1), {}, "parameters", 24_908 - 5 * 64 - 4 * 64, 0),  # MLPerf Tiny, less its idle biases
]


@pytest.mark.parametrize(("name", "shape", "options", "what", "count", "near"), PUBLISHED)
def test_published_counts(
    name: str, shape: tuple[int, ...], options: dict[str, Any], what: str, count: float, near: float
) -> None:
    assert stored_footprint(name, shape, **options)[what] == pytest.approx(count, rel=near, abs=0)


HELLO_EDGE = [("small", 38.6, 5.4), ("medium", 189.2, 19.8), ("large", 497.6, 56.9)]  # KB and million operations


@pytest.mark.parametrize(("size", "kilobytes", "operations"), HELLO_EDGE)
def test_ds_cnn_in_the_sizes_of_its_paper(size: str, kilobytes: float, operations: float) -> None:
    """The paper counts two operations a MAC, and as memory all 8-bit weights with a layer's inputs and outputs."""
    entry = stored_footprint("ds_cnn", (49, 10, 1), **({} if size == "small" else {"size": size}))
    assert 2 * entry["macs"] == pytest.approx(operations * 1e6, rel=0.02)
    model = zoo.ds_cnn(input_shape=(49, 10, 1), classes=12, size=size)
    weights = sum(int(np.prod(w.shape)) for w in model.weights if "kernel" in w.path)
    largest = max(
        int(np.prod(layer.input.shape[1:])) + int(np.prod(layer.output.shape[1:]))
        for layer in model.layers
        if isinstance(layer, (keras.layers.Conv2D, keras.layers.DepthwiseConv2D))
    )
    assert weights + largest == pytest.approx(kilobytes * 1000, rel=0.02)


SAME = [("mobilenet_v1", "MobileNet", 0.25, 64), ("mobilenet_v1", "MobileNet", 0.5, 96),
        ("mobilenet_v2", "MobileNetV2", 0.35, 64), ("mobilenet_v2", "MobileNetV2", 0.5, 65)]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("own", "theirs", "alpha", "side"), SAME)
def test_outputs_equal_those_of_keras_applications(own: str, theirs: str, alpha: float, side: int) -> None:
    """On perturbed weights, as fresh ones give all classes alike; even sides, as V1 there pads odd ones on one end."""
    shape = (side, side, 3)
    mine = getattr(zoo, own)(input_shape=shape, classes=7, alpha=alpha)
    other = getattr(keras.applications, theirs)(weights=None, input_shape=shape, classes=7, alpha=alpha)
    assert mine.count_params() == other.count_params()
    perturb(other)
    mine.set_weights([w.reshape(v.shape) for w, v in zip(other.get_weights(), mine.get_weights(), strict=True)])
    x = np.random.RandomState(0).rand(2, *shape).astype("float32")
    outputs = np.asarray(other(x))
    assert np.ptp(outputs) > 0.005
    np.testing.assert_allclose(mine(x), outputs, atol=1e-6)


TRAINABLE: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
    ("small_cnn", (8, 8, 1), {}), ("ds_cnn", (49, 10, 1), {}), ("mobilenet_v1", (32, 32, 3), {}),
    ("mobilenet_v2", (32, 32, 1), {}), ("resnet8", (32, 32, 3), {}),
    ("temporal_cnn", (64, 1), {"blocks": 2, "dilated": True, "causal": True}), ("attention", (49, 10, 1), {"heads": 4}),
    ("attention", (100, 6), {}), ("autoencoder", (640,), {"batch_norm": True}), ("autoencoder", (8, 8, 1), {}),
]  # fmt: skip
CLASSIFIERS = {name: shape for name, shape, _ in reversed(TRAINABLE) if name != "autoencoder"}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape", "options"), TRAINABLE)
def test_integers_only_by_training(name: str, shape: tuple[int, ...], options: dict[str, Any], tmp_path: Path) -> None:
    """Every range of the fake-quant model is one of the int8 model, which agrees. By calibration: test_schemes.py."""
    model = getattr(zoo, name)(input_shape=shape, **options, **({} if name == "autoencoder" else {"classes": 4}))
    perturb(model)
    x = np.random.RandomState(0).rand(24, *shape).astype("float32")
    trained = build_fake_quant(bridge(model).model, QatRecipe(), x[:2])
    range_initialization.initialize_ranges(trained.model, x, 1, use_batch_statistics=True)
    bias_limits.round_biases(trained.model)
    assert [entry for entry in trained.layer_coverages if entry.quantized_by != "training"] == []
    path = tmp_path / "trained.tflite"
    quantized_model = convert_keras(trained.model, QuantizationRequest("int8", "int8", "int8"), x, x[:4])
    path.write_bytes(quantized_model.content)
    assert check_integer_only(read(path)) == []
    wanted = np.asarray(trained.model(x))
    got = np.asarray(predict(path, x).real_values).reshape(wanted.shape)
    assert np.abs(got - wanted).mean() < 0.03 * max(1.0, float(np.abs(wanted).max()))
    assert quantized_model.agreement is not None
    tensors = quantized_model.agreement.tensors
    assert [entry for entry in tensors if entry.missing_reason] == []
    assert tensors[-1].p99_lsb <= 4


@pytest.mark.parametrize("name", sorted(CLASSIFIERS.keys() - {"small_cnn", "ds_cnn"}))
def test_names_are_its_own(name: str) -> None:
    build = functools.partial(getattr(zoo, name), input_shape=CLASSIFIERS[name], classes=3)
    first, second = ([layer.name for layer in build().layers] for _ in "ab")
    assert first == second
    assert len(set(first)) == len(first)


IMAGES = [(8, 8, 1), (3, 40, 1), (49, 10, 3)]
WINDOWS = [(1, 1), (2, 3), (7, 1), (128, 9)]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CLASSIFIERS))
def test_inputs_of_any_size(name: str) -> None:
    shapes = {"temporal_cnn": WINDOWS, "attention": [*WINDOWS, *IMAGES]}.get(name, IMAGES)
    for shape in shapes:
        model = getattr(zoo, name)(input_shape=shape, classes=3)
        np.testing.assert_allclose(np.asarray(model(np.ones((2, *shape), "f4"))).sum(axis=1), 1, rtol=1e-5)


def test_a_causal_model_does_not_see_what_comes() -> None:
    x = np.random.RandomState(0).rand(1, 40, 2).astype("float32")
    changed = x.copy()
    changed[:, 25:] += 1
    for causal in (True, False):
        model = zoo.temporal_cnn(input_shape=(40, 2), classes=3, dilated=True, causal=causal)
        perturb(model)
        steps = keras.Model(model.input, model.get_layer("block3_relu").output)
        differs = np.abs(np.asarray(steps(x)) - np.asarray(steps(changed)))[0, :, 0].max(axis=1) > 0
        assert differs[25:].all()
        assert differs[:25].any() != causal


def test_dilation_reaches_as_far_as_it_says() -> None:
    """Steps are 1, 1, 2 and 4 apart with a kernel of 5: 4 (1 + 1 + 2 + 4) + 1 = 33 steps."""
    x = np.random.RandomState(0).rand(1, 64, 1).astype("float32")
    model = zoo.temporal_cnn(input_shape=(64, 1), classes=3, dilated=True, causal=True)
    perturb(model)
    steps = keras.Model(model.input, model.get_layer("block3_relu").output)
    changed = x.copy()
    changed[:, 10] += 100
    seen = np.flatnonzero(np.abs(np.asarray(steps(x)) - np.asarray(steps(changed)))[0, :, 0].max(axis=1))
    assert (seen.min(), seen.max()) == (10, 42)


IMAGE: dict[str, Any] = {"input_shape": (8, 8, 1), "classes": 3}
WINDOW: dict[str, Any] = {"input_shape": (8, 3), "classes": 3}
NUMBER, LIST = "is an integer from 1 to 4,096, found ", "is a list of integers from 1 to 4,096, found "
WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("small_cnn", {**IMAGE, "filters": []}, f"filters {LIST}[]"),
    ("small_cnn", {**IMAGE, "filters": [8, 0]}, f"filters {LIST}[8, 0]"),
    ("small_cnn", {**IMAGE, "filters": 8}, f"filters {LIST}8"),
    ("ds_cnn", {**IMAGE, "filters": 0}, f"filters {NUMBER}0"),
    ("ds_cnn", {**IMAGE, "filters": "many"}, f"filters {NUMBER}'many'"),
    ("ds_cnn", {**IMAGE, "blocks": 101}, "blocks is an integer from 1 to 100, found 101"),
    ("ds_cnn", {**IMAGE, "dropout": 1.0}, "dropout is a share of at least 0 and below 1, found 1.0"),
    ("ds_cnn", {**IMAGE, "classes": "ten"}, "a classifier needs at least 2 classes, found 'ten'"),
    ("ds_cnn", {**IMAGE, "classes": True}, "needs at least 2 classes, found True"),
    ("ds_cnn", {**IMAGE, "classes": 10**9}, "a classifier has at most 100,000 classes here, found 1,000,000,000"),
    ("ds_cnn", {**IMAGE, "size": "smal"}, "size cannot be 'smal'; did you mean 'small'?"),
    ("mobilenet_v1", {**IMAGE, "alpha": 0}, "alpha multiplies the widths; it is above 0 and at most 4, found 0"),
    ("mobilenet_v1", {**IMAGE, "alpha": 100}, "at most 4, found 100"),
    ("mobilenet_v2", {**IMAGE, "alpha": float("nan")}, "at most 4, found nan"),
    ("mobilenet_v2", {**IMAGE, "alpha": True}, "at most 4, found True"),
    ("mobilenet_v2", {"input_shape": (32, 32), "classes": 3}, "takes images (height, width, channels), found samples"),
    ("mobilenet_v1", {"input_shape": (9999, 9999, 3), "classes": 3}, "a sample has at most 16,777,216 values here"),
    ("resnet8", {**IMAGE, "classes": 1}, "at least 2 classes"),
    ("resnet8", {**IMAGE, "filters": 1.5}, f"filters {NUMBER}1.5"),
    ("temporal_cnn", IMAGE, "takes windows (time, channels), found samples of shape (8, 8, 1)"),
    ("temporal_cnn", {"input_shape": "29x12", "classes": 3}, "input_shape is the shape of one sample, such as"),
    ("temporal_cnn", {**WINDOW, "kernel": 0}, f"kernel {NUMBER}0"),
    ("temporal_cnn", {**WINDOW, "causal": 1}, "causal is true or false, found 1"),
    ("attention", {**WINDOW, "width": 30, "heads": 4}, "a multiple of heads, found width 30 and heads 4; try width 32"),
    ("attention", {"input_shape": (8,), "classes": 3}, "takes images (height, width, channels) or windows"),
    ("attention", {"input_shape": (None, 3), "classes": 3}, "all sides of at least 1, found samples of shape (None, 3"),
    ("autoencoder", {"input_shape": ()}, "takes samples with at least one value, found samples of shape ()"),
    ("autoencoder", {"input_shape": (8,), "widths": [0]}, f"widths {LIST}[0]"),
    ("autoencoder", {"input_shape": (8,), "batch_norm": "yes"}, "batch_norm is true or false, found 'yes'"),
    ("autoencoder", {"input_shape": (1_000_000,)}, "a sample has at most 262,144 values here, found 1,000,000"),
]


@pytest.mark.parametrize(("name", "given", "message"), WRONG)
def test_refused(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        getattr(zoo, name)(**given)


def test_arguments_are_refused_before_tensorflow_is_loaded() -> None:
    code = "import sys, edgepipe.zoo\nfrom edgepipe.core.errors import InputError\n"
    code += "for name in edgepipe.zoo.__all__:\n    try: getattr(edgepipe.zoo, name)(input_shape=(0,), "
    code += "**({} if name == 'autoencoder' else {'classes': 2}))\n    except InputError: pass\n"
    code += "print([m for m in ('tensorflow', 'keras') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


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
        (("ds_cnn", "--input", "49,10,1"), "--input '49,10,1' is not a shape"),
        (("ds_cnn", "--input", "49x10x1", "--set", "filtres=3"), "ds_cnn has no option 'filtres'; did you mean"),
        (("--set", "alpha=1"), "--input, --classes, --set and --device go together"),
        (("ds_cnn", "--classes", "3"), "--input, --classes, --set and --device go together"),
        (("autoencoder", "--input", "8", "--classes", "3"), "autoencoder is not a classifier"),
        (("ds_cnn", "--input", "49x10x1", "--set", "filters"), "is not of the form option=value"),
        (
            ("ds_cnn", "--input", "49x10x1", "--set", "filters=many"),
            "filters is an integer from 1 to 4,096, found 'many'",
        ),
    ],
)
def test_commands_refused(words: tuple[str, ...], message: str, command: Command) -> None:
    done = command("zoo", *words)
    assert (done.code, done.out) == (2, "")
    assert message in done.err


def test_one_for_an_input_of_the_users(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = ("temporal_cnn", "--input", "64x3", "--classes", "5", "--set", "blocks=2")
    done = command("zoo", *words, "--device", "nucleo-l4r5zi", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
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
  - train: {epochs: 8, decay: cosine, learning_rate: 0.003, batch_size: 64}
  - quantize: {epochs: 1, decay: cosine, learning_rate: 0.0003, batch_size: 64}
  - convert
  - validate: {devices: [host], integer_only: true, budget: {accuracy: 94 %, accuracy_drop: 1 point}}
"""


@pytest.mark.slow
def test_attention_loses_at_most_a_point(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "attention.yaml").write_text(ATTENTION)
    monkeypatch.chdir(tmp_path)
    done = command("run", "attention.yaml", "--output-dir", "out", "--cache-dir", "cache")
    assert done.code == 0, done.out + done.err


def test_unknown_architecture() -> None:
    with pytest.raises(InputError, match="no architecture 'resnet'"):
        footprint.measure_footprint("resnet", (8, 8, 1), 2, {})
