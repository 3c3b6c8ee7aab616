"""What a classifier confuses, compared with scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from edgepipe.core.arrays import Array
from edgepipe.core.outcome import Table
from edgepipe.stages.validate.class_tables import MAX_MATRIX_CLASSES, MAX_SHOWN_CLASSES, class_tables


def tables(class_count: int, names: tuple[str, ...] = ()) -> tuple[dict[str, Table], Array, Array]:
    """The tables of random scores, by the first word of their title; scores and labels."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, class_count, 2000)
    scores = rng.random((2000, class_count)) + 0.8 * np.eye(class_count)[labels]
    return {table.title.split()[0]: table for table in class_tables(scores, labels, names)}, scores, labels


def test_numbers_are_those_of_scikit_learn() -> None:
    names = tuple("abcdefg")
    found, scores, labels = tables(7, names)
    predictions = scores.argmax(axis=1)
    precision, recall, f1, support = precision_recall_fscore_support(labels, predictions)
    assert found["Classes"].rows == tuple(
        (name, int(n), f"{p:.2%}", f"{r:.2%}", f"{f:.2%}")
        for name, n, p, r, f in zip(names, support, precision, recall, f1, strict=True)
    )
    assert [row[1:] for row in found["Confusion"].rows] == [tuple(row) for row in confusion_matrix(labels, predictions)]
    assert found["Confusion"].columns == ("class", *names)


def test_the_worst_samples_are_wrong_and_in_order() -> None:
    found, scores, labels = tables(5)
    rows = found["Samples"].rows
    assert len(rows) == 10
    margins = [float(row[4]) - float(row[3]) for row in rows]
    assert margins == sorted(margins, reverse=True)
    for index, truth, guess, *_ in rows:
        assert (str(labels[int(index)]), str(scores[int(index)].argmax())) == (truth, guess)
    wrong = scores.argmax(axis=1) != labels
    largest = max(scores[wrong].max(axis=1) - scores[wrong, labels[wrong]])
    assert margins[0] == pytest.approx(largest, abs=2e-4)


def test_many_classes_are_cut_to_the_worst_and_say_so() -> None:
    class_count = 100
    assert class_count > MAX_MATRIX_CLASSES
    found, scores, labels = tables(class_count)
    assert found["Classes"].title == f"Classes on the test split, the {MAX_SHOWN_CLASSES} of 100 with the lowest F1"
    f1 = precision_recall_fscore_support(labels, scores.argmax(axis=1), zero_division=0)[2]
    shown = [float(str(row[4]).rstrip("%")) / 100 for row in found["Classes"].rows]
    assert shown == pytest.approx(sorted(f1)[:MAX_SHOWN_CLASSES], abs=1e-4)
    confusion = confusion_matrix(labels, scores.argmax(axis=1))
    np.fill_diagonal(confusion, 0)
    assert [row[2] for row in found["Most"].rows] == sorted(confusion.flat, reverse=True)[:20]


def test_a_class_without_samples_or_predictions() -> None:
    found = class_tables(np.array([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0]]), np.array([0, 1]), ("a", "b", "c"))
    assert found[0].rows == (
        ("a", 1, "50.00%", "100.00%", "66.67%"),
        ("b", 1, "-", "0.00%", "0.00%"),
        ("c", 0, "-", "-", "0.00%"),
    )


def test_a_perfect_classifier_has_no_worst_samples() -> None:
    assert [table.title.split()[0] for table in class_tables(np.eye(3), np.arange(3))] == ["Classes", "Confusion"]
