"""Quantization by litert-quantizer recipes: bit widths, operator by operator.

A recipe is a list of rules, later ones override earlier ones; each selects operators by a regular expression over the
names of their output tensors, and by kind. edgepipe's own rules match the whole name, so each holds for one operator.
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
# matches everything too; litert-quantizer groups the rules of one expression at the position of the first of them
ANY_SCOPE_LAST = "^.*$"
MIN_MAX_ALGORITHM, CASTING_ALGORITHM, NO_QUANTIZE_ALGORITHM = "min_max_uniform_quantize", "float_casting", "no_quantize"
IO_OPERATIONS = ("INPUT", "OUTPUT")
OPERATION_ALIASES = {"TRANSPOSE_CONV": "CONV_2D_TRANSPOSE", "CUSTOM": "CUSTOM_OP"}  # litert-quantizer's names
CASTABLE_OPERATORS = frozenset(
    {"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "EMBEDDING_LOOKUP"}
)


def scheme_recipe(scheme: str) -> LitertRecipe:
    """The recipe of a scheme that holds for the whole model."""
    config_by_scheme = {
        "int8": integer_config(8),
        "int16x8": integer_config(16),
        "dynamic": weight_config(8, integer=True),
        "weight_only_int8": weight_config(8),
        "weight_only_int4": weight_config(4),
        "float16": _float16_config(),
    }
    algorithm = CASTING_ALGORITHM if scheme == "float16" else MIN_MAX_ALGORITHM
    return [make_rule(config_by_scheme[scheme], algorithm=algorithm)]


def make_rule(
    config: RecipeRule | None,
    regex: str = ANY_SCOPE,
    operation: str = ALL_OPERATIONS,
    algorithm: str = MIN_MAX_ALGORITHM,
) -> RecipeRule:
    """One rule.

    Args:
        config: the rule's `op_config`; None keeps the operators in float.
        regex: searched in the names of an operator's output tensors, each followed by `;`.
        operation: the kind of operator, `*` for all.
        algorithm: litert-quantizer's algorithm key; ignored without `config`.
    """
    algorithm_key = NO_QUANTIZE_ALGORITHM if config is None else algorithm
    return {
        "regex": regex,
        "operation": operation,
        "algorithm_key": algorithm_key,
        "op_config": config or _float_config(),
    }


def integer_config(bits: int) -> RecipeRule:
    """8-bit weights, and activations of 8 or 16 bits; 16 are symmetric, as the kernels require."""
    activation_config = {"num_bits": bits, "symmetric": bits == 16, "granularity": "TENSORWISE", "dtype": "INT"}
    return {**weight_config(8, integer=True), "activation_tensor_config": activation_config}


def weight_config(bits: int, integer: bool = False) -> RecipeRule:
    """Weights of 4 or 8 bits, computed in float, or with `integer` in integers."""
    tensor_config = {"num_bits": bits, "symmetric": True, "granularity": "CHANNELWISE", "dtype": "INT"}
    return {
        "weight_tensor_config": tensor_config,
        "compute_precision": "INTEGER" if integer else "FLOAT",
        "explicit_dequantize": not integer,
    }


def _float16_config() -> RecipeRule:
    tensor_config = {"num_bits": 16, "symmetric": True, "granularity": "TENSORWISE", "dtype": "FLOAT"}
    return {"weight_tensor_config": tensor_config, "compute_precision": "FLOAT", "explicit_dequantize": True}


def _float_config() -> RecipeRule:
    return {"compute_precision": "FLOAT", "explicit_dequantize": False}


def operator_pattern(operator: Operator) -> str:
    """The regular expression that matches this operator and no other."""
    return f"^{re.escape(_operator_scope(_output_names(operator)))}$"


def decomposed_pattern(operator: Operator) -> str:
    """The regular expression that matches this operator, or those that it is decomposed into."""
    assert operator.outputs[0] is not None, "operators that are decomposed have one output"
    return f"^{re.escape(operator.outputs[0].name)}({INTERMEDIATE_SUFFIX})?;$"


def float16_rule(operator: Operator) -> RecipeRule:
    """A rule that gives one operator float16 weights if it has any, and float arithmetic."""
    return make_rule(_float16_config(), operator_pattern(operator), algorithm=CASTING_ALGORITHM)


def keep_float_rules(operators: Collection[Operator]) -> LitertRecipe:
    """Rules that leave these operators in float."""
    return [make_rule(None, operator_pattern(operator)) for operator in operators]


def io_rules(input_type: str | None, output_type: str | None) -> LitertRecipe:
    """Rules for the model's inputs and outputs; None leaves a type to the other rules.

    They must come last, because an output has the name of the operator that computes it.
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
    """Whether a rule quantizes activations, which needs their ranges."""
    return any("activation_tensor_config" in rule.get("op_config", {}) for rule in recipe)


