"""Quantization by litert-quantizer's recipes: what is stored in how many bits, operator by operator.

A recipe is a list of rules, the later over the earlier; each names operators by a regular expression over the names of
their output tensors, and by kind. Recipes of edgepipe say the whole name, so that a rule holds for one operator.
"""

import json
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgepipe.compress.quantizer import bias_scales, flatbuffer_edits, float_fallback, output_isolation
from edgepipe.compress.quantizer.activation_calibration import Range
from edgepipe.compress.quantizer.mutable_graph import BITS, Bits, Wanted
from edgepipe.compress.quantizer.op_decomposition import STEP, spelling
from edgepipe.core.errors import InputError, ToolError, did_you_mean
from edgepipe.models.native_stderr import captured_stderr
from edgepipe.tflite.model import Model, Operator

Rule = dict[str, Any]
Recipe = list[Rule]

KEYS = ("regex", "operation", "algorithm_key", "op_config")
ALL, EVERYWHERE = "*", ".*"
LAST = "^.*$"  # everywhere too; litert-quantizer keeps rules of one expression together, where the first of them stands
MIN_MAX, CASTING, LEAVE = "min_max_uniform_quantize", "float_casting", "no_quantize"
ENDS = ("INPUT", "OUTPUT")
ALIASES = {"TRANSPOSE_CONV": "CONV_2D_TRANSPOSE", "CUSTOM": "CUSTOM_OP"}  # what litert-quantizer calls them
CASTABLE = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "EMBEDDING_LOOKUP"})


def everything(scheme: str) -> Recipe:
    """The recipe of a scheme that holds for the whole model."""
    configs = {
        "int8": integers(8),
        "int16x8": integers(16),
        "dynamic": _weights(8, integer=True),
        "weight_only_int8": _weights(8),
        "weight_only_int4": _weights(4),
        "float16": _halves(),
    }
    algorithm = CASTING if scheme == "float16" else MIN_MAX
    return [rule(configs[scheme], algorithm=algorithm)]


def rule(config: Rule | None, regex: str = EVERYWHERE, operation: str = ALL, algorithm: str = MIN_MAX) -> Rule:
    """One rule; without `config` what it names is left in float."""
    chosen = LEAVE if config is None else algorithm
    return {"regex": regex, "operation": operation, "algorithm_key": chosen, "op_config": config or _untouched()}


def integers(bits: int) -> Rule:
    """Activations of 8 or 16 bits; 16 are symmetric, as the kernels want them."""
    activations = {"num_bits": bits, "symmetric": bits == 16, "granularity": "TENSORWISE", "dtype": "INT"}
    return {**_weights(8, integer=True), "activation_tensor_config": activations}


def _weights(bits: int, integer: bool = False) -> Rule:
    weights = {"num_bits": bits, "symmetric": True, "granularity": "CHANNELWISE", "dtype": "INT"}
    return {
        "weight_tensor_config": weights,
        "compute_precision": "INTEGER" if integer else "FLOAT",
        "explicit_dequantize": not integer,
    }


def _halves() -> Rule:
    weights = {"num_bits": 16, "symmetric": True, "granularity": "TENSORWISE", "dtype": "FLOAT"}
    return {"weight_tensor_config": weights, "compute_precision": "FLOAT", "explicit_dequantize": True}


def _untouched() -> Rule:
    return {"compute_precision": "FLOAT", "explicit_dequantize": False}


def one(operator: Operator) -> str:
    """The regular expression that names this operator and no other."""
    return f"^{re.escape(_scope(_outputs(operator)))}$"


def spelled_ones(operator: Operator) -> str:
    """The regular expression that names this operator, or those that it is `spelled` in."""
    assert operator.outputs[0] is not None, "what is spelled makes one tensor"
    return f"^{re.escape(operator.outputs[0].name)}({STEP})?;$"


