"""Every augmentation on images and windows with a known result."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from scipy import ndimage, stats

from edgepipe.core import config
from edgepipe.core.errors import InputError
from edgepipe.data.augmentation_options import Augment
from edgepipe.training import augmentation
from edgepipe.training.augmentation import build_augmenter

IMAGES = np.random.RandomState(0).rand(40, 12, 10, 3).astype("float32") + 0.1
WINDOWS = np.random.RandomState(0).randn(60, 30, 6).astype("float32")


def rng(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def augment_batch(
    options: dict[str, Any], x: np.ndarray, y: Any = None, classes: int | None = None, seed: int = 1
) -> Any:
    augmenter = build_augmenter(Augment.model_validate(options), x.shape[1:], classes, np.ones(x.shape[-1]))
    return augmenter(np.arange(len(x)), x, y, rng(seed))


@pytest.mark.parametrize(("direction", "axes"), [("horizontal", [2]), ("vertical", [1]), ("both", [1, 2])])
def test_flips_are_exact(direction: str, axes: list[int]) -> None:
    got, _ = augment_batch({"flip": direction}, IMAGES)
    candidates = [
        IMAGES,
        *(np.flip(IMAGES, axis) for axis in axes),
        *([np.flip(IMAGES, (1, 2))] if len(axes) == 2 else []),
    ]
    matches = [
        [np.array_equal(image, candidate[number]) for candidate in candidates] for number, image in enumerate(got)
    ]
    assert all(sum(row) == 1 for row in matches)
    assert all(any(row[index] for row in matches) for index in range(len(candidates)))


def test_half_of_the_images_are_flipped() -> None:
    x = np.tile(IMAGES[:1], (2000, 1, 1, 1))
    share = np.mean([not np.array_equal(image, x[0]) for image in augment_batch({"flip": "horizontal"}, x)[0]])
    assert share == pytest.approx(0.5, abs=0.05)


def test_a_crop_is_a_shift_with_zeros() -> None:
    got, _ = augment_batch({"crop": 2}, IMAGES)
    for image, original in zip(got, IMAGES, strict=True):
        padded_image = np.pad(original, ((2, 2), (2, 2), (0, 0)))
        crops = [padded_image[r : r + 12, c : c + 10] for r in range(5) for c in range(5)]
        assert sum(np.array_equal(image, candidate) for candidate in crops) == 1


def test_rotation_of_images_equals_scipy_and_stays_in_range() -> None:
    got, _ = augment_batch({"rotate": 30}, IMAGES, seed=4)
    angles = rng(4).uniform(-30, 30, len(IMAGES))
    expected_image = ndimage.rotate(IMAGES[7], angles[7], reshape=False, order=1)
    np.testing.assert_allclose(got[7], expected_image, atol=1e-6)
    assert got.min() >= 0
    assert got.max() <= IMAGES.max() + 1e-6


def test_cutout_hides_a_square() -> None:
    got, _ = augment_batch({"cutout": 4}, IMAGES)
    hidden = (got == 0).all(axis=3)
    sizes = hidden.sum(axis=(1, 2))
    assert sizes.max() == 16
    assert sizes.min() >= 4  # the middle lies inside the image
    assert np.array_equal(got[~hidden], IMAGES[~hidden])
    rows, columns = hidden.any(axis=2).sum(axis=1), hidden.any(axis=1).sum(axis=1)
    assert np.array_equal(rows * columns, sizes)


def binary_images(number: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Images of one value each, 1 for class 1 and 0 for class 0: a pixel shows where it came from."""
    y = np.arange(number) % 2
    return np.tile(y[:, None, None, None], (1, 20, 15, 1)).astype("float32"), y


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_labels_are_mixed_like_pixels(name: str) -> None:
    x, y = binary_images()
    got, shares = augment_batch({name: 1.0}, x, y, classes=2)
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(got.mean(axis=(1, 2, 3)), shares[:, 1], atol=1e-5)
    assert len(np.unique(shares[:, 1].round(4))) > 5
    assert (name == "cutmix") == bool(np.isin(got, (0, 1)).all())


def test_mixup_draws_from_the_beta_distribution() -> None:
    x, y = np.zeros((4000, 1, 1, 1), "float32"), np.arange(4000) % 2
    _, shares = augmentation.mixup(x, np.eye(4000, dtype="float32"), 0.4, rng())
    own_share = shares[np.arange(4000), np.arange(4000)]
    blend_weights = own_share[own_share < 1]
    assert stats.kstest(blend_weights, stats.beta(0.4, 0.4).cdf).pvalue > 0.01
    assert y.size == 4000


