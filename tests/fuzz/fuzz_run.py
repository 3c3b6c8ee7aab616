"""Gives damaged inputs to edgepipe: `python tests/fuzz/fuzz_run.py COUNT [SEED] [KIND ..]`.

Each command runs in a fork of this process, which has loaded everything that is large.
"""

import contextlib
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), *(str(Path(__file__).parents[1] / name) for name in ("", "tflite"))]

from fuzz_seeds import KINDS, write_intact  # noqa: E402

from edgepipe import cli  # noqa: E402

SECONDS = 10.0
PATIENCE = 3  # times as many seconds may pass on a busy machine until a command counts as hung
MEMORY = 2 << 30
ALLOWED_CODES = (0, 2, 3)
WRITTEN = ("out", "cache", "runs", "stdout", "stderr")  # where a command may write


@dataclass
class FuzzResult:
    """What became of all commands, and what was wrong with some of them."""

    codes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    slowest: float = 0.0
    memory: int = 0


def warm_up(with_tensorflow: bool) -> None:
    """Load what the forks share."""
    import pandas  # noqa: F401
    import rich.console  # noqa: F401
    import scipy.io.wavfile  # noqa: F401
    from ai_edge_litert import schema_py_generated  # noqa: F401

    from edgepipe.commands import profile, verify  # noqa: F401
    from edgepipe.data import dataset_loading  # noqa: F401
    from edgepipe.pipeline import runner  # noqa: F401
    from edgepipe.render import inspect, report_files, terminal  # noqa: F401

    if with_tensorflow:
        from edgepipe.commands import convert
        from edgepipe.models.startup import load_tensorflow

        load_tensorflow()
        assert convert


def fuzz(count: int, seed: int, kind_names: tuple[str, ...] = tuple(KINDS), seconds: float = SECONDS) -> FuzzResult:
    """Run `count` damaged inputs, the kinds in turn, each by one of the commands that read it."""
    result = FuzzResult()
    with tempfile.TemporaryDirectory() as scratch:
        intact = Path(scratch) / "intact"
        intact.mkdir()
        write_intact(intact)
        if "cache" in kind_names:
            _keep_entries(result, intact, seconds)
        for number in range(seed, seed + count):
            kind_name = kind_names[number % len(kind_names)]
            folder = Path(scratch) / "work"
            shutil.copytree(intact, folder)
            rng = random.Random(f"{kind_name}{number}")
            KINDS[kind_name].write(folder, rng)
            _run_one(result, folder, rng.choice(KINDS[kind_name].commands), f"{kind_name} {number}", seconds)
            shutil.rmtree(folder)
    return result


def _keep_entries(result: FuzzResult, intact: Path, seconds: float) -> None:
    """Keep the cache entries of a run, whose keys only edgepipe knows, for mutants of them."""
    _run_one(result, intact, ("run", "by-cache.yaml", "--output-dir", "out"), "intact", PATIENCE * seconds)
    (intact / "cache" / "entries").rename(intact / "kept")
    shutil.rmtree(intact / "cache")
    shutil.rmtree(intact / "out")


def _run_one(result: FuzzResult, folder: Path, arguments: tuple[str, ...], title: str, seconds: float) -> None:
    before, start = _snapshot(folder), time.monotonic()
    pid = os.fork()
    if not pid:
        _run_forked(folder, arguments, seconds)
    status, usage = _wait(pid, start + PATIENCE * seconds)
    elapsed, memory = time.monotonic() - start, usage.ru_maxrss * 1024
    cpu = usage.ru_utime + usage.ru_stime
    code = os.waitstatus_to_exitcode(status)
    output = (
        (folder / "stdout").read_text(errors="surrogateescape"),
        (folder / "stderr").read_text(errors="surrogateescape"),
    )
    result.codes[f"{title.split()[0]} {code}"] += 1
    result.slowest, result.memory = max(result.slowest, cpu), max(result.memory, memory)
    problems = [
        *([f"exit {code}"] if code not in ALLOWED_CODES else []),
        *(["a traceback"] if "Traceback" in "".join(output) else []),
        *([f"{cpu:.1f} s of CPU, {elapsed:.1f} s"] if cpu > seconds else []),
        *([f"{memory >> 20} MiB"] if memory > MEMORY else []),
        *(_bad_characters("".join(output))),
        *(f"touched {name}" for name in sorted(_changed(before, _snapshot(folder)))),
    ]
    if problems:
        result.problems.append(f"{title}: {' '.join(arguments)}: {'; '.join(problems)}: {output[1][-400:]}")


def _wait(pid: int, deadline: float) -> tuple[int, resource.struct_rusage]:
    while time.monotonic() < deadline:
        ended_pid, status, usage = os.wait4(pid, os.WNOHANG)
        if ended_pid:
            return status, usage
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    return os.wait4(pid, 0)[1:]


def _bad_characters(text: str) -> list[str]:
    bad = {character for character in text if not (character.isprintable() or character in "\n \u3000\xa0")}
    return [f"printed {sorted(bad)!r}"] if bad else []


def _snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    paths = (
        path for path in folder.rglob("*") if path.relative_to(folder).parts[0] not in (*WRITTEN, "stdout", "stderr")
    )
    return {str(path.relative_to(folder)): (path.lstat().st_mtime_ns, path.lstat().st_size) for path in paths}


def _changed(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> set[str]:
    return {name for name, _ in set(before.items()) ^ set(after.items()) if Path(name).suffix or name not in before}


def _run_forked(folder: Path, arguments: tuple[str, ...], seconds: float) -> None:
    """Never returns."""
    os.chdir(folder)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 5, int(seconds) + 6))
    sys.stdin = Path(os.devnull).open()  # noqa: SIM115
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    sys.argv = ["edgepipe", *arguments]
    os.environ.update(EDGEPIPE_CACHE_DIR=str(folder / "cache"), HOME=str(folder / "out"))
    code = 1
    try:
        cli.main()
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        _end_children()
        os._exit(code)


def _end_children() -> None:
    from edgepipe.tflite import sandbox

    if sandbox.get_shared.cache_info().currsize:
        sandbox.get_shared().close()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _main() -> None:
    count, seed = int(sys.argv[1]), int((sys.argv[2:] or ["0"])[0])
    kind_names = tuple(sys.argv[3:]) or tuple(KINDS)
    warm_up(not {"keras", "cache"}.isdisjoint(kind_names))
    start = time.monotonic()
    result = fuzz(count, seed, kind_names)
    for problem in result.problems:
        print(problem.encode("unicode_escape").decode())
    print(dict(sorted(result.codes.items())))
    seconds = time.monotonic() - start
    print(f"{count} in {seconds:.0f} s; slowest {result.slowest:.1f} s; {result.memory >> 20} MiB at most")
    raise SystemExit(bool(result.problems))


if __name__ == "__main__":
    _main()
