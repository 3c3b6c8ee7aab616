"""The cache: an entry is there whole, is what was stored, or is told to be damaged, whatever other processes do."""

import json
import multiprocessing
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Command

from edgepipe.core.artifact import Artifact, ArtifactKind
from edgepipe.core.cache import Cache, DamagedEntryError, StoredArtifact, default_root
from edgepipe.core.cost import Cost
from edgepipe.core.errors import InputError, StorageError
from edgepipe.core.metric import Evidence, Metric
from edgepipe.core.units import Dimension
from edgepipe.stages.base import Outcome

KEY, OTHER = "ab" * 32, "cd" * 32
OUTCOME = Outcome(
    metrics=(Metric(name="size", value=5, unit=Dimension.BYTES, evidence=Evidence.EXACT, how="bytes"),), notes=("n",)
)


def put(cache: Cache, key: str = KEY, content: str = "model") -> StoredArtifact:
    with cache.workspace() as folder:
        (folder / "model").mkdir()
        (folder / "model" / "a.bin").write_text(content)
        (folder / "model" / "b.bin").write_text("same")
        return cache.store(
            folder, key, "convert", Artifact.from_path(ArtifactKind.QAT, folder / "model"), OUTCOME, Cost(wall=1.5)
        )


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    made = Cache(tmp_path / "cache")
    with made.shared_lock():
        pass
    return made


def test_what_is_put_is_found(cache: Cache) -> None:
    assert cache.find(KEY) is None
    stored = put(cache)
    found = cache.find(KEY)
    assert found == stored
    assert found is not None
    assert (found.entry.outcome, found.entry.cost.wall, found.artifact.kind) == (OUTCOME, 1.5, ArtifactKind.QAT)
    assert (found.artifact.path / "a.bin").read_text() == "model"
    assert [entry.key for entry in cache.list_entries()] == [KEY]
    assert list(cache.workspace_root.iterdir()) == []


def test_nothing_is_seen_before_put(cache: Cache) -> None:
    with cache.workspace() as folder:
        (folder / "a").write_text("half")
        assert cache.find(KEY) is None
        assert cache.list_entries() == []
    assert list(cache.workspace_root.iterdir()) == []
    assert list(cache.entries_folder.iterdir()) == []


def _change_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def _change_value(path: Path) -> None:
    text = path.read_text()
    assert '"value": 5.0' in text
    path.write_text(text.replace('"value": 5.0', '"value": 4.0'))


def _move(path: Path) -> None:
    (path / "files" / "model").rename(path / "files" / "other")


