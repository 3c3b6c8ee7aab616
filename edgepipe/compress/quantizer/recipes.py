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
from edgepipe.compress.quantizer.activation_calibration import ActivationRange
from edgepipe.compress.quantizer.mutable_graph import BIT_WIDTHS, BitWidth, BitWidthPolicy
from edgepipe.compress.quantizer.op_decomposition import INTERMEDIATE_SUFFIX, decompose_operators
from edgepipe.core.errors import InputError, ToolError, did_you_mean
from edgepipe.models.native_stderr import capture_stderr
from edgepipe.tflite.model import Model, Operator

RecipeRule = dict[str, Any]
LitertRecipe = list[RecipeRule]

RULE_KEYS = ("regex", "operation", "algorithm_key", "op_config")
ALL_OPERATIONS, ANY_SCOPE = "*", ".*"
ANY_SCOPE_LAST = (
    "^.*$"  # everywhere too; litert-quantizer keeps rules of one expression together, where the first of them stands
)
MIN_MAX, CASTING, NO_QUANTIZE = "min_max_uniform_quantize", "float_casting", "no_quantize"
IO_OPERATIONS = ("INPUT", "OUTPUT")
ALIASES = {"TRANSPOSE_CONV": "CONV_2D_TRANSPOSE", "CUSTOM": "CUSTOM_OP"}  # what litert-quantizer calls them
CASTABLE = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "EMBEDDING_LOOKUP"})


def scheme_recipe(scheme: str) -> LitertRecipe:
    """The recipe of a scheme that holds for the whole model."""
    configs = {
        "int8": integer_config(8),
        "int16x8": integer_config(16),
        "dynamic": _weight_config(8, integer=True),
        "weight_only_int8": _weight_config(8),
        "weight_only_int4": _weight_config(4),
        "float16": _float16_config(),
    }
    algorithm = CASTING if scheme == "float16" else MIN_MAX
    return [make_rule(configs[scheme], algorithm=algorithm)]


def make_rule(
    config: RecipeRule | None, regex: str = ANY_SCOPE, operation: str = ALL_OPERATIONS, algorithm: str = MIN_MAX
) -> RecipeRule:
    """One rule; without `config` what it names is left in float."""
    algorithm_key = NO_QUANTIZE if config is None else algorithm
    return {
        "regex": regex,
        "operation": operation,
        "algorithm_key": algorithm_key,
        "op_config": config or _float_config(),
    }


def integer_config(bits: int) -> RecipeRule:
    """Activations of 8 or 16 bits; 16 are symmetric, as the kernels want them."""
    activations = {"num_bits": bits, "symmetric": bits == 16, "granularity": "TENSORWISE", "dtype": "INT"}
    return {**_weight_config(8, integer=True), "activation_tensor_config": activations}


def _weight_config(bits: int, integer: bool = False) -> RecipeRule:
    weights = {"num_bits": bits, "symmetric": True, "granularity": "CHANNELWISE", "dtype": "INT"}
    return {
        "weight_tensor_config": weights,
        "compute_precision": "INTEGER" if integer else "FLOAT",
        "explicit_dequantize": not integer,
    }


def _float16_config() -> RecipeRule:
    weights = {"num_bits": 16, "symmetric": True, "granularity": "TENSORWISE", "dtype": "FLOAT"}
    return {"weight_tensor_config": weights, "compute_precision": "FLOAT", "explicit_dequantize": True}


def _float_config() -> RecipeRule:
    return {"compute_precision": "FLOAT", "explicit_dequantize": False}


def operator_pattern(operator: Operator) -> str:
    """The regular expression that names this operator and no other."""
    return f"^{re.escape(_scope(_output_names(operator)))}$"


def decomposed_pattern(operator: Operator) -> str:
    """The regular expression that names this operator, or those that it is `spelled` in."""
    assert operator.outputs[0] is not None, "what is spelled makes one tensor"
    return f"^{re.escape(operator.outputs[0].name)}({INTERMEDIATE_SUFFIX})?;$"


def float16_rule(operator: Operator) -> RecipeRule:
    """A rule that gives one operator float16 weights if it has any, and float arithmetic."""
    return make_rule(_float16_config(), operator_pattern(operator), algorithm=CASTING)


def keep_float_rules(operators: Collection[Operator]) -> LitertRecipe:
    """Rules that leave these operators in float."""
    return [make_rule(None, operator_pattern(operator)) for operator in operators]


