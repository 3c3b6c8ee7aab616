"""How the command line behaves: usage, exit codes, one JSON document, errors in one clear line."""

import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from commands import Command

import edgepipe
from edgepipe import cli
from edgepipe.devices import device_profile

FullDisk = Callable[[int], AbstractContextManager[None]]
DIGITS = Path(__file__).resolve().parents[2] / "pipelines" / "digits.yaml"
OR_A_FILE = "(the path of a .yaml file is also allowed)"

USAGE = [  # arguments, the last line on stderr
    (["chekc"], "Error: no command 'chekc'; did you mean 'check'?"),
    (["zzz"], f"Error: no command 'zzz'; allowed: {', '.join(sorted(cli.cli.commands))}"),
    (["device", "shwo"], "Error: no command 'shwo'; did you mean 'show'?"),
    (["cache", "lst"], "Error: no command 'lst'; did you mean 'list'?"),
    (["--versoin"], "Error: No such option '--versoin'. Did you mean '--version'?"),
    (["run"], "edgepipe: give a pipeline, or an earlier report with --from REPORT, and not both"),
    (["check"], "Error: Missing argument 'PIPELINES...'."),
    (["convert", "m.keras", "--scheme", "int4"],
     "Error: Invalid value for '--scheme': 'int4' is not one of 'int8', 'int16x8', 'dynamic', "
        "'weight_only_int8', 'weight_only_int4', 'float16', 'float32', 'recipe'."),
    (["convert", "m.keras", "--leave", "head_.*"],
     "Error: No such option: --leave. Did you mean --keep-float-layers?"),
    (["convert", "m.keras", "--leave-type", "SOFTMAX"],
     "Error: No such option: --leave-type. Did you mean --keep-float-types?"),
    (["stages", "prun"], "edgepipe: no stage 'prun'; did you mean 'prune'?"),
    (["stages", "prun", "--json"], "edgepipe: no stage 'prun'; did you mean 'prune'?"),
    (["device", "show", "hots"], f"edgepipe: unknown device 'hots'; did you mean 'host'? {OR_A_FILE}"),
    (["device", "show", "runtimes/litert"], "edgepipe: device 'runtimes/litert' is abstract and can only be "
     f"inherited; devices: {', '.join(device_profile.device_names())}"),
    (["run", "gone.yaml"], "edgepipe: gone.yaml: cannot be read: No such file or directory"),
    (["init", "gone.keras"], None),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "last"), USAGE, ids=[" ".join(case[0]) for case in USAGE])
