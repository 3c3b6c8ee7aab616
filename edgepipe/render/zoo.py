"""The architectures of the zoo and their footprints, as tables and JSON documents."""

import json
from typing import Any

import yaml

from edgepipe.commands.footprint import Footprint
from edgepipe.core import units
from edgepipe.core.errors import InputError, did_you_mean
from edgepipe.core.units import Dimension
from edgepipe.render import profile as profiled
from edgepipe.render.report_tables import Rows, how
from edgepipe.zoo import published_footprints

SCHEMA = "edgepipe.zoo/1"
COLUMNS = ("architecture", "input", "classes", "options", "parameters", "MACs", "flash", "RAM")


def listed(name: str | None) -> list[Rows]:
    """Every architecture with its paper and the footprints that were counted; or one, with its options."""
    counted = published_footprints.counted()
    names = [_known(name)] if name is not None else list(published_footprints.PAPERS)
    papers = Rows("Architectures", ("architecture", "after"), tuple((n, published_footprints.PAPERS[n]) for n in names))
    rows = tuple(_row(entry) for entry in counted["footprints"] if entry["name"] in names)
    title = f"Footprints as int8, untrained ({counted['with']})"
    tables = [papers, Rows(title, COLUMNS, rows, frozenset({2, 4, 5, 6, 7}))]
    if name is not None:
        options = tuple((key, json.dumps(value)) for key, value in published_footprints.options(name).items())
        tables.append(Rows(f"Options of {name}", ("option", "default"), options))
    return tables


def _known(name: str) -> str:
    if name not in published_footprints.PAPERS:
        raise InputError(f"no architecture '{name}'{did_you_mean(name, published_footprints.PAPERS)}")
    return name


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    options = ", ".join(f"{key} {json.dumps(value)}" for key, value in entry["options"].items())
    return (
        entry["name"], "x".join(map(str, entry["input"])), str(entry["classes"] or ""), options,
        f"{entry['parameters']:,}", f"{entry['macs']:,}", units.show(entry["flash"], Dimension.BYTES),
        units.show(entry["ram"], Dimension.BYTES) if entry["ram"] is not None else "unavailable",
    )  # fmt: skip


def listed_json(name: str | None) -> str:
    """The same as one JSON document."""
    counted = published_footprints.counted()
    names = [_known(name)] if name is not None else list(published_footprints.PAPERS)
    body = {
        n: {"paper": published_footprints.PAPERS[n], "options": published_footprints.options(n),
            "footprints": [entry for entry in counted["footprints"] if entry["name"] == n]}
        for n in names
    }  # fmt: skip
    return json.dumps({"schema": SCHEMA, "with": counted["with"], "architectures": body}, indent=2)


def shape(text: str) -> tuple[int, ...]:
    """`49x10x1` as a shape.

    Raises:
        InputError: not of that form.
    """
    parts = text.lower().split("x")
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise InputError(f"--input '{text}' is no shape; write it as 28x28x1, 100x6 or 640")
    return tuple(map(int, parts))


def options(settings: tuple[str, ...]) -> dict[str, Any]:
    """`alpha=0.5` and such, values read as YAML.

    Raises:
        InputError: not of that form.
    """
    found = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise InputError(f"--set '{setting}' is not of the form option=value, for example --set alpha=0.5")
        try:
            found[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise InputError(f"--set '{setting}': '{text}' is no value; write a number or a list: [8, 16]") from None
    return found


def tables(found: Footprint) -> list[Rows]:
    """The numbers of one architecture, each with its evidence, then its devices."""
    title = f"{found.name} for {'x'.join(map(str, found.input_shape))}, int8, untrained"
    rows = tuple(
        (metric.name, units.show(metric.value, metric.unit) if metric.value is not None else "unavailable",
         str(metric.evidence), how(metric))
        for metric in found.metrics
    )  # fmt: skip
    return [Rows(title, ("metric", "value", "evidence", "how"), rows, frozenset({1})), *_devices(found)]


def _devices(found: Footprint) -> list[Rows]:
    from edgepipe.commands.profile import Profiled

    if not found.devices:
        return []
    return profiled.tables(Profiled(path=found.name, devices=found.devices, notes=(), seconds={}), every_operator=False)


def document(found: Footprint) -> str:
    """One architecture as a JSON document."""
    return json.dumps({"schema": SCHEMA, **found.model_dump(mode="json")}, indent=2)