def half(operator: Operator) -> Rule:
    """A rule that gives one operator float16 weights if it has any, and float arithmetic."""
    return rule(_halves(), one(operator), algorithm=CASTING)


def leave(operators: Collection[Operator]) -> Recipe:
    """Rules that leave these operators in float."""
    return [rule(None, one(operator)) for operator in operators]


def ends(input_type: str | None, output_type: str | None) -> Recipe:
    """Rules for the model's own inputs and outputs, None for what other rules say.

    They are to stand last, because the output is called as what computes it.
    """
    kinds = dict(zip(ENDS, (input_type, output_type), strict=True))
    return [rule(_end(kind), LAST, name) for name, kind in kinds.items() if kind is not None]


def _end(kind: str) -> Rule | None:
    if kind == "float32":
        return None
    config = integers(16 if kind == "int16" else 8)
    if kind == "uint8":
        config["activation_tensor_config"]["dtype"] = "UINT"
    return config


def calibrated(recipe: Recipe) -> bool:
    """Whether a rule quantizes activations, so that their ranges must be known."""
    return any("activation_tensor_config" in entry.get("op_config", {}) for entry in recipe)


def has_16_bits(recipe: Recipe) -> bool:
    """Whether a rule gives activations 16 bits."""
    given = (entry.get("op_config", {}).get("activation_tensor_config", {}) for entry in recipe)
    return any(config.get("num_bits") == 16 for config in given)


def applied(content: bytes, recipe: Recipe, ranges: Mapping[str, Range] | None) -> bytes:
    """The float .tflite `content` quantized as `recipe` says, `spelled` first; `ranges` are of what it is then.

    Raises:
        InputError: litert-quantizer does not take the recipe or the model; what it says.
        ToolError: it is not installed.
    """
    plain = flatbuffer_edits.plain(spelling(content, wanted(recipe)))
    if not calibrated(recipe):
        return _by_library(plain, recipe, {})
    split, names = output_isolation.apart(plain)
    known = dict(ranges or {})
    known |= {new: known[old] for new, old in names.items() if old in known}
    made = float_fallback.joined(
        flatbuffer_edits.alike(_by_library(split, recipe, known)), split, wanted(recipe), known
    )
    return output_isolation.together(bias_scales.settled(made, split)[0], names)


def _by_library(content: bytes, recipe: Recipe, ranges: Mapping[str, Range]) -> bytes:
    quantizer = library()
    spans = {name: np.asarray(span, np.float32) for name, span in ranges.items()}
    known = {name: {"min": span[:1], "max": span[1:]} for name, span in spans.items()}
    try:
        # progress and counts go to stderr; biases out of range, which NumPy warns of, are settled afterwards
        with captured_stderr(), warnings.catch_warnings(), np.errstate(all="ignore"):
            # an interpreter of its own, which it opens to look at names
            warnings.filterwarnings("ignore", ".*experimental_preserve_all_tensors", UserWarning)
            work = quantizer.Quantizer(bytearray(content), recipe)
            result = work.quantize(known or None, enable_progress_bar=False, enable_progress_report=False)
    except (ValueError, RuntimeError, KeyError, TypeError, IndexError, NotImplementedError) as error:
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"litert-quantizer does not take this: {said}") from error
    return bytes(result.quantized_model)


def unmatched(recipe: Recipe, lite: Model) -> list[str]:
    """A note on each rule that no operator of the float model falls under."""
    known = [(operator.name, _scope(_outputs(operator))) for operator in lite.operators]
    return [
        f"rule {number} of the recipe holds for nothing: no operator of kind {entry['operation']} is '{entry['regex']}'"
        for number, entry in enumerate(recipe, 1)
        if entry["operation"] not in ENDS
        and not any(_is_kind(entry["operation"], kind) and re.search(entry["regex"], scope) for kind, scope in known)
    ]


def _is_kind(operation: str, kind: str) -> bool:
    return operation in (ALL, ALIASES.get(kind, kind))


