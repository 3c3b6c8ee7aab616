"""Where the operators of a .tflite run that a compiler has been through: as the file says."""

from edgepipe.core.metric import Evidence
from edgepipe.devices.device_profile import Device, Npu
from edgepipe.devices.operator_placement import OperatorPlacement, Processor
from edgepipe.tflite.compiled_file import VELA_CODE, CompiledFile
from edgepipe.tflite.model import Operator


def compiled_for_another(device: Device, compiled_file: CompiledFile) -> bool:
    """Whether the file names an accelerator that is not that of `device`."""
    vela_options = device.system.npu.vela if device.system.npu is not None else None
    if compiled_file.code != VELA_CODE or vela_options is None or not compiled_file.accelerators:
        return compiled_file.code not in device.custom_operators
    return compiled_file.accelerators != (vela_options.accelerator,)


def place_compiled(device: Device, npu: Npu, compiled_file: CompiledFile, operator: Operator) -> OperatorPlacement:
    """Where an operator runs: on the accelerator what the compiler wrote, on the core what it left."""
    basis = f"the file: it is {compiled_file.text()}"
    if operator in compiled_file.cpu_operators:
        reason = f"{compiled_file.compiler} left it on the {device.system.core}"
        suggestion = "verify the .tflite before that: edgepipe says what keeps it there"
        return OperatorPlacement(
            operator.location, Processor.CPU, reason, suggestion, "npu-operator", Evidence.EXACT, basis
        )
    if compiled_for_another(device, compiled_file):
        reason = f"the file is {compiled_file.text()}, not for {npu.name}"
        suggestion = f"compile the .tflite before that for {npu.name}"
        return OperatorPlacement(
            operator.location, Processor.UNSUPPORTED, reason, suggestion, "operator", Evidence.EXACT, basis
        )
    is_open = not compiled_file.accelerators  # the commands may be for another
    return OperatorPlacement(operator.location, Processor.NPU, evidence=Evidence.EXACT, basis=basis, is_open=is_open)
