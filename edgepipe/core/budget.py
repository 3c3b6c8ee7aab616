"""Budgets: the limits that a pipeline or a command line sets on metrics.

budget:
  accuracy: ">= 97 %"                               # a quality metric of the task
  accuracy_drop: {max: 1 point, against: train}     # how much worse than an earlier stage
  nucleo-l4r5zi: {latency: 20 ms, ram: 64 KiB}      # one block a device
  ethos-u55-128: {npu_operators: 100 %}             # the least share, on a device with an NPU
  host: {latency: {max: 1 ms, evidence: measured}}
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edgepipe.core.config import Document, Path_, describe
from edgepipe.core.errors import did_you_mean
from edgepipe.core.metric import Evidence, Limit
from edgepipe.core.units import Dimension, UnitError, parse, show

DEVICE_METRICS = {
    "latency": Dimension.SECONDS,
    "ram": Dimension.BYTES,
    "flash": Dimension.BYTES,
    "npu_operators": Dimension.FRACTION,  # of devices with an NPU only
}
MODEL_METRICS = {
    "size": Dimension.BYTES,
    "size_deflate": Dimension.BYTES,
    "size_zstd": Dimension.BYTES,
    "parameters": Dimension.COUNT,
    "nonzero_parameters": Dimension.COUNT,
    "macs": Dimension.COUNT,
    "sparsity": Dimension.FRACTION,
}
_HIGHER_IS_BETTER = {"sparsity", "npu_operators"}
_SIGNED = re.compile(r"\s*(<=|>=)\s*(.*)")
_KEYS = ("max", "min", "evidence", "against", "optional")
Bound = Literal["max", "min"]


@dataclass(frozen=True)
class Known:
    """What a budget may name: the quality metrics (name -> unit, higher is better), devices, and earlier stages.

    `quality` is None where only a user's function knows the metrics; any name is then taken as one.
    """

    quality: Mapping[str, tuple[Dimension, bool]] | None
    devices: Collection[str]
    stages: Collection[str]

    def metric(self, name: str) -> tuple[Dimension, Bound] | None:
        """Unit and usual bound of a metric of the model, or None if nothing takes a metric of this name."""
        if name in DEVICE_METRICS:
            return None
        if name in MODEL_METRICS:
            return MODEL_METRICS[name], _usual(name)
        drop = name.endswith("_drop")
        quality = (self.quality or {}).get(name.removesuffix("_drop"))
        if quality is not None:
            return quality[0], "max" if drop or not quality[1] else "min"
        return (Dimension.PLAIN, "max" if drop else "min") if self.quality is None else None

    def names(self) -> list[str]:
        """Every name that may stand as a key of the budget."""
        own = list(self.quality or {})
        return [*own, *(f"{name}_drop" for name in own), *MODEL_METRICS, *self.devices]


def _usual(name: str) -> Bound:
    return "min" if name in _HIGHER_IS_BETTER else "max"


def limits(document: Document, path: Path_, data: Any, known: Known) -> list[Limit]:
    """The limits at `path`; every problem is noted in `document` and its line left out."""
    if not isinstance(data, dict):
        document.problem(path, f"must be a mapping of metric or device to a limit; found {describe(data)}")
        return []
    found: list[Limit | None] = []
    for name, value in data.items():
        here = (*path, name)
        if name in known.devices:
            found += _device(document, here, name, value)
        elif (metric := known.metric(name)) is not None:
            if known.quality is None and metric[0] is Dimension.PLAIN and _is_share(value):
                metric = (Dimension.FRACTION, metric[1])
            found.append(_limit(document, here, name, value, metric, known))
        else:
            document.problem(here, _unknown(name, known), at="key")
    return [limit for limit in found if limit is not None]


def _is_share(value: Any) -> bool:
    """Whether a limit on a metric of unknown unit is written as a share: `97 %`, `{max: 1 point}`."""
    return bool(re.search(r"%|\bpoints?\b", str(value)))


def _unknown(name: str, known: Known) -> str:
    if name in DEVICE_METRICS:
        device = next(iter(known.devices), "host")
        return f"'{name}' belongs under a device of `devices`, for example `{device}: {{{name}: ..}}`"
    return f"neither a metric of this task nor one of `devices`{did_you_mean(name, known.names())}"


def _device(document: Document, path: Path_, device: str, data: Any) -> list[Limit | None]:
    if not isinstance(data, dict):
        document.problem(path, f"must be a mapping of {', '.join(DEVICE_METRICS)} to a limit; found {describe(data)}")
        return []
    found = []
    for name, value in data.items():
        if name in DEVICE_METRICS:
            metric = (DEVICE_METRICS[name], _usual(name))
            found.append(_limit(document, (*path, name), name, value, metric, None, device))
        else:
            document.problem((*path, name), f"no metric of a device{did_you_mean(name, DEVICE_METRICS)}", at="key")
    return found


def _limit(
    document: Document,
    path: Path_,
    name: str,
    value: Any,
    metric: tuple[Dimension, Bound],
    known: Known | None,
    device: str | None = None,
) -> Limit | None:
    before = len(document.problems)
    options = dict(value) if isinstance(value, dict) else {}
    unit, bound = metric
    for key in [key for key in options if key not in _KEYS]:
        document.problem((*path, key), f"unknown option{did_you_mean(key, _KEYS)}", at="key")
    number, bound, where = _bound(document, path, value, bound)
    amount = amount_of(document, where, number, unit) if len(document.problems) == before else None
    against = _against(document, path, options, name, known)
    evidence = _evidence(document, path, options)
    optional = options.get("optional", False)
    if not isinstance(optional, bool):
        document.problem((*path, "optional"), f"must be true or false, found {describe(optional)}")
    if amount is None or len(document.problems) > before:
        return None
    return Limit(
        metric=name,
        unit=unit,
        bound=bound,
        value=amount,
        device=device,
        evidence=evidence,
        against=against,
        optional=optional,
    )


def _bound(document: Document, path: Path_, value: Any, usual: Bound) -> tuple[Any, Bound, Path_]:
    if not isinstance(value, dict):
        signed = _SIGNED.fullmatch(value) if isinstance(value, str) else None
        return (signed[2], "max" if signed[1] == "<=" else "min", path) if signed else (value, usual, path)
    given: list[Bound] = [bound for bound in ("max", "min") if bound in value]
    if len(given) != 1:
        document.problem(path, f"needs exactly one of max and min, found {' and '.join(given) or 'neither'}")
        return None, usual, path
    return value[given[0]], given[0], (*path, given[0])


def amount_of(document: Document, path: Path_, text: Any, unit: Dimension) -> float | None:
    """The quantity `text` at `path` in `unit`; None, with the problem noted, if it is none or out of range."""
    if not isinstance(text, (str, int, float)) or isinstance(text, bool):
        document.problem(path, f"must be a quantity, found {describe(text)}")
        return None
    try:
        amount = parse(text, unit)
    except UnitError as error:
        document.problem(path, str(error))
        return None
    if unit is Dimension.FRACTION and not -1 <= amount <= 1:
        document.problem(path, f"{text} is {show(amount, unit)}; write '{text} %' or a fraction of one")
        return None
    if amount < 0 and unit is not Dimension.PLAIN:
        document.problem(path, f"{text} is negative")
        return None
    return amount


def _against(document: Document, path: Path_, options: dict[str, Any], name: str, known: Known | None) -> str | None:
    against = options.get("against")
    here = (*path, "against")
    if against is None:
        return None
    if not name.endswith("_drop"):
        document.problem(here, "only a drop is counted against an earlier stage", at="key")
    elif not isinstance(against, str):
        document.problem(here, f"must be the name of an earlier stage, found {describe(against)}")
    elif known is not None and against not in known.stages:
        document.problem(here, f"no earlier stage is named '{against}'{did_you_mean(against, known.stages)}")
    return str(against)


def _evidence(document: Document, path: Path_, options: dict[str, Any]) -> Evidence | None:
    level = options.get("evidence")
    allowed = [evidence.value for evidence in Evidence if evidence is not Evidence.UNAVAILABLE]
    if level is None:
        return None
    if level not in allowed:
        document.problem((*path, "evidence"), f"found {describe(level)}{did_you_mean(str(level), allowed)}")
        return None
    return Evidence(level)


def from_words(words: Collection[str]) -> list[Limit]:
    """Upper limits as the command line gives them, for example `ram=64KiB`; none of them names a device.

    Raises:
        ConfigError: all words that are no limit, each with what is allowed.
    """
    document = Document("--max")
    found = []
    units = {name: unit for name, unit in {**DEVICE_METRICS, **MODEL_METRICS}.items() if name not in _HIGHER_IS_BETTER}
    for word in words:
        name, sign, text = word.partition("=")
        if not sign or name not in units:
            hint = did_you_mean(name, units) if name not in units else "; the limit is missing"
            document.problem((), f"'{word}': expected METRIC=LIMIT{hint}")
        elif (amount := amount_of(document, (name,), text, units[name])) is not None:
            found.append(Limit(metric=name, unit=units[name], bound="max", value=amount))
    document.raise_problems()
    return found
