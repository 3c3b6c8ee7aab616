"""RandAugment: each operation against a reference, the draw, and what is rejected."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import ndimage, stats

from edgepipe.core import config
from edgepipe.core.errors import InputError
from edgepipe.data.augmentation_options import Augment, RandAugment
from edgepipe.training import rand_augment
from edgepipe.training.augmentation import build_augmenter
from edgepipe.training.rand_augment import OPERATION_BY_NAME, augment, pixel_limits, to_picture

Bytes = np.ndarray
IMAGE = np.random.RandomState(0).randint(30, 200, (24, 20, 3)).astype("uint8")
SMOOTH = np.stack([ndimage.gaussian_filter(IMAGE[..., c].astype(float), 2) for c in range(3)], -1).astype("uint8")


def run_operation(name: str, image: Bytes, share: float, sign: int = 1) -> Bytes:
    picture = to_picture(image.astype("float32"), (0.0, 255.0))
    return np.asarray(OPERATION_BY_NAME[name](picture, share, sign)).reshape(image.shape)


def to_grey(x: Bytes) -> Bytes:
    """ITU-R 601-2 luma."""
    return (x @ np.array([0.299, 0.587, 0.114]))[..., None]  # type: ignore[no-any-return]


def blend(x: Bytes, base: Any, factor: float) -> Bytes:
    return np.clip(base + factor * (x.astype(float) - base), 0, 255)  # type: ignore[no-any-return]


def smooth(x: Bytes) -> Bytes:
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    filtered_image = np.stack([ndimage.correlate(x[..., c].astype(float), kernel) for c in range(x.shape[-1])], -1)
    filtered_image[[0, -1]], filtered_image[:, [0, -1]] = x[[0, -1]], x[:, [0, -1]]  # Pillow leaves the edge as it is
    return np.rint(filtered_image)  # type: ignore[no-any-return]


def equalize(x: Bytes) -> Bytes:
    """The histogram's integral as a table, as in Pillow and torchvision."""
    equalized_image = np.empty_like(x)
    for channel in range(x.shape[-1]):
        histogram = np.bincount(x[..., channel].ravel(), minlength=256)
        step = (histogram.sum() - histogram[histogram > 0][-1]) // 255
        table = (np.concatenate([[0], np.cumsum(histogram)[:-1]]) + step // 2) // step
        equalized_image[..., channel] = np.clip(table, 0, 255)[x[..., channel]]
    return equalized_image


def stretch_contrast(x: Bytes) -> Bytes:
    low, high = x.min(axis=(0, 1)).astype(float), x.max(axis=(0, 1)).astype(float)
    return np.floor((x - low) * 255 / (high - low) + 1e-9)  # type: ignore[no-any-return]


def warp(x: Bytes, rows: Callable[[Bytes, Bytes], Any], columns: Callable[[Bytes, Bytes], Any]) -> Bytes:
    """Bilinear: the pixel at (row, column) comes from (rows(..), columns(..)), from the middle."""
    height, width = x.shape[:2]
    r, c = np.mgrid[:height, :width].astype(float)
    r, c = r - (height - 1) / 2, c - (width - 1) / 2
    coordinates = [rows(r, c) + (height - 1) / 2, columns(r, c) + (width - 1) / 2]
    each = [ndimage.map_coordinates(x[..., k].astype(float), coordinates, order=1) for k in range(x.shape[-1])]
    return np.stack(each, -1)


LARGE = np.repeat(np.repeat(IMAGE, 8, 0), 8, 1)
CASES: list[tuple[str, float, Callable[[Bytes], Bytes], float]] = [
    ("identity", 1.0, lambda x: x, 0),
    ("autocontrast", 1.0, stretch_contrast, 1),
    ("equalize", 1.0, equalize, 0),
    ("solarize", 0.5, lambda x: np.where(x < 128, x, 255 - x), 0),
    ("posterize", 0.5, lambda x: x // 4 * 4, 0),
    ("posterize", 1.0, lambda x: x // 16 * 16, 0),
    ("color", 0.5, lambda x: blend(x, np.floor(to_grey(x) + 0.5), 1.45), 1.5),
    ("contrast", 0.5, lambda x: blend(x, np.floor(to_grey(x).mean() + 0.5), 1.45), 1.5),
    ("brightness", 0.5, lambda x: blend(x, 0, 1.45), 1),
    ("sharpness", 0.5, lambda x: blend(x, smooth(x), 1.45), 1.5),
]


@pytest.mark.parametrize(("name", "share", "reference_fn", "tolerance"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES])
def test_value_operations_equal_the_reference(
    name: str, share: float, reference_fn: Callable[[Bytes], Bytes], tolerance: float
) -> None:
    for image in (IMAGE, LARGE):
        got = run_operation(name, image, share).astype(float)
        np.testing.assert_allclose(got, reference_fn(image), atol=tolerance)
        assert name == "identity" or np.abs(got - image).max() > 2


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"])
def test_geometric_operations_equal_the_reference(name: str, sign: int) -> None:
    angle, slope = np.radians(15 * sign), 0.15 * sign
    cos, sin = np.cos(angle), np.sin(angle)
    moves = {side: round(150 / 331 * 0.5 * sign * size) for side, size in (("y", 24), ("x", 20))}
    mappings: dict[str, Any] = {
        "rotate": (lambda r, c: sin * c + cos * r, lambda r, c: cos * c - sin * r),
        "shear_x": (lambda r, c: r, lambda r, c: c + slope * r),
        "shear_y": (lambda r, c: r + slope * c, lambda r, c: c),
        "translate_x": (lambda r, c: r, lambda r, c: c + moves["x"]),
        "translate_y": (lambda r, c: r + moves["y"], lambda r, c: c),
    }
    got, expected_image = run_operation(name, SMOOTH, 0.5, sign).astype(float), warp(SMOOTH, *mappings[name])
    interior = slice(1, -1) if not name.startswith("translate") else slice(None)
    both = (got > 0) & (expected_image > 0)  # where one is in from outside the other may be at the edge
    assert both[interior, interior].mean() > 0.5
    assert np.abs(got - expected_image)[both][:].mean() < 1.0
    assert np.median(np.abs(got - expected_image)[both]) <= 1.0
    assert ((got > 0) == (expected_image > 0)).mean() > 0.93


@pytest.mark.parametrize("name", sorted(set(OPERATION_BY_NAME) - {"autocontrast", "equalize"}))
@pytest.mark.parametrize("channels", [1, 3])
def test_magnitude_zero_does_nothing(name: str, channels: int) -> None:
    image = np.random.RandomState(1).randint(0, 256, (9, 8, channels)).astype("uint8")
    np.testing.assert_array_equal(run_operation(name, image, 0.0), image)


@pytest.mark.parametrize("limits", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
@pytest.mark.parametrize("channels", [1, 3])
def test_ranges_and_channels_are_kept(limits: tuple[float, float], channels: int) -> None:
    low, high = limits
    x = (np.tile(IMAGE[None, ..., :channels], (64, 1, 1, 1)) / 255 * (high - low) + low).astype("float32")
    got = augment(x, RandAugment(magnitude=20), limits, np.random.default_rng(1))
    assert got.dtype == np.float32
    assert got.shape == x.shape
    assert got.min() >= low
    assert got.max() <= high
    steps = (got - low) / (high - low) * 255
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)
    reference = augment(IMAGE[None, ..., :channels].repeat(64, 0).astype("float32"), RandAugment(magnitude=20),
                       (0.0, 255.0), np.random.default_rng(1))  # fmt: skip
    np.testing.assert_allclose(steps, reference, atol=1e-3)  # the range changes nothing but the range


def test_operations_and_signs_are_drawn_uniformly(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: Counter[tuple[str, int]] = Counter()
    for name in set(OPERATION_BY_NAME) - {"identity"}:
        monkeypatch.setitem(
            rand_augment.OPERATION_BY_NAME, name, lambda p, share, sign, n=name: (drawn.update([(n, sign)]), p)[1]
        )
    number = 4200
    augment(np.zeros((number, 2, 2, 1), "float32"), RandAugment(operations=3), (0.0, 1.0), np.random.default_rng(0))
    count_by_name = Counter(name for name, _ in drawn.elements())
    counts = [count_by_name[name] for name in OPERATION_BY_NAME if name != "identity"]
    assert stats.chisquare([*counts, 3 * number - sum(counts)]).pvalue > 0.01
    assert sum(drawn[name, 1] for name in count_by_name) == pytest.approx(sum(counts) / 2, rel=0.05)


def test_it_is_part_of_augment_and_reproducible() -> None:
    x = (IMAGE[None] / 255).astype("float32").repeat(16, 0)
    augmenter = build_augmenter(Augment.model_validate({"rand_augment": {}, "flip": "both"}), x.shape[1:], None)
    images_by_run = [augmenter(np.arange(16), x, None, np.random.default_rng(seed))[0] for seed in (3, 3, 4)]
    np.testing.assert_array_equal(images_by_run[0], images_by_run[1])
    assert np.abs(images_by_run[0] - images_by_run[2]).max() > 0.1
    assert augmenter.describe() == "flip both, rand_augment {'operations': 2, 'magnitude': 9}"


def test_pixel_limits_from_the_data_or_its_values() -> None:
    x = np.zeros((2, 4, 4, 1), "float32")
    assert pixel_limits(x, (0.0, 255.0)) == (0.0, 255.0)
    assert pixel_limits(x + 0.5, None) == (0.0, 1.0)
    assert pixel_limits(x - 0.5, None) == (-1.0, 1.0)
    assert pixel_limits(x + 2, None) == (0.0, 255.0)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((2, 4, 4, 2)), r"images .* of 1 or 3 channels; the samples have shape \(4, 4, 2\)"),
        (np.zeros((2, 30, 6)), r"images .* of 1 or 3 channels; the samples have shape \(30, 6\)"),
        (np.full((2, 4, 4, 1), -2.5), "needs pixels of 0 to 1, -1 to 1 or 0 to 255; the training samples go from -2.5"),
        (np.full((2, 4, 4, 1), 300.0), "to 300"),
    ],
)
def test_mismatched_samples(x: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pixel_limits(x, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{rand_augment: {magnitude: 31}}", "augment.rand_augment.magnitude: "),
        ("{rand_augment: {operations: 0}}", "augment.rand_augment.operations: "),
        ("{rand_augment: {n: 2}}", "augment.rand_augment.n: unknown option"),
        ("{rand_augment: 9}", "augment.rand_augment: "),
    ],
)
def test_malformed(text: str, message: str) -> None:
    document = config.parse(f"augment: {text}\n", "p.yaml")
    assert config.validate(document, ("augment",), document.content["augment"], Augment) is None
    assert message in str(document.problems[0])
