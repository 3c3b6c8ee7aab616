"""Schemes of `convert` in whole runs: mixed precision and its recipe, equalization, float .tflite, refusals."""

import json
from pathlib import Path

import hard_models as hm
import pytest

from edgepipe.compress.keras_to_tflite import convert
from edgepipe.models.model_files import save_keras

from .conftest import Workplace

HEAD = (
    "name: tiny\nmodel: {model}\ndata: edgepipe.data:digits\ntask: classification\nallow_chance: true\nseed: 3\n"
    "stages:\n"
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that plain int8 ruins, as Keras file and as float .tflite."""
    folder = tmp_path_factory.mktemp("models")
    save_keras(hm.hard(), folder / "hard.keras")
    (folder / "hard.tflite").write_bytes(convert(hm.hard(), "float32"))
    return folder


def place(folder: Path, model: Path, stages: str) -> Workplace:
    folder.mkdir(exist_ok=True)
    return Workplace(folder, HEAD.format(model=model) + stages)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["keras", "tflite"])
def test_mixed_meets_its_target_and_its_recipe_replays(models: Path, tmp_path: Path, ending: str) -> None:
    model = models / f"hard.{ending}"
    first = place(tmp_path / "a", model, "  - convert: {scheme: mixed, max_drop: 1 point, device: nucleo-l4r5zi}\n")
    done = first.run()
    assert done.code == 0, done.stderr
    assert done.metric("convert", "drop_of_mixed")["value"] <= 0.01
    assert 0 < done.metric("convert", "promoted_layers")["value"] < 8
    (convert_stage,) = (stage for stage in done.report["stages"] if stage["name"] == "convert")
    (recipe,) = convert_stage["files"]
    assert isinstance(json.loads((done.folder / recipe).read_text()), list)
    assert any("is for integers only" in note for note in convert_stage["outcome"]["notes"])
    again = place(tmp_path / "b", model, f"  - convert: {{scheme: recipe, recipe: {done.folder / recipe}}}\n").run()
    assert again.code == 0, again.stderr
    assert again.digests()["convert"] == done.digests()["convert"]
    cached = first.run()
    assert cached.statuses()["convert"] == "cached"
    assert (cached.folder / recipe).exists()


@pytest.mark.slow
def test_an_unreachable_target_ends_with_3_and_the_best_point(models: Path, tmp_path: Path) -> None:
    stages = "  - convert: {scheme: mixed, max_drop: 0 point, device: own.yaml}\n"
    work = place(tmp_path, models / "hard.keras", stages)
    own = "inherit: host\nname: own\ndescription: eight bits only\ndtypes: [int8, uint8, int32]\n"
    (work.folder / "own.yaml").write_text(own)
    done = work.run()
    assert done.code == 3
    assert "no mix of int8 keeps the drop within 0: the best of 1, all in int8, has 0." in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("how", ["data_free", "samples"])
def test_equalized_and_corrected(models: Path, tmp_path: Path, how: str) -> None:
    plain = place(tmp_path / "a", models / "hard.keras", "  - convert\n").run()
    stages = f"  - convert: {{equalize: {how}, bias_correction: {how}}}\n"
    done = place(tmp_path / "b", models / "hard.keras", stages).run()
    assert done.code == 0, done.stderr
    lost, kept = (run.metric("convert", "accuracy")["value"] for run in (plain, done))
    assert kept > lost + 0.1
    titles = [table["title"] for stage in done.report["stages"] for table in stage["outcome"]["tables"]]
    assert [title.split(" (")[0] for title in titles] == ["equalized", "biases corrected"]


@pytest.mark.slow
def test_mixed_goes_on_from_fake_quant(tmp_path: Path) -> None:
    stages = (
        "  - train: {epochs: 2, batch_size: 256}\n"
        "  - quantize: {epochs: 1, batch_size: 256, keep_float_layers: {conv1: null}}\n"
        "  - convert: {scheme: mixed, max_drop: 2 points}\n"
    )
    model = '{function: "edgepipe.zoo:small_cnn", args: {filters: [4, 6]}}'
    done = Workplace(tmp_path, HEAD.replace("{model}", model) + stages).run()
    assert done.code == 0, done.stderr
    notes = next(s for s in done.report["stages"] if s["name"] == "convert")["outcome"]["notes"]
    assert any(note.startswith("layers without trained ranges were tried first: conv1") for note in notes)


REFUSED = [
    (
        "hard.tflite",
        "  - convert: {equalize: data_free}\n",
        "equalize and bias_correction change the weights of a float",
    ),
    (
        "hard.keras",
        "  - convert: {keep_float_types: {Conv3D: null}}\n",
        "keep_float_types: the model has no 'Conv3D'; did you mean 'Conv2D'?",
    ),
    (
        "hard.keras",
        '  - convert: {keep_float_layers: {"d9": null}}\n',
        "keep_float_layers: no layer is called 'd9' (a regular expression)",
    ),
    ("hard.keras", "  - convert: {scheme: recipe, recipe: bad.json}\n", "bad.json: rule 1: has no 'regex'"),
    (
        "hard.tflite",
        "  - convert: {scheme: float32}\n",
        "is a float .tflite already; scheme float32 would",
    ),
    ("int8.tflite", "  - convert\n", "is quantized already: "),
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "stages", "message"), REFUSED)
def test_refused(models: Path, tmp_path: Path, model: str, stages: str, message: str) -> None:
    if model == "int8.tflite" and not (models / model).exists():
        done = place(tmp_path / "q", models / "hard.tflite", "  - convert\n").run()
        (models / model).write_bytes(next((done.folder / "artifacts").glob("*-convert.tflite")).read_bytes())
    work = place(tmp_path / "w", models / model, stages)
    (work.folder / "bad.json").write_text('[{"operation": "*"}]')
    done = work.run()
    assert done.code == 2
    assert message in done.stderr


@pytest.mark.slow
def test_layers_left_in_float_are_named(models: Path, tmp_path: Path) -> None:
    done = place(
        tmp_path,
        models / "hard.keras",
        '  - convert: {keep_float_layers: {"d.": null}, keep_float_types: {SOFTMAX: null}, allow_low_fidelity: true}\n',
    ).run()
    assert done.code == 0, done.stderr
    notes = next(s for s in done.report["stages"] if s["name"] == "convert")["outcome"]["notes"]
    (told,) = (note for note in notes if "compute in float" in note)
    assert told.startswith("4 of ")
    assert told.count("DEPTHWISE_CONV_2D") == 3
