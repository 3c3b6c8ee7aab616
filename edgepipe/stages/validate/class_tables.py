"""Which classes a classifier confuses: quality by class, the confusion matrix, and the samples it gets most wrong."""

from collections.abc import Sequence

import numpy as np

from edgepipe.core.arrays import Array
from edgepipe.core.outcome import Table

MAX_MATRIX_CLASSES = 12  # a larger matrix becomes a list of the most confused pairs
MAX_SHOWN_CLASSES = 40
MAX_SHOWN_PAIRS = 20
MAX_SHOWN_SAMPLES = 10


def class_tables(scores: Array, labels: Array, class_names: Sequence[str] = ()) -> list[Table]:
    """The tables of a classifier on the test split.

    Args:
        scores: of each class, (n, classes).
        labels: the class of each sample, (n,).
        class_names: in the order of the labels; empty if they have none.
    """
    labels, predictions = np.ravel(labels).astype(np.int64), scores.argmax(axis=1)
    names = [class_names[index] if index < len(class_names) else str(index) for index in range(scores.shape[1])]
    confusion = np.zeros((len(names), len(names)), np.int64)
    np.add.at(confusion, (labels, predictions), 1)
    tables = [_quality_table(confusion, names), _confusion_table(confusion, names)]
    return [table for table in (*tables, _worst_samples_table(scores, labels, predictions, names)) if table.rows]


def _quality_table(confusion: Array, names: list[str]) -> Table:
    """Precision, recall and F1 of each class; of many classes, of those with the lowest F1."""
    hits, truths, guesses = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    f1 = 2 * hits / np.maximum(truths + guesses, 1)
    order = range(len(names)) if len(names) <= MAX_SHOWN_CLASSES else np.argsort(f1, kind="stable")[:MAX_SHOWN_CLASSES]
    rows = tuple(
        (names[i], int(truths[i]), _share_text(hits[i], guesses[i]), _share_text(hits[i], truths[i]), f"{f1[i]:.2%}")
        for i in order
    )
    selection = "" if len(rows) == len(names) else f", the {len(rows)} of {len(names)} with the lowest F1"
    return Table(
        title=f"Classes on the test split{selection}",
        columns=("class", "samples", "precision", "recall", "F1"),
        rows=rows,
    )


def _share_text(hit_count: int, sample_count: int) -> str:
    """A share; a class that nothing was taken for has no precision."""
    return f"{hit_count / sample_count:.2%}" if sample_count else "-"


def _confusion_table(confusion: Array, names: list[str]) -> Table:
    if len(names) <= MAX_MATRIX_CLASSES:
        rows = tuple((name, *map(int, row)) for name, row in zip(names, confusion, strict=True))
        return Table(
            title="Confusion matrix: classes in rows, predictions in columns", columns=("class", *names), rows=rows
        )
    wrong = confusion - np.diag(np.diag(confusion))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MAX_SHOWN_PAIRS]
    pairs = [divmod(int(index), len(names)) for index in order if wrong.flat[index]]
    return Table(
        title="Most confused classes",
        columns=("class", "taken for", "samples"),
        rows=tuple((names[truth], names[guess], int(wrong[truth, guess])) for truth, guess in pairs),
    )


def _worst_samples_table(scores: Array, labels: Array, predictions: Array, names: list[str]) -> Table:
    """The wrong samples whose class is furthest behind the predicted one."""
    rows_index = np.arange(len(labels))
    margins = scores[rows_index, predictions] - scores[rows_index, labels]
    order = [index for index in np.argsort(-margins, kind="stable") if predictions[index] != labels[index]]
    return Table(
        title="Samples that are most wrong, by their index in the test split",
        columns=("index", "class", "taken for", "score of its class", "score of that"),
        rows=tuple(
            (int(index), names[labels[index]], names[predictions[index]], f"{scores[index, labels[index]]:.4f}",
             f"{scores[index, predictions[index]]:.4f}")
            for index in order[:MAX_SHOWN_SAMPLES]
        ),
    )  # fmt: skip
