"""Drawing the splits, withholding them, and checks of labels."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError
from edgepipe.data.data_spec import FunctionSpec
from edgepipe.data.dataset_loading import load
from edgepipe.data.split_names import FITTING_SPLITS, Split
from edgepipe.data.splits import (
    DatasetSplits,
    SplitData,
    WithheldSplitError,
    check_labels,
    draw_representative,
    draw_splits,
)

DIGITS = FunctionSpec(function="edgepipe.data:digits")
BASE = Path(__file__).parent


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(8, 60), min_size=1, max_size=6),
    test=st.floats(0.05, 0.4),
    validation=st.floats(0.05, 0.4),
    seed=st.integers(0, 2**32 - 1),
)
def test_disjoint_complete_and_stratified(sizes: list[int], test: float, validation: float, seed: int) -> None:
    labels = np.random.RandomState(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    drawn = draw_splits(labels, len(labels), {Split.TEST: test, Split.VALIDATION: validation}, seed)
    all_indices = np.concatenate([drawn[split] for split in Split])
    assert sorted(all_indices.tolist()) == list(range(len(labels)))
    for split, share in ((Split.TEST, test), (Split.VALIDATION, validation)):
        counts = np.bincount(labels[drawn[split]], minlength=len(sizes))
        assert (counts >= 1).all()
        assert (np.abs(counts - np.array(sizes) * share) <= 1).all()


@settings(max_examples=30, deadline=None)
@given(size=st.integers(5, 200), seed=st.integers(0, 2**32 - 1))
def test_disjoint_without_labels(size: int, seed: int) -> None:
    drawn = draw_splits(None, size, {Split.TEST: 0.2, Split.VALIDATION: 0.2}, seed)
    assert sorted(np.concatenate(list(drawn.values())).tolist()) == list(range(size))
    assert len(drawn[Split.TEST]) == max(1, round(size * 0.2))


def test_another_seed_draws_another_test_split() -> None:
    shares = {Split.TEST: 0.2}
    assert set(draw_splits(None, 100, shares, 1)[Split.TEST]) != set(draw_splits(None, 100, shares, 2)[Split.TEST])


def test_the_draw_is_pinned() -> None:
    """RandomState's stream is frozen: these indices hold on every platform and NumPy, or every cache is stale."""
    drawn = draw_splits(np.arange(20) % 2, 20, {Split.TEST: 0.2}, 7)
    assert drawn[Split.TEST].tolist() == [10, 16, 7, 3]


def test_the_draw_is_the_same_in_another_process() -> None:
    code = (
        "import hashlib, numpy as np; from edgepipe.data.splits import draw_splits, Split\n"
        "d = draw_splits(np.arange(500) % 7, 500, {Split.TEST: .2, Split.VALIDATION: .1}, 3)\n"
        "print(hashlib.sha256(b''.join(d[s].tobytes() for s in Split)).hexdigest())"
    )
    run = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(2)]
    assert run[0].stdout == run[1].stdout
    assert len(run[0].stdout.strip()) == 64


def test_digits_have_enough_test_samples() -> None:
    splits = load(DIGITS, BASE, 7, frozenset(Split))
    assert splits.count_by_split[Split.TEST] >= 350
    assert sum(splits.count_by_split.values()) == 1797
    assert splits.class_count == 10
    assert splits.train.x.dtype == np.float32
    assert splits.train.x.shape[1:] == (8, 8, 1)
    assert splits.train.x.min() == 0
    assert splits.train.x.max() == 1
    assert splits.train.y is not None
    assert splits.train.y.dtype == np.int64


def test_digits_equal_scikit_learn_and_splits_are_disjoint() -> None:
    from sklearn.datasets import load_digits

    splits = load(DIGITS, BASE, 7, frozenset(Split))
    all_splits = [splits.train, splits.validation, splits.test]
    rows = [
        tuple(np.append(image.ravel() * 16, label).astype(int))
        for split_data in all_splits
        for image, label in zip(split_data.x, split_data.y, strict=True)
    ]
    truth = load_digits()
    pairs = zip(truth.data, truth.target, strict=True)
    assert sorted(rows) == sorted(tuple(np.append(image, label).astype(int)) for image, label in pairs)


def test_a_stage_before_validate_cannot_read_the_test_split() -> None:
    splits = load(DIGITS, BASE, 7, FITTING_SPLITS)
    assert len(splits.train) == 1079
    assert Split.TEST not in splits.data_by_split
    assert splits.count_by_split[Split.TEST] == 359
    with pytest.raises(WithheldSplitError, match="only the stage `validate` may read it"):
        _ = splits.test


def test_requested_splits_do_not_change_the_draw() -> None:
    everything = load(DIGITS, BASE, 7, frozenset(Split))
    alone = load(DIGITS, BASE, 7, frozenset({Split.TEST}))
    np.testing.assert_array_equal(everything.test.x, alone.test.x)
    with pytest.raises(WithheldSplitError, match="the train split was not requested; available: test"):
        _ = alone.train


def test_representative_samples_are_training_samples() -> None:
    splits = load(DIGITS, BASE, 7, frozenset(Split))
    chosen = draw_representative(splits.train, 50, 7)
    assert not isinstance(chosen, dict)
    train_images = {image.tobytes() for image in splits.train.x}
    assert {image.tobytes() for image in chosen} <= train_images
    assert len({image.tobytes() for image in chosen}) == 50
    np.testing.assert_array_equal(chosen, draw_representative(splits.train, 50, 7))
    assert len(draw_representative(splits.train, 5000, 7)) == len(splits.train)
    with pytest.raises(InputError, match="zero representative samples"):
        draw_representative(splits.train, 0, 7)
    with pytest.raises(InputError, match=r"zero representative samples \(asked for 5 of 0\)"):
        draw_representative(SplitData(np.zeros((0, 2), np.float32), None), 5, 7)


def test_too_small_to_hold_each_class() -> None:
    labels = np.array([0] * 10 + [1] * 2)
    message = "class 1 has 2 samples, too few to put one into each of: train, test, validation"
    with pytest.raises(InputError, match=message):
        draw_splits(labels, 12, {Split.TEST: 0.2, Split.VALIDATION: 0.2}, 1)
    with pytest.raises(InputError, match="2 samples: too few"):
        draw_splits(None, 2, {Split.TEST: 0.2, Split.VALIDATION: 0.2}, 1)


@pytest.mark.parametrize(
    ("y", "classes", "message"),
    [
        (None, 3, "the test split has no labels"),
        (np.array([0.0, 1.5]), None, r"are float64 \(the first is 0.0\); classification needs integers"),
        (np.array([0, -1]), None, "has the negative label -1"),
        (np.array([4, 4]), None, r"has one class only \(label 4\)"),
        (np.array([0, 3]), 3, r"has the label 3, but the model has 3 outputs \(labels 0..2\)"),
        (np.array([[0, 1], [1, 0]]), None, r"have shape \(2, 2\); classification with one label needs \(2,\)"),
    ],
)
def test_labels_that_cannot_be_classes(y: Array | None, classes: int | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_labels(y, classes, "the test split")


def test_gaps_in_labels_are_reported() -> None:
    assert check_labels(np.array([0, 1, 2]), 3) == ()
    assert check_labels(np.array([0, 4]), None, "train") == ("train has no sample of 3 classes: 1, 2, 3",)
    assert check_labels(np.array([0, 1]), 3, "train") == ("train has no sample of 1 class: 2",)


def test_no_available_split_is_reported() -> None:
    with pytest.raises(WithheldSplitError, match="available: none"):
        _ = DatasetSplits({}, {}, None).validation
