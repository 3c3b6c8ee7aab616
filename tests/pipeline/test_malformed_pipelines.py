"""Every problem of a file at once, each with its line, column and what is allowed; never a traceback."""

from pathlib import Path

import pytest
from commands import Command, CommandResult
from malformed_pipelines import CASES, GOOD, GOOD_ONES, SETTINGS

from edgepipe.devices.device_profile import device_names

IN_A_PROCESS = ("unknown key", "not UTF-8", "alias bomb", "nested deeper", "many at once")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the broken things that the files point to."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "truncated.keras").write_bytes(b"PK\x03\x04" + bytes(40))
    (tmp_path / "empty.keras").touch()
    (tmp_path / "broken.py").write_text("def build(:\n")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").touch()
    (tmp_path / "model.tflite").write_bytes(bytes(4) + b"TFL3" + bytes(8))
    (tmp_path / "board.yaml").write_text(
        "inherit: nucleo-l4r5zi\nname: bord\ndescription: d\nsources: [s]\nsystem: {clock: 80}\n"
    )
    return tmp_path


def write(folder: Path, text: str) -> Path:
    """The pipeline `text`; a byte that is no UTF-8 stands in it as a surrogate escape."""
    file = folder / "p.yaml"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    return file


def expected(folder: Path, problems: list[str]) -> list[str]:
    """The lines as printed: those that begin with a number belong to p.yaml."""
    ethos = ", ".join(name for name in device_names() if "ethos-u" in name)
    lines = [problem.replace("{base}", str(folder)).replace("{ethos}", ethos) for problem in problems]
    return [f"p.yaml:{line}" if line[0].isdigit() else line for line in lines]


def check(ended: CommandResult, lines: list[str]) -> None:
    """Exit 2, these lines on stderr, nothing else anywhere."""
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.splitlines() == lines
    assert "Traceback" not in ended.err


def test_the_table_covers_what_it_should() -> None:
    assert len({name for name, *_ in CASES}) == len(CASES) >= 30
    assert all(GOOD.count(old) == 1 for _, old, _, _ in CASES)


@pytest.mark.slow
@pytest.mark.parametrize(("old", "new", "problems"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_malformed(old: str, new: str, problems: list[str], folder: Path, command: Command) -> None:
    write(folder, GOOD.replace(old, new))
    check(command("check", "p.yaml"), expected(folder, problems))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "problems"), [case[1:] for case in CASES if case[0] in IN_A_PROCESS], ids=IN_A_PROCESS
)
def test_malformed_as_a_user_sees_it(old: str, new: str, problems: list[str], folder: Path, process: Command) -> None:
    write(folder, GOOD.replace(old, new))
    check(process("check", "p.yaml", cwd=folder), expected(folder, problems))


def test_run_refuses_the_same_way_before_anything_is_written(folder: Path, command: Command) -> None:
    write(folder, GOOD.replace("0.5", "75"))
    ended = command("run", "p.yaml", "--cache-dir", folder / "cache", "--json")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("edgepipe: p.yaml:7:23: stages.1.prune.sparsity: should be less than 1;")
    assert not (folder / "cache").exists()
    assert not (folder / "runs").exists()


def test_several_files_are_all_checked(folder: Path, command: Command) -> None:
    write(folder, GOOD)
    (folder / "q.yaml").write_text(GOOD.replace("convert", "convret"))
    ended = command("check", "p.yaml", "q.yaml", "gone.yaml")
    assert ended.code == 2
    assert ended.out == "p.yaml: ok: model -> train -> prune -> quantize -> convert -> validate\n"
    assert ended.err.splitlines() == [
        "q.yaml:9:5: stages.3.convret: unknown stage; did you mean 'convert'?",
        "gone.yaml: cannot be read: No such file or directory",
    ]


@pytest.mark.parametrize("text", ["1e-3", "0.001", "1", "+1.5e+0", ".5", "1."])
def test_numbers_of_yaml_1_2(text: str, folder: Path, command: Command) -> None:
    write(folder, GOOD.replace("epochs: 2}\n  - prune", f"learning_rate: {text}}}\n  - prune"))
    assert command("check", "p.yaml").code == 0


@pytest.mark.parametrize(("old", "new"), GOOD_ONES.values(), ids=GOOD_ONES)
def test_good_ones(old: str, new: str, folder: Path, command: Command) -> None:
    write(folder, GOOD.replace(old, new))
    ended = command("check", "p.yaml")
    assert (ended.code, ended.err) == (0, "")


@pytest.mark.parametrize(("setting", "messages"), SETTINGS, ids=[setting for setting, _ in SETTINGS])
def test_set_names_itself_as_the_place(setting: str, messages: list[str], folder: Path, command: Command) -> None:
    write(folder, GOOD.replace("train: {epochs: 2}", "train: {as: again, epochs: 2}"))
    check(command("check", "p.yaml", "--set", setting), [f"--set {setting}: {message}" for message in messages])


@pytest.mark.parametrize("setting", ["seed", "=3", "stages..epochs=3", ".=1", "seed.=1"])
def test_set_without_a_path(setting: str, folder: Path, command: Command) -> None:
    write(folder, GOOD)
    ended = command("check", "p.yaml", "--set", setting)
    form = "is not of the form --set path=value, for example --set stages.prune.sparsity=0.8"
    check(ended, [f"'--set {setting}' {form}"])


@pytest.mark.parametrize(("entry", "column"), [("-", 4), ("- 3", 5), ("- {}", 5), ("- [train]", 5)])
def test_set_beside_a_broken_entry(entry: str, column: int, folder: Path, command: Command) -> None:
    write(folder, GOOD.replace("- quantize: {epochs: 2}", entry))
    ended = command("check", "p.yaml", "--set", "stages.train.epochs=0")
    assert ended.code == 2
    places = [line.split(": ")[0] for line in ended.err.splitlines()]
    assert places == ["--set stages.train.epochs=0", f"p.yaml:8:{column}"]


def test_set_reaches_plain_entries_and_named_ones(folder: Path) -> None:
    from edgepipe.pipeline import schema as pipeline

    write(folder, GOOD.replace("train: {epochs: 2}", "train").replace("quantize: {epochs: 2}", "quantize: {as: q}"))
    settings = [
        "stages.train.epochs=1",
        "stages.q.epochs=7",
        "stages.convert.input=uint8",
        "seed=11",
        "stages.prune.sparsity=1e-1",
    ]
    loaded = pipeline.load("p.yaml", settings)
    options = {step.name: step.stage.model_dump() for step in loaded.steps}
    assert (options["train"]["epochs"], options["q"]["epochs"], options["convert"]["input"]) == (1, 7, "uint8")
    assert (loaded.seed, options["prune"]["sparsity"]) == (11, 0.1)
    assert [step.name for step in loaded.steps] == ["model", "train", "prune", "q", "convert", "validate"]