def test_usage(
    arguments: list[str], last: str | None, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = command(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert last is None or ended.err.splitlines()[-1] == last
    assert "Traceback" not in ended.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("former", ["types", "layers"])
def test_former_arguments_of_convert_are_refused_with_the_present_name(former: str) -> None:
    message = rf"convert\(\) has no argument '{former}'; did you mean 'keep_float_{former}'\?"
    with pytest.raises(TypeError, match=message):
        edgepipe.convert("m.keras", **{former: ["SOFTMAX"]})


@pytest.mark.parametrize("arguments", [[], ["device"], ["cache"]])
def test_no_command_shows_the_help_and_is_no_success(arguments: list[str], command: Command) -> None:
    ended = command(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert "Commands:" in ended.err


def test_help_tells_the_exit_codes(command: Command) -> None:
    ended = command("-h")
    assert (ended.code, ended.err) == (0, "")
    assert "2 bad input or usage; 3 a budget" in " ".join(ended.out.split())
    assert command("--version").out == "edgepipe 0.1.0\n"


JSON = [
    (["stages", "--json"], "edgepipe.stages/1"),
    (["device", "list", "--json"], "edgepipe.devices/1"),
    (["device", "show", "host", "--json"], "edgepipe.device/1"),
    (["cache", "list", "--json", "--cache-dir", "none"], "edgepipe.cache/1"),
    (["inspect", "int8.tflite", "--json"], "edgepipe.inspect/1"),
    (["verify", "int8.tflite", "--json"], "edgepipe.verify/1"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "schema"), JSON, ids=[schema for _, schema in JSON])
def test_json_is_one_document_and_nothing_else(
    arguments: list[str], schema: str, models: Path, process: Command
) -> None:
    ended = process(*arguments, cwd=models)
    assert (ended.code, ended.err) == (0, "")
    assert json.loads(ended.out)["schema"] == schema


def test_the_facts_of_inspect(models: Path, command: Command) -> None:
    told = json.loads(command("inspect", models / "int8.tflite", "--json").out)
    assert (told["macs"], told["parameters"], told["zero_parameters"], told["integer_only"]) == (12, 15, 4, True)
    assert told["operator_counts"] == {"FULLY_CONNECTED": 1}
    assert 0 < told["size_zstd"] < told["bytes"] > told["size_deflate"] > 0
    shown = command("inspect", models / "int8.tflite").out
    assert "FULLY_CONNECTED" in shown
    assert "int8 [1, 4], scale 0.5, zero point 0" in shown
    assert "size, deflate" in shown
    assert ", level 19)" in shown


def test_the_memory_plan_of_inspect(models: Path, command: Command) -> None:
    told = json.loads(command("inspect", models / "int8.tflite", "--json").out)
    (dense,) = told["operators"]
    assert (dense["parameters"], dense["bytes_read"], dense["constant_bytes"], dense["bytes_written"]) == (15, 4, 24, 3)
    memory = told["memory"]
    assert (memory["planned_peak"], memory["naive_peak"], memory["reason"]) == (32, 7, "")
    assert memory["peak_operator"] == "FULLY_CONNECTED #0"
    assert memory["steps"][-1] == {"operator": "FULLY_CONNECTED #0", "live_bytes": 7, "scratch_bytes": 0}
    assert {b["name"]: (b["offset"], b["bytes"], b["size"], b["first"], b["last"]) for b in memory["buffers"]} == {
        "x": (16, 4, 16, 0, 1),
        "y": (0, 3, 16, 1, 1),
    }
    assert (told["filters"], told["runs"]) == (3, None)
    shown = command("inspect", models / "int8.tflite").out
    assert "32 B: the arena's head" in shown
    assert "Alive at the peak" in shown


def test_inspect_runs_the_model_apart(models: Path, command: Command) -> None:
    told = json.loads(command("inspect", models / "int8.tflite", "--run", "--json").out)
    assert told["runs"]["litert"] == ""
    arena = told["runs"]["tflite_micro"]
    if arena["evidence"] != "unavailable":
        assert arena["details"]["head"] == told["memory"]["planned_peak"]
        assert arena["details"]["tail"] == told["memory"]["tail"]["bytes"]
    assert "LiteRT" in command("inspect", models / "int8.tflite", "--run").out


NO_MODEL = [
    ("gone.tflite", "gone.tflite: cannot be read: No such file or directory"),
    ("folder.tflite", "folder.tflite: cannot be read: Is a directory"),
    ("empty.tflite", "empty.tflite: the file is empty; a .tflite was expected"),
    ("garbage.tflite", "garbage.tflite: not a .tflite: bytes 5 to 8 must be 'TFL3', the file begins with"),
    ("truncated.tflite", "truncated.tflite: damaged or truncated .tflite (336 bytes): "),
    ("damaged.tflite", "damaged.tflite: damaged or truncated .tflite (508 bytes): "),
]


@pytest.mark.parametrize("name", ["inspect", "verify"])
@pytest.mark.parametrize(("file", "message"), NO_MODEL, ids=[file for file, _ in NO_MODEL])
def test_what_is_no_model(name: str, file: str, message: str, models: Path, command: Command) -> None:
    ended = command(name, models / file, "--json")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"edgepipe: {models}/{message}")
    assert len(ended.err.splitlines()) == 1


def test_verify_met(models: Path, command: Command) -> None:
    ended = command("verify", models / "int8.tflite", "--integer-only", "--max", "flash=256KiB", "--max", "macs=12")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines()[-1] == "met"


def test_verify_names_the_offenders(models: Path, command: Command) -> None:
    model = models / "float.tflite"
    ended = command("verify", model, "--integer-only", "--device", "nucleo-l4r5zi", "--max", "flash=0.1KiB", "--json")
    assert (ended.code, ended.err) == (3, "")
    told = json.loads(ended.out)
    assert told["met"] is False
    assert {finding["rule"] for finding in told["findings"]} >= {"integer-only"}
    assert any("FULLY_CONNECTED" in finding["place"] for finding in told["findings"])
    reasons = {verdict["limit"]["metric"]: verdict["reason"] for verdict in told["verdicts"] if not verdict["met"]}
    assert reasons == {"flash": "the worse end of the interval, 68.5 KiB, is over the limit"}
    shown = command("verify", model, "--integer-only")
    assert (shown.code, shown.out.splitlines()[-1]) == (3, "not met")
    assert "FULLY_CONNECTED" in shown.out


def test_verify_says_what_a_limit_without_a_device_needs(models: Path, command: Command) -> None:
    told = json.loads(command("verify", models / "int8.tflite", "--max", "latency=5ms", "--json").out)
    assert told["met"] is False
    assert told["verdicts"][0]["reason"] == "a time holds for a device; name one, such as --device host"


def test_words_that_are_no_limits(models: Path, command: Command) -> None:
    ended = command("verify", models / "int8.tflite", "--max", "rom=3KiB", "--max", "ram", "--max", "flash=3ms")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.splitlines() == [
        "--max: 'ram': expected METRIC=LIMIT; the limit is missing",
        "--max: 'rom=3KiB': expected METRIC=LIMIT; did you mean 'ram'?",
        "--max: flash: 'ms' is not a unit of bytes; allowed: B, KiB, MiB, GiB, kB, KB, MB, GB",
    ]
    unknown = command("verify", models / "int8.tflite", "--device", "nucleo")
    assert (unknown.code, unknown.err) == (
        2,
        f"edgepipe: unknown device 'nucleo'; did you mean 'nucleo-l4r5zi'? {OR_A_FILE}\n",
    )


PRINTING = [["--help"], ["--version"], ["stages"], ["stages", "--json"], ["check", DIGITS], ["inspect", "int8.tflite"]]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", PRINTING, ids=lambda words: str(words[0]))
def test_a_reader_that_goes_away_is_no_error_and_no_success(
    arguments: list[str], models: Path, process: Command
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = process(*arguments, cwd=models, stdout=writing)
    finally:
        os.close(writing)
    assert (ended.code, ended.err) == (141, "")


@pytest.mark.slow
@pytest.mark.parametrize("arguments", PRINTING, ids=lambda words: str(words[0]))
def test_an_output_that_is_full(arguments: list[str], models: Path, process: Command) -> None:
    with Path("/dev/full").open("w") as full:
        ended = process(*arguments, cwd=models, stdout=full)
    assert (ended.code, ended.err) == (2, "edgepipe: the output cannot be written: No space left on device\n")


def test_debug_shows_the_traceback(models: Path, process: Command) -> None:
    plain, debug = (process(*words, "verify", models / "gone.tflite") for words in ([], ["--debug"]))
    assert plain.err == f"edgepipe: {models}/gone.tflite: cannot be read: No such file or directory\n"
    assert debug.err.startswith("Traceback (most recent call last):")
    assert debug.err.endswith(plain.err)
    assert (plain.code, debug.code) == (2, 2)


def test_a_bug_says_that_it_is_one(monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    def broken(_: str | None) -> None:
        raise RuntimeError("something")

    monkeypatch.setattr("edgepipe.render.stages.tables", broken)
    ended = command("stages")
    assert (ended.code, ended.out) == (1, "")
    told = (
        "edgepipe: internal error, a bug in edgepipe: RuntimeError: something (for the traceback: edgepipe --debug ..)"
    )
    assert ended.err.rstrip() == told


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    def interrupted(_: str | None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgepipe.render.stages.tables", interrupted)
    ended = command("stages")
    assert (ended.code, ended.out) == (130, "")
    assert ended.err == "edgepipe: interrupted; finished work is kept, the same command resumes it\n"


@pytest.mark.parametrize("option", ["--output-dir", "--cache-dir"])
@pytest.mark.parametrize("folder", ["/proc/nowhere", "FILE/below", "FILE"])
def test_a_run_that_cannot_write_ends_at_once(
    option: str, folder: str, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").touch()
    other = {"--output-dir": "--cache-dir", "--cache-dir": "--output-dir"}[option]
    ended = command("run", DIGITS, option, folder, other, "other")
    assert (ended.code, ended.out) == (2, "")
    assert folder in ended.err
    assert "cannot be written" in ended.err or "is a file" in ended.err
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["FILE"]


NO_CONVERSION = [  # arguments after MODEL, the message
    (["m.keras"], "int8 needs representative samples for its activation ranges: give --data samples.npz (a hundred "
     "typical inputs, array 'x') or a folder of them, or choose --scheme dynamic or float16"),
    (["gone.keras", "--data", "x.npz"], "gone.keras: no such file or folder; expected a .keras"),
    (["truncated.keras", "--data", "x.npz"], "truncated.keras: not a readable .keras file (truncated or damaged?): "),
    (["garbage.keras", "--data", "x.npz"], "garbage.keras: not a model (its 11 bytes begin with b'hello wo'; damaged"),
    ([".", "--data", "x.npz"], ".: a folder without saved_model.pb, so no SavedModel; "),
    (["m.keras", "--scheme", "dynamic", "--input", "int8"], "input type int8: scheme dynamic has float32;"),
    (["m.keras", "--data", "x.npz", "-o", "m.keras"], "m.keras: would overwrite the model itself; name another file"),
    (["m.keras", "--data", "x.npz", "-o", "."], ".: is a folder; name the .tflite to write with -o"),
    (["m.keras", "--data", "gone.npz"], "gone.npz: cannot be read: No such file or directory; give samples as"),
    (["m.keras", "--data", "."], ".: holds only files that end in .keras, .npy, .npz; expected a .npz, .csv,"),
    (["m.keras", "--data", "nan.npz"], "nan.npz: array 'x' holds 1,280 NaN or infinite values"),
    (["m.keras", "--data", "zero.npz"], "zero.npz: array 'x' holds zero samples (shape (0, 8, 8, 1))"),
    (["m.keras", "--data", "labels.npz"], "labels.npz: holds no samples; expected an array 'x', or one for each input"),
    (["m.keras", "--data", "text.npz"], "text.npz: array 'x' holds <U1; samples are numbers"),
    (["m.keras", "--data", "objects.npy"], "objects.npy: holds pickled objects, which are never loaded, or is no"),
    (["m.keras", "--data", "truncated.npz"], "truncated.npz: a truncated or damaged .npy or .npz file: "),
    (["m.keras", "--data", "flipped.npz"], "flipped.npz: a truncated or damaged .npy or .npz file: "),
    (["m.keras", "--data", "empty.npz"], "empty.npz: a truncated or damaged .npy or .npz file: "),
    (["m.keras", "--data", "m.keras"], "m.keras: cannot be read as data; expected a .npz, .csv, .tsv or .parquet"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), NO_CONVERSION, ids=[" ".join(case[0]) for case in NO_CONVERSION])
def test_what_cannot_be_converted(
    arguments: list[str], message: str, keras_folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(keras_folder)
    before = {file: file.read_bytes() for file in keras_folder.iterdir()}
    ended = command("convert", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"edgepipe: {message}")
    assert len(ended.err.splitlines()) == 1
    assert {file: file.read_bytes() for file in keras_folder.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "flat.npz"], "representative samples have the shape (64,), input 'input_layer' takes (8, 8, 1)"),
        (["--data", "named.npz"], "the samples are named a, b, the model's inputs input_layer; use the same names"),
        (
            ["--data", "x.npz", "-o", "x.npz/o.tflite"],
            "x.npz/o.tflite: cannot be written: 'x.npz' is a file, not a folder",
        ),
        (["--data", "x.npz", "-o", "/proc/o.tflite"], "/proc/o.tflite: cannot be written: "),
    ],
)
def test_what_is_found_when_the_model_is_open(
    options: list[str], message: str, keras_folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(keras_folder)
    before = sorted(keras_folder.iterdir())
    ended = command("convert", "m.keras", *options)
    assert (ended.code, ended.out) == (2, "")
    # Keras numbers the inputs of a process
    assert re.sub(r"input_layer_\d+", "input_layer", ended.err).startswith(f"edgepipe: {message}")
    assert sorted(keras_folder.iterdir()) == before


@pytest.mark.parametrize("data", ["x.npz", "x.npy", "pixels.npz"])
def test_convert_to_int8(data: str, keras_folder: Path, tmp_path: Path, command: Command) -> None:
    target = tmp_path / "new" / "o.tflite"
    ended = command("convert", keras_folder / "m.keras", "--data", keras_folder / data, "-o", target, "--json")
    assert (ended.code, ended.err) == (0, "")
    told = json.loads(ended.out)
    assert (told["schema"], told["path"], told["findings"]) == ("edgepipe.convert/1", str(target), [])
    metrics = {metric["name"]: metric["value"] for metric in told["metrics"]}
    assert metrics["size"] == target.stat().st_size
    assert metrics["max_difference"] < 0.1
    assert json.loads(command("inspect", target, "--json").out)["integer_only"] is True


@pytest.mark.parametrize("scheme", ["float16", "dynamic", "float32"])
def test_convert_without_samples(scheme: str, keras_folder: Path, tmp_path: Path, command: Command) -> None:
    shutil.copyfile(keras_folder / "m.keras", tmp_path / "m.keras")
    ended = command("convert", tmp_path / "m.keras", "--scheme", scheme)
    assert (ended.code, ended.err) == (0, "")
    assert "10 random inputs" in ended.out
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.keras", "m.tflite"]


def test_convert_on_a_full_disk_leaves_nothing(
    keras_folder: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, full_disk: FullDisk
) -> None:
    monkeypatch.chdir(tmp_path)
    with full_disk(500):
        ended = command("convert", keras_folder / "m.keras", "--scheme=float32", "-o", "out/o.tflite")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("edgepipe: ")
    assert ended.err.endswith(".tflite: cannot be written: File too large\n")
    assert ended.err.count("\n") == 1
    assert list(tmp_path.rglob("*")) == []
