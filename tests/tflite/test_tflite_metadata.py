"""Metadata added to a .tflite: everything else stays, every runtime takes it, what is damaged is told."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from tflite_conversion import SAMPLES

from edgepipe.core.cache import Cache
from edgepipe.core.errors import InputError
from edgepipe.devices.vela.vela_compiler import compile_model
from edgepipe.devices.vela.vela_result import VelaSettings
from edgepipe.render import inspect as inspection
from edgepipe.tflite import interpreter, reader, tflm_runtime
from edgepipe.tflite.interpreter import Runtime
from edgepipe.tflite.metadata import (
    PREPROCESSING_NAME,
    Preprocessing,
    Sound,
    Standardization,
    Windows,
    add_metadata,
    embed_preprocessing,
    read_preprocessing,
)

KNOWN = Preprocessing(
    sound=Sound(features="none", rate=8000, samples=4000),
    windows=Windows(channels=("x", "größe"), rows=50, step=25),
    standardize=Standardization(axis="channels", mean=(0.1, -1 / 3), deviation=(1e-7, 2.0)),
    classes=("up", "down"),
)
NETS = ["int8_net", "flat_net", "float_net", "float16_net"]


@pytest.fixture(params=NETS)
def lite(request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue(request.param))


@pytest.fixture
def lite_with_metadata(lite: Path, tmp_path: Path) -> Path:
    path = tmp_path / lite.name
    path.write_bytes(embed_preprocessing(lite.read_bytes(), KNOWN))
    return path


def facts(path: Path) -> dict[str, Any]:
    record = inspection.build_record(reader.read(path)).model_dump()
    return {name: value for name, value in record.items() if name not in FREE}


FREE = ("path", "bytes", "size_deflate", "size_zstd", "preprocessing")


def unpacked(content: bytes) -> Any:
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))


def to_plain(value: Any) -> Any:
    """The object API's tree as plain values."""
    if isinstance(value, list):
        return [to_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return value.tobytes()
    return {k: to_plain(v) for k, v in vars(value).items()} if hasattr(value, "__dict__") else value


def test_everything_else_stays(lite: Path, lite_with_metadata: Path) -> None:
    assert facts(lite_with_metadata) == facts(lite)
    before, after = unpacked(lite.read_bytes()), unpacked(lite_with_metadata.read_bytes())
    assert to_plain(after.buffers[:-1]) == to_plain(before.buffers)
    assert to_plain(after.metadata[:-1]) == to_plain(before.metadata)
    assert after.metadata[-1].name == PREPROCESSING_NAME.encode()
    after.buffers, after.metadata = before.buffers, before.metadata
    assert to_plain(after) == to_plain(before)
    assert read_preprocessing(reader.read(lite_with_metadata)) == KNOWN
    assert read_preprocessing(reader.read(lite)) is None


def test_constants_stay_where_sixteen_divides_as_it_did(lite: Path, lite_with_metadata: Path) -> None:
    def places(path: Path) -> list[int]:
        root = schema.Model.GetRootAs(path.read_bytes(), 0)
        tables = [root.Buffers(i)._tab for i in range(root.BuffersLength())]
        return [tab.Vector(tab.Offset(4)) % 16 for tab in tables if tab.Offset(4)]

    before, after = places(lite), places(lite_with_metadata)
    assert after == [*before, 0]


def test_outputs_are_equal_in_every_runtime(lite: Path, lite_with_metadata: Path) -> None:
    for runtime in Runtime:
        paths = (lite_with_metadata, lite)
        got, wanted = (interpreter.predict(path, SAMPLES[:5], runtime).stored_values for path in paths)
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("tflite_micro") is None, reason="tflite-micro is not installed")
def test_tflite_micro_takes_it_and_needs_no_more(int8_net: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(embed_preprocessing(int8_net.read_bytes(), KNOWN))
    np.testing.assert_array_equal(
        tflm_runtime.predict(path, SAMPLES[:3]).stored_values, tflm_runtime.predict(int8_net, SAMPLES[:3]).stored_values
    )
    assert tflm_runtime.measure_arena(path).value == tflm_runtime.measure_arena(int8_net).value


@pytest.mark.skipif(importlib.util.find_spec("ethosu") is None, reason="the extra `npu` is not installed")
def test_vela_takes_it_and_keeps_it(int8_net: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(embed_preprocessing(int8_net.read_bytes(), KNOWN))
    u55 = VelaSettings(
        accelerator="ethos-u55-128", system_config="Ethos_U55_High_End_Embedded", memory_mode="Shared_Sram"
    )
    made = [compile_model(reader.read(file), u55, Cache(tmp_path / "cache")) for file in (int8_net, path)]
    assert made[0].compilation.cycles == made[1].compilation.cycles
    (tmp_path / "vela.tflite").write_bytes(made[1].content)
    assert read_preprocessing(reader.read(tmp_path / "vela.tflite")) == KNOWN


def test_nothing_to_say_changes_nothing(int8_net: Path) -> None:
    content = int8_net.read_bytes()
    assert embed_preprocessing(content, None) == content
    assert embed_preprocessing(content, Preprocessing()) == content


def test_of_two_entries_of_a_name_the_last_counts(int8_net: Path, tmp_path: Path) -> None:
    content = int8_net.read_bytes()
    for data in (b"first", b"", b"x" * 1001):
        content = add_metadata(content, "mine", data)
        (tmp_path / "m.tflite").write_bytes(content)
        found = reader.read(tmp_path / "m.tflite").metadata
        assert found["mine"] == data
        assert list(found).count("mine") == 1
        assert set(found) == {*reader.read(int8_net).metadata, "mine"}
    interpreter.check_runs(tmp_path / "m.tflite")


@pytest.mark.parametrize("cut", [9, 100, 1000])
def test_a_damaged_file_is_refused(cut: int, int8_net: Path) -> None:
    with pytest.raises(InputError, match="metadata 'mine' cannot be added to this"):
        add_metadata(int8_net.read_bytes()[:cut], "mine", b"1")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff\xfe", "cannot be read: Invalid JSON"),
        (b"[" * 5000, "cannot be read: Invalid JSON"),
        (b"{}", None),
        (b'{"schema": "edgepipe.preprocessing/2"}', "cannot be read at schema: Input should be"),
        (b'{"standardize": {"axis": "channels", "mean": [NaN], "deviation": [1]}}', "cannot be read"),
        (b'{"sound": 3}', "cannot be read at sound: "),
    ],
)
def test_what_cannot_be_read_is_told_and_nothing_else_suffers(
    data: bytes, message: str | None, int8_net: Path, tmp_path: Path
) -> None:
    (tmp_path / "m.tflite").write_bytes(add_metadata(int8_net.read_bytes(), PREPROCESSING_NAME, data))
    model = reader.read(tmp_path / "m.tflite")
    record = inspection.build_record(model)
    assert record.preprocessing_error == "" if message is None else message in record.preprocessing_error
    assert (record.preprocessing is None) == (message is not None)
    shown = [row for table in inspection.tables(model) for row in table.rows if row[0] == "unreadable"]
    assert len(shown) == (message is not None)


def test_inspect_shows_it_as_text_and_json(int8_net: Path, tmp_path: Path) -> None:
    (tmp_path / "m.tflite").write_bytes(embed_preprocessing(int8_net.read_bytes(), KNOWN))
    model = reader.read(tmp_path / "m.tflite")
    table = next(t for t in inspection.tables(model) if t.title.startswith("Preprocessing"))
    assert dict(table.rows) == {  # type: ignore[arg-type]
        "sound: features": "none",
        "sound: rate": "8000",
        "sound: samples": "4000",
        "windows: channels": "x, größe",
        "windows: rows": "50",
        "windows: step": "25",
        "standardize: axis": "channels",
        "standardize: mean": "0.1, -0.3333333333333333",
        "standardize: deviation": "1e-07, 2.0",
        "classes": "up, down",
    }
    printed = json.loads(inspection.build_record(model).model_dump_json(by_alias=True))
    assert printed["preprocessing"]["standardize"]["mean"] == [0.1, -1 / 3]
    assert printed["preprocessing"]["schema"] == "edgepipe.preprocessing/1"
