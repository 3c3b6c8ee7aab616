"""Reads recipe files: JSON in the form of the litert-quantizer package, checked rule by rule."""

import json
import re
from pathlib import Path
from typing import Any

from edgepipe.compress.quantizer.recipes import (
    ALL_OPERATIONS,
    CASTING_ALGORITHM,
    IO_OPERATIONS,
    MIN_MAX_ALGORITHM,
    NO_QUANTIZE_ALGORITHM,
    OPERATION_ALIASES,
    LitertRecipe,
    RecipeRule,
)
from edgepipe.core import input_files
from edgepipe.core.errors import InputError, did_you_mean
from edgepipe.tflite.reader import builtin_name_by_code

MAX_BYTES = 16 * 2**20
RULE_KEYS = ("regex", "operation", "algorithm_key", "op_config")
ALGORITHMS = (MIN_MAX_ALGORITHM, CASTING_ALGORITHM, NO_QUANTIZE_ALGORITHM)
KNOWN_TENSOR_SETTINGS: dict[str, dict[str, tuple[Any, ...]]] = {
    "weight_tensor_config": {
        "num_bits": (8, 4, 16),
        "granularity": ("CHANNELWISE", "TENSORWISE"),
        "dtype": ("INT", "FLOAT"),
    },
    "activation_tensor_config": {"num_bits": (8, 16), "granularity": ("TENSORWISE",), "dtype": ("INT", "UINT")},
}


def read(path: Path) -> LitertRecipe:
    """The recipe in the JSON file `path`.

    Raises:
        InputError: the file is missing, not JSON or not a recipe; names the rule and its problem.
    """
    try:
        rules = json.loads(input_files.read_bytes(path, MAX_BYTES))
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not text; a recipe is a JSON file") from None
    except RecursionError:
        raise InputError(f"{path}: nests lists and objects too deep") from None
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
    return _unknown_name_problem(rule) or _config_problem(rule) or _regex_problem(rule["regex"])


def _unknown_name_problem(rule: RecipeRule) -> str:
    operation_names = [
        *(OPERATION_ALIASES.get(name, name) for name in builtin_name_by_code().values()),
        *(ALL_OPERATIONS, *IO_OPERATIONS),
    ]
    for key, allowed_names in (("operation", operation_names), ("algorithm_key", ALGORITHMS)):
        if rule[key] not in allowed_names:
            choices_text = f"; known: {', '.join(ALGORITHMS)}" if key == "algorithm_key" else ""
            return f"unknown {key} '{rule[key]}'{did_you_mean(str(rule[key]), allowed_names)}{choices_text}"
    return ""


def _config_problem(rule: RecipeRule) -> str:
    """What edgepipe's quantizer has no form of."""
    config = {} if rule["algorithm_key"] == NO_QUANTIZE_ALGORITHM else rule["op_config"]
    for name, known_settings in KNOWN_TENSOR_SETTINGS.items():
        for key, allowed_settings in known_settings.items():
            setting = config.get(name, {}).get(key, allowed_settings[0])
            if setting not in allowed_settings:
                allowed_text = ", ".join(map(str, allowed_settings))
                return f"{name} has {key} {setting}; known: {allowed_text}"
    weight_config = config.get("weight_tensor_config", {})
    if (weight_config.get("num_bits") == 16) != (weight_config.get("dtype") == "FLOAT"):
        return "weight_tensor_config: weights of 16 bits are FLOAT, those of 8 and 4 bits INT"
    return ""


def _regex_problem(pattern: Any) -> str:
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        return f"regex '{pattern}' is not a regular expression: {error}"
    return ""