def test_spec_augment_masks_up_to_the_limits() -> None:
    x = np.random.RandomState(1).rand(200, 30, 20, 1).astype("float32")
    got, _ = augment_batch({"spec_augment": {"time": 6, "frequency": 4}}, x)
    mean = x.mean(axis=(1, 2, 3), keepdims=True)
    changed_mask = got != x
    frames = changed_mask.all(axis=2)[..., 0].sum(axis=1)
    bands = changed_mask.all(axis=1)[..., 0].sum(axis=1)
    assert set(frames) == set(range(7))
    assert set(bands) == set(range(5))
    assert np.allclose(got[changed_mask], np.broadcast_to(mean, x.shape)[changed_mask])


def test_rotation_keeps_the_length_of_each_triple() -> None:
    got, _ = augment_batch({"rotation": 180}, WINDOWS)
    lengths = [np.linalg.norm(x.reshape(60, 30, 2, 3), axis=3) for x in (got, WINDOWS)]
    np.testing.assert_allclose(*lengths, rtol=1e-5)
    assert np.abs(got - WINDOWS).max() > 0.5
    triples = [x.reshape(60, 30, 2, 3) for x in (got, WINDOWS)]
    inner = [np.einsum("btj,btj->bt", x[:, :, 0], x[:, :, 1]) for x in triples]  # both triples turn together
    np.testing.assert_allclose(*inner, atol=1e-4)


def test_scale_and_jitter_have_their_moments() -> None:
    x = np.ones((3000, 4, 3), "float32")
    factors = augment_batch({"scale": 0.2}, x)[0]
    assert np.ptp(factors, axis=1).max() == 0  # one factor a channel and window
    assert factors[:, 0].std() == pytest.approx(0.2, rel=0.05)
    augmenter = build_augmenter(Augment(jitter=0.1), (4, 3), None, np.array([1.0, 2.0, 4.0]))
    noise = augmenter(np.arange(3000), x, None, rng())[0] - x
    np.testing.assert_allclose(noise.std(axis=(0, 1)), [0.1, 0.2, 0.4], rtol=0.05)
    assert abs(noise.mean()) < 0.01


ALL_CHANGES = {"flip": "both", "crop": 2, "rotate": 20, "cutout": 3, "cutmix": 1.0}


def test_the_same_in_another_process() -> None:
    code = (
        "import numpy as np, hashlib; from edgepipe.data.augmentation_options import Augment; "
        "from edgepipe.training.augmentation import build_augmenter; "
        "x = np.random.RandomState(0).rand(9, 12, 10, 3).astype('float32'); "
        f"m = build_augmenter(Augment.model_validate({ALL_CHANGES!r}), (12, 10, 3), 3); "
        "a, b = m(np.arange(9), x, np.arange(9) % 3, np.random.default_rng(5)); "
        "print(hashlib.sha256(a.tobytes() + b.tobytes()).hexdigest())"
    )
    outputs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in "ab"
    ]
    assert outputs[0] == outputs[1] != ""


def test_global_random_state_and_the_batch_are_unchanged() -> None:
    np.random.seed(3)
    state_before, copy = np.random.get_state()[1].copy(), IMAGES.copy()  # type: ignore[union-attr, index]
    augment_batch(ALL_CHANGES, IMAGES, np.arange(40) % 3, classes=3)
    assert np.array_equal(state_before, np.random.get_state()[1])  # type: ignore[index]
    assert np.array_equal(IMAGES, copy)


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        (
            {"flip": "both"},
            (30, 6),
            r"flip is for images .*; the samples have shape \(30, 6\)",
        ),
        ({"jitter": 0.1}, (8, 8, 1), r"jitter is for windows \(time, channels\)"),
        ({"mixup": 0.2}, (8, 8, 1), "mixup mixes classes, and this task does not have one class label"),
        ({"rotation": 10}, (30, 4), "4 channels are not a multiple of 3"),
        ({"cutout": 8}, (8, 9, 1), "cutout 8 must be below the shorter side of the samples, 8"),
        ({"crop": 9}, (8, 9, 1), "crop 9 must be below"),
    ],
)
def test_mismatched_samples(options: dict[str, Any], shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_augmenter(Augment.model_validate(options), shape, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{flp: both}", "1:11: augment.flp: unknown option; did you mean 'flip'?"),
        ("{flip: sideways}", "1:17: augment.flip: "),
        ("{rotate: 200}", "1:19: augment.rotate: "),
        ("{mixup: 0.2, cutmix: 1}", "mixup and cutmix exclude each other"),
        ("{}", "names nothing; allowed: shift, gain, noise, flip, crop"),
        ("{spec_augment: {time: -1}}", "augment.spec_augment.time: "),
    ],
)
def test_malformed(text: str, message: str) -> None:
    document = config.parse(f"augment: {text}\n", "p.yaml")
    assert config.validate(document, ("augment",), document.content["augment"], Augment) is None
    assert message in str(document.problems[0])


def test_description_for_the_report() -> None:
    augmenter = build_augmenter(Augment.model_validate({"cutout": 3, "flip": "both"}), (12, 10, 3), None)
    assert augmenter.describe() == "flip both, cutout 3"
