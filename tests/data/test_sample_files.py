"""Samples given on the command line: every layout of a .npz that a pipeline reads."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepipe.data import sample_files

X, Y = np.arange(12.0).reshape(6, 2), np.arange(6)
GROUPS = np.array(["a", "b"] * 3)


@pytest.mark.parametrize(
    ("arrays", "has_labels", "not_read"),
    [
        ({"x": X}, False, None),
        ({"photos": X, "labels": Y}, True, None),
        ({"x": X, "y": Y, "groups": GROUPS}, True, None),
        ({"x_train": X, "y_train": Y}, True, "nothing"),
        (
            {"x_train": X, "y_train": Y, "groups_train": GROUPS, "x_test": X[:2], "y_test": Y[:2]},
            True,
            "x_test, y_test",
        ),
        ({"x_train": X, "x_val": X[:2], "x_validation": X[:2]}, False, "x_val, x_validation"),
    ],
)
def test_layouts(tmp_path: Path, arrays: dict[str, Any], has_labels: bool, not_read: str | None) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    sample_file = sample_files.read(tmp_path / "d.npz")
    assert isinstance(sample_file.x, np.ndarray)
    assert sample_file.x.dtype == np.float32
    assert np.array_equal(sample_file.x, X)
    assert (sample_file.y is not None) == has_labels
    assert [note.partition("; not read: ")[2] for note in sample_file.notes] == ([] if not_read is None else [not_read])


def test_inputs_of_a_training_split_lose_the_suffix(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", left_train=X, right_train=X, y_train=Y, left_test=X, right_test=X)
    x = sample_files.read(tmp_path / "d.npz").x
    assert isinstance(x, dict)
    assert sorted(x) == ["left", "right"]


def test_an_input_may_end_in_train(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", passengers_train=X, distance=X)
    x = sample_files.read(tmp_path / "d.npz").x
    assert isinstance(x, dict)
    assert sorted(x) == ["distance", "passengers_train"]
