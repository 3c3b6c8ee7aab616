"""Synthetic speech: digits spoken by Debian's espeak-ng in many voices, stored in the cache folder."""

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
TAKES_PER_DIGIT = 3  # of each digit by each voice, at different speeds and pitches
DEFAULT_VOICE_COUNT = 60


def find_espeak() -> str:
    """The path of espeak-ng.

    Raises:
        ToolError: it is not installed.
    """
    path = shutil.which("espeak-ng")
    if path is None:
        raise ToolError("spoken_digits needs espeak-ng, which is not installed; on Debian: apt install espeak-ng")
    return path


@functools.cache
def espeak_version() -> str:
    """The version that espeak-ng reports."""
    version_text = subprocess.run(
        [find_espeak(), "--version"], capture_output=True, text=True, timeout=30, check=False
    ).stdout
    return version_text.partition(" Data at")[0].partition(":")[2].strip() or "unknown"


def list_voices(count: int) -> list[str]:
    """The first `count` voices, accents and variants mixed."""
    voice_names = [f"{accent}+{variant}" for variant in VARIANTS for accent in ACCENTS]
    return [
        voice_names[index * 41 % len(voice_names)] for index in range(min(count, len(voice_names)))
    ]  # 41 has no factor of 96


def get_recordings_folder(voice_count: int) -> Path:
    """The folder of recordings, `<digit>/<voice>_<take>.wav`, synthesized if it does not exist.

    Raises:
        ToolError: espeak-ng is missing or fails.
    """
    folder_name = text_digest(
        espeak_version(), str(voice_count), *DIGITS, *list_voices(voice_count), str((SPEEDS, PITCHES, TAKES_PER_DIGIT))
    )[:16]
    target = default_root() / "speech" / folder_name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary_folder:
        new_folder = Path(temporary_folder) / folder_name
        _speak_all(new_folder, voice_count)
        if not target.is_dir():
            new_folder.rename(target)
    return target


def _speak_all(folder: Path, voice_count: int) -> None:
    for digit in DIGITS:
        (folder / digit).mkdir(parents=True)
    speak_arguments = [
        (folder / digit / f"{voice}_{take}.wav", voice, digit, index + take)
        for index, voice in enumerate(list_voices(voice_count))
        for digit in DIGITS
        for take in range(TAKES_PER_DIGIT)
    ]
    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(lambda task: _speak(*task), speak_arguments))


def _speak(path: Path, voice: str, word: str, variation: int) -> None:
    voice_options = ["-s", str(SPEEDS[variation % len(SPEEDS)]), "-p", str(PITCHES[variation % len(PITCHES)])]
    command = [find_espeak(), "-v", voice, *voice_options, "-w", str(path), word]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if process.returncode != 0 or not path.exists():
        raise ToolError(
            f"espeak-ng failed on '{word}' by {voice}: {process.stderr.strip()[:200] or process.returncode}"
        )
