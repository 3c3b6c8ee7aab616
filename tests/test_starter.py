"""`edgepipe init` on real models: the file it writes is meant, passes `check`, and no TensorFlow was loaded."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgepipe
from edgepipe.commands import init as starter
from edgepipe.commands.init import pipeline_text
from edgepipe.core import config
from edgepipe.core.artifact import ArtifactKind
from edgepipe.core.errors import ConfigError, InputError
from edgepipe.pipeline import schema as pipeline

RANDOM = np.random.RandomState(0)
ALL = ["prune", "quantize", "convert", "validate"]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of real model files, saved by Keras 3 and tf_keras, and a .tflite."""
    import keras
    import tensorflow as tf
    import tf_keras

    folder = tmp_path_factory.mktemp("models")
    keras.utils.set_random_seed(0)
    for name, model in _keras_models(keras).items():
        model.save(folder / f"{name}.keras")
    old = tf_keras.Sequential([tf_keras.Input((12,)), tf_keras.layers.Dense(3, name="out")])
    tf_keras.src.saving.legacy.hdf5_format.save_model_to_hdf5(old, str(folder / "old.h5"))
    tf.saved_model.save(tf.Module(), str(folder / "saved"))
    network = keras.saving.load_model(folder / "classes.keras")
    (folder / "float.tflite").write_bytes(_converted(tf, network))
    return folder


def _keras_models(keras: Any) -> dict[str, Any]:
    layers = keras.layers

    class Own(keras.Model):  # type: ignore[misc]
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.dense = layers.Dense(2)

        def call(self, x: Any) -> Any:
            return self.dense(x)

    image, vector = keras.Input((8, 8, 3), name="image"), keras.Input((12,), name="vector")
    own = Own()
    own(np.zeros((1, 4), "float32"))
    flat = layers.Flatten()(image)
    return {
        "classes": keras.Model(image, layers.Dense(10, activation="softmax")(layers.Dense(4, activation="relu")(flat))),
        "logits": keras.Model(image, layers.Dense(10)(flat)),
        "labels": keras.Model(image, layers.Dense(5, activation="sigmoid")(flat)),
        "binary": keras.Model(vector, layers.Dense(1, activation="sigmoid")(vector)),
        "rebuilt": keras.Model(vector, layers.Dense(12, activation="sigmoid")(layers.Dense(3)(vector))),
        "pixels": keras.Model(image, layers.Conv2D(4, 1, activation="softmax")(image)),
        "number": keras.Model(vector, layers.Dense(1)(vector)),
        "two": keras.Model([image, vector], [layers.Dense(2)(flat), layers.Dense(3)(vector)]),
        "lambda": keras.Model(vector, layers.Lambda(lambda x: x * 2, output_shape=(12,))(vector)),
        "odd: name #1, yes": keras.Model(vector, layers.Dense(1, name="odd")(vector)),
        "own": own,
    }


def _converted(tf: Any, model: Any) -> bytes:
    traced = tf.function(lambda x: model(x)).get_concrete_function(tf.TensorSpec((1, 8, 8, 3)))
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    frozen = convert_variables_to_constants_v2(traced)
    data: bytes = tf.lite.TFLiteConverter.from_concrete_functions([frozen], None).convert()
    return data


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    """An .npz whose samples fit the image models."""
    path = tmp_path / "arrays.npz"
    np.savez(path, x=RANDOM.rand(40, 8, 8, 3), y=RANDOM.randint(0, 10, 40))
    return path


VECTOR_MODELS = ("binary", "rebuilt", "number", "lambda", "odd: name #1, yes")


def _fitting(arrays: Path, name: str) -> str:
    """`arrays`, with samples and labels for the model `name`."""
    if name in VECTOR_MODELS:
        np.savez(arrays, x=RANDOM.rand(40, 12), y=np.arange(40) % (2 if name == "binary" else 10))
    return str(arrays)


def _written(model: Path | str, out: Path, **options: Any) -> tuple[Any, pipeline.Pipeline, tuple[str, ...]]:
    """The data of the file, the pipeline that `check` makes of it, and the notes."""
    notes = starter.write(str(model), out, **options)
    document = config.read(out)
    assert not document.problems
    return document.content, pipeline.load(out), notes


