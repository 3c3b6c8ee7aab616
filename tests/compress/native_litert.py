"""The names that programs in C++ and on Android find: LiteRT's own library, called through its C interface."""

import ctypes
import functools
from pathlib import Path
from typing import Any

import ai_edge_litert

SIDES = ("Input", "Output")


@functools.cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(Path(ai_edge_litert.__file__).parent / "libLiteRt.so"))


@functools.cache
def _environment() -> ctypes.c_void_p:
    environment = ctypes.c_void_p()
    _call("LiteRtCreateEnvironment", 0, None, ctypes.byref(environment))
    return environment


def _call(function_name: str, *arguments: Any) -> None:
    function = getattr(_library(), function_name)
    function.restype = ctypes.c_int
    status = function(*arguments)
    assert status == 0, f"{function_name}: status {status}"


def _get(function_name: str, result_type: Any, *arguments: Any) -> Any:
    result = result_type()
    _call(function_name, *arguments, ctypes.byref(result))
    return result


def read_names(path: Path) -> dict[str, list[tuple[str, str]]]:
    """Key of each signature, and the names of its inputs and outputs: the port's and that of its tensor."""
    model = ctypes.c_void_p()
    _call("LiteRtCreateModelFromFile", _environment(), str(path).encode(), ctypes.byref(model))
    signatures = [
        _get("LiteRtGetModelSignature", ctypes.c_void_p, model, ctypes.c_size_t(index))
        for index in range(_get("LiteRtGetNumModelSignatures", ctypes.c_size_t, model).value)
    ]
    names = {
        _get("LiteRtGetSignatureKey", ctypes.c_char_p, signature).value.decode(): [
            port for side in SIDES for port in _port_names(signature, side)
        ]
        for signature in signatures
    }
    _library().LiteRtDestroyModel(model)
    return names


def _port_names(signature: ctypes.c_void_p, side: str) -> list[tuple[str, str]]:
    names = []
    for index in map(ctypes.c_size_t, range(_get(f"LiteRtGetNumSignature{side}s", ctypes.c_size_t, signature).value)):
        port_name = _get(f"LiteRtGetSignature{side}Name", ctypes.c_char_p, signature, index).value
        tensor = _get(f"LiteRtGetSignature{side}TensorByIndex", ctypes.c_void_p, signature, index)
        names.append((port_name.decode(), _get("LiteRtGetTensorName", ctypes.c_char_p, tensor).value.decode()))
    return names
