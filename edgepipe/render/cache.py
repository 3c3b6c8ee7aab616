"""The entries of the cache as a table and as JSON: `edgepipe cache list`."""

from datetime import UTC, datetime
from pathlib import Path

from edgepipe.core import units
from edgepipe.core.cache import Cache, default_root
from edgepipe.core.escape import json_text
from edgepipe.core.units import Dimension
from edgepipe.render.report_tables import TextTable


def tables(folder: str | None) -> list[TextTable]:
    """The cache entries, the newest first."""
    store = _open_cache(folder)
    rows = tuple(
        (entry.key[:12], entry.stage, str(entry.kind), units.show(store.entry_size(entry.key), Dimension.BYTES),
         datetime.fromtimestamp(entry.created, UTC).isoformat(timespec="seconds"))
        for entry in store.list_entries()
    )  # fmt: skip
    title = f"{store.root}: {units.plural(len(rows), 'entry', 'entries')}"
    return [TextTable(title, ("key", "stage", "kind", "size", "created"), rows, frozenset({3}))]


def document(folder: str | None) -> str:
    """The same as one JSON document."""
    store = _open_cache(folder)
    entries = [
        {"key": e.key, "stage": e.stage, "kind": e.kind, "bytes": store.entry_size(e.key), "created": e.created}
        for e in store.list_entries()
    ]
    return json_text({"schema": "edgepipe.cache/1", "root": str(store.root), "entries": entries})


def _open_cache(folder: str | None) -> Cache:
    return Cache(Path(folder) if folder else default_root())
