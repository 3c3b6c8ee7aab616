"""What a release of a runtime does with an operator: from the table of what was tried, else from TFLite's own table.

`abilities.json` is made by `tools/runtime_abilities.py`, which runs a model of one operator on each release in an
environment of its own. A release that was not tried is judged by its neighbours, and an operator in a form that was not
tried by forms that differ in constants only; what neither settles is unknown.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import final

from edgepipe.devices.runtimes.operator_form import OperatorForm
from edgepipe.devices.runtimes.releases import Release, parse_release, standing_releases
from edgepipe.tflite.minimum_runtimes import first_release, release_key

TABLE_PATH = Path(__file__).parent / "abilities.json"
MAX_STEPS = {"int8": 2, "uint8": 2, "int16": 32}  # that a right kernel may be from the reference, in codes
MAX_PER_MILLE = 50  # the same for floats, of the largest output: hybrid kernels quantize their inputs
# types of inputs that are shapes, axes, indices and biases, in which forms may differ without another kernel
SECONDARY_TYPES = frozenset({"int32", "int64", "bool", "-"})
BIAS_POSITIONS = {"CONV_2D": 2, "DEPTHWISE_CONV_2D": 2, "FULLY_CONNECTED": 2, "TRANSPOSE_CONV": 3}


class KernelState(StrEnum):
    """What a release does with an operator; the later ones are the worse."""

    RUNS = "runs"
    UNKNOWN = "unknown"
    REFUSES = "refuses"
    CRASHES = "crashes"
    WRONG = "wrong"  # runs, and its numbers are off


_SEVERITY = list(KernelState)
COMPUTES = frozenset({KernelState.RUNS, KernelState.WRONG})


@final
@dataclass(frozen=True)
class Ability:
    """What it does, what was seen, and where it is known from."""

    state: KernelState
    observed: str
    provenance: str


@final
@dataclass(frozen=True)
class AbilityRow:
    """One case of the table: an operator's form, and the result on each release."""

    form: OperatorForm
    case: str
    result_by_release: dict[Release, str]


@final
@dataclass(frozen=True)
class AbilityTable:
    """The table, with the day when it was made."""

    tried: str
    reference: str
    releases: tuple[Release, ...]
    rows: tuple[AbilityRow, ...]


@cache
def load_table() -> AbilityTable:
    """The table of the repository."""
    content = json.loads(TABLE_PATH.read_text())
    releases = tuple(parse_release(text) for text in content["releases"])
    rows = tuple(
        AbilityRow(
            OperatorForm(row["operator"], row["version"], row["types"], tuple(row["features"])),
            row["case"],
            dict(zip(releases, row["results"].split(), strict=True)),
        )
        for row in content["rows"]
    )
    return AbilityTable(content["tried"], content["reference"], releases, rows)


@cache
def find_form_ability(release: Release, form: OperatorForm) -> Ability:
    """What `release` does with an operator of this form."""
    table = load_table()
    tried_releases = standing_releases(release, table.releases)
    abilities = [ability for tried in tried_releases if (ability := _tried_ability(tried, form, table)) is not None]
    states = {ability.state for ability in abilities}
    if not abilities or len(abilities) < len(tried_releases) or (KernelState.RUNS in states and len(states) > 1):
        return _ability_by_minimum(release, form)
    return _worst(abilities)


def _tried_ability(release: Release, form: OperatorForm, table: AbilityTable) -> Ability | None:
    """What a release that was tried does; None if nothing like this form was.

    The version only decides whether a kernel is found, and kernels do not look at it: one that a release has for a
    version is also there for lower ones and computes the same, and what is wrong in a version is wrong in higher ones.
    """
    abilities_by_version: dict[int, list[Ability]] = {}
    for row in _similar_rows(form, table.rows):
        abilities_by_version.setdefault(row.form.version, []).append(_row_ability(row, release, table))
    worst_by_version = {version: _worst(abilities) for version, abilities in abilities_by_version.items()}
    own = worst_by_version.get(form.version)
    lower = [a for v, a in worst_by_version.items() if v < form.version and a.state is KernelState.WRONG]
    higher = [a for v, a in sorted(worst_by_version.items()) if v > form.version and a.state in COMPUTES]
    if own is not None and own.state is not KernelState.RUNS:
        return own
    return next(iter([*lower, *([own] if own is not None else []), *higher]), None)


def _similar_rows(form: OperatorForm, rows: Sequence[AbilityRow]) -> list[AbilityRow]:
    """Cases of types that differ in secondary ones at most, in any version."""
    main_types = _main_types(form)
    return [
        row
        for row in rows
        if (row.form.name, row.form.features) == (form.name, form.features) and _main_types(row.form) == main_types
    ]


def _main_types(form: OperatorForm) -> tuple[str, ...]:
    """The types of inputs and outputs without biases and what else is secondary."""
    inputs, outputs = form.types.split(" -> ")
    inputs_before_bias = inputs.split()[: BIAS_POSITIONS.get(form.name)]
    main_inputs = [dtype for dtype in inputs_before_bias if dtype not in SECONDARY_TYPES]
    return (*main_inputs, "->", outputs) if main_inputs else (form.types,)


def _worst(abilities: Iterable[Ability]) -> Ability:
    return max(abilities, key=lambda ability: _SEVERITY.index(ability.state))


def _row_ability(row: AbilityRow, release: Release, table: AbilityTable) -> Ability:
    result = row.result_by_release[release]
    provenance = f"tried on {release}, {table.tried}: {row.case}"
    if result in (KernelState.REFUSES, KernelState.CRASHES):
        return Ability(KernelState(result), str(release) + f" {result} {row.form}", provenance)
    is_wrong = result == "garbage" or int(result) > _limit(row.form)
    observed = f"{release} computes it {_describe_steps(result, row.form)}" if is_wrong else "runs"
    return Ability(KernelState.WRONG if is_wrong else KernelState.RUNS, observed, provenance)


def _output_type(form: OperatorForm) -> str:
    return form.types.split("-> ")[1].split()[0]


def _limit(form: OperatorForm) -> int:
    output_type = _output_type(form)
    return MAX_PER_MILLE if output_type.startswith("float") else MAX_STEPS.get(output_type, 0)


def _describe_steps(result: str, form: OperatorForm) -> str:
    if result == "garbage":
        return "to no number, or in another shape"
    if _output_type(form).startswith("float"):
        return f"{int(result) / 10:g} % of the largest output off, and says nothing"
    return f"{result} steps off, and says nothing"


def _ability_by_minimum(release: Release, form: OperatorForm) -> Ability:
    """What TFLite's own table of first releases says, which holds for TensorFlow's numbers only."""
    first = first_release(form.name, form.version)
    provenance = "TFLite's table of first releases; not tried"
    if release.family == "tensorflow" and first is not None and release_key(first)[:2] > release.numbers[:2]:
        observed = f"{form.name} version {form.version} came with TensorFlow Lite {first}"
        return Ability(KernelState.REFUSES, observed, provenance)
    return Ability(KernelState.UNKNOWN, f"nothing is known of {form} there", "not tried")