ONE_LAYER = ["quantize", "convert", "validate"]  # no layer is left to prune
CASES: dict[str, tuple[Any, list[str]]] = {
    "classes": ("classification", ALL),
    "logits": ("classification", ONE_LAYER),  # the labels in the .npz are integers, one a sample
    "labels": ({"kind": "classification", "labels": "many"}, ONE_LAYER),
    "binary": ("classification", ONE_LAYER),
    "rebuilt": ("reconstruction", ALL),
    "number": ("regression", ONE_LAYER),
    "odd: name #1, yes": ("regression", ONE_LAYER),
    "lambda": ("classification", ["convert", "validate"]),
    "pixels": (None, ["convert", "validate"]),
    "two": (None, ["convert", "validate"]),
}


@pytest.mark.parametrize("name", CASES)
def test_a_keras_file(models: Path, arrays: Path, tmp_path: Path, name: str) -> None:
    if name == "two":
        with pytest.raises(ConfigError, match=r"one array, and the model takes 2 inputs \(image, vector\)"):
            _written(models / "two.keras", tmp_path / "p.yaml", data=str(arrays))
        return
    data, checked, notes = _written(models / f"{name}.keras", tmp_path / "p.yaml", data=_fitting(arrays, name))
    task, stages = CASES[name]
    assert data.get("task") == task
    assert [step.name for step in checked.steps] == ["model", *stages]
    assert data["data"] == {"npz": "arrays.npz", "representative": 200}
    path = data["model"]["path"] if isinstance(data["model"], dict) else data["model"]
    assert (tmp_path / path).samefile(models / f"{name}.keras")
    assert any("task" in note for note in notes)