def has_int16_activations(recipe: LitertRecipe) -> bool:
    """Whether a rule gives activations 16 bits."""
    activation_configs = (rule.get("op_config", {}).get("activation_tensor_config", {}) for rule in recipe)
    return any(config.get("num_bits") == 16 for config in activation_configs)


def quantize_with_recipe(content: bytes, recipe: LitertRecipe, ranges: Mapping[str, ActivationRange] | None) -> bytes:
    """The float .tflite `content`, decomposed and quantized by `recipe`.

    Args:
        content: a float .tflite.
        recipe: litert-quantizer's rules.
        ranges: of the activations of the decomposed model, by tensor name; None for recipes without calibration.

    Raises:
        InputError: litert-quantizer does not support the recipe or the model; with its message.
        ToolError: it is not installed.
    """
    prepared_content = flatbuffer_edits.normalize_opcodes(decompose_operators(content, bit_width_policy(recipe)))
    if not needs_calibration(recipe):
        return _run_quantizer(prepared_content, recipe, {})
    isolated_content, original_by_isolated_name = output_isolation.isolate_outputs(prepared_content)
    range_by_tensor = dict(ranges or {})
    range_by_tensor |= {
        isolated_name: range_by_tensor[original_name]
        for isolated_name, original_name in original_by_isolated_name.items()
        if original_name in range_by_tensor
    }
    quantized_content = float_fallback.integerize_operators(
        flatbuffer_edits.unify_output_types(_run_quantizer(isolated_content, recipe, range_by_tensor)),
        isolated_content,
        bit_width_policy(recipe),
        range_by_tensor,
    )
    return output_isolation.merge_outputs(
        bias_scales.widen_bias_scales(quantized_content, isolated_content)[0], original_by_isolated_name
    )


def _run_quantizer(content: bytes, recipe: LitertRecipe, ranges: Mapping[str, ActivationRange]) -> bytes:
    quantizer_module = load_quantizer_module()
    range_arrays = {name: np.asarray(span, np.float32) for name, span in ranges.items()}
    calibration_statistics = {name: {"min": span[:1], "max": span[1:]} for name, span in range_arrays.items()}
    try:
        # progress and counts go to stderr; biases out of range, of which NumPy warns, are fixed afterwards
        with capture_stderr(), warnings.catch_warnings(), np.errstate(all="ignore"):
            # from an interpreter that the library opens to read names
            warnings.filterwarnings("ignore", ".*experimental_preserve_all_tensors", UserWarning)
            model_quantizer = quantizer_module.Quantizer(bytearray(content), recipe)
            quantization_result = model_quantizer.quantize(
                calibration_statistics or None, enable_progress_bar=False, enable_progress_report=False
            )
    except (ValueError, RuntimeError, KeyError, TypeError, IndexError, NotImplementedError) as error:
        message = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"litert-quantizer does not take this: {message}") from error
    return bytes(quantization_result.quantized_model)


