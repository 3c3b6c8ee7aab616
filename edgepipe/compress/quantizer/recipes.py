"""Quantization by litert-quantizer recipes: bit widths, operator by operator.

A recipe is a list of rules, later ones override earlier ones; each selects operators by a regular expression over the
names of their output tensors, and by kind. edgepipe's own rules match the whole name, so each holds for one operator.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from edgepipe.compress.quantizer import flatbuffer_edits
from edgepipe.compress.quantizer.activation_calibration import ActivationRange
from edgepipe.compress.quantizer.integer_model import IntegerModel, write_integer_model
from edgepipe.compress.quantizer.kernel_requirements import (
    FLOAT_OPERATORS_WITH_WEIGHTS,
    INT4_WEIGHT_OPERATORS,
    BitWidth,
)
from edgepipe.compress.quantizer.mutable_graph import BIT_WIDTHS, BitWidthPolicy, MutableGraph
from edgepipe.compress.quantizer.op_decomposition import INTERMEDIATE_SUFFIX, decompose_graph
from edgepipe.compress.quantizer.operator_precision import OperatorPrecision, WeightType
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
# smaller tensors save next to nothing, and each costs accuracy; TensorFlow's converter draws the line there too
MIN_DYNAMIC_WEIGHTS = 1024
CASTABLE_OPERATORS = frozenset(
    {"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "EMBEDDING_LOOKUP"}
)


def scheme_recipe(scheme: str) -> LitertRecipe:
    """The recipe of a scheme that holds for the whole model."""
    algorithm = CASTING_ALGORITHM if scheme == "float16" else MIN_MAX_ALGORITHM
    return [make_rule(scheme_config(scheme), algorithm=algorithm)]


def scheme_config(scheme: str) -> RecipeRule | None:
    """The `op_config` of a scheme; None for schemes that quantize nothing, or by rules of their own."""
    config_by_scheme = {
        "int8": integer_config(8),
        "int16x8": integer_config(16),
        "dynamic": {**weight_config(8, integer=True), "min_weight_elements": MIN_DYNAMIC_WEIGHTS},
        "weight_only_int8": weight_config(8),
        "weight_only_int4": weight_config(4),
        "float16": _float16_config(),
    }
    return config_by_scheme.get(scheme)


def per_tensor_config(config: RecipeRule) -> RecipeRule:
    """A config with one scale for all weights of an operator."""
    return {**config, "weight_tensor_config": {**config["weight_tensor_config"], "granularity": "TENSORWISE"}}


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


def float_input_rules(names: Sequence[str]) -> LitertRecipe:
    """Rules that leave these inputs in float32; they must come last."""
    return [make_rule(None, f"^{re.escape(name)};$", "INPUT") for name in names]


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


def quantize_with_recipe(
    content: bytes, recipe: LitertRecipe, ranges: Mapping[str, ActivationRange] | None
) -> IntegerModel:
    """The float .tflite `content`, decomposed and quantized by `recipe`.

    Args:
        content: a float .tflite.
        recipe: litert-quantizer's rules.
        ranges: of the activations of the decomposed model, by tensor name; None for recipes without calibration.
    """
    return write_with_recipe(decompose_with_recipe(content, recipe, ranges), recipe, ranges)


def decompose_with_recipe(
    content: bytes, recipe: LitertRecipe, ranges: Mapping[str, ActivationRange] | None
) -> MutableGraph:
    """The graph that `write_with_recipe` writes in integers; arguments as of `quantize_with_recipe`."""
    graph = MutableGraph(flatbuffer_edits.unpack_model(content))
    decompose_graph(graph, bit_width_policy(recipe), ranges)
    return graph


def write_with_recipe(
    graph: MutableGraph, recipe: LitertRecipe, ranges: Mapping[str, ActivationRange] | None
) -> IntegerModel:
    """A decomposed float graph, quantized by `recipe`; the graph is rewritten in place."""
    input_types, output_types = _interface_types(recipe, graph)
    return write_integer_model(
        graph,
        ranges or {},
        lambda kind, output_names: operator_precision(recipe, kind, output_names),
        input_types,
        output_types,
    )


def _interface_types(recipe: LitertRecipe, graph: MutableGraph) -> tuple[list[str], list[str]]:
    """The types of a model's float inputs and outputs under a recipe."""
    names_by_operation = {
        "INPUT": [graph.name(int(index)) for index in graph.subgraph.inputs],
        "OUTPUT": [graph.name(int(index)) for index in graph.subgraph.outputs],
    }
    input_types, output_types = (
        [_interface_type(recipe, operation, name) for name in names] for operation, names in names_by_operation.items()
    )
    return input_types, output_types


