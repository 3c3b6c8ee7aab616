"""Hunts for wrong verdicts: what `verify` says of a random model, against what the runtimes do with it.

`met` must mean that the runtime runs the model and agrees with LiteRT's reference kernels, `not met` that it does not
run it. The verdict comes from a run on zeros in the sandbox; here random samples run, in other processes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from generated_models import AMPLIFIERS, write_random_model

from edgepipe.commands.verify import Verification, verify
from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError
from edgepipe.core.metric import Judgement, judge_all
from edgepipe.tflite import interpreter, parity, reader, sample_conversion, sandbox, tflm_runtime
from edgepipe.tflite.interpreter import ModelOutputs, Runtime
from edgepipe.tflite.model import Tensor

SAMPLES = 2
LITERT_DEVICE, MICRO_DEVICE = "raspberry-pi-4", "micro.yaml"
MICRO_PROFILE = """\
inherit: nucleo-l4r5zi
name: micro
description: TensorFlow Lite Micro with room for any model here, and without the rule against floats
sources: [none]
integer_only: false
system: {memory: {ram: 64 MiB, flash: 64 MiB, banks: []}}
"""


@dataclass(frozen=True)
class Trial:
    """One model on one runtime: the verdict, and what is wrong with it; empty if nothing."""

    device: str
    judgement: Judgement
    problem: str


def try_model(seed: int, folder: Path) -> list[Trial]:
    """The trials of the model of `seed` on LiteRT and on TensorFlow Lite Micro."""
    (folder / MICRO_DEVICE).write_text(MICRO_PROFILE)
    path, kind, layers = write_random_model(seed, folder / f"{seed}.tflite")
    samples = _draw_samples(reader.read(path).inputs[0], seed)
    reference = _run_reference(path, samples, layers)
    verification = verify(path, devices=[LITERT_DEVICE, MICRO_DEVICE], limits=[], integer_only=False, base=folder)
    tolerance = _tolerance(kind, layers)
    runs: dict[str, Callable[[], ModelOutputs]] = {
        LITERT_DEVICE: lambda: interpreter.predict(path, samples, Runtime.XNNPACK),
        "micro": lambda: _run_micro(path, samples),
    }
    return [
        Trial(device, judgement, f"seed {seed}, {kind}, {', '.join(layers)}, {device}: {problem}" if problem else "")
        for device, run in runs.items()
        for judgement in [_judge_device(verification, device)]
        for problem in [_find_problem(judgement, run, reference, tolerance)]
    ]


def _judge_device(verification: Verification, device: str) -> Judgement:
    return judge_all([], [finding for finding in verification.findings if finding.device == device])


def _find_problem(
    judgement: Judgement, run: Callable[[], ModelOutputs], reference: ModelOutputs | None, tolerance: float
) -> str:
    try:
        outputs = run()
    except InputError as error:
        return f"met, and it fails: {error}" if judgement is Judgement.MET else ""
    if judgement is Judgement.NOT_MET:
        return "not met, and it runs"
    if judgement is Judgement.UNKNOWN or reference is None:
        return ""
    agreement = parity.compare(reference, outputs)
    difference = agreement.max_difference if agreement.max_lsb is None else agreement.max_lsb
    if agreement.max_lsb is None:
        tolerance *= max(1.0, float(np.abs(np.asarray(reference.real_values)).max()))
    return f"met, and it differs by {difference:g}" if difference > tolerance else ""


def _tolerance(kind: str, layers: list[str]) -> float:
    """Steps of the output for integers: one for each layer, more where a function amplifies; a difference of floats."""
    if kind in ("float32", "hybrid"):
        return 1e-4 if kind == "float32" else np.inf  # a hybrid kernel rounds its input, which the reference may not
    is_amplified = layers[0] in AMPLIFIERS or "BATCH_MATMUL" in layers  # which multiplies two tensors of large values
    return (1 + len(layers)) * ((64 if kind == "int16" else 8) if is_amplified else 1)


def _run_reference(path: Path, samples: Array, layers: list[str]) -> ModelOutputs | None:
    """The outputs of LiteRT's reference kernels, or of its optimized ones where there is none; None if not finite."""
    # LiteRT's reference SUM of int8 is wrong where the scales of input and output differ.
    for runtime in (Runtime.BUILTIN,) if "SUM" in layers else (Runtime.REFERENCE, Runtime.BUILTIN):
        try:
            outputs = interpreter.predict(path, samples, runtime)
        except InputError:
            continue
        assert not isinstance(outputs.real_values, dict), "these models have one output"
        return outputs if np.isfinite(outputs.real_values).all() else None
    return None


def _run_micro(path: Path, samples: Array) -> ModelOutputs:
    """What `tflm_runtime.predict` gives, in the process that is there already: starting one takes longer than this."""
    samples_path, results_path = path.with_suffix(".x.npz"), path.with_suffix(".y.npz")
    np.savez(samples_path, samples)
    request = {"path": str(path), "task": "predict", "samples": str(samples_path), "results": str(results_path)}
    sandbox.get_shared().run(tflm_runtime.WORKER_MODULE, request, 60.0, "TensorFlow Lite Micro")
    with np.load(results_path) as archive:
        return sample_conversion.build_outputs(reader.read(path), [archive["arr_0"]], "TensorFlow Lite Micro")


def _draw_samples(tensor: Tensor, seed: int) -> Array:
    rng, shape = np.random.default_rng(seed), (SAMPLES, *tensor.shape[1:])
    if tensor.dtype == "float32":
        return rng.normal(size=shape).astype("float32")
    limits = np.iinfo(tensor.dtype)
    return rng.integers(limits.min, limits.max, shape).astype(tensor.dtype)