def test_what_the_file_says_of_a_trained_model(models: Path, arrays: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.yaml"
    data, _, notes = _written(models / "classes.keras", out, data=str(arrays), devices=["nucleo-l4r5zi"])
    stages = {name: options for stage in data["stages"] for name, options in stage.items()}
    assert stages["prune"] == {"sparsity": 0.5, "epochs": 10, "decay": "cosine"}
    assert stages["quantize"] == {"epochs": 5, "decay": "cosine"}
    assert stages["convert"] == {"scheme": "int8"}
    size = -(-(models / "classes.keras").stat().st_size // 1024)
    assert stages["validate"] == {
        "devices": ["nucleo-l4r5zi"], "against": "model", "integer_only": True,
        "budget": {"accuracy_drop": "1 point", "size": f"{size} KiB"},
    }  # fmt: skip
    assert notes == ("the task is a guess: classification (the model ends in a softmax over 10 outputs)",)
    assert "takes 'image' (8, 8, 3)" in out.read_text()


def test_every_device_is_in_the_file(models: Path, arrays: Path, tmp_path: Path) -> None:
    devices = ["nucleo-l4r5zi", "raspberry-pi-4", "ethos-u55-128"]
    data, _, _ = _written(models / "classes.keras", tmp_path / "p.yaml", data=str(arrays), devices=devices)
    assert data["stages"][-1]["validate"]["devices"] == devices
    assert all(f"# {name}: {{" in (tmp_path / "p.yaml").read_text() for name in ("nucleo-l4r5zi", "ethos-u55-128"))


@pytest.mark.parametrize("name", ["classes", "number", "binary"])
@pytest.mark.parametrize("device", ["host", "nucleo-l4r5zi"])
def test_every_commented_option_may_be_used(models: Path, tmp_path: Path, arrays: Path, name: str, device: str) -> None:
    out = tmp_path / "p.yaml"
    starter.write(str(models / f"{name}.keras"), out, data=_fitting(arrays, name), devices=[device])
    text, number = re.subn(r"^( +)# ([\w-]+: \S)", r"\1\2", out.read_text(), flags=re.MULTILINE)
    assert number >= 7, "the comments are gone, or no longer look like options"
    out.write_text(text)
    pipeline.load(out)


def test_paths_are_relative_to_the_file(
    models: Path, arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "boards" / "mine.yaml"
    device.parent.mkdir()
    device.write_text("name: mine\ndescription: a board\ninherit: nucleo-l4r5zi\nsources: [mine]\n")
    monkeypatch.chdir(tmp_path)
    _fitting(arrays, "number")
    data, checked, _ = _written(
        models / "number.keras", Path("deep/er/p.yaml"), data="arrays.npz", devices=["boards/mine.yaml"]
    )
    assert data["data"]["npz"] == "../../arrays.npz"
    assert checked.steps[-1].stage.model_dump()["devices"] == ("../../boards/mine.yaml",)


def test_an_h5_of_tf_keras(models: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x_train=RANDOM.rand(9, 12), y_train=RANDOM.rand(9, 3))
    data, checked, _ = _written(models / "old.h5", tmp_path / "p.yaml", data=str(tmp_path / "d.npz"))
    assert data["task"] == "regression"
    assert checked.source.kind(checked.base_folder) is ArtifactKind.FLOAT
    assert [step.name for step in checked.steps] == ["model", *ONE_LAYER]


def test_a_tflite_needs_no_data(models: Path, tmp_path: Path) -> None:
    data, checked, notes = _written(models / "float.tflite", tmp_path / "p.yaml")
    assert [step.name for step in checked.steps] == ["model", "validate"]
    assert "data" not in data
    assert "task" not in data
    assert "integer_only" not in data["stages"][0]["validate"]  # it is a float model
    assert "quality is not measured" in notes[0]


def test_a_tflite_with_data(models: Path, arrays: Path, tmp_path: Path) -> None:
    data, _, _ = _written(models / "float.tflite", tmp_path / "p.yaml", data=str(arrays))
    assert data["task"] == "classification"
    assert set(data["stages"][0]["validate"]["budget"]) == {"size"}


def test_a_saved_model_can_only_be_converted(models: Path, arrays: Path, tmp_path: Path) -> None:
    data, checked, _ = _written(models / "saved", tmp_path / "p.yaml", data=str(arrays))
    assert data["model"]["allow_code"] is True
    assert [step.name for step in checked.steps] == ["model", "convert", "validate"]
    assert "budget" not in data["stages"][-1]["validate"]  # nothing is known that it could hold


def test_code_inside_is_allowed_aloud(models: Path, arrays: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.yaml"
    data, _, notes = _written(models / "lambda.keras", out, data=_fitting(arrays, "lambda"))
    assert data["model"]["allow_code"] is True
    assert re.search(r"allow_code: true +# it carries code \('lambda(_\d+)?'", out.read_text())
    assert any("carries code" in note and "trust" in note for note in notes)


FUNCTIONS = {
    "edgepipe.zoo:small_cnn": ("classification", ()),
    "edgepipe.zoo:autoencoder": ({"kind": "reconstruction", "metrics": ["mse"]}, ()),
    "mine:soft": ("classification", ("width",)),
    "mine:made": ("regression", ()),
}


@pytest.mark.parametrize("reference", FUNCTIONS)
def test_a_function(tmp_path: Path, reference: str) -> None:
    (tmp_path / "mine.py").write_text(
        "raise RuntimeError('this module must not be imported')\n"
        "def soft(input_shape, width):\n    return Dense(4, activation='softmax')\nmade = soft\n"
    )
    np.savez(tmp_path / "d.npz", x=RANDOM.rand(9, 4))
    data, checked, notes = _written(reference, tmp_path / "p.yaml", data=str(tmp_path / "d.npz"))
    task, missing = FUNCTIONS[reference]
    assert data["task"] == task
    assert data["model"] == reference
    assert [step.name for step in checked.steps] == ["model", "train", *ALL]
    assert any(", ".join(missing) in note and "args" in note for note in notes) is bool(missing)


def test_data_of_each_kind(models: Path, tmp_path: Path) -> None:
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "cat" / "a.png").touch()
    (tmp_path / "load.py").write_text("def arrays(): ...\n")
    idx = tmp_path / "idx"
    idx.mkdir()
    for split in ("train", "t10k"):
        (idx / f"{split}-images-idx3-ubyte").touch()
        (idx / f"{split}-labels-idx1-ubyte").touch()
    expected: dict[str, dict[str, Any]] = {
        "photos": {"images": "photos", "size": [8, 8], "channels": 3, "rescale": "unit"},
        "idx": {"idx": "idx", "rescale": "unit"},
        "load:arrays": {"function": "load:arrays"},
    }
    for data, options in expected.items():
        name = data if ":" in data else str(tmp_path / data)
        found, _, _ = _written(models / "logits.keras", tmp_path / "p.yaml", data=name, force=True)
        assert found["data"] == {**options, "representative": 200}
        assert found["task"] == ("regression" if ":" in data else "classification")


def test_data_that_is_not_there_yet(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.yaml"
    for data, file, said in (
        (None, "data.npz", "fill in `data:`"),
        (str(tmp_path / "later.npz"), "later.npz", "does not exist yet"),
    ):
        notes = starter.write(str(models / "classes.keras"), out, data=data, force=True)
        assert any(said in note for note in notes)
        with pytest.raises(ConfigError, match=f"no such file: .*{file}") as caught:
            pipeline.load(out)
        assert len(caught.value.problems) == 1
        np.savez(tmp_path / file, x=RANDOM.rand(9, 8, 8, 3), y=RANDOM.randint(0, 9, 9))
        pipeline.load(out)


def test_data_that_does_not_fit_is_noted(models: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "flat.npz", x=RANDOM.rand(9, 64), y=RANDOM.randint(0, 9, 9))
    np.savez(tmp_path / "named.npz", windows=RANDOM.rand(9, 8, 8, 3))
    out = tmp_path / "p.yaml"
    notes = starter.write(str(models / "classes.keras"), out, data=str(tmp_path / "flat.npz"))
    assert any("have the shape (64,), but the model takes (8, 8, 3)" in note for note in notes)
    notes = starter.write(str(models / "classes.keras"), out, data=str(tmp_path / "named.npz"), force=True)
    assert any("holds windows" in note for note in notes)
    notes = starter.write(str(models / "two.keras"), out, data=str(tmp_path / "flat.npz"), force=True)
    assert any("the model has 2 inputs" in note for note in notes)


@pytest.mark.parametrize(
    "text",
    ["yes", "true", "null", "~", "1e-3", "7", "a: b", "#x", "- x", "ü 😀", "it's", '"', "back\\slash", "{x}", "a,b"],
)
def test_any_text_is_read_back(text: str) -> None:
    assert config.parse(f"x: {{y: [{pipeline_text.yaml_value(text)}]}}  # {text}\n", "t").content == {
        "x": {"y": [text]}
    }


def test_a_layer_name_stays_inside_its_comment(tmp_path: Path, models: Path) -> None:
    import tf_keras

    inputs = tf_keras.Input((3,), name="a\x07b\nname: other")
    model = tf_keras.Model(inputs, tf_keras.layers.Dense(1)(inputs))
    tf_keras.src.saving.legacy.hdf5_format.save_model_to_hdf5(model, str(tmp_path / "m.h5"))
    data, _, _ = _written(tmp_path / "m.h5", tmp_path / "p.yaml", data="edgepipe.data:digits")
    assert data["name"] == "m"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["classes", "labels", "number", "rebuilt", "lambda", "two"])
def test_the_pipeline_runs(models: Path, tmp_path: Path, name: str) -> None:
    samples = {"classes": (8, 8, 3), "labels": (8, 8, 3), "number": (12,), "rebuilt": (12,), "lambda": (12,), "two": ()}
    truth: dict[str, Any] = {
        "lambda": RANDOM.rand(60, 12),
        "classes": RANDOM.randint(0, 10, 60),
        "labels": RANDOM.randint(0, 2, (60, 5)),
        "number": RANDOM.rand(60),
    }
    arrays = {"x": RANDOM.rand(60, *samples[name])} | ({"y": truth[name]} if name in truth else {})
    np.savez(tmp_path / "d.npz", allow_pickle=False, **arrays)
    (tmp_path / "both.py").write_text(
        "import numpy as np\ndef load():\n    return {'image': np.ones((60, 8, 8, 3)), 'vector': np.eye(60, 12)}\n"
    )
    out = tmp_path / "p.yaml"
    data = "both:load" if name == "two" else str(tmp_path / "d.npz")
    _, checked, _ = _written(models / f"{name}.keras", out, data=data)
    trained = [step.name for step in checked.steps if step.stage.trains]
    report = edgepipe.run(
        out,
        settings={"data.stratify": False, **{f"stages.{stage}.epochs": 1 for stage in trained}},
        output_dir=tmp_path / "run",
        cache_dir=tmp_path / "cache",
    )
    assert [stage.name for stage in report.stages] == [step.name for step in checked.steps]
    # labels are random: nothing is above chance but the autoencoder, which another range of its inputs may suit better
    assert {finding.rule for finding in report.findings} <= {"above-chance", "quality-kept", "preprocessing"}
    assert report.stage("validate").metric("size") is not None


def test_data_without_labels(models: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=RANDOM.rand(9, 12))
    data, checked, notes = _written(models / "number.keras", tmp_path / "p.yaml", data=str(tmp_path / "d.npz"))
    assert "task" not in data
    assert [step.name for step in checked.steps] == ["model", "convert", "validate"]
    assert any("no labels" in note for note in notes)


BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "no such file": ("gone.keras", {}, "gone.keras: no such file or folder; expected a .keras"),
    "subclassed": ("own.keras", {}, "a class of its own.*only its Python code"),
    "no function": ("mine:model", {}, "no module 'mine' beside the pipeline"),
    "unknown device": ("number.keras", {"devices": ["nucleo"]}, "unknown device 'nucleo'"),
    "data of no kind": ("number.keras", {"data": "x.csv"}, r"x.csv: no such file; expected a .npz"),
    "data that is not there": ("number.keras", {"data": "x"}, r"x: no such file or folder; expected a .npz"),
    "data is a file of no kind": ("number.keras", {"data": __file__}, "cannot be read as data; expected a .npz"),
    "no images": ("number.keras", {"data": "."}, r"holds only files that end in .*; expected a \.npz, \.csv"),
    "damaged data": ("number.keras", {"data": "damaged.npz"}, "damaged.npz: a truncated or damaged .npy or .npz file"),
    "there already": ("number.keras", {"out": "there.yaml"}, "there.yaml: exists already; replace it with --force"),
    "a folder": ("number.keras", {"out": "folder"}, "folder: is a folder; name the file"),
    "a name for no text file": ("number.keras", {"data": "a\nb.npz"}, "cannot be written into a text file; rename it"),
    "the model itself": ("number.keras", {"out": "number.keras", "force": True}, "is an input of the pipeline"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("number", "own"):
        Path(f"{name}.keras").symlink_to(models / f"{name}.keras")
    Path("damaged.npz").write_text("no zip")
    Path("there.yaml").write_text("mine")
    model, options, message = BAD[case]
    if case == "a folder":
        Path("folder").mkdir()
    before = {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    with pytest.raises(InputError, match=message):
        starter.write(model, Path(options.get("out", "p.yaml")), **{k: v for k, v in options.items() if k != "out"})
    assert {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == before


def test_init_loads_no_tensorflow(models: Path, arrays: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from edgepipe.commands import init as starter\n"
        f"for model in {[str(models / name) for name in ('classes.keras', 'old.h5', 'float.tflite', 'saved')]}:\n"
        f"    starter.write(model, Path('p.yaml'), data={str(arrays)!r}, force=True)\n"
        "starter.write('edgepipe.zoo:small_cnn', Path('p.yaml'), data='edgepipe.data:digits', force=True)\n"
        "print({'tensorflow', 'keras', 'tf_keras', 'sklearn'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "set()"


def test_the_command(models: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgepipe", "init", str(models / "binary.keras")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "wrote pipeline.yaml\n"
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["note", "note"]
    again = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert again.returncode == 2
    assert "exists already" in again.stderr