def unmatched_rule_notes(recipe: LitertRecipe, lite: Model) -> list[str]:
    """A note on each rule that matches no operator of the float model."""
    operator_scopes = [(operator.name, _operator_scope(_output_names(operator))) for operator in lite.operators]
    return [
        f"rule {number} of the recipe has no effect: no operator of kind {rule['operation']} matches '{rule['regex']}'"
        for number, rule in enumerate(recipe, 1)
        if rule["operation"] not in IO_OPERATIONS
        and not any(
            _matches_operation(rule["operation"], kind) and re.search(rule["regex"], scope)
            for kind, scope in operator_scopes
        )
    ]


def _matches_operation(operation: str, kind: str) -> bool:
    return operation in (ALL_OPERATIONS, OPERATION_ALIASES.get(kind, kind))


def bit_width_policy(recipe: LitertRecipe) -> BitWidthPolicy:
    """The bit width that a recipe gives each operator's activations."""
    return lambda kind, outputs: activation_bits(recipe, kind, outputs)


def activation_bits(recipe: LitertRecipe, kind: str, output_names: Sequence[str]) -> BitWidth | None:
    """The activation bits that a recipe gives an operator without weights; None for float.

    As litert-quantizer reads it: rules of one expression are grouped at the position of the first, a rule for all
    operators drops those before it, the last match wins, and weight-only rules are ignored.
    """
    rules_by_regex: dict[str, list[RecipeRule]] = {}
    for rule in recipe:
        earlier_rules = [] if rule["operation"] == ALL_OPERATIONS else rules_by_regex.get(rule["regex"], [])
        rules_by_regex[rule["regex"]] = [*earlier_rules, rule]
    matching_rules = [
        rule
        for regex, rules in rules_by_regex.items()
        if re.search(regex, _operator_scope(output_names))
        for rule in rules
        if rule["operation"] in (ALL_OPERATIONS, kind)
        and (rule["algorithm_key"] == NO_QUANTIZE_ALGORITHM or needs_calibration([rule]))
    ]
    if not matching_rules or matching_rules[-1]["algorithm_key"] == NO_QUANTIZE_ALGORITHM:
        return None
    num_bits = matching_rules[-1]["op_config"]["activation_tensor_config"]["num_bits"]
    return next((bits for bits in BIT_WIDTHS if bits == num_bits), None)


def _output_names(operator: Operator) -> list[str]:
    return [tensor.name for tensor in operator.outputs if tensor is not None]


def _operator_scope(output_names: Sequence[str]) -> str:
    """The name of an operator in recipes."""
    return "".join(f"{name};" for name in output_names)


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
        InputError: the file is missing, not JSON or not a recipe; names the rule and its problem.
    """
    try:
        rules = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not text; a recipe is a JSON file") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}:{error.colno}: is not valid JSON: {error.msg}") from None
    if not isinstance(rules, list) or not rules:
        raise InputError(
            f"{path}: a recipe is a list of rules with {', '.join(RULE_KEYS)}; found {type(rules).__name__}"
        )
    for number, rule in enumerate(rules, 1):
        if problem := _rule_problem(rule):
            raise InputError(f"{path}: rule {number}: {problem}")
    return rules


def _rule_problem(rule: Any) -> str:
    """What is wrong with a rule; empty if it is valid."""
    if not isinstance(rule, dict):
        return f"is a mapping with {', '.join(RULE_KEYS)}; found {type(rule).__name__}"
    for key in RULE_KEYS:
        if key not in rule and not (key == "op_config" and rule.get("algorithm_key") == NO_QUANTIZE_ALGORITHM):
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
    quantizer_module = load_quantizer_module()
    from litert_quantizer.qtyping import TFLOperationName

    operation_names = [name.value for name in TFLOperationName]
    algorithm_names = [name.value for name in quantizer_module.AlgorithmName]
    for key, allowed_names in (("operation", operation_names), ("algorithm_key", algorithm_names)):
        if rule[key] not in allowed_names:
            return f"unknown {key} '{rule[key]}'{did_you_mean(str(rule[key]), allowed_names)}"
    return ""


def _regex_problem(pattern: Any) -> str:
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        return f"regex '{pattern}' is not a regular expression: {error}"
    return ""
