"""The intact files that are damaged, and the commands that are given them: six kinds of input."""

import io
import json
import random
import struct
import wave
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tflite_mutants
import yaml
from fuzz_mutations import damage_bytes, damage_json, damage_tree, damage_zip
from PIL import Image
from tflite_seeds import SEEDS

from edgepipe.core.artifact import Artifact, ArtifactKind, list_files
from edgepipe.core.cache import Cache
from edgepipe.core.cost import Cost
from edgepipe.core.metric import exact_metric
from edgepipe.core.outcome import Outcome, Table
from edgepipe.core.units import Dimension

ROOT = Path(__file__).resolve().parents[2]
PIPELINE = """\
name: p
description: a pipeline
model: {function: "edgepipe.zoo:small_cnn", args: {filters: [4, 6]}}
data: {npz: data.npz, test: 0.25, augment: {noise: 0.1}}
task: classification
seed: 3
stages:
  - train: {epochs: 1, batch_size: 256, optimizer: adam, learning_rate: 0.001}
  - prune: {epochs: 1, sparsity: 0.5, layers: [{match: dense, sparsity: 0.3}]}
  - cluster: {clusters: 16, epochs: 1}
  - quantize: {epochs: 1}
  - convert: {scheme: int8, calibration: percentile, percentile: 99.9}
  - validate: {devices: [host, board.yaml], budget: {accuracy: 90 %, board: {ram: 64 KiB, latency: 20 ms}}}
"""


@dataclass(frozen=True)
class Kind:
    """A kind of input: how a folder is filled with a damaged file of it, and the commands that read it."""

    write: Callable[[Path, random.Random], None]
    commands: tuple[tuple[str, ...], ...]


def write_intact(folder: Path) -> None:
    """The files that no mutant changes."""
    SEEDS[0](folder / "m.tflite")
    x, y = np.random.RandomState(0).rand(40, 8, 8, 1).astype("f4"), np.arange(40) % 4
    np.savez(folder / "data.npz", x=x, y=y)
    text = (ROOT / "devices" / "nucleo-l4r5zi.yaml").read_text()
    (folder / "board.yaml").write_text(text.replace("name: nucleo-l4r5zi", "name: board"))
    (folder / "by-cache.yaml").write_text(
        "name: p\nmodel: {path: m.tflite}\nstages:\n  - validate: {devices: [board.yaml]}\n"
    )
    (folder / "by-model.yaml").write_text("name: p\nmodel: {path: m.keras}\nstages: [convert]\n")
    (folder / "m.keras").write_bytes(keras_file())


def _damage_yaml(text: str, rng: random.Random) -> bytes:
    if rng.random() < 0.35:
        return damage_bytes(text.encode(), rng)
    try:
        tree = damage_tree(yaml.safe_load(text), rng)
        is_json = rng.random() < 0.5
        damaged = json.dumps(tree) if is_json else yaml.safe_dump(tree, allow_unicode=True, width=10**6)
    except (RecursionError, ValueError):  # too deep for the writers
        return damage_bytes(text.encode(), rng)
    return damaged.encode(errors="surrogatepass")


def _pipeline(folder: Path, rng: random.Random) -> None:
    texts = [path.read_text() for path in sorted((ROOT / "pipelines").glob("*.yaml"))]
    (folder / "shipped.yaml").write_bytes(_damage_yaml(rng.choice(texts), rng))
    (folder / "p.yaml").write_bytes(_damage_yaml(PIPELINE, rng))


def _profile(folder: Path, rng: random.Random) -> None:
    path = rng.choice(sorted((ROOT / "devices").rglob("*.yaml")))
    (folder / "board.yaml").write_bytes(
        _damage_yaml(path.read_text().replace(f"name: {path.stem}", "name: board"), rng)
    )


def _tflite(folder: Path, rng: random.Random) -> None:
    rng.choice(SEEDS)(folder / "m.tflite")
    content = (folder / "m.tflite").read_bytes()
    (folder / "m.tflite").write_bytes(tflite_mutants.mutant(content, rng.randrange(2**31)))


def keras_file() -> bytes:
    """A `.keras` file with a dense layer, written without Keras."""
    float32 = {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "float32"}, "registered_name": None}
    common = {"module": "keras.layers", "registered_name": None}
    input_config = {"batch_shape": [None, 8], "dtype": "float32", "name": "x"}
    dense_config = {"name": "dense", "trainable": True, "dtype": float32, "units": 3, "activation": "relu"}
    layers = [
        {**common, "class_name": "InputLayer", "config": input_config},
        {**common, "class_name": "Dense", "config": dense_config, "build_config": {"input_shape": [None, 8]}},
    ]
    model_config = {"name": "m", "trainable": True, "dtype": float32, "layers": layers, "build_input_shape": [None, 8]}
    config = {**common, "module": "keras", "class_name": "Sequential", "config": model_config}
    weights = io.BytesIO()
    with h5py.File(weights, "w") as file:
        file["layers/dense/vars/0"], file["layers/dense/vars/1"] = np.ones((8, 3), "f4"), np.zeros(3, "f4")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.8.0", "date_saved": "2026-01-01"}))
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", weights.getvalue())
    return buffer.getvalue()


def _keras(folder: Path, rng: random.Random) -> None:
    def damage_member(name: str, content: bytes, rng: random.Random) -> bytes:
        return damage_json(content, rng) if name.endswith(".json") else damage_bytes(content, rng)

    (folder / "m.keras").write_bytes(damage_zip(keras_file(), rng, damage_member))


