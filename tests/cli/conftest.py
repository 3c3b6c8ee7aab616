"""Models for the command line: written by hand for what only reads them, and one made by Keras for `convert`."""

from pathlib import Path

import numpy as np
import pytest
import tflite_handmade as made


def _dense(path: Path, dtype: str) -> None:
    """y = w x + b with 4 inputs and 3 outputs, int8 or float32."""
    from ai_edge_litert import schema_py_generated as schema

    scale = {"scales": (0.5,), "zero_points": (0,)} if dtype == "int8" else {}
    sums = {"dtype": "int32", "scales": (0.25,)} if dtype == "int8" else {"dtype": dtype}
    tensors = [
        made.T("x", (1, 4), dtype, **scale),
        made.T("w", (3, 4), dtype, data=np.arange(12, dtype=dtype).reshape(3, 4), **scale),
        made.T("b", (3,), data=np.zeros(3, sums["dtype"]), **sums),
        made.T("y", (1, 3), dtype, **scale),
    ]
    options = schema.FullyConnectedOptionsT()
    made.write(path, tensors, [made.Op("FULLY_CONNECTED", ("x", "w", "b"), ("y",), options)], ["x"], ["y"])


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with int8.tflite and float.tflite, and with files that are none."""
    folder = tmp_path_factory.mktemp("models")
    _dense(folder / "int8.tflite", "int8")
    _dense(folder / "float.tflite", "float32")
    whole = (folder / "int8.tflite").read_bytes()
    (folder / "truncated.tflite").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.tflite").touch()
    (folder / "garbage.tflite").write_bytes(b"hello world, hello")
    (folder / "damaged.tflite").write_bytes(b"XXXXTFL3" + b"0" * 500)
    (folder / "folder.tflite").mkdir()
    return folder


@pytest.fixture(scope="session")
def keras_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small Keras 3 model and representative samples of every kind, good and bad."""
    import keras

    folder = tmp_path_factory.mktemp("keras")
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Conv2D(4, 3, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(3, activation="softmax"),
    ]
    keras.Sequential([keras.Input((8, 8, 1)), *layers]).save(folder / "m.keras")
    x = np.random.RandomState(0).rand(20, 8, 8, 1).astype(np.float32)
    np.save(folder / "x.npy", x)
    for name, arrays in {
        "x": {"x": x, "y": np.zeros(20)},
        "pixels": {"x": (x * 255).astype(np.uint8)},
        "nan": {"x": np.full_like(x, np.nan)},
        "zero": {"x": x[:0]},
        "flat": {"x": x.reshape(20, 64)},
        "labels": {"y": np.zeros(20)},
        "text": {"x": np.array(["a"])},
        "named": {"a": x, "b": x},
    }.items():
        np.savez(folder / f"{name}.npz", **arrays)
    np.save(folder / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    whole = (folder / "x.npz").read_bytes()
    (folder / "truncated.npz").write_bytes(whole[: len(whole) // 2])
    (folder / "flipped.npz").write_bytes(whole[:300] + bytes([whole[300] ^ 255]) + whole[301:])
    (folder / "empty.npz").touch()
    model = (folder / "m.keras").read_bytes()
    (folder / "truncated.keras").write_bytes(model[: len(model) // 2])
    (folder / "garbage.keras").write_bytes(b"hello world")
    return folder
