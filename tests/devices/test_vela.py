"""Vela on small models: its own tables as the reference, every way it ends, and the cache."""

import csv
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import vela_models

from edgepipe.core import references
from edgepipe.core.cache import Cache
from edgepipe.core.errors import InputError, ToolError
from edgepipe.devices.vela import vela_compiler
from edgepipe.devices.vela.vela_compiler import VelaRefusedError, compile_model
from edgepipe.devices.vela.vela_result import VelaSettings
from edgepipe.tflite import child_process, reader

pytest.importorskip("ethosu.vela", reason="the extra `npu` is not installed")

U55 = VelaSettings(accelerator="ethos-u55-128", system_config="Ethos_U55_High_End_Embedded", memory_mode="Shared_Sram")
U65 = VelaSettings(accelerator="ethos-u65-512", system_config="Ethos_U65_High_End", memory_mode="Dedicated_Sram_384KB")
U85 = VelaSettings(
    accelerator="ethos-u85-256", system_config="Ethos_U85_SYS_DRAM_Low", memory_mode="Dedicated_Sram_384KB"
)
MIXED_OPERATORS = ["RELU", "LOG_SOFTMAX", "LOGISTIC", "LOG_SOFTMAX"]


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture(scope="module")
def u55_cache(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the int8 model, compiled for U55."""
    folder = tmp_path_factory.mktemp("u55") / "cache"
    assert not compile_model(reader.read(models / "int8.tflite"), U55, Cache(folder)).from_cache
    return folder


@pytest.fixture
def filled_cache(u55_cache: Path, tmp_path: Path) -> Cache:
    """A copy of it, to change."""
    return Cache(Path(shutil.copytree(u55_cache, tmp_path / "filled")))


def run_vela(model: Path, settings: VelaSettings, folder: Path) -> str:
    """The stdout of the command `vela`; its tables are in `folder`."""
    arguments = [
        sys.executable, "-m", "ethosu.vela", str(model), "--output-dir", str(folder), "--config", "Arm/vela.ini",
        "--accelerator-config", settings.accelerator, "--system-config", settings.system_config,
        "--memory-mode", settings.memory_mode,
        "--verbose-performance", "--show-cpu-operations",
    ]  # fmt: skip
    return subprocess.run(arguments, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
@pytest.mark.parametrize("settings", [U55, U65, U85], ids=lambda settings: settings.accelerator)
def test_the_numbers_are_those_that_vela_prints(
    settings: VelaSettings, models: Path, cache: Cache, tmp_path: Path
) -> None:
    compiled_model = compile_model(reader.read(models / "int8.tflite"), settings, cache)
    compilation = compiled_model.compilation
    stdout = run_vela(models / "int8.tflite", settings, tmp_path)
    with (tmp_path / "int8_per-layer.csv").open() as stream:
        layers = list(csv.DictReader(stream))
    assert [layer.cycles for layer in compilation.layers] == [int(row["Op Cycles"]) for row in layers]
    assert [layer.sram_cycles for layer in compilation.layers] == [int(row["SRAM AC"]) for row in layers]
    assert [layer.dram_cycles for layer in compilation.layers] == [int(row["DRAM AC"]) for row in layers]
    assert compilation.cycles == sum(int(row["Op Cycles"]) for row in layers) > 0
    assert [100 * layer.utilisation for layer in compilation.layers if layer.cycles] == pytest.approx(
        [float(row["Util% (MAC)"]) for row in layers if int(row["Op Cycles"])]
    )
    for name in ("SRAM", "DRAM"):
        match = re.search(rf"Total {name} used +([\d.]+) KiB", stdout)
        assert compilation.peak_bytes(name) / 1024 == pytest.approx(float(match[1]) if match else 0, abs=0.006)
    (clock,) = re.findall(r"Accelerator clock +(\d+) MHz", stdout)
    assert compilation.clock == float(clock) * 1e6
    assert compiled_model.content == (tmp_path / "int8_vela.tflite").read_bytes()
    assert "CPU operators = 0 " in stdout
    assert compilation.fallback_placements == ()


def test_each_layer_points_to_the_operator_it_comes_from(models: Path, cache: Cache) -> None:
    model = reader.read(models / "int8.tflite")
    compilation = compile_model(model, U55, cache).compilation
    origins = [layer.operator for layer in compilation.layers]
    assert set(origins) <= {operator.location for operator in model.operators}
    assert [layer.operator for layer in compilation.layers if layer.operation == "Conv2D"] == [
        operator.location for operator in model.operators if operator.name == "CONV_2D"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [U55, U85], ids=lambda settings: settings.accelerator)
def test_operators_on_the_core_have_velas_reason(settings: VelaSettings, cache: Cache, tmp_path: Path) -> None:
    compilation = compile_model(
        reader.read(vela_models.chain(tmp_path / "mixed.tflite", MIXED_OPERATORS)), settings, cache
    ).compilation
    assert [(p.place, p.runs_on) for p in compilation.placements] == [
        ("RELU #0", "NPU"), ("LOG_SOFTMAX #1", "CPU"), ("LOGISTIC #2", "NPU"), ("LOG_SOFTMAX #3", "CPU"),
    ]  # fmt: skip
    assert {placement.reason for placement in compilation.fallback_placements} == {"Unsupported opType"}
    assert "CPU operators = 2 " in run_vela(tmp_path / "mixed.tflite", settings, tmp_path)


def test_operators_are_distinguished_even_if_their_outputs_share_a_name(cache: Cache, tmp_path: Path) -> None:
    model = reader.read(vela_models.namesakes(tmp_path / "same.tflite"))
    assert {t.name for operator in model for t in operator.outputs if t is not None} == {',"'}
    compilation = compile_model(model, U55, cache).compilation
    assert [placement.place for placement in compilation.fallback_placements] == ["LOG_SOFTMAX #1", "LOG_SOFTMAX #3"]


def test_a_float_model_stays_on_the_core_although_vela_succeeds(models: Path, cache: Cache, tmp_path: Path) -> None:
    model = reader.read(models / "float.tflite")
    compilation = compile_model(model, U55, cache).compilation
    assert [placement.place for placement in compilation.fallback_placements] == [
        operator.location for operator in model.operators
    ]
    assert all("Float32" in placement.reason for placement in compilation.fallback_placements)
    run_vela(models / "float.tflite", U55, tmp_path)  # exit status 0


def test_core_operators_of_several_subgraphs_come_from_the_compiled_model(
    models: Path, cache: Cache, tmp_path: Path
) -> None:
    model = reader.read(vela_models.with_loop(tmp_path / "loop.tflite"))
    compiled_model = compile_model(model, U55, cache)
    (tmp_path / "compiled.tflite").write_bytes(compiled_model.content)
    core_operators = [
        operator.name for operator in reader.read(tmp_path / "compiled.tflite") if operator.name != "ethos-u"
    ]
    assert Counter(core_operators) == Counter(
        placement.operator for placement in compiled_model.compilation.fallback_placements
    )
    assert {"WHILE", "LESS", "MUL"} <= set(core_operators)
    assert compiled_model.compilation.subgraphs == 3


@pytest.mark.parametrize(
    ("write_model", "message"),
    [
        (vela_models.crashing, r"^Vela [\d.]+ for ethos-u55-128 on it\.tflite: .* crashed with SIGSEGV"),
        (
            vela_models.unreadable,
            r"^Vela [\d.]+ for ethos-u55-128 on it\.tflite: Compilation failed: .* reading TFLite file",
        ),
    ],
)
def test_a_crash_or_a_refusal_names_model_accelerator_and_version(
    write_model: object, message: str, cache: Cache, tmp_path: Path
) -> None:
    assert callable(write_model)
    with pytest.raises(VelaRefusedError, match=message):
        compile_model(reader.read(write_model(tmp_path / "it.tflite")), U55, cache)
    assert cache.list_entries() == []
    assert list(cache.workspace_root.iterdir()) == []


def test_a_hang_is_stopped(models: Path, cache: Cache) -> None:
    with pytest.raises(
        VelaRefusedError, match=r"on int8\.tflite: timed out after 0\.01 s; the child process was stopped"
    ):
        compile_model(reader.read(models / "int8.tflite"), U55, cache, timeout=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accelerator": "ethos-u55-12"}, "no accelerator 'ethos-u55-12'; allowed: ethos-u55-32, .*, ethos-u85-2048"),
        ({"system_config": "Nope"}, "Section System_Config.Nope not found"),
        ({"memory_mode": "Nope"}, "Section Memory_Mode.Nope not found"),
        ({"memory_mode": "Dedicated_Sram"}, r"Invalid configuration of arena_mem_area=OffChipFlash \(must be Sram"),
    ],
)
def test_settings_that_contradict_each_other(changes: dict[str, str], message: str, models: Path, cache: Cache) -> None:
    with pytest.raises(InputError, match=f"rejects the settings .*: .*{message}") as error:
        compile_model(reader.read(models / "int8.tflite"), U55.model_copy(update=changes), cache)
    assert not isinstance(error.value, VelaRefusedError)


def _no_child(*_: object) -> None:
    raise AssertionError("Vela was run")


def test_a_cached_model_is_not_compiled_again(models: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    model = reader.read(models / "int8.tflite")
    new_result = compile_model(model, U55, cache)
    assert not new_result.from_cache
    monkeypatch.setattr(child_process, "run", _no_child)
    cached_result = compile_model(model, U55, cache)
    assert cached_result.from_cache
    assert (new_result.compilation, new_result.content) == (cached_result.compilation, cached_result.content)
    with pytest.raises(AssertionError, match="Vela was run"):
        compile_model(model, U85, cache)
    (entry,) = cache.list_entries()
    assert (entry.stage, entry.kind) == ("vela ethos-u55-128", "vela")
    assert cache.clear() == 1
    with pytest.raises(AssertionError, match="Vela was run"):
        compile_model(model, U55, cache)


def test_the_cache_key_is_the_content_not_the_path(models: Path, filled_cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "other.tflite").write_bytes((models / "int8.tflite").read_bytes())
    assert compile_model(reader.read(tmp_path / "other.tflite"), U55, filled_cache).from_cache
    assert not compile_model(reader.read(models / "float.tflite"), U55, filled_cache).from_cache


def test_another_version_of_vela_compiles_again(
    models: Path, filled_cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = reader.read(models / "int8.tflite")
    real_version = references.installed_version
    monkeypatch.setattr(
        references,
        "installed_version",
        lambda package: "9.9" if package == vela_compiler.VELA_PACKAGE else real_version(package),
    )
    assert not compile_model(model, U55, filled_cache).from_cache


def test_a_damaged_cache_entry_is_compiled_again(models: Path, filled_cache: Cache) -> None:
    model = reader.read(models / "int8.tflite")
    first_result = compile_model(model, U55, filled_cache)
    (entry,) = filled_cache.entries_folder.iterdir()
    (entry / "files" / "vela.json").write_text("{}")
    second_result = compile_model(model, U55, filled_cache)
    assert not second_result.from_cache
    assert second_result.compilation == first_result.compilation
    assert compile_model(model, U55, filled_cache).from_cache


def test_vela_runs_without_a_cache(models: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    compiled_model = compile_model(reader.read(models / "int8.tflite"), U55, Cache(tmp_path / "file" / "cache"))
    assert compiled_model.compilation.cycles > 0
    assert "cannot be written" in compiled_model.cache_note


def test_without_the_package_the_error_names_the_remedy(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "installed_version", lambda _: "absent")
    with pytest.raises(ToolError, match=r"ethos-u-vela is not installed: pip install 'edgepipe\[npu\]'"):
        compile_model(reader.read(models / "int8.tflite"), U55)
