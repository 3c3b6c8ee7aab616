"""A dataset as tables, as JSON and as a picture of samples: `edgepipe data`."""

from pathlib import Path
from typing import Any

import numpy as np

from edgepipe.commands.dataset import DatasetSummary, InputStatistics
from edgepipe.core.arrays import Array
from edgepipe.core.artifact import write_atomically
from edgepipe.core.errors import InputError, did_you_mean
from edgepipe.core.escape import json_text
from edgepipe.data.data_spec import SPEC_BY_SOURCE, DataSpec
from edgepipe.render.report_tables import TextTable
from edgepipe.render.stages import describe_options

SCHEMA = "edgepipe.data/1"
OPTIONS_SCHEMA = "edgepipe.data-options/1"
MAX_SHOWN_CLASSES = 30  # in tables and pictures; the rest is counted
SAMPLES_PER_CLASS = 8  # in a picture
PICTURE_SUFFIXES = (".png", ".svg", ".pdf")


def tables(summary: DatasetSummary) -> list[TextTable]:
    """Sizes and shapes, statistics of the values, classes."""
    shape = "; ".join(f"{name} {'x'.join(map(str, dims))}".strip() for name, dims in summary.shapes.items())
    size_rows = tuple((split, f"{count:,}", "size only: only `validate` reads it" if split == "test" else "")
                  for split, count in summary.counts.items())  # fmt: skip
    title = f"{summary.source}: samples of shape {shape}, float32; labels: {summary.labels}"
    all_tables = [
        TextTable(title, ("split", "samples", ""), size_rows, frozenset({1})),
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


def option_tables(source: str) -> list[TextTable]:
    """The options of a source of `data:`, such as `csv`, generated from its class.

    Raises:
        InputError: there is no such source.
    """
    spec_class = _find_spec_class(source)
    rows = tuple((o["option"], o["type"], o["default"], o["meaning"]) for o in _ordered_options(source, spec_class))
    title = f"{source}: {_summary(spec_class)}"
    return [TextTable(title, ("option", "type", "default", "meaning"), rows)]


def options_document(source: str) -> str:
    """The same as one JSON document."""
    spec_class = _find_spec_class(source)
    content = {source: {"summary": _summary(spec_class), "options": _ordered_options(source, spec_class)}}
    return json_text({"schema": OPTIONS_SCHEMA, "sources": content})


def _ordered_options(source: str, spec_class: type[DataSpec]) -> list[dict[str, str]]:
    """The source itself, its own options, then those that all sources have."""
    common_names = set.intersection(*(set(cls.model_fields) for cls in SPEC_BY_SOURCE.values()))
    roots = {record["option"]: record["option"].partition(".")[0] for record in describe_options(spec_class)}
    return sorted(
        describe_options(spec_class),
        key=lambda record: (roots[record["option"]] != source, roots[record["option"]] in common_names),
    )


def _find_spec_class(source: str) -> type[DataSpec]:
    if source not in SPEC_BY_SOURCE:
        raise InputError(f"no source of data '{source}'{did_you_mean(source, SPEC_BY_SOURCE)}")
    return SPEC_BY_SOURCE[source]


def _summary(spec_class: type[DataSpec]) -> str:
    return str(spec_class.__doc__ or "").strip().partition("\n")[0]


def document(summary: DatasetSummary) -> str:
    """The same as one JSON document."""
    return json_text({"schema": SCHEMA, **summary.model_dump(mode="json")})


def draw_picture(class_samples: list[tuple[str, Array]], path: Path) -> None:
    """Draw samples, one row per class: images, spectrograms as heat maps, windows as lines, vectors as bars.

    Raises:
        InputError: the suffix of `path` is not that of a picture.
        StorageError: `path` cannot be written.
    """
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        raise InputError(f"{path}: pictures end in {', '.join(PICTURE_SUFFIXES)}")
    from matplotlib.figure import Figure

    class_samples = class_samples[:MAX_SHOWN_CLASSES]
    column_count = max(len(samples) for _, samples in class_samples)
    figure = Figure(figsize=(1.3 * column_count + 1, 1.3 * len(class_samples) + 0.3), layout="constrained")
    axes = figure.subplots(len(class_samples), column_count, squeeze=False)
    low, high = min(float(s.min()) for _, s in class_samples), max(float(s.max()) for _, s in class_samples)
    for (name, samples), row_axes in zip(class_samples, axes, strict=True):
        for number, sample_axes in enumerate(row_axes):
            sample_axes.set_xticks([])
            sample_axes.set_yticks([])
            if number < len(samples):
                _draw_sample(sample_axes, samples[number], low, high)
            else:
                sample_axes.set_axis_off()
        row_axes[0].set_ylabel(name[:20], rotation=0, ha="right", va="center")
    with write_atomically(path) as temporary_path:
        figure.savefig(temporary_path, dpi=100, metadata={"Date": None} if path.suffix == ".svg" else None)


def _draw_sample(sample_axes: Any, sample: Array, low: float, high: float) -> None:
    if sample.ndim == 3 and sample.shape[-1] in (3, 4):
        sample_axes.imshow(np.clip((sample - low) / max(high - low, 1e-9), 0, 1))
    elif sample.ndim == 3:
        sample_axes.imshow(sample[..., 0], cmap="gray", vmin=low, vmax=high, aspect="auto")
    elif sample.ndim == 2:
        sample_axes.plot(sample, linewidth=0.7)
    elif sample.ndim == 1:
        sample_axes.bar(range(len(sample)), sample)
    else:
        sample_axes.text(0.5, 0.5, f"{sample:g}" if sample.ndim == 0 else str(sample.shape), ha="center", va="center")
