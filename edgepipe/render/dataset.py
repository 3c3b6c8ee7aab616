"""A dataset as tables, as JSON and as a picture of samples: `edgepipe data`."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from edgepipe.commands.dataset import DatasetSummary, InputStatistics
from edgepipe.core.arrays import Array
from edgepipe.core.artifact import write_atomically
from edgepipe.core.errors import InputError
from edgepipe.render.report_tables import TextTable

SCHEMA = "edgepipe.data/1"
MAX_SHOWN_CLASSES = 30  # in tables and pictures; the rest is counted
SAMPLES_PER_CLASS = 8  # in a picture
PICTURE_SUFFIXES = (".png", ".svg", ".pdf")


def tables(summary: DatasetSummary) -> list[TextTable]:
    """Sizes and shapes, statistics of the values, classes."""
    shape = "; ".join(f"{name} {'x'.join(map(str, dims))}".strip() for name, dims in summary.shapes.items())
    sizes = tuple((split, f"{count:,}", "size only: only `validate` reads it" if split == "test" else "")
                  for split, count in summary.counts.items())  # fmt: skip
    title = f"{summary.source}: samples of shape {shape}, float32; labels: {summary.labels}"
    all_tables = [
        TextTable(title, ("split", "samples", ""), sizes, frozenset({1})),
        TextTable("Values in the training split", ("input", "min", "mean", "std", "max"),
             tuple(_statistics_row(statistics) for statistics in summary.values), frozenset({1, 2, 3, 4})),
        _balance_table(summary),
    ]  # fmt: skip
    return [table for table in all_tables if table.rows]


def _statistics_row(statistics: InputStatistics) -> tuple[str, ...]:
    numbers = (statistics.low, statistics.mean, statistics.deviation, statistics.high)
    return (statistics.name or "all", *(f"{number:.4g}" for number in numbers))


def _balance_table(summary: DatasetSummary) -> TextTable:
    total = max(sum(counts.get("train", 0) for counts in summary.classes.values()), 1)
    rows = [(name, str(c.get("train", 0)), str(c.get("validation", 0)), f"{c.get('train', 0) / total:.1%}")
            for name, c in summary.classes.items()]  # fmt: skip
    hidden_count = len(rows) - MAX_SHOWN_CLASSES
    more_rows = [(f"and {hidden_count} more", "", "", "")] if hidden_count > 0 else []
    columns = ("class", "train", "validation", "share of training")
    return TextTable("Classes", columns, tuple(rows[:MAX_SHOWN_CLASSES] + more_rows), frozenset({1, 2, 3}))


def document(summary: DatasetSummary) -> str:
    """The same as one JSON document."""
    return json.dumps({"schema": SCHEMA, **summary.model_dump(mode="json")}, indent=2)


def draw_picture(rows: list[tuple[str, Array]], path: Path) -> None:
    """Draw samples, one row per class: images, spectrograms as heat maps, windows as lines, vectors as bars.

    Raises:
        InputError: the suffix of `path` is not that of a picture.
        StorageError: `path` cannot be written.
    """
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        raise InputError(f"{path}: pictures end in {', '.join(PICTURE_SUFFIXES)}")
    from matplotlib.figure import Figure

    rows = rows[:MAX_SHOWN_CLASSES]
    columns = max(len(samples) for _, samples in rows)
    figure = Figure(figsize=(1.3 * columns + 1, 1.3 * len(rows) + 0.3), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    low, high = min(float(s.min()) for _, s in rows), max(float(s.max()) for _, s in rows)
    for (name, samples), row_axes in zip(rows, axes, strict=True):
        for number, axis in enumerate(row_axes):
            axis.set_xticks([])
            axis.set_yticks([])
            if number < len(samples):
                _draw_sample(axis, samples[number], low, high)
            else:
                axis.set_axis_off()
        row_axes[0].set_ylabel(name[:20], rotation=0, ha="right", va="center")
    with write_atomically(path) as temporary_path:
        figure.savefig(temporary_path, dpi=100, metadata={"Date": None} if path.suffix == ".svg" else None)


def _draw_sample(axis: Any, sample: Array, low: float, high: float) -> None:
    if sample.ndim == 3 and sample.shape[-1] in (3, 4):
        axis.imshow(np.clip((sample - low) / max(high - low, 1e-9), 0, 1))
    elif sample.ndim == 3:
        axis.imshow(sample[..., 0], cmap="gray", vmin=low, vmax=high, aspect="auto")
    elif sample.ndim == 2:
        axis.plot(sample, linewidth=0.7)
    elif sample.ndim == 1:
        axis.bar(range(len(sample)), sample)
    else:
        axis.text(0.5, 0.5, f"{sample:g}" if sample.ndim == 0 else str(sample.shape), ha="center", va="center")
