"""Compiles a model with Vela in a child process, once per model content, settings and Vela version."""

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgepipe.core import module_sources, references
from edgepipe.core.artifact import Artifact, ArtifactKind, json_digest, write_bytes
from edgepipe.core.cache import Cache, DamagedEntryError, default_root
from edgepipe.core.cost import measure_cost
from edgepipe.core.errors import InputError, StorageError, ToolError
from edgepipe.core.outcome import Outcome
from edgepipe.devices.device_profile import Device
from edgepipe.devices.vela import vela_output
from edgepipe.devices.vela.vela_output import COMPILED_FILE
from edgepipe.devices.vela.vela_result import VelaCompilation, VelaSettings
from edgepipe.devices.vela.vela_worker import MODEL_FILE
from edgepipe.tflite import child_process
from edgepipe.tflite.model import Model

VELA_PACKAGE = "ethos-u-vela"
WORKER_MODULE = "edgepipe.devices.vela.vela_worker"
INSTALL_REMEDY = "pip install 'edgepipe[npu]'"
TIMEOUT_SECONDS = 300.0  # seconds; the largest known models take 2 s
COMPILATION_FILE = "vela.json"


class VelaRefusedError(InputError):
    """Vela did not compile the model: it rejected it, crashed or timed out."""


@dataclass(frozen=True)
class CompiledModel:
    """A compiled model: Vela's results, the bytes of the file, and whether it came from the cache."""

    compilation: VelaCompilation
    content: bytes
    from_cache: bool
    cache_note: str = ""  # why it could not be cached


def unavailable_reason() -> str:
    """Why Vela cannot run here, with the remedy; empty when it can."""
    is_installed = references.installed_version(VELA_PACKAGE) != "absent"
    return "" if is_installed else f"the package {VELA_PACKAGE} is not installed: {INSTALL_REMEDY}"


def device_settings(device: Device) -> VelaSettings | None:
    """Vela's settings for the accelerator of `device`; None if it has none that Vela compiles for."""
    vela_options = device.system.npu.vela if device.system.npu is not None else None
    if vela_options is None:
        return None
    return VelaSettings(
        accelerator=vela_options.accelerator,
        system_config=vela_options.system_config,
        memory_mode=vela_options.memory_mode,
    )


def compile_model(
    model: Model, settings: VelaSettings, cache: Cache | None = None, timeout: float = TIMEOUT_SECONDS
) -> CompiledModel:
    """Compile `model` with Vela, or take the compiled model from the cache.

    Args:
        model: the .tflite to compile.
        settings: the accelerator and its system configuration.
        cache: where compiled models are kept; None: the default cache.
        timeout: in seconds.

    Raises:
        RefusedError: Vela rejected the model, crashed on it or took longer than `timeout`; nothing is cached.
        InputError: the settings do not exist or contradict each other.
        ToolError: Vela is not installed.
    """
    reason = unavailable_reason()
    if reason:
        raise ToolError(reason)
    model_cache = cache or Cache(default_root())
    try:
        with model_cache.shared_lock():
            return _compile_cached(model, settings, model_cache, timeout)
    except StorageError as error:  # a folder that is only read is noticed when there is something to write
        cache_note = f"Vela's output was not cached, so Vela runs again next time: {error}"
        return _compile_uncached(model, settings, timeout, cache_note)


def _compile_cached(model: Model, settings: VelaSettings, cache: Cache, timeout: float) -> CompiledModel:
    cache_key = _cache_key(model, settings)
    cached_model = _find_cached_model(cache, cache_key)
    if cached_model is not None:
        return cached_model
    with cache.workspace() as folder:
        with measure_cost() as meter:
            compiled_model = _compile_into(model, settings, folder, timeout)
        artifact = Artifact.from_path(ArtifactKind.VELA, folder / COMPILED_FILE)
        cache.store(folder, cache_key, f"vela {settings.accelerator}", artifact, Outcome(), meter.cost)
    return compiled_model


def _find_cached_model(cache: Cache, key: str) -> CompiledModel | None:
    try:
        cache_entry = cache.find(key)
    except DamagedEntryError:
        cache.discard(key)  # compiled again
        return None
    if cache_entry is None:
        return None
    text = (cache_entry.artifact.path.parent / COMPILATION_FILE).read_text(encoding="utf-8")
    return CompiledModel(
        VelaCompilation.model_validate_json(text), cache_entry.artifact.path.read_bytes(), from_cache=True
    )


def _compile_uncached(model: Model, settings: VelaSettings, timeout: float, cache_note: str) -> CompiledModel:
    with tempfile.TemporaryDirectory(prefix="edgepipe-") as folder:
        compiled_model = _compile_into(model, settings, Path(folder), timeout)
    return CompiledModel(compiled_model.compilation, compiled_model.content, from_cache=False, cache_note=cache_note)


def _compile_into(model: Model, settings: VelaSettings, folder: Path, timeout: float) -> CompiledModel:
    """Run Vela; `folder` then holds only the compiled model and `vela.json`."""
    version = references.installed_version(VELA_PACKAGE)
    with _scratch_folder(folder) as scratch:
        (scratch / MODEL_FILE).write_bytes(model.content)
        _run_vela(model, settings, scratch, timeout, version)
        try:
            compilation = vela_output.read(scratch, model, settings, version)
        except vela_output.UnknownFormatError as error:
            raise VelaRefusedError(f"{model.path.name} for {settings.accelerator}: {error}") from None
        content = (scratch / COMPILED_FILE).read_bytes()
    write_bytes(folder / COMPILED_FILE, content)
    write_bytes(folder / COMPILATION_FILE, compilation.model_dump_json(indent=1).encode())
    return CompiledModel(compilation, content, from_cache=False)


@contextlib.contextmanager
def _scratch_folder(folder: Path) -> Iterator[Path]:
    scratch = folder / "vela"
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _run_vela(model: Model, settings: VelaSettings, folder: Path, timeout: float, version: str) -> None:
    job_text = f"Vela {version} for {settings.accelerator} on {model.path.name}"
    request = {"folder": str(folder), **settings.model_dump()}
    try:
        worker_response = child_process.run(WORKER_MODULE, request, timeout, job_text)
    except child_process.ChildError as error:
        raise VelaRefusedError(f"{job_text}: {error}" if error.is_refusal else str(error)) from None
    if "wrong_settings" in worker_response:
        raise InputError(f"Vela {version} rejects the settings {settings.text()}: {worker_response['wrong_settings']}")


def _cache_key(model: Model, settings: VelaSettings) -> str:
    return json_digest(
        {
            "what": "vela",
            "model": hashlib.sha256(model.content).hexdigest(),
            "settings": settings.model_dump(),
            "version": references.installed_version(VELA_PACKAGE),
            "source": module_sources.source_digest(__name__),
        }
    )
