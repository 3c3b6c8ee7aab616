"""What `check` finds before anything runs, and without TensorFlow: models that the data do not fit, limits that no
number can meet, packages that are missing.
"""

import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from commands import Command
from PIL import Image
from tflite_handmade import Op, T, write

from edgepipe.core.errors import ConfigError, ToolError
from edgepipe.pipeline import preflight, schema


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of several kinds that take grey 8x8 images, and data of every kind."""
    import keras
    import tf_keras
    from tf_keras.src.saving.legacy.hdf5_format import save_model_to_hdf5

    folder = tmp_path_factory.mktemp("preflight")
    for name, library in (("image", keras), ("legacy", tf_keras)):
        inputs = library.Input((8, 8, 1))
        model = library.Model(inputs, library.layers.Dense(3, "softmax")(library.layers.Flatten()(inputs)))
        if library is keras:
            model.save(folder / "image.keras")
        else:
            save_model_to_hdf5(model, str(folder / f"{name}.h5"))
    first, second = keras.Input((4,), name="first"), keras.Input((5,), name="second")
    keras.Model([first, second], keras.layers.Concatenate()([first, second])).save(folder / "two.keras")
    open_input = keras.Input((None, None, 1))
    keras.Model(open_input, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(open_input))).save(
        folder / "open.keras"
    )
    tensors = [T("x", (1, 8, 8, 1), "float32"), T("y", (1, 8, 8, 1), "float32")]
    write(folder / "image.tflite", tensors, [Op("RELU", ("x",), ("y",))], ["x"], ["y"])
    (folder / "saved").mkdir()
    (folder / "saved" / "saved_model.pb").write_bytes(_saved_model((-1, 8, 8, 1), (-1, 3)))
    _write_data(folder)
    return folder


def _write_data(folder: Path) -> None:
    random = np.random.RandomState(0)
    for name, classes, size, mode in (("grey", 3, 8, "L"), ("large", 3, 16, "L"), ("four", 4, 8, "L")):
        for label in range(classes):
            (folder / name / f"c{label}").mkdir(parents=True)
            Image.new(mode, (size, size)).save(folder / name / f"c{label}" / "a.png")
    (folder / "rows.csv").write_text("t;a;b\n1;2;3\n2;3;4\n3;4;5\n")
    np.savez(folder / "image.npz", x=random.rand(9, 8, 8, 1), y=np.arange(9) % 3)
    np.savez(folder / "flat.npz", x=random.rand(9, 64), y=np.arange(9) % 3)
    np.savez(folder / "many.npz", x=random.rand(9, 8, 8, 1), y=np.arange(9))
    (folder / "sounds" / "a").mkdir(parents=True)
    with wave.open(str(folder / "sounds" / "a" / "s.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(bytes(32000))


def _field(number: int, content: bytes | int) -> bytes:
    """One field of a protocol buffer; all lengths here are below 128."""
    if isinstance(content, int):
        return bytes([number << 3]) + _varint(content)
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    number &= 2**64 - 1
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + _varint(number >> 7)


def _saved_model(input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> bytes:
    def port(name: bytes, shape: tuple[int, ...]) -> bytes:
        sizes = b"".join(_field(2, _field(1, size)) for size in shape)
        tensor_info = _field(1, name + b":0") + _field(2, 1) + _field(3, sizes)
        return _field(1, name) + _field(2, tensor_info)

    signature = _field(1, port(b"image", input_shape)) + _field(2, port(b"scores", output_shape))
    return _field(2, _field(5, _field(1, b"serving_default") + _field(2, signature)))


FITS: dict[str, tuple[str, str, str]] = {
    # model, data -> part of the message; empty if they fit
    "images": ("image.keras", "{images: grey, channels: 1, size: [8, 8]}", ""),
    "images without size": ("image.keras", "{images: grey, channels: 1}", ""),
    "images of an open size": ("open.keras", "{images: grey, channels: 1}", ""),
    "an open size that is set": ("{path: open.keras, input_shape: 16x16x1}", "{images: grey, channels: 1}",
                                 "(8, 8, 1) (a.png and `channels: 1`), and the model takes (16, 16, 1)"),
    "colour": ("image.keras", "{images: grey, size: [8, 8]}",
               "channels: 3`), and the model takes (8, 8, 1); write `size: [8, 8]`, `channels: 1`"),
    "another size": ("image.keras", "{images: grey, size: [9, 8], channels: 1}", "(9, 8, 1)"),
    "files of another size": ("legacy.h5", "{images: large, channels: 1}", "(16, 16, 1) (a.png and `channels: 1`)"),
    "one class too many": ("image.keras", "{images: four, channels: 1}", "4 classes, and the model has 3 outputs"),
    "arrays": ("image.keras", "{npz: image.npz}", ""),
    "flat arrays": ("image.keras", "{npz: flat.npz}", "(64) (array 'x'), and the model takes (8, 8, 1)"),
    "labels beyond the outputs": ("legacy.h5", "{npz: many.npz}", "9 classes, and the model has 3 outputs"),
    "one array for two inputs": ("two.keras", "{npz: flat.npz}", "the model takes 2 inputs (first, second)"),
    "sound": ("image.keras", "{audio: sounds}", "(49, 40, 1) (`features: log_mel`), and the model takes (8, 8, 1)"),
    "a waveform": ("image.keras", "{audio: sounds, features: none}", "(16000, 1)"),
    "columns of a table": ("image.keras", "{csv: rows.csv, window: 8}",
                           "(8, 2) (columns a, b of rows.csv), and the model takes (8, 8, 1)"),
    "a .tflite": ("image.tflite", "{images: large, channels: 1}", "(16, 16, 1)"),
    "a SavedModel": ("{path: saved, allow_code: true}", "{images: large, channels: 1}", "(16, 16, 1)"),
    "a SavedModel's outputs": ("{path: saved, allow_code: true}", "{npz: many.npz}", "has 3 outputs"),
    "a SavedModel that fits": ("{path: saved, allow_code: true}", "{npz: image.npz}", ""),
}  # fmt: skip


def _pipeline(folder: Path, model: str, data: str, stages: str = "[convert]") -> Path:
    path = folder / "p.yaml"
    path.write_text(f"name: p\nmodel: {model}\ndata: {data}\ntask: classification\nstages: {stages}\n")
    return path


@pytest.mark.parametrize("name", FITS)
def test_data_and_model(folder: Path, name: str) -> None:
    model, data, message = FITS[name]
    stages = "[validate]" if model.endswith(".tflite") else "[convert]"
    path = _pipeline(folder, model, data, stages)
    if not message:
        schema.load(path)
        return
    with pytest.raises(ConfigError) as raised:
        schema.load(path)
    assert str(raised.value).startswith(f"{path}:3:7: data: ")
    assert message in str(raised.value)


LIMITS: dict[str, tuple[str, str, str]] = {
    # device, limits -> part of the finding; empty if there is none
    "a number that is known": ("nucleo-l4r5zi", "{ram: 64 KiB, flash: 64 KiB, latency: 5 ms}", ""),
    "no latency": ("esp32-s3", "{latency: 5 ms}", "validate, esp32-s3 latency <= 5.00 ms: nothing will tell"),
    "no RAM": ("raspberry-pi-4", "{ram: 64 MiB}", "raspberry-pi-4 ram <= 64.0 MiB: nothing will tell"),
    "no NPU": ("nucleo-l4r5zi", "{npu_operators: 90 %}", "it has no NPU"),
    "optional": ("esp32-s3", "{latency: {max: 5 ms, optional: true}}", ""),
    "other evidence": ("nucleo-l4r5zi", "{latency: {max: 5 ms, evidence: measured}}", "its evidence is 'estimated'"),
    "evidence as it is": ("host", "{latency: {max: 5 ms, evidence: measured}}", ""),
}


@pytest.mark.parametrize("name", LIMITS)
def test_limits(folder: Path, name: str) -> None:
    device, limits, message = LIMITS[name]
    stages = f"[convert, {{validate: {{devices: [{device}], budget: {{{device}: {limits}}}}}}}]"
    findings = preflight.find_early_findings(schema.load(_pipeline(folder, "image.keras", "{npz: image.npz}", stages)))
    assert [finding.rule for finding in findings] == (["limit"] if message else [])
    assert message in "".join(map(str, findings))


PACKAGES = [
    ("librosa", "edgepipe.zoo:small_cnn", "{audio: sounds}", "data", "edgepipe[data]"),
    ("pandas", "edgepipe.zoo:small_cnn", "{csv: rows.csv}", "data", "edgepipe[data]"),
    ("pyarrow", "edgepipe.zoo:small_cnn", "{parquet: '*.parquet'}", "data", "edgepipe[data]"),
    ("aeon", "edgepipe.zoo:small_cnn", "edgepipe.data.recordings:basic_motions", "data", "edgepipe[examples]"),
    ("ethosu", "image.keras", "{npz: image.npz}", "compile", "edgepipe[npu]"),
]


@pytest.mark.parametrize(("module", "model", "data", "user", "remedy"), PACKAGES, ids=[case[0] for case in PACKAGES])
def test_missing_packages(
    folder: Path, monkeypatch: pytest.MonkeyPatch, module: str, model: str, data: str, user: str, remedy: str
) -> None:
    found = preflight.find_spec
    monkeypatch.setattr(preflight, "find_spec", lambda name: None if name == module else found(name))
    (folder / "rows.parquet").touch()
    stages = "[convert, {compile: {device: ethos-u55-128}}]" if user == "compile" else "[convert]"
    pipeline = schema.load(_pipeline(folder, model, data, stages))
    with pytest.raises(ToolError, match=f"^{user}: needs .*not installed: pip install") as raised:
        preflight.require_tools(pipeline)
    assert remedy in str(raised.value)


def test_tflite_micro_is_missing(folder: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    found = preflight.find_spec
    monkeypatch.setattr(preflight, "find_spec", lambda name: None if name == "tflite_micro" else found(name))
    monkeypatch.setattr("edgepipe.tflite.tflm_runtime.missing_reason", lambda: "the package tflite-micro is not here")
    stages = "[convert, {validate: {devices: [nucleo-l4r5zi], budget: {nucleo-l4r5zi: {flash: 64 KiB}}}}]"
    checked = command("check", _pipeline(folder, "image.keras", "{npz: image.npz}", stages))
    assert checked.code == 3
    assert "runs: validate, nucleo-l4r5zi: nothing can be run: the package tflite-micro is not here" in checked.err


def test_check_needs_no_tensorflow(folder: Path, process: Command) -> None:
    checked = process("check", _pipeline(folder, "{path: saved, allow_code: true}", "{images: grey, channels: 1}"))
    assert checked.code == 0, checked.err
    code = (
        "import sys; from edgepipe.pipeline import schema, preflight; "
        "preflight.find_early_findings(schema.load(sys.argv[1])); "
        "assert not {'tensorflow', 'keras', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder / "p.yaml")], check=True)