def _not_a_folder(path: Path) -> None:
    path.rename(path.parent.parent / "away")
    path.write_text("x")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a missing file": (lambda p: (p / "files/model/a.bin").unlink(), r"\(convert\): 'model/a.bin' is not what was"),
    "a changed byte": (lambda p: _change_byte(p / "files/model/b.bin"), r"\(convert\): 'model/b.bin' is not what was"),
    "a truncated file": (lambda p: os.truncate(p / "files/model/a.bin", 2), r"'model/a.bin' is not what was stored"),
    "an additional file": (lambda p: (p / "files/extra").write_text("x"), "'extra' is not what was stored"),
    "a file that moved": (_move, "'model/a.bin' is not what was stored"),
    "a number in entry.json": (lambda p: _change_value(p / "entry.json"), "'entry.json' is not what was stored"),
    "garbage in entry.json": (lambda p: (p / "entry.json").write_bytes(b"\xff{"), "validation error"),
    "an empty entry.json": (lambda p: (p / "entry.json").write_bytes(b""), "validation error"),
    "no entry.json": (lambda p: (p / "entry.json").unlink(), "No such file"),
    "no seal": (lambda p: (p / "entry.sha256").unlink(), "No such file"),
    "an entry of another key": (lambda p: p.rename(p.parent / OTHER), f"{OTHER[:12]} says it is {KEY[:12]}"),
    "a file for a folder": (_not_a_folder, "Not a directory"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_told_and_can_be_replaced(damage: Callable[[Path], object], message: str, cache: Cache) -> None:
    put(cache)
    damage(cache.entries_folder / KEY)
    key = next(folder.name for folder in cache.entries_folder.iterdir())
    with pytest.raises(DamagedEntryError, match=message):
        cache.find(key)
    cache.list_entries()  # listing does not stumble over it
    put(cache, key)
    again = cache.find(key)
    assert again is not None
    assert (again.artifact.path / "a.bin").read_text() == "model"
    assert list(cache.workspace_root.iterdir()) == []


def test_discard_removes_and_does_not_mind_what_is_gone(cache: Cache) -> None:
    put(cache)
    cache.discard(KEY)
    cache.discard(KEY)
    assert cache.find(KEY) is None
    assert list(cache.workspace_root.iterdir()) == []


def test_a_second_put_takes_the_first_ones_entry(cache: Cache) -> None:
    first = put(cache)
    assert put(cache).entry == first.entry


def _put_many(root: Path, start: object, rounds: int) -> None:
    cache = Cache(root)
    start.wait()  # type: ignore[attr-defined]
    with cache.shared_lock():
        for number in range(rounds):
            stored = put(cache, f"{number:064x}")
            assert (stored.artifact.path / "a.bin").read_text() == "model"


def test_two_processes_that_put_the_same_keys(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    workers = [context.Process(target=_put_many, args=(tmp_path, start, 40)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    cache = Cache(tmp_path)
    assert len(cache.list_entries()) == 40
    assert all(cache.find(entry.key) for entry in cache.list_entries())
    assert list(cache.workspace_root.iterdir()) == []


HOLDER = """
    import sys
    from pathlib import Path
    from edgepipe.core.cache import Cache
    cache = Cache(Path(sys.argv[1]))
    with cache.shared_lock(), cache.workspace() as folder:
        (folder / "half").write_text("x")
        print("held", flush=True)
        sys.stdin.read()
"""


def _holder(root: Path) -> "subprocess.Popen[str]":
    line = [sys.executable, "-c", textwrap.dedent(HOLDER), str(root)]
    process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_clear_is_refused_while_a_run_holds_the_cache(cache: Cache) -> None:
    put(cache)
    with _holder(cache.root) as process:
        with pytest.raises(InputError, match="a run is using it; try again when it has ended"):
            cache.clear()
        with cache.shared_lock():
            assert len(list(cache.workspace_root.iterdir())) == 1, "another run's work is left alone"
        process.communicate()
    assert cache.clear() == 1
    assert cache.list_entries() == []


def test_what_a_killed_run_left_is_swept(cache: Cache) -> None:
    with _holder(cache.root) as process:
        process.kill()
    assert len(list(cache.workspace_root.iterdir())) == 1
    with cache.shared_lock():
        assert list(cache.workspace_root.iterdir()) == []


def test_clear_and_sweep_leave_alone_what_is_not_theirs(tmp_path: Path) -> None:
    """Whoever names the wrong folder must not lose what is in it."""
    for folder in ("entries/mine", "work/mine"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "precious").write_text("x")
    cache = Cache(tmp_path)
    with cache.shared_lock():
        put(cache)
    assert cache.clear() == 1
    assert sorted(file.parent.as_posix() for file in tmp_path.rglob("precious")) == [
        f"{tmp_path}/entries/mine", f"{tmp_path}/work/mine",
    ]  # fmt: skip


def test_a_cache_can_be_cleared_and_used_again(cache: Cache) -> None:
    put(cache)
    assert (cache.clear(), cache.clear()) == (1, 0)
    with cache.shared_lock():
        put(cache)
    assert cache.find(KEY) is not None


@pytest.mark.parametrize("root", ["/proc/nowhere", "FILE/below"])
def test_a_folder_that_cannot_be_written(root: str, tmp_path: Path) -> None:
    (tmp_path / "FILE").touch()
    cache = Cache(tmp_path / root)
    with pytest.raises(StorageError, match=f"cache {cache.root}: cannot be written: "), cache.shared_lock():
        pass
    assert (cache.clear(), cache.list_entries()) == (0, [])


def test_a_full_disk_leaves_no_entry(tmp_path: Path) -> None:
    code = f"""
        import resource, signal, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from test_cache import put
        from edgepipe.core.cache import Cache
        cache = Cache(Path("c"))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with cache.shared_lock():
            resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
            try:
                put(cache)
            except Exception as error:
                print(f"{{type(error).__name__}}: {{error}}")
    """
    line = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "StorageError: cache c: cannot be written: File too large\n"
    assert [list((tmp_path / "c" / name).iterdir()) for name in ("entries", "work")] == [[], []]


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEPIPE_CACHE_DIR", "/a")
    assert default_root() == Path("/a")
    monkeypatch.delenv("EDGEPIPE_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert default_root() == Path("/b/edgepipe")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_root() == tmp_path / ".cache" / "edgepipe"


def test_the_commands(cache: Cache, command: Command) -> None:
    put(cache)
    listed = command("cache", "list", "--cache-dir", cache.root)
    assert (listed.code, listed.err) == (0, "")
    assert "1 entry" in listed.out
    assert KEY[:12] in listed.out
    told = json.loads(command("cache", "list", "--cache-dir", cache.root, "--json").out)
    assert (told["schema"], [entry["stage"] for entry in told["entries"]]) == ("edgepipe.cache/1", ["convert"])
    (cache.entries_folder / KEY).rename(cache.entries_folder / OTHER)
    assert json.loads(command("cache", "list", "--cache-dir", cache.root, "--json").out)["entries"] == []
    cleared = command("cache", "clear", "--cache-dir", cache.root)
    assert (cleared.code, cleared.out) == (0, f"removed 1 entry from {cache.root}\n")


def test_clear_while_held_ends_with_bad_input(cache: Cache, command: Command) -> None:
    with cache.shared_lock():
        ended = command("cache", "clear", "--cache-dir", cache.root)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == f"edgepipe: cache {cache.root}: a run is using it; try again when it has ended\n"


@pytest.mark.parametrize("below", ["gone", "FILE/below"])
def test_an_absent_cache_is_an_empty_one(below: str, tmp_path: Path, command: Command) -> None:
    (tmp_path / "FILE").touch()
    folder = tmp_path / below
    assert command("cache", "clear", "--cache-dir", folder).out == f"removed 0 entries from {folder}\n"
    assert json.loads(command("cache", "list", "--cache-dir", folder, "--json").out)["entries"] == []
    assert not folder.exists()