def wanted(recipe: Recipe) -> Wanted:
    """What a recipe gives each operator."""
    return lambda kind, outputs: bits(recipe, kind, outputs)


def bits(recipe: Recipe, kind: str, outputs: Sequence[str]) -> Bits | None:
    """Of the activations that a recipe gives an operator without weights; None for float.

    As litert-quantizer reads it: rules of one expression stand together where the first of them does, one for all
    operators drops those before it, the last one holds, and rules for weights alone are passed over.
    """
    by_expression: dict[str, list[Rule]] = {}
    for entry in recipe:
        before = [] if entry["operation"] == ALL else by_expression.get(entry["regex"], [])
        by_expression[entry["regex"]] = [*before, entry]
    found = [
        entry
        for expression, entries in by_expression.items()
        if re.search(expression, _scope(outputs))
        for entry in entries
        if entry["operation"] in (ALL, kind) and (entry["algorithm_key"] == LEAVE or calibrated([entry]))
    ]
    if not found or found[-1]["algorithm_key"] == LEAVE:
        return None
    given = found[-1]["op_config"]["activation_tensor_config"]["num_bits"]
    return next((number for number in BITS if number == given), None)


def _outputs(operator: Operator) -> list[str]:
    return [tensor.name for tensor in operator.outputs if tensor is not None]


def _scope(outputs: Sequence[str]) -> str:
    """What an operator is called in recipes."""
    return "".join(f"{name};" for name in outputs)


def library() -> Any:
    """The module with litert-quantizer's `Quantizer`.

    Raises:
        ToolError: it is not installed.
    """
    try:
        from litert_quantizer import quantizer
    except ImportError:
        raise ToolError("this scheme needs litert-quantizer: pip install litert-quantizer") from None
    return quantizer


def read(path: Path) -> Recipe:
    """The recipe in the JSON file `path`.

    Raises:
        InputError: no file, no JSON, or no recipe; what is wrong with which rule.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is no text; a recipe is a JSON file") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}:{error.colno}: is no JSON: {error.msg}") from None
    if not isinstance(found, list) or not found:
        raise InputError(f"{path}: a recipe is a list of rules with {', '.join(KEYS)}; found {type(found).__name__}")
    for number, entry in enumerate(found, 1):
        if wrong := _wrong(entry):
            raise InputError(f"{path}: rule {number}: {wrong}")
    return found


def _wrong(entry: Any) -> str:
    """What is wrong with a rule; empty if nothing is."""
    if not isinstance(entry, dict):
        return f"is a mapping with {', '.join(KEYS)}; found {type(entry).__name__}"
    for key in KEYS:
        if key not in entry and not (key == "op_config" and entry.get("algorithm_key") == LEAVE):
            return f"has no '{key}'"
    for key in entry:
        if key not in KEYS:
            return f"unknown key '{key}'{did_you_mean(key, KEYS)}"
    config = entry.get("op_config", {})
    parts = [config] if not isinstance(config, dict) else [v for k, v in config.items() if k.endswith("_tensor_config")]
    if any(not isinstance(part, dict) for part in parts):
        return "op_config and the tensor configs in it are mappings"
    return _unknown(entry) or _expression(entry["regex"])


def _unknown(entry: Rule) -> str:
    quantizer = library()
    from litert_quantizer.qtyping import TFLOperationName

    operations = [name.value for name in TFLOperationName]
    algorithms = [name.value for name in quantizer.AlgorithmName]
    for key, allowed in (("operation", operations), ("algorithm_key", algorithms)):
        if entry[key] not in allowed:
            return f"unknown {key} '{entry[key]}'{did_you_mean(str(entry[key]), allowed)}"
    return ""


def _expression(text: Any) -> str:
    try:
        re.compile(text)
    except (re.error, TypeError) as error:
        return f"regex '{text}' is no regular expression: {error}"
    return ""
