"""Tries every operator in releases of TensorFlow Lite and writes `edgepipe/devices/runtimes/abilities.json`.

    python tools/runtime_abilities.py FOLDER RELEASE=PYTHON [RELEASE=PYTHON ..]

FOLDER gets the models and what each release said; a release that it already has is not run again. RELEASE is a package
and its version, such as `tflite-runtime 2.14.0`, and PYTHON the interpreter of an environment that has it.
"""

import json
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))
TABLE = ROOT / "edgepipe" / "devices" / "runtimes" / "abilities.json"
PROBE = Path(__file__).parent / "runtime_probe.py"
CASES = "cases.json"
SCRIPT = "tools/runtime_abilities.py"
REFERENCE = "the built-in kernels of ai-edge-litert 2.3.0, which tests compare with float models"


def build(folder: Path) -> None:
    """Write every case as a model, its samples and the outputs of the reference, and a list of them."""
    from operator_cases import operator_cases

    (folder / "models").mkdir(parents=True, exist_ok=True)
    rows = []
    for case in operator_cases(folder):
        path = folder / "models" / f"{case.name}.tflite"
        path.write_bytes(case.content)
        np.savez(path.with_suffix(".npz"), **pack(case.samples, reference_outputs(path, case.samples)))
        rows.append({"case": case.name, **describe(path, case.operator_name)})
    (folder / CASES).write_text(json.dumps(rows, indent=1))


def describe(path: Path, name: str) -> dict[str, Any]:
    """The columns of the table that say which operator a case tries."""
    from edgepipe.devices.runtimes.operator_form import operator_form
    from edgepipe.tflite.reader import read

    form = operator_form(next(operator for operator in read(path).operators if operator.name == name))
    return {"operator": form.name, "version": form.version, "types": form.types, "features": list(form.features)}


def reference_outputs(path: Path, samples: list[list[Any]]) -> list[list[Any]]:
    """What the built-in kernels of the newest LiteRT compute, which tests compare with float models.

    Its reference kernels are no reference: SUM of integers is wrong in them where scales differ.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType
    from runtime_probe import run_lite

    kernels = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    return run_lite(lambda name: Interpreter(name, experimental_op_resolver_type=kernels), str(path), samples)


def pack(samples: list[list[Any]], outputs: list[list[Any]]) -> dict[str, Any]:
    """As `runtime_probe.read_case` reads them."""
    arrays = {
        f"{side}_{sample}_{index}": array
        for side, sides in (("input", samples), ("output", outputs))
        for sample, sample_arrays in enumerate(sides)
        for index, array in enumerate(sample_arrays)
    }
    return {"samples": len(samples), "inputs": len(samples[0]), "outputs": len(outputs[0]), **arrays}


def probe(folder: Path, release: str, python: str) -> None:
    """What a release does with every case, into a file of its name."""
    result_path = folder / f"{release}.jsonl"
    if result_path.exists():
        return
    command = [python, str(PROBE), str(folder / "models")]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    result_path.write_text(done.stdout)
    print(f"{release}: {len(done.stdout.splitlines())} cases")


def outcome(ways: list[dict[str, Any]], is_float: bool) -> str:
    """The worst way: `crashes`, `refuses`, or how far its outputs are from the reference.

    Integers are compared in codes, and floats in steps of a thousandth of the largest output.
    """
    results = {way["result"] for way in ways}
    for word in ("crashes", "refuses"):
        if word in results:
            return word
    difference = max(way["difference"] for way in ways)
    if difference == float("inf"):
        return "garbage"
    return f"{round(difference * 1000) if is_float else round(difference)}"


def table(folder: Path, releases: list[str]) -> str:
    """The table: releases, then one row for each form of an operator, one line each."""
    rows = json.loads((folder / CASES).read_text())
    results_by_release = {release: read_results(folder / f"{release}.jsonl") for release in releases}
    lines = []
    for row in sorted(rows, key=lambda row: (row["operator"], row["version"], row["types"], row["case"])):
        is_float = row["types"].split("-> ")[1].startswith("float")
        results = [outcome(results_by_release[release][row["case"]], is_float) for release in releases]
        columns = {key: row[key] for key in ("operator", "version", "types", "features", "case")}
        lines.append(json.dumps({**columns, "results": " ".join(results)}))
    head = {
        "tried": str(date.today()),
        "script": "tools/runtime_abilities.py",
        "reference": REFERENCE,
        "releases": releases,
    }
    return json.dumps(head)[:-1] + ', "rows": [\n' + ",\n".join(lines) + "\n]}\n"


def read_results(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The ways of each case."""
    return {result["case"]: result["ways"] for result in map(json.loads, path.read_text().splitlines())}


def main(arguments: list[str]) -> None:
    """Build the cases, try every release, write the table."""
    folder, python_by_release = Path(arguments[0]), dict(argument.split("=", 1) for argument in arguments[1:])
    if not (folder / CASES).exists():
        build(folder)
    for release, python in python_by_release.items():
        probe(folder, release, python)
    TABLE.write_text(table(folder, list(python_by_release)))


if __name__ == "__main__":
    main(sys.argv[1:])