def io_rules(input_type: str | None, output_type: str | None) -> LitertRecipe:
    """Rules for the model's own inputs and outputs, None for what other rules say.

    They are to stand last, because the output is called as what computes it.
    """
    type_by_operation = dict(zip(IO_OPERATIONS, (input_type, output_type), strict=True))
    return [
        make_rule(_io_config(dtype), ANY_SCOPE_LAST, operation)
        for operation, dtype in type_by_operation.items()
        if dtype is not None
    ]


def _io_config(dtype: str) -> RecipeRule | None:
    if dtype == "float32":
        return None
    config = integer_config(16 if dtype == "int16" else 8)
    if dtype == "uint8":
        config["activation_tensor_config"]["dtype"] = "UINT"
    return config


def needs_calibration(recipe: LitertRecipe) -> bool:
    """Whether a rule quantizes activations, so that their ranges must be known."""
    return any("activation_tensor_config" in rule.get("op_config", {}) for rule in recipe)


def has_int16_activations(recipe: LitertRecipe) -> bool:
    """Whether a rule gives activations 16 bits."""
    activation_configs = (rule.get("op_config", {}).get("activation_tensor_config", {}) for rule in recipe)
    return any(config.get("num_bits") == 16 for config in activation_configs)


def quantize_with_recipe(content: bytes, recipe: LitertRecipe, ranges: Mapping[str, ActivationRange] | None) -> bytes:
    """The float .tflite `content` quantized as `recipe` says, `spelled` first; `ranges` are of what it is then.

    Raises:
        InputError: litert-quantizer does not take the recipe or the model; what it says.
        ToolError: it is not installed.
    """
    prepared_content = flatbuffer_edits.normalize_opcodes(decompose_operators(content, bit_width_policy(recipe)))
    if not needs_calibration(recipe):
        return _run_quantizer(prepared_content, recipe, {})
    isolated_content, original_names = output_isolation.isolate_outputs(prepared_content)
    range_by_name = dict(ranges or {})
    range_by_name |= {
        isolated_name: range_by_name[original_name]
        for isolated_name, original_name in original_names.items()
        if original_name in range_by_name
    }
    quantized_content = float_fallback.integerize_operators(
        flatbuffer_edits.unify_output_types(_run_quantizer(isolated_content, recipe, range_by_name)),
        isolated_content,
        bit_width_policy(recipe),
        range_by_name,
    )
    return output_isolation.merge_outputs(
        bias_scales.widen_bias_scales(quantized_content, isolated_content)[0], original_names
    )


def _run_quantizer(content: bytes, recipe: LitertRecipe, ranges: Mapping[str, ActivationRange]) -> bytes:
    quantizer = load_quantizer_module()
    spans = {name: np.asarray(span, np.float32) for name, span in ranges.items()}
    statistics = {name: {"min": span[:1], "max": span[1:]} for name, span in spans.items()}
    try:
        # progress and counts go to stderr; biases out of range, which NumPy warns of, are settled afterwards
        with capture_stderr(), warnings.catch_warnings(), np.errstate(all="ignore"):
            # an interpreter of its own, which it opens to look at names
            warnings.filterwarnings("ignore", ".*experimental_preserve_all_tensors", UserWarning)
            model_quantizer = quantizer.Quantizer(bytearray(content), recipe)
            quantization_result = model_quantizer.quantize(
                statistics or None, enable_progress_bar=False, enable_progress_report=False
            )
    except (ValueError, RuntimeError, KeyError, TypeError, IndexError, NotImplementedError) as error:
        message = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"litert-quantizer does not take this: {message}") from error
    return bytes(quantization_result.quantized_model)


def unmatched_rule_notes(recipe: LitertRecipe, lite: Model) -> list[str]:
    """A note on each rule that no operator of the float model falls under."""
    operator_scopes = [(operator.name, _scope(_output_names(operator))) for operator in lite.operators]
    return [
        f"rule {number} of the recipe holds for nothing: no operator of kind {rule['operation']} is '{rule['regex']}'"
        for number, rule in enumerate(recipe, 1)
        if rule["operation"] not in IO_OPERATIONS
        and not any(
            _matches_operation(rule["operation"], kind) and re.search(rule["regex"], scope)
            for kind, scope in operator_scopes
        )
    ]


def _matches_operation(operation: str, kind: str) -> bool:
    return operation in (ALL_OPERATIONS, ALIASES.get(kind, kind))


