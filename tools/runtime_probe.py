"""Runs a folder of small models in the TensorFlow Lite of this Python: `python runtime_probe.py FOLDER`.

Run by `tools/runtime_abilities.py` in the environment of each release; needs NumPy and that runtime, nothing else.
Each model runs in a child process, since old runtimes crash on what they do not know. Prints one line of JSON for each
model: `refuses` with the runtime's words, `crashes`, or the largest differences of its outputs from the reference.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

TIMEOUT = 60  # seconds for one model
ARENA = 1 << 24


def lite_interpreters() -> list[Any]:
    """Functions that open a model: with the default delegates, and with built-in kernels only."""
    try:
        from tflite_runtime import interpreter as lite
    except ImportError:
        try:
            from ai_edge_litert import interpreter as lite
        except ImportError:
            from tensorflow.lite.python import interpreter as lite
    plain = lite.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    return [
        lambda path: lite.Interpreter(path, num_threads=1),
        lambda path: lite.Interpreter(path, num_threads=1, experimental_op_resolver_type=plain),
    ]


def run_lite(open_model: Any, path: str, samples: list[list[Any]]) -> list[list[Any]]:
    """The outputs of each sample; all samples at once where the first dimension of the inputs is open."""
    interpreter = open_model(path)
    for detail, array in zip(interpreter.get_input_details(), samples[0], strict=True):
        if tuple(detail["shape"]) != array.shape:
            interpreter.resize_tensor_input(detail["index"], array.shape)
    interpreter.allocate_tensors()
    outputs = []
    for arrays in samples:
        if hasattr(interpreter, "reset_all_variables"):
            interpreter.reset_all_variables()
        for detail, array in zip(interpreter.get_input_details(), arrays, strict=True):
            interpreter.set_tensor(detail["index"], array)
        interpreter.invoke()
        outputs.append([interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()])
    return outputs


def run_micro(path: str, samples: list[list[Any]]) -> list[list[Any]]:
    """The outputs of each sample in TensorFlow Lite Micro."""
    from tflite_micro.python.tflite_micro import runtime

    outputs, count = [], int(np.load(path.replace(".tflite", ".npz"))["outputs"])
    for arrays in samples:
        interpreter = runtime.Interpreter.from_bytes(Path(path).read_bytes(), arena_size=ARENA)
        for index, array in enumerate(arrays):
            interpreter.set_input(array, index)
        interpreter.invoke()
        outputs.append([np.array(interpreter.get_output(index)) for index in range(count)])
    return outputs


def largest_difference(outputs: list[list[Any]], expected: list[list[Any]]) -> float:
    """In codes for integers; for floats as a share of the largest reference value."""
    largest = 0.0
    for ours, theirs in zip(outputs, expected, strict=True):
        for output, reference in zip(ours, theirs, strict=True):
            if output.shape != reference.shape:
                return float("inf")
            if not reference.size:
                continue
            difference = np.abs(output.astype(np.float64) - reference.astype(np.float64)).max()
            is_float = reference.dtype.kind == "f"
            scale = max(float(np.abs(reference).max()), 1e-9) if is_float else 1.0
            largest = max(largest, float("inf") if np.isnan(difference) else float(difference) / scale)
    return largest


def read_case(path: Path) -> tuple[list[list[Any]], list[list[Any]]]:
    """Samples and expected outputs of a model."""
    arrays = np.load(str(path.with_suffix(".npz")))
    counts = [int(arrays[name]) for name in ("samples", "inputs", "outputs")]
    return tuple(  # type: ignore[return-value]
        [[arrays[f"{side}_{sample}_{index}"] for index in range(count)] for sample in range(counts[0])]
        for side, count in (("input", counts[1]), ("output", counts[2]))
    )


def try_model(path: Path, run: Any) -> dict[str, Any]:
    """The result of one model in one way of running it."""
    samples, expected = read_case(path)
    try:
        outputs = run(str(path), samples)
    except Exception as error:  # noqa: BLE001 - whatever a runtime raises is its refusal
        return {"result": "refuses", "reason": " ".join(str(error).split())[:200]}
    return {"result": "runs", "difference": largest_difference(outputs, expected)}


def _answer(writer: int, path: Path, run: Any) -> None:
    """What the child process does: it writes its result and ends, whatever happens."""
    try:
        for stream in (1, 2):  # old runtimes log to both
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        signal.alarm(TIMEOUT)
        os.write(writer, json.dumps(try_model(path, run)).encode())
    finally:
        os._exit(0)


def in_child(path: Path, run: Any) -> dict[str, Any]:
    """The same in a child process: a crash ends the child only."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _answer(writer, path, run)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        content = pipe.read()
    status = os.waitpid(child, 0)[1]
    return json.loads(content) if content else {"result": "crashes", "reason": f"signal {status & 127}"}


def main(folder: Path) -> None:
    """Try every model of a folder, in each way that this runtime has."""
    try:
        import tflite_micro  # noqa: F401

        ways = [run_micro]
    except ImportError:
        ways = [
            lambda path, samples, open_model=open_model: run_lite(open_model, path, samples)
            for open_model in lite_interpreters()
        ]
    for path in sorted(folder.glob("*.tflite")):
        print(json.dumps({"case": path.stem, "ways": [in_child(path, way) for way in ways]}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
