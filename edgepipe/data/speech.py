"""Synthetic speech: digits spoken by Debian's espeak-ng in many voices, kept below the cache."""

import functools
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edgepipe.core.artifact import text_digest
from edgepipe.core.cache import default_root
from edgepipe.core.errors import ToolError

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-029")
VARIANTS = (
    "m1", "m2", "m3", "m4", "m5", "m6", "m7", "f1", "f2", "f3", "f4", "f5", "klatt", "klatt2", "klatt3", "croak",
)  # fmt: skip
SPEEDS = (130, 150, 175, 200)  # words a minute
PITCHES = (35, 50, 65)
TAKES = 3  # of each digit by each voice, in other speeds and pitches
VOICES = 60


def program() -> str:
    """Where espeak-ng is.

    Raises:
        ToolError: it is not installed.
    """
    found = shutil.which("espeak-ng")
    if found is None:
        raise ToolError("spoken_digits are made by espeak-ng, which is not installed; on Debian: apt install espeak-ng")
    return found


@functools.cache
def version() -> str:
    """What espeak-ng says its version is."""
    told = subprocess.run([program(), "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
    return told.partition(" Data at")[0].partition(":")[2].strip() or "unknown"


def voices(number: int) -> list[str]:
    """The first `number` voices, accents and variants mixed."""
    pairs = [f"{accent}+{variant}" for variant in VARIANTS for accent in ACCENTS]
    return [pairs[index * 41 % len(pairs)] for index in range(min(number, len(pairs)))]  # 41 has no factor of 96


def folder(number: int) -> Path:
    """The folder of recordings, one subfolder a digit, made now if it is not there: `<voice>_<take>.wav`.

    Raises:
        ToolError: espeak-ng is missing or fails.
    """
    name = text_digest(version(), str(number), *DIGITS, *voices(number), str((SPEEDS, PITCHES, TAKES)))[:16]
    target = default_root() / "speech" / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as aside:
        made = Path(aside) / name
        _speak_all(made, number)
        if not target.is_dir():
            made.rename(target)
    return target


def _speak_all(folder: Path, number: int) -> None:
    for digit in DIGITS:
        (folder / digit).mkdir(parents=True)
    tasks = [
        (folder / digit / f"{voice}_{take}.wav", voice, digit, index + take)
        for index, voice in enumerate(voices(number))
        for digit in DIGITS
        for take in range(TAKES)
    ]
    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(lambda task: _speak(*task), tasks))


def _speak(path: Path, voice: str, word: str, turn: int) -> None:
    manner = ["-s", str(SPEEDS[turn % len(SPEEDS)]), "-p", str(PITCHES[turn % len(PITCHES)])]
    command = [program(), "-v", voice, *manner, "-w", str(path), word]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0 or not path.exists():
        raise ToolError(f"espeak-ng failed on '{word}' by {voice}: {done.stderr.strip()[:200] or done.returncode}")
