"""The architectures of the zoo and their footprints as tables and JSON: `edgepipe zoo`."""

import json
from typing import Any

import yaml

from edgepipe.commands.footprint import Footprint
from edgepipe.core import units
from edgepipe.core.errors import InputError, did_you_mean
from edgepipe.core.escape import json_text
from edgepipe.core.units import Dimension
from edgepipe.render import profile as profile_render
from edgepipe.render.report_tables import TextTable, provenance_text
from edgepipe.zoo import published_footprints

SCHEMA = "edgepipe.zoo/1"
FOOTPRINT_COLUMNS = ("architecture", "input", "classes", "options", "parameters", "MACs", "flash", "RAM")


def architecture_tables(name: str | None) -> list[TextTable]:
    """Every architecture with its paper and published footprints; or only `name`, with its options too."""
    footprint_catalog = published_footprints.read_footprints()
    architecture_names = (
        [_check_architecture(name)] if name is not None else list(published_footprints.PAPER_BY_ARCHITECTURE)
    )
    paper_rows = tuple((name, published_footprints.PAPER_BY_ARCHITECTURE[name]) for name in architecture_names)
    papers_table = TextTable("Architectures", ("architecture", "based on"), paper_rows)
    rows = tuple(
        _footprint_row(entry) for entry in footprint_catalog["footprints"] if entry["name"] in architecture_names
    )
    title = f"Footprints as int8, untrained ({footprint_catalog['with']})"
    all_tables = [papers_table, TextTable(title, FOOTPRINT_COLUMNS, rows, frozenset({2, 4, 5, 6, 7}))]
    if name is not None:
        default_options = published_footprints.default_options(name)
        option_rows = tuple((key, json.dumps(default)) for key, default in default_options.items())
        all_tables.append(TextTable(f"Options of {name}", ("option", "default"), option_rows))
    return all_tables


def _check_architecture(name: str) -> str:
    if name not in published_footprints.PAPER_BY_ARCHITECTURE:
        raise InputError(f"no architecture '{name}'{did_you_mean(name, published_footprints.PAPER_BY_ARCHITECTURE)}")
    return name


def _footprint_row(footprint_entry: dict[str, Any]) -> tuple[str, ...]:
    options_text = ", ".join(f"{key} {json.dumps(setting)}" for key, setting in footprint_entry["options"].items())
    return (
        footprint_entry["name"], "x".join(map(str, footprint_entry["input"])),
        str(footprint_entry["classes"] or ""), options_text,
        f"{footprint_entry['parameters']:,}", f"{footprint_entry['macs']:,}",
        units.show(footprint_entry["flash"], Dimension.BYTES),
        units.show(footprint_entry["ram"], Dimension.BYTES) if footprint_entry["ram"] is not None else "unavailable",
    )  # fmt: skip


def architecture_document(name: str | None) -> str:
    """The same as one JSON document."""
    footprint_catalog = published_footprints.read_footprints()
    architecture_names = (
        [_check_architecture(name)] if name is not None else list(published_footprints.PAPER_BY_ARCHITECTURE)
    )
    body = {
        n: {"paper": published_footprints.PAPER_BY_ARCHITECTURE[n], "options": published_footprints.default_options(n),
            "footprints": [entry for entry in footprint_catalog["footprints"] if entry["name"] == n]}
        for n in architecture_names
    }  # fmt: skip
    return json_text({"schema": SCHEMA, "with": footprint_catalog["with"], "architectures": body})


def parse_shape(text: str) -> tuple[int, ...]:
    """Parse a shape such as `49x10x1`.

    Raises:
        InputError: not of that form.
    """
    sizes = text.lower().split("x")
    if not all(size.isdigit() and int(size) > 0 for size in sizes):
        raise InputError(f"--input '{text}' is not a shape; write it as 28x28x1, 100x6 or 640")
    return tuple(map(int, sizes))


def parse_options(settings: tuple[str, ...]) -> dict[str, Any]:
    """Parse settings such as `alpha=0.5`; the values are YAML.

    Raises:
        InputError: not of that form.
    """
    option_by_name = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise InputError(f"--set '{setting}' is not of the form option=value, for example --set alpha=0.5")
        try:
            option_by_name[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise InputError(f"--set '{setting}': '{text}' is not a value; write a number or a list: [8, 16]") from None
    return option_by_name


def tables(footprint: Footprint) -> list[TextTable]:
    """The metrics of one architecture, each with its evidence, then its devices."""
    title = f"{footprint.name} for {'x'.join(map(str, footprint.input_shape))}, int8, untrained"
    rows = tuple(
        (metric.name, units.show(metric.value, metric.unit) if metric.value is not None else "unavailable",
         str(metric.evidence), provenance_text(metric))
        for metric in footprint.metrics
    )  # fmt: skip
    return [TextTable(title, ("metric", "value", "evidence", "how"), rows, frozenset({1})), *_device_tables(footprint)]


def _device_tables(footprint: Footprint) -> list[TextTable]:
    from edgepipe.commands.profile import ModelProfile

    if not footprint.devices:
        return []
    return profile_render.tables(
        ModelProfile(path=footprint.name, devices=footprint.devices, notes=(), seconds={}), every_operator=False
    )


def document(footprint: Footprint) -> str:
    """One architecture as a JSON document."""
    return json_text({"schema": SCHEMA, **footprint.model_dump(mode="json")})