def _dataset(folder: Path, rng: random.Random) -> None:
    rng.choice((_npz, _csv, _images, _audio, _idx))(folder, rng)


def _npz(folder: Path, rng: random.Random) -> None:
    content = (folder / "data.npz").read_bytes()
    damaged = damage_zip(content, rng, lambda _, member, rng: _damage_start(member, 128, rng))
    (folder / "data.npz").write_bytes(damaged)


def _damage_start(content: bytes, length: int, rng: random.Random) -> bytes:
    """Damage where the header is, in most cases."""
    length = length if rng.random() < 0.7 else len(content)
    return damage_bytes(content[:length], rng) + content[length:]


def _csv(folder: Path, rng: random.Random) -> None:
    rows = "".join(f"{i / 7:.3f},{i % 5},{'ab'[i % 2]}\n" for i in range(60))
    (folder / "t.csv").write_bytes(_damage_start(f"x,z,label\n{rows}".encode(), 40, rng))


def _images(folder: Path, rng: random.Random) -> None:
    for name in "ab":
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(6):
            ending = ("png", "jpg", "bmp", "gif")[number % 4]
            path = folder / "photos" / name / f"{number}.{ending}"
            Image.new("RGB", (9, 7), (40 * number, 3, 5)).save(path)
            path.write_bytes(_damage_start(path.read_bytes(), 40, rng) if rng.random() < 0.4 else path.read_bytes())


def _audio(folder: Path, rng: random.Random) -> None:
    for name in "ab":
        (folder / "sounds" / name).mkdir(parents=True)
        for number in range(6):
            buffer = io.BytesIO()
            with wave.open(buffer, "wb") as file:
                file.setnchannels(1 + number % 2)
                file.setsampwidth(2)
                file.setframerate(8000)
                file.writeframes(np.arange(4000, dtype="<i2").tobytes())
            content = _damage_start(buffer.getvalue(), 44, rng) if rng.random() < 0.4 else buffer.getvalue()
            (folder / "sounds" / name / f"{number}.wav").write_bytes(content)


def _idx(folder: Path, rng: random.Random) -> None:
    (folder / "idx").mkdir()
    for split in ("train", "t10k"):
        files = {
            f"{split}-images-idx3-ubyte": struct.pack(">4B3I", 0, 0, 8, 3, 20, 6, 6) + bytes(720),
            f"{split}-labels-idx1-ubyte": struct.pack(">4BI", 0, 0, 8, 1, 20) + bytes(range(4)) * 5,
        }
        for name, content in files.items():
            (folder / "idx" / name).write_bytes(_damage_start(content, 16, rng))


def _cache(folder: Path, rng: random.Random) -> None:
    cache = Cache(folder / "cache")
    metric = exact_metric("size", 5.0, Dimension.BYTES, "counted")
    outcome = Outcome(metrics=(metric,), notes=("a note",), tables=(Table(title="t", columns=("a",), rows=((1,),)),))
    with cache.shared_lock(), cache.workspace() as workspace:
        (workspace / "model.tflite").write_bytes((folder / "m.tflite").read_bytes())
        artifact = Artifact.from_path(ArtifactKind.TFLITE, workspace / "model.tflite")
        cache.store(workspace, "0" * 64, "convert", artifact, outcome, Cost(wall=1.0, cpu=1.0))
    if (folder / "kept").is_dir():  # the entries of the run, whose keys a test cannot know
        for path in (folder / "kept").iterdir():
            path.rename(cache.entries_folder / path.name)
    path = rng.choice(list_files(cache.entries_folder))
    path.write_bytes((damage_json if path.suffix == ".json" else damage_bytes)(path.read_bytes(), rng))
    if rng.random() < 0.2:
        path.unlink()


def _commands(*lines: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(line.split()) for line in lines)


_DATASETS: tuple[Any, ...] = (
    ("data", "{npz: data.npz}"),
    ("data", "{csv: t.csv, label: label}", "--json"),
    ("data", "{images: photos, size: [8, 8]}"),
    ("data", "{images: photos, size: [8, 8], skip_corrupt: true}", "--json"),
    ("data", "{audio: sounds, rate: 8000, seconds: 0.5, features: waveform, skip_corrupt: true}"),
    ("data", "{audio: sounds, rate: 8000, seconds: 0.5, features: waveform}"),
    ("data", "{idx: idx}"),
)
KINDS = {
    "pipeline": Kind(_pipeline, _commands("check shipped.yaml", "check p.yaml --set seed=2", "data p.yaml --json")),
    "profile": Kind(
        _profile,
        _commands(
            "device show ./board.yaml",
            "device show ./board.yaml --json",
            "profile m.tflite --device ./board.yaml --operators",
            "verify m.tflite --device ./board.yaml --json",
        ),
    ),
    "tflite": Kind(
        _tflite,
        _commands(
            "inspect m.tflite",
            "inspect m.tflite --json",
            "profile m.tflite --device ./board.yaml --json",
            "verify m.tflite --integer-only --max size=1KiB",
        ),
    ),
    "keras": Kind(
        _keras,
        _commands(
            "check by-model.yaml",
            "init m.keras -o out/p.yaml",
            "convert m.keras --scheme float32 -o out/o.tflite",
        ),
    ),
    "dataset": Kind(_dataset, _DATASETS),
    "cache": Kind(
        _cache,
        _commands(
            "cache list --cache-dir cache",
            "cache list --cache-dir cache --json",
            "run by-cache.yaml --cache-dir cache --output-dir out",
            "cache clear --cache-dir cache",
        ),
    ),
}
