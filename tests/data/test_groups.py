"""Groups: all samples of one subject stay in one split."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepipe.core.errors import InputError
from edgepipe.data.data_spec import FunctionSpec, NpzSpec
from edgepipe.data.dataset_loading import load
from edgepipe.data.group_splits import check_disjoint, draw_group_splits
from edgepipe.data.raw_samples import to_raw_split
from edgepipe.data.split_names import Split

ALL_SPLITS = frozenset(Split)
SHARES = st.fixed_dictionaries({Split.TEST: st.floats(0.05, 0.4), Split.VALIDATION: st.floats(0.05, 0.4)})


@given(st.lists(st.integers(0, 12), min_size=30, max_size=300), SHARES, st.integers(0, 2**31 - 1), st.booleans())
@settings(max_examples=150, deadline=None)
def test_each_subject_is_in_one_split(subjects: list[int], shares: Any, seed: int, has_labels: bool) -> None:
    groups = np.array([f"s{subject}" for subject in subjects])
    labels = np.arange(len(groups)) % 3 if has_labels else None
    if len(set(subjects)) < 3:
        with pytest.raises(InputError, match="cannot be kept apart in 3 splits"):
            draw_group_splits(labels, groups, shares, seed)
        return
    drawn = draw_group_splits(labels, groups, shares, seed)
    assert sorted(np.concatenate(list(drawn.values())).tolist()) == list(range(len(groups)))  # each once
    sides = [set(groups[chosen]) for chosen in drawn.values()]
    assert all(sides)
    assert sum(map(len, sides)) == len(set().union(*sides))
    redrawn = draw_group_splits(labels, groups, shares, seed)
    assert all(np.array_equal(drawn[split], redrawn[split]) for split in drawn)


def test_shares_and_classes_are_near_their_targets() -> None:
    random = np.random.RandomState(0)
    groups = random.randint(0, 60, 3000).astype(str)
    labels = random.randint(0, 4, 3000)
    drawn = draw_group_splits(labels, groups, {Split.TEST: 0.2, Split.VALIDATION: 0.1}, 5)
    for split, share in ((Split.TEST, 0.2), (Split.VALIDATION, 0.1), (Split.TRAIN, 0.7)):
        assert len(drawn[split]) == pytest.approx(3000 * share, abs=60)
        counts = np.bincount(labels[drawn[split]], minlength=4) / len(drawn[split])
        np.testing.assert_allclose(counts, 0.25, atol=0.04)


def test_the_same_in_another_process() -> None:
    code = (
        "import numpy as np; from edgepipe.data.group_splits import draw_group_splits; "
        "from edgepipe.data.splits import Split; "
        "print(draw_group_splits(None, np.arange(40) // 4, {Split.TEST: 0.3}, 3)[Split.TEST].tolist())"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == str(draw_group_splits(None, np.arange(40) // 4, {Split.TEST: 0.3}, 3)[Split.TEST].tolist())


def test_a_group_in_two_source_splits() -> None:
    with pytest.raises(InputError, match="group 'b' is in both train and test"):
        check_disjoint("x", {Split.TRAIN: np.array(["a", "b"]), Split.TEST: np.array(["b"])})


MODULE = """
import numpy as np
x, y, who = np.arange(60.).reshape(30, 2), np.arange(30) % 2, [f"p{i // 3}" for i in range(30)]
def three(): return x, y, who
def parts(): return {"train": (x, y, who), "test": (x[:6], y[:6], ["q"] * 6)}
def leaks(): return {"train": (x, y, who), "test": (x[:6], y[:6], ["p1"] * 6)}
def half(): return {"train": (x, y, who), "test": (x[:6], y[:6])}
"""


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("three", ""),
        ("parts", ""),
        ("leaks", "group 'p1' is in both"),
        ("half", "some splits have groups and others have none"),
    ],
)
def test_functions_give_groups(function: str, message: str, tmp_path: Path) -> None:
    (tmp_path / f"who_{function}.py").write_text(MODULE)
    spec = FunctionSpec(function=f"who_{function}:{function}")
    if message:
        with pytest.raises(InputError, match=message):
            load(spec, tmp_path, 1, ALL_SPLITS)
        return
    splits = load(spec, tmp_path, 1, ALL_SPLITS)
    people = {split: {int(row[0]) // 6 for row in split_data.x} for split, split_data in splits.data_by_split.items()}
    assert not people[Split.TRAIN] & people[Split.VALIDATION]
    assert any("no group on two sides" in note for note in splits.notes)


def test_groups_in_an_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(40.0)[:, None], y=np.arange(40) % 2, groups=np.arange(40) // 4)
    splits = load(NpzSpec(npz="a.npz"), tmp_path, 1, ALL_SPLITS)
    sides = [{int(number) // 4 for number in split_data.x[:, 0]} for split_data in splits.data_by_split.values()]
    assert sum(map(len, sides)) == 10


def test_imbalance_is_reported(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((100, 1)), y=np.repeat([0, 1], [85, 15]))
    notes = load(NpzSpec(npz="a.npz"), tmp_path, 1, ALL_SPLITS).notes
    assert any("'0' has 51 samples, '1' 9" in note and "balanced_accuracy" in note for note in notes)


class TestStreams:
    """tf.data by module:function."""

    def test_batched_and_single(self) -> None:
        import tensorflow as tf

        x, y = np.arange(14.0).reshape(7, 2), np.arange(7)
        unbatched_dataset = tf.data.Dataset.from_tensor_slices((x, y))
        for dataset in (
            unbatched_dataset,
            unbatched_dataset.batch(3),
            unbatched_dataset.batch(7, drop_remainder=True),
            unbatched_dataset.batch(2).prefetch(1),
        ):
            raw_split = to_raw_split("d", dataset)
            np.testing.assert_array_equal(raw_split.x, x)
            np.testing.assert_array_equal(raw_split.y, y)
        alone = tf.data.Dataset.from_tensor_slices(x)
        for dataset in (alone, alone.batch(4)):
            np.testing.assert_array_equal(to_raw_split("d", dataset).x, x)

    def test_infinite_or_empty(self) -> None:
        import tensorflow as tf

        with pytest.raises(InputError, match="without an end"):
            to_raw_split("d", tf.data.Dataset.from_tensor_slices(np.arange(3)).repeat())
        with pytest.raises(InputError, match="without elements"):
            to_raw_split("d", tf.data.Dataset.from_tensor_slices(np.arange(3)).take(0))