def bit_width_policy(recipe: LitertRecipe) -> BitWidthPolicy:
    """What a recipe gives each operator."""
    return lambda kind, outputs: activation_bits(recipe, kind, outputs)


def activation_bits(recipe: LitertRecipe, kind: str, outputs: Sequence[str]) -> BitWidth | None:
    """Of the activations that a recipe gives an operator without weights; None for float.

    As litert-quantizer reads it: rules of one expression stand together where the first of them does, one for all
    operators drops those before it, the last one holds, and rules for weights alone are passed over.
    """
    rules_by_regex: dict[str, list[RecipeRule]] = {}
    for rule in recipe:
        earlier_rules = [] if rule["operation"] == ALL_OPERATIONS else rules_by_regex.get(rule["regex"], [])
        rules_by_regex[rule["regex"]] = [*earlier_rules, rule]
    matching_rules = [
        rule
        for regex, rules in rules_by_regex.items()
        if re.search(regex, _scope(outputs))
        for rule in rules
        if rule["operation"] in (ALL_OPERATIONS, kind)
        and (rule["algorithm_key"] == NO_QUANTIZE or needs_calibration([rule]))
    ]
    if not matching_rules or matching_rules[-1]["algorithm_key"] == NO_QUANTIZE:
        return None
    num_bits = matching_rules[-1]["op_config"]["activation_tensor_config"]["num_bits"]
    return next((number for number in BIT_WIDTHS if number == num_bits), None)


def _output_names(operator: Operator) -> list[str]:
    return [tensor.name for tensor in operator.outputs if tensor is not None]


def _scope(outputs: Sequence[str]) -> str:
    """What an operator is called in recipes."""
    return "".join(f"{name};" for name in outputs)


def load_quantizer_module() -> Any:
    """The module with litert-quantizer's `Quantizer`.

    Raises:
        ToolError: it is not installed.
    """
    try:
        from litert_quantizer import quantizer
    except ImportError:
        raise ToolError("this scheme needs litert-quantizer: pip install litert-quantizer") from None
    return quantizer


def read(path: Path) -> LitertRecipe:
    """The recipe in the JSON file `path`.

    Raises:
        InputError: no file, no JSON, or no recipe; what is wrong with which rule.
    """
    try:
        rules = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is no text; a recipe is a JSON file") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}:{error.colno}: is no JSON: {error.msg}") from None
    if not isinstance(rules, list) or not rules:
        raise InputError(
            f"{path}: a recipe is a list of rules with {', '.join(RULE_KEYS)}; found {type(rules).__name__}"
        )
    for number, rule in enumerate(rules, 1):
        if problem := _rule_problem(rule):
            raise InputError(f"{path}: rule {number}: {problem}")
    return rules


def _rule_problem(rule: Any) -> str:
    """What is wrong with a rule; empty if nothing is."""
    if not isinstance(rule, dict):
        return f"is a mapping with {', '.join(RULE_KEYS)}; found {type(rule).__name__}"
    for key in RULE_KEYS:
        if key not in rule and not (key == "op_config" and rule.get("algorithm_key") == NO_QUANTIZE):
            return f"has no '{key}'"
    for key in rule:
        if key not in RULE_KEYS:
            return f"unknown key '{key}'{did_you_mean(key, RULE_KEYS)}"
    config = rule.get("op_config", {})
    nested_configs = (
        [config] if not isinstance(config, dict) else [v for k, v in config.items() if k.endswith("_tensor_config")]
    )
    if any(not isinstance(nested_config, dict) for nested_config in nested_configs):
        return "op_config and the tensor configs in it are mappings"
    return _unknown_name_problem(rule) or _regex_problem(rule["regex"])


def _unknown_name_problem(rule: RecipeRule) -> str:
    quantizer = load_quantizer_module()
    from litert_quantizer.qtyping import TFLOperationName

    operations = [name.value for name in TFLOperationName]
    algorithms = [name.value for name in quantizer.AlgorithmName]
    for key, allowed_names in (("operation", operations), ("algorithm_key", algorithms)):
        if rule[key] not in allowed_names:
            return f"unknown {key} '{rule[key]}'{did_you_mean(str(rule[key]), allowed_names)}"
    return ""


def _regex_problem(pattern: Any) -> str:
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        return f"regex '{pattern}' is no regular expression: {error}"
    return ""
