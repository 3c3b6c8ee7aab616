"""Budgets: the limits that a pipeline or a command line sets on metrics.

budget:
  accuracy: ">= 97 %"                               # a quality metric of the task
  accuracy_drop: {max: 1 point, against: train}     # how much worse than an earlier stage
  nucleo-l4r5zi: {latency: 20 ms, ram: 64 KiB}      # one block per device
  ethos-u55-128: {npu_operators: 100 %}             # minimum share, on a device with an NPU
  host: {latency: {max: 1 ms, evidence: measured}}
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edgepipe.core.config import Document, KeyPath, describe_choice, describe_value
from edgepipe.core.errors import did_you_mean
from edgepipe.core.metric import Evidence, Limit
from edgepipe.core.units import Dimension, UnitError, parse, show

UNIT_BY_DEVICE_METRIC = {
    "latency": Dimension.SECONDS,
    "ram": Dimension.BYTES,
    "flash": Dimension.BYTES,
    "npu_operators": Dimension.FRACTION,  # of devices with an NPU only
}
UNIT_BY_MODEL_METRIC = {
    "size": Dimension.BYTES,
    "size_deflate": Dimension.BYTES,
    "size_zstd": Dimension.BYTES,
    "parameters": Dimension.COUNT,
    "nonzero_parameters": Dimension.COUNT,
    "macs": Dimension.COUNT,
    "sparsity": Dimension.FRACTION,
}
_HIGHER_IS_BETTER_METRICS = {"sparsity", "npu_operators"}
_SIGNED_LIMIT_PATTERN = re.compile(r"\s*(<=|>=)\s*(.*)")
_LIMIT_KEYS = ("max", "min", "evidence", "against", "optional")
Bound = Literal["max", "min"]


@dataclass(frozen=True)
class BudgetNames:
    """What a budget may name: the quality metrics (name -> unit, higher is better), devices, and earlier stages.

    `quality_metrics` is None if only a user's function knows them; then any name counts as a metric.
    """

    quality_metrics: Mapping[str, tuple[Dimension, bool]] | None
    device_names: Collection[str]
    stage_names: Collection[str]

    def find_unit_and_bound(self, name: str) -> tuple[Dimension, Bound] | None:
        """Unit and default bound of a model metric, or None if there is no metric of this name."""
        if name in UNIT_BY_DEVICE_METRIC:
            return None
        if name in UNIT_BY_MODEL_METRIC:
            return UNIT_BY_MODEL_METRIC[name], _default_bound(name)
        is_drop = name.endswith("_drop")
        unit_and_direction = (self.quality_metrics or {}).get(name.removesuffix("_drop"))
        if unit_and_direction is not None:
            return unit_and_direction[0], "max" if is_drop or not unit_and_direction[1] else "min"
        return (Dimension.NUMBER, "max" if is_drop else "min") if self.quality_metrics is None else None

    def list_allowed_keys(self) -> list[str]:
        """Every name allowed as a key of the budget."""
        quality_names = list(self.quality_metrics or {})
        return [*quality_names, *(f"{name}_drop" for name in quality_names), *UNIT_BY_MODEL_METRIC, *self.device_names]


def _default_bound(name: str) -> Bound:
    return "min" if name in _HIGHER_IS_BETTER_METRICS else "max"


def read_limits(document: Document, path: KeyPath, raw_budget: Any, budget_names: BudgetNames) -> list[Limit]:
    """The limits at `path`; a limit with a problem is skipped.

    Args:
        document: the file that holds the budget; collects the problems.
        path: where the budget is in `document`.
        raw_budget: the YAML value at `path`: metric or device to limit.
        budget_names: the metrics, devices and stages that the budget may name.
    """
    if not isinstance(raw_budget, dict):
        document.add_problem(
            path, f"must be a mapping of metric or device to a limit; found {describe_value(raw_budget)}"
        )
        return []
    limits: list[Limit | None] = []
    for name, raw_limit in raw_budget.items():
        key_path = (*path, name)
        if name in budget_names.device_names:
            limits += _read_device_limits(document, key_path, name, raw_limit)
        elif (unit_and_bound := budget_names.find_unit_and_bound(name)) is not None:
            if (
                budget_names.quality_metrics is None
                and unit_and_bound[0] is Dimension.NUMBER
                and _is_written_as_share(raw_limit)
            ):
                unit_and_bound = (Dimension.FRACTION, unit_and_bound[1])
            limits.append(_read_limit(document, key_path, name, raw_limit, unit_and_bound, budget_names))
        else:
            document.add_problem(key_path, _explain_unknown_name(name, budget_names), anchor="key")
    return [limit for limit in limits if limit is not None]


def _is_written_as_share(raw_limit: Any) -> bool:
    """Whether a limit on a metric of unknown unit is written as a share: `97 %`, `{max: 1 point}`."""
    return bool(re.search(r"%|\bpoints?\b", str(raw_limit)))


def _explain_unknown_name(name: str, budget_names: BudgetNames) -> str:
    if name in UNIT_BY_DEVICE_METRIC:
        device = next(iter(budget_names.device_names), "host")
        return f"'{name}' belongs under a device of `devices`, for example `{device}: {{{name}: ..}}`"
    return f"neither a metric of this task nor one of `devices`{did_you_mean(name, budget_names.list_allowed_keys())}"


def _read_device_limits(document: Document, path: KeyPath, device: str, raw_limits: Any) -> list[Limit | None]:
    if not isinstance(raw_limits, dict):
        document.add_problem(
            path,
            f"must be a mapping of {', '.join(UNIT_BY_DEVICE_METRIC)} to a limit; found {describe_value(raw_limits)}",
        )
        return []
    limits = []
    for name, raw_limit in raw_limits.items():
        if name in UNIT_BY_DEVICE_METRIC:
            unit_and_bound = (UNIT_BY_DEVICE_METRIC[name], _default_bound(name))
            limits.append(_read_limit(document, (*path, name), name, raw_limit, unit_and_bound, None, device))
        else:
            document.add_problem(
                (*path, name), f"not a device metric{did_you_mean(name, UNIT_BY_DEVICE_METRIC)}", anchor="key"
            )
    return limits


def _read_limit(
    document: Document,
    path: KeyPath,
    name: str,
    raw_limit: Any,
    unit_and_bound: tuple[Dimension, Bound],
    budget_names: BudgetNames | None,
    device: str | None = None,
) -> Limit | None:
    problem_count = len(document.problems)
    limit_options = dict(raw_limit) if isinstance(raw_limit, dict) else {}
    unit, bound = unit_and_bound
    for key in [key for key in limit_options if key not in _LIMIT_KEYS]:
        document.add_problem((*path, key), f"unknown option{did_you_mean(key, _LIMIT_KEYS)}", anchor="key")
    amount_text, bound, amount_path = _read_bound(document, path, raw_limit, bound)
    amount = read_amount(document, amount_path, amount_text, unit) if len(document.problems) == problem_count else None
    reference_stage = _read_against(document, path, limit_options, name, budget_names)
    evidence = _read_evidence(document, path, limit_options)
    is_optional = limit_options.get("optional", False)
    if not isinstance(is_optional, bool):
        document.add_problem((*path, "optional"), f"must be true or false, found {describe_value(is_optional)}")
    if amount is None or len(document.problems) > problem_count:
        return None
    return Limit(
        metric=name,
        unit=unit,
        bound=bound,
        value=amount,
        device=device,
        evidence=evidence,
        against=reference_stage,
        optional=is_optional,
    )


def _read_bound(document: Document, path: KeyPath, raw_limit: Any, default_bound: Bound) -> tuple[Any, Bound, KeyPath]:
    if not isinstance(raw_limit, dict):
        match = _SIGNED_LIMIT_PATTERN.fullmatch(raw_limit) if isinstance(raw_limit, str) else None
        return (match[2], "max" if match[1] == "<=" else "min", path) if match else (raw_limit, default_bound, path)
    bounds: list[Bound] = [bound for bound in ("max", "min") if bound in raw_limit]
    if len(bounds) != 1:
        document.add_problem(path, f"needs exactly one of max and min, found {' and '.join(bounds) or 'neither'}")
        return None, default_bound, path
    return raw_limit[bounds[0]], bounds[0], (*path, bounds[0])


def read_amount(document: Document, path: KeyPath, text: Any, unit: Dimension) -> float | None:
    """`text` as a quantity of `unit`; None if it is invalid or out of range, with the problem added.

    Args:
        document: the file that holds the quantity; collects the problem.
        path: where `text` is in `document`.
        text: the YAML value, such as `64 KiB`.
        unit: the result is in its base unit: bytes, seconds, a fraction.
    """
    if not isinstance(text, (str, int, float)) or isinstance(text, bool):
        document.add_problem(path, f"must be a quantity, found {describe_value(text)}")
        return None
    try:
        amount = parse(text, unit)
    except UnitError as error:
        document.add_problem(path, str(error))
        return None
    if unit is Dimension.FRACTION and not -1 <= amount <= 1:
        document.add_problem(path, f"{text} is {show(amount, unit)}; write '{text} %' or a fraction of one")
        return None
    if amount < 0 and unit is not Dimension.NUMBER:
        document.add_problem(path, f"{text} is negative")
        return None
    return amount


def _read_against(
    document: Document, path: KeyPath, limit_options: dict[str, Any], name: str, budget_names: BudgetNames | None
) -> str | None:
    reference_stage = limit_options.get("against")
    against_path = (*path, "against")
    if reference_stage is None:
        return None
    if not name.endswith("_drop"):
        document.add_problem(against_path, "only a drop is compared with an earlier stage", anchor="key")
    elif not isinstance(reference_stage, str):
        document.add_problem(
            against_path, f"must be the name of an earlier stage, found {describe_value(reference_stage)}"
        )
    elif budget_names is not None and reference_stage not in budget_names.stage_names:
        document.add_problem(
            against_path,
            f"no earlier stage is named '{reference_stage}'{did_you_mean(reference_stage, budget_names.stage_names)}",
        )
    return str(reference_stage)


def _read_evidence(document: Document, path: KeyPath, limit_options: dict[str, Any]) -> Evidence | None:
    evidence_level = limit_options.get("evidence")
    allowed_levels = [evidence.value for evidence in Evidence if evidence is not Evidence.UNAVAILABLE]
    if evidence_level is None:
        return None
    if evidence_level not in allowed_levels:
        document.add_problem(
            (*path, "evidence"),
            f"found {describe_choice(evidence_level)}{did_you_mean(str(evidence_level), allowed_levels)}",
        )
        return None
    return Evidence(evidence_level)


def parse_max_options(assignments: Collection[str]) -> list[Limit]:
    """Upper limits from the command line, for example `ram=64KiB`; they name no device.

    Raises:
        ConfigError: lists all assignments that are not a limit, each with what is allowed.
    """
    document = Document("--max")
    limits = []
    unit_by_metric = {
        name: unit
        for name, unit in {**UNIT_BY_DEVICE_METRIC, **UNIT_BY_MODEL_METRIC}.items()
        if name not in _HIGHER_IS_BETTER_METRICS
    }
    for assignment in assignments:
        name, sign, limit_text = assignment.partition("=")
        if not sign or name not in unit_by_metric:
            hint = did_you_mean(name, unit_by_metric) if name not in unit_by_metric else "; the limit is missing"
            document.add_problem((), f"'{assignment}': expected METRIC=LIMIT{hint}")
        elif (amount := read_amount(document, (name,), limit_text, unit_by_metric[name])) is not None:
            limits.append(Limit(metric=name, unit=unit_by_metric[name], bound="max", value=amount))
    document.raise_problems()
    return limits
