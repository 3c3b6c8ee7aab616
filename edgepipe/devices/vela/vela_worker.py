"""Child process of `vela_compiler`: runs Vela, whose native core crashes on some models.

Vela writes its tables to the output folder. Its standard output goes to `log.txt` there; file descriptor 1 is
redirected, because the C++ core bypasses `sys.stdout`.
"""

import os
import sys
from pathlib import Path

from edgepipe.core.errors import InputError
from edgepipe.tflite import child_process
from edgepipe.tflite.child_process import Json

MODEL_FILE, LOG_FILE = "model.tflite", "log.txt"


def handle_request(request: Json) -> Json:
    """Compile `model.tflite` in `folder` for `accelerator`, `system_config` and `memory_mode`.

    Returns:
        {"wrong_settings": reason} if the settings do not exist or contradict each other, otherwise an empty mapping.
    """
    from ethosu.vela import vela
    from ethosu.vela.architecture_features import Accelerator
    from ethosu.vela.errors import CliOptionError, ConfigOptionError, VelaError

    if request["accelerator"] not in Accelerator.member_list():
        return {
            "wrong_settings": f"no accelerator '{request['accelerator']}'; allowed: {_list_accelerators(Accelerator)}"
        }
    folder = Path(request["folder"])
    _redirect_stdout(folder / LOG_FILE)
    try:
        exit_status = vela.main(_vela_arguments(request, folder))
    except (CliOptionError, ConfigOptionError) as error:
        return {"wrong_settings": str(error.data).removeprefix("Error: ")}
    except (VelaError, RuntimeError) as error:  # the core raises RuntimeError for unreadable files
        raise InputError(" ".join(str(error).split())) from None
    if exit_status:
        raise InputError(f"Vela exited with status {exit_status}")
    return {}


def _list_accelerators(accelerator_enum: object) -> str:
    return ", ".join(accelerator_enum.member_list())  # type: ignore[attr-defined]  # Vela has no types


def _vela_arguments(request: Json, folder: Path) -> list[str]:
    vela_settings = {name: request[name] for name in ("system_config", "memory_mode")}
    command_options = [
        text for name, setting in vela_settings.items() for text in (f"--{name.replace('_', '-')}", setting)
    ]
    return [
        str(folder / MODEL_FILE), "--output-dir", str(folder), "--config", "Arm/vela.ini",
        "--accelerator-config", request["accelerator"], *command_options, "--verbose-performance", "--enable-debug-db",
    ]  # fmt: skip


def _redirect_stdout(path: Path) -> None:
    """Redirect stdout, C++ output included, to `path`; stderr keeps the last words of a crash."""
    sys.stdout.flush()
    log_descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(log_descriptor, 1)
    os.close(log_descriptor)


if __name__ == "__main__":
    child_process.serve(handle_request)