def float_inputs(recipe: LitertRecipe, lite: Model) -> list[str]:
    """The names of the inputs of a float model that a recipe leaves as they are."""
    return [
        name
        for name, tensor in lite.inputs_by_name.items()
        if _interface_type(recipe, "INPUT", tensor.name) == "float32"
    ]


def _interface_type(recipe: LitertRecipe, operation: str, name: str) -> str:
    bits = activation_bits(recipe, operation, [name])
    if bits is None:
        return "float32"
    return "uint8" if _is_unsigned(recipe, operation, name) else f"int{bits}"


def _is_unsigned(recipe: LitertRecipe, operation: str, name: str) -> bool:
    unsigned_rules = [
        rule
        for rule in recipe
        if rule["operation"] == operation
        and re.search(rule["regex"], f"{name};")
        and rule.get("op_config", {}).get("activation_tensor_config", {}).get("dtype") == "UINT"
    ]
    return bool(unsigned_rules)


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
    return operation in (ALL_OPERATIONS, operation_name(kind))


def operation_name(kind: str) -> str:
    """What recipes call a kind of operator."""
    return OPERATION_ALIASES.get(kind, kind)


def bit_width_policy(recipe: LitertRecipe) -> BitWidthPolicy:
    """The bit width that a recipe gives each operator's activations."""
    return lambda kind, output_names: activation_bits(recipe, kind, output_names)


def activation_bits(recipe: LitertRecipe, kind: str, output_names: Sequence[str]) -> BitWidth | None:
    """The activation bits that a recipe gives an operator; None for float."""
    return operator_precision(recipe, kind, output_names).activation_bits


def operator_precision(recipe: LitertRecipe, kind: str, output_names: Sequence[str]) -> OperatorPrecision:
    """The precision that a recipe gives an operator.

    As litert-quantizer reads it: rules of one expression are grouped at the position of the first, a rule for all
    operators drops those before it, and the last match wins; rules on weights count for operators with weights only.
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
        if _matches_operation(rule["operation"], kind)
        and (rule["algorithm_key"] == NO_QUANTIZE_ALGORITHM or needs_calibration([rule]) or _has_weights(kind, rule))
    ]
    return _rule_precision(matching_rules[-1]) if matching_rules else OperatorPrecision()


def _has_weights(kind: str, rule: RecipeRule) -> bool:
    """Whether a rule on weights holds for this kind of operator."""
    if rule["algorithm_key"] == CASTING_ALGORITHM:
        return kind in CASTABLE_OPERATORS
    is_int4 = rule["op_config"].get("weight_tensor_config", {}).get("num_bits") == 4
    return kind in (INT4_WEIGHT_OPERATORS if is_int4 else FLOAT_OPERATORS_WITH_WEIGHTS)


def _rule_precision(rule: RecipeRule) -> OperatorPrecision:
    if rule["algorithm_key"] == NO_QUANTIZE_ALGORITHM:
        return OperatorPrecision()
    config = rule["op_config"]
    weight_config = config.get("weight_tensor_config", {"num_bits": 8})
    activation_bits = config.get("activation_tensor_config", {}).get("num_bits")
    return OperatorPrecision(
        next((bits for bits in BIT_WIDTHS if bits == activation_bits), None),
        _weight_type(weight_config),
        is_hybrid=config.get("compute_precision") == "INTEGER" and not config.get("explicit_dequantize"),
        is_per_channel=weight_config.get("granularity") != "TENSORWISE",
        min_weight_elements=config.get("min_weight_elements", 0),
    )


def _weight_type(tensor_config: RecipeRule) -> WeightType:
    if tensor_config.get("dtype") == "FLOAT":
        return "float16"
    return "int4" if tensor_config["num_bits"] == 4 else "int8"


def _output_names(operator: Operator) -> list[str]:
    return [tensor.name for tensor in operator.outputs if tensor is not None]


def _operator_scope(output_names: Sequence[str]) -> str:
    """The name of an operator in recipes."""
    return "".join(f"{name};" for name in output_names)
