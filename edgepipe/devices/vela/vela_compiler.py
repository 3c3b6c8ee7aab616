"""Compiles a model with Vela in a child process, once for each content, settings and version."""

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgepipe.core import references
from edgepipe.core.artifact import Artifact, Kind, json_digest, write_bytes
from edgepipe.core.cache import Cache, DamagedError, default_root
from edgepipe.core.cost import measured
from edgepipe.core.errors import InputError, StorageError, ToolError
from edgepipe.core.outcome import Outcome
from edgepipe.devices.device_profile import Device
from edgepipe.devices.vela import vela_output
from edgepipe.devices.vela.vela_output import COMPILED
from edgepipe.devices.vela.vela_result import Compiled, Settings
from edgepipe.devices.vela.vela_worker import MODEL
from edgepipe.tflite import child_process
from edgepipe.tflite.model import Model

PACKAGE = "ethos-u-vela"
WORKER = "edgepipe.devices.vela.vela_worker"
REMEDY = "pip install 'edgepipe[npu]'"
TIMEOUT = 300.0  # the largest models at hand take 2 s
RESULT = "vela.json"


class RefusedError(InputError):
    """Vela did not compile the model: it refused it, crashed, or did not come to an end."""


@dataclass(frozen=True)
class Made:
    """A compiled model: what Vela told, the file's bytes, and whether the cache had it."""

    result: Compiled
    content: bytes
    cached: bool
    note: str = ""  # why it could not be kept


def missing() -> str:
    """Why Vela cannot run here, with the remedy; empty when it can."""
    return "" if references.version(PACKAGE) != "absent" else f"the package {PACKAGE} is not installed: {REMEDY}"


def settings(device: Device) -> Settings | None:
    """What Vela is told about the accelerator of `device`; None if it has none that Vela compiles for."""
    vela = device.system.npu.vela if device.system.npu is not None else None
    if vela is None:
        return None
    return Settings(accelerator=vela.accelerator, system_config=vela.system_config, memory_mode=vela.memory_mode)


def compiled(model: Model, to: Settings, cache: Cache | None = None, timeout: float = TIMEOUT) -> Made:
    """Compile `model` for `to`, or take it from the cache; None stands for the default cache.

    Raises:
        RefusedError: Vela refused the model, crashed on it or took longer than `timeout` seconds; nothing is kept.
        InputError: the settings do not exist or do not go together.
        ToolError: Vela is not installed.
    """
    reason = missing()
    if reason:
        raise ToolError(reason)
    kept = cache or Cache(default_root())
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(kept.held())
        except StorageError as error:
            return _in_passing(model, to, timeout, f"what Vela made was not kept, so it runs again next time: {error}")
        return _kept(model, to, kept, timeout)


def _kept(model: Model, to: Settings, cache: Cache, timeout: float) -> Made:
    key = _key(model, to)
    found = _found(cache, key)
    if found is not None:
        return found
    with cache.workspace() as folder:
        with measured() as meter:
            made = _made(model, to, folder, timeout)
        artifact = Artifact.of(Kind.VELA, folder / COMPILED)
        cache.put(folder, key, f"vela {to.accelerator}", artifact, Outcome(), meter.cost)
    return made


def _found(cache: Cache, key: str) -> Made | None:
    try:
        stored = cache.find(key)
    except DamagedError:
        cache.discard(key)  # it is made again, as if it had never been there
        return None
    if stored is None:
        return None
    text = (stored.artifact.path.parent / RESULT).read_text(encoding="utf-8")
    return Made(Compiled.model_validate_json(text), stored.artifact.path.read_bytes(), cached=True)


def _in_passing(model: Model, to: Settings, timeout: float, note: str) -> Made:
    with tempfile.TemporaryDirectory(prefix="edgepipe-") as folder:
        made = _made(model, to, Path(folder), timeout)
    return Made(made.result, made.content, cached=False, note=note)


def _made(model: Model, to: Settings, folder: Path, timeout: float) -> Made:
    """Run Vela and leave the compiled model and `vela.json` in `folder`, nothing else."""
    version = references.version(PACKAGE)
    with _aside(folder) as inner:
        (inner / MODEL).write_bytes(model.content)
        _run(model, to, inner, timeout, version)
        try:
            result = vela_output.read(inner, model, to, version)
        except vela_output.UnknownFormatError as error:
            raise RefusedError(f"{model.path.name} for {to.accelerator}: {error}") from None
        content = (inner / COMPILED).read_bytes()
    write_bytes(folder / COMPILED, content)
    write_bytes(folder / RESULT, result.model_dump_json(indent=1).encode())
    return Made(result, content, cached=False)


@contextlib.contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    inner = folder / "vela"
    inner.mkdir()
    try:
        yield inner
    finally:
        shutil.rmtree(inner, ignore_errors=True)


def _run(model: Model, to: Settings, folder: Path, timeout: float, version: str) -> None:
    who = f"Vela {version} for {to.accelerator} on {model.path.name}"
    request = {"folder": str(folder), **to.model_dump()}
    try:
        answer = child_process.run(WORKER, request, timeout, who)
    except child_process.ChildError as error:
        raise RefusedError(f"{who}: {error}" if error.refused else str(error)) from None
    if "wrong_settings" in answer:
        raise InputError(f"Vela {version} does not take the settings {to.text()}: {answer['wrong_settings']}")


def _key(model: Model, to: Settings) -> str:
    return json_digest(
        {
            "what": "vela",
            "model": hashlib.sha256(model.content).hexdigest(),
            "settings": to.model_dump(),
            "version": references.version(PACKAGE),
            "source": references.digest(__name__),
        }
    )
