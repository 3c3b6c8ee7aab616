"""Remakes edgepipe/devices/edgetpu/coral_pairs.json from a folder of Coral's published pairs of models.

    python tools/coral_pairs.py FOLDER COMMIT

FOLDER holds pairs `X.tflite`, `X_edgetpu.tflite` of https://github.com/google-coral/test_data at COMMIT. Only facts are
kept: operators, their versions, shapes and types of tensors, a few small constants, and which operators the compiler
left outside of `edgetpu-custom-op`. No weights are read.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from edgepipe.core.arrays import Array
from edgepipe.tflite import reader
from edgepipe.tflite.model import Model, Operator, Tensor

TARGET = Path(__file__).parents[1] / "edgepipe" / "devices" / "edgetpu" / "coral_pairs.json"
REPOSITORY = "https://github.com/google-coral/test_data"
COMPILED_SUFFIX = "_edgetpu"
COMPILED_CODE = "edgetpu-custom-op"
MAX_VALUES = 32  # elements of a constant that is kept: axes, paddings, sizes
KEPT_OPTIONS = (
    *("fusedActivationFunction", "dilationHFactor", "dilationWFactor", "axis", "numSplits", "alignCorners"),
    *("halfPixelCenters", "ellipsisMask", "newAxisMask"),
)


def describe_pair(source: Model, compiled: Model) -> dict[str, Any]:
    """The facts of one pair; `cpu` are the indices of the operators that stay outside of the compiled ones."""
    return {
        "tensors": [_describe_tensor(source, tensor) for tensor in source.tensors],
        "inputs": [tensor.index for tensor in source.inputs],
        "outputs": [tensor.index for tensor in source.outputs],
        "operators": [_describe_operator(operator) for operator in source.operators],
        "cpu": _find_cpu_operators(source, compiled),
    }


def _describe_tensor(model: Model, tensor: Tensor) -> list[Any]:
    flags = ("constant" if tensor.is_constant else "") + ("variable" if tensor.is_variable else "")
    is_kept = tensor.is_constant and tensor.dtype == "int32" and tensor.element_count <= MAX_VALUES
    is_kept = is_kept and tensor.quantization is None
    values: Array | None = model.read_values(tensor) if is_kept else None
    return [tensor.dtype, list(tensor.shape), flags] + ([np.ravel(values).tolist()] if values is not None else [])


def _describe_operator(operator: Operator) -> list[Any]:
    tensor_indices = [
        [-1 if tensor is None else tensor.index for tensor in tensors]
        for tensors in (operator.inputs, operator.outputs)
    ]
    options = {name: operator.options[name] for name in KEPT_OPTIONS if operator.options.get(name)}
    custom = ["custom"] if operator.is_custom else []
    return [operator.name, operator.version, *tensor_indices, options, *custom]


def _find_cpu_operators(source: Model, compiled: Model) -> list[int]:
    """The compiler keeps the names of tensors: an operator that it left has outputs of the same names."""
    left = [operator for operator in compiled.operators if operator.name != COMPILED_CODE]
    left_names = {_output_name(operator) for operator in left}
    cpu_operators = [operator for operator in source.operators if _output_name(operator) in left_names]
    if [operator.name for operator in left] != [operator.name for operator in cpu_operators]:
        raise SystemExit(f"{compiled.path}: the operators on the CPU are not those of {source.path}")
    return [operator.index for operator in cpu_operators]


def _output_name(operator: Operator) -> str:
    return next(tensor.name for tensor in operator.outputs if tensor is not None)


def main() -> None:
    """Write the data."""
    folder, commit = Path(sys.argv[1]), sys.argv[2]
    pairs = {}
    for compiled_path in sorted(folder.rglob(f"*{COMPILED_SUFFIX}.tflite")):
        source_path = compiled_path.with_name(compiled_path.name.replace(f"{COMPILED_SUFFIX}.tflite", ".tflite"))
        if source_path.is_file():
            pairs[source_path.stem] = describe_pair(reader.read(source_path), reader.read(compiled_path))
    lines = ",\n".join(
        f"  {json.dumps(name)}: {json.dumps(pair, separators=(',', ':'))}" for name, pair in pairs.items()
    )
    source = json.dumps({"repository": REPOSITORY, "commit": commit, "by": "tools/coral_pairs.py"})
    TARGET.write_text(f'{{"source": {source}, "pairs": {{\n{lines}\n}}}}\n', encoding="utf-8")
    print(f"{TARGET}: {len(pairs)} pairs")


if __name__ == "__main__":
    main()
