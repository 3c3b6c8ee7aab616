"""The Python on a device that runs models, and installing the runtime for it where the user asks for that."""

from collections.abc import Callable

from edgepipe.deploy.device import Device
from edgepipe.deploy.transport import DeviceError, RunLimits

VENV_FOLDER = ".edgepipe/venv"
INSTALL_SECONDS = 900.0
_FIND_PYTHON = f"""
if [ -x {VENV_FOLDER}/bin/python3 ]; then echo "python=$PWD/{VENV_FOLDER}/bin/python3"; fi
"""
_INSTALL = f"""
install() {{ {VENV_FOLDER}/bin/python3 -m pip install --quiet --disable-pip-version-check "$@"; }}
"$1" -m venv {VENV_FOLDER} && {{ install numpy ai-edge-litert || install 'numpy<2' tflite-runtime; }}
"""


def prepare_runtime(device: Device, install: bool, tell: Callable[[str], None]) -> None:
    """Choose the Python that runs the model: the environment that `--install` made in the folder, else the device's.

    Raises:
        DeviceError: `install` is asked for and fails.
    """
    if device.python != "python3":
        return  # the user has named one
    printed = device.check("cannot look for Python", _FIND_PYTHON)
    if not printed.strip() and install:
        tell(f"{device.name}: installs numpy and ai-edge-litert into {device.folder}/{VENV_FOLDER}")
        _install(device)
        printed = device.check("cannot look for Python", _FIND_PYTHON)
    device.python = printed.strip().rpartition("python=")[2] or device.python


def _install(device: Device) -> None:
    result = device.run(_INSTALL, device.python, limits=RunLimits(INSTALL_SECONDS))
    if result.status:
        device.change("cannot remove what was installed in part", f"rm -rf {VENV_FOLDER}")
        raise DeviceError(
            f"{device.name}: --install failed: {result.last_line}; it needs python3 with venv "
            "(on Debian: apt-get install python3-venv) and a package index that has wheels for this device"
        )
