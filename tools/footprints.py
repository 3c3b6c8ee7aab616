"""Counts the zoo's architectures into edgepipe/zoo/footprints.json and docs/zoo.md: `python tools/footprints.py`."""

import json
from pathlib import Path
from typing import Any

from edgepipe.commands import footprint
from edgepipe.core.references import installed_version
from edgepipe.render import zoo as architectures
from edgepipe.zoo import published_footprints

PAGE = Path(__file__).resolve().parent.parent / "docs" / "zoo.md"
BEGIN, END = "<!-- made by tools/footprints.py; do not edit -->", "<!-- end -->"


def entry(name: str, shape: tuple[int, ...], classes: int | None, options: dict[str, Any]) -> dict[str, Any]:
    """The footprint of one architecture, as it is stored."""
    metrics = {
        metric.name: metric.value for metric in footprint.measure_footprint(name, shape, classes, options).metrics
    }
    kept = {key: int(value) if value is not None else None for key, value in metrics.items()}
    return {"name": name, "input": list(shape), "classes": classes, "options": options, **kept}


def table() -> str:
    """The stored footprints as Markdown."""
    rows = architectures.architecture_tables(None)[1]
    head = ["| " + " | ".join(rows.columns) + " |", "|" + "---|" * len(rows.columns)]
    return "\n".join([BEGIN, *head, *("| " + " | ".join(row) + " |" for row in rows.rows), END])


def page(text: str) -> str:
    """`text` with the table in its place."""
    before, _, rest = text.partition(BEGIN)
    return before + table() + rest.partition(END)[2]


def main() -> None:
    """Count all of them."""
    versions = ", ".join(f"{name} {installed_version(name)}" for name in ("tensorflow", "keras", "tflite-micro"))
    found = {"with": versions, "footprints": [entry(*counted) for counted in published_footprints.FOOTPRINT_CASES]}
    published_footprints.FOOTPRINTS_FILE.write_text(json.dumps(found, indent=1) + "\n")
    PAGE.write_text(page(PAGE.read_text()))


if __name__ == "__main__":
    main()
