"""The Python on a device that runs models, and installing the runtime for it where the user asks for that."""

from collections.abc import Callable

from edgepipe.deploy.device import STATE_FOLDER, Device
from edgepipe.deploy.transport import DeviceError, RunLimits

VENV_FOLDER = f"{STATE_FOLDER}/venv"
INSTALL_SECONDS = 900.0
DEFAULT_PYTHON = "python3"
_FIND_ENVIRONMENT = f'if [ -x {VENV_FOLDER}/bin/python3 ]; then echo "python=$PWD/{VENV_FOLDER}/bin/python3"; fi'
_HAS_RUNTIME = """
for module in ai_edge_litert tflite_runtime; do
  "$1" -c "import numpy, $module.interpreter" >/dev/null 2>&1 && exit 0
done
exit 1
"""
# It gets its place once it is whole: an interrupted installation is not taken for an environment.
_INSTALL = f"""
rm -rf {VENV_FOLDER}.part && "$1" -m venv {VENV_FOLDER}.part || exit 1
install() {{ {VENV_FOLDER}.part/bin/python3 -m pip install --quiet --disable-pip-version-check "$@"; }}
install numpy ai-edge-litert || install 'numpy<2' tflite-runtime || exit 1
mv {VENV_FOLDER}.part {VENV_FOLDER}
"""


def prepare_runtime(device: Device, install: bool, notify: Callable[[str], None]) -> None:
    """Choose the Python that runs the model: the environment that `--install` made in the folder, else the device's.

    Raises:
        DeviceError: `install` is asked for and fails.
    """
    if device.python != DEFAULT_PYTHON:
        return  # the user has named one
    environment_python = _find_environment(device)
    if not environment_python and install and device.run(_HAS_RUNTIME, device.python).status:
        notify(f"{device.name}: installs numpy and ai-edge-litert into {device.folder}/{VENV_FOLDER}")
        _install(device)
        environment_python = _find_environment(device)
    device.python = environment_python or device.python


def _find_environment(device: Device) -> str:
    printed = device.check("cannot look for Python", _FIND_ENVIRONMENT)
    return printed.strip().rpartition("python=")[2]


def _install(device: Device) -> None:
    result = device.run(_INSTALL, device.python, limits=RunLimits(INSTALL_SECONDS))
    if result.status:
        device.change("cannot remove what was installed in part", f"rm -rf {VENV_FOLDER}.part")
        raise DeviceError(
            f"{device.name}: --install failed: {result.last_line}; it needs python3 with venv "
            "(on Debian: apt-get install python3-venv) and a package index that has wheels for this device"
        )
