"""RandAugment: a few random operations out of fourteen per image, all of one magnitude, by Pillow on 8-bit pixels.

E. Cubuk, B. Zoph, J. Shlens, Q. Le, "RandAugment: Practical automated data augmentation with a reduced search space",
arXiv 1909.13719, 2019. The strength of an operation at a magnitude is that of torchvision, from nothing at 0 to the
strongest at 30; only solarize begins at 256 here, so that it too does nothing at magnitude 0.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError
from edgepipe.data.augmentation_options import RandAugment

MAX_MAGNITUDE = 30  # the strongest magnitude
CHANNEL_COUNTS = (1, 3)
PIXEL_RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))  # possible values of black and white
MAX_TRANSLATION = 150 / 331  # as a fraction of the side
Picture = Any  # PIL.Image.Image
PictureOperation = Callable[[Picture, float, int], Picture]  # (picture, fraction of the strongest, sign) -> picture


def augment(x: Array, options: RandAugment, pixel_range: tuple[float, float], random: np.random.Generator) -> Array:
    """Augment images; pixels are rounded to 8 bits, except in images that draw only `identity`.

    Args:
        x: images (b, h, w, 1 or 3).
        options: number of operations and magnitude.
        pixel_range: pixel values of black and white.
        random: the generator to draw from.

    Returns:
        Images of the same shape, float32.
    """
    operation_names = tuple(OPERATION_BY_NAME)
    operation_indices = random.integers(0, len(operation_names), (len(x), options.operations))
    signs = random.choice((-1, 1), (len(x), options.operations))
    strength = options.magnitude / MAX_MAGNITUDE
    augmented_images = np.array(x, np.float32)
    for image_index, (image_operations, image_signs) in enumerate(zip(operation_indices, signs, strict=True)):
        signed_operations = [
            (operation_names[n], int(sign))
            for n, sign in zip(image_operations, image_signs, strict=True)
            if operation_names[n] != "identity"
        ]
        if signed_operations:
            augmented_images[image_index] = _augment_image(x[image_index], signed_operations, strength, pixel_range)
    return augmented_images


def _augment_image(
    image: Array, signed_operations: list[tuple[str, int]], strength: float, pixel_range: tuple[float, float]
) -> Array:
    picture = to_picture(image, pixel_range)
    for name, sign in signed_operations:
        picture = OPERATION_BY_NAME[name](picture, strength, sign)
    low, high = pixel_range
    pixels = np.asarray(picture, np.float32).reshape(image.shape)
    return pixels / np.float32(255) * np.float32(high - low) + np.float32(low)


def to_picture(image: Array, pixel_range: tuple[float, float]) -> Picture:
    """An image (h, w, 1 or 3) as Pillow's, pixels rounded to 256 levels between `limits`."""
    from PIL import Image

    low, high = pixel_range
    pixels = np.clip(np.rint((image - low) / (high - low) * 255), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def pixel_limits(x: Array, known_limits: tuple[float, float] | None) -> tuple[float, float]:
    """Black and white of training images (n, h, w, c): as the data declares them, or inferred from the values.

    Raises:
        InputError: not images, neither one nor three channels, or values outside all known ranges.
    """
    if x.ndim != 4 or x.shape[-1] not in CHANNEL_COUNTS:
        shape_text = f"the samples have shape {tuple(x.shape[1:])}"
        raise InputError(
            f"augment: rand_augment is for images (height, width, channels) of 1 or 3 channels; {shape_text}"
        )
    if known_limits in PIXEL_RANGES:
        return known_limits
    low, high = float(x.min()), float(x.max())
    pixel_range = next((pair for pair in PIXEL_RANGES if pair[0] <= low and high <= pair[1]), None)
    if pixel_range is None:
        raise InputError(
            "augment: rand_augment needs pixels of 0 to 1, -1 to 1 or 0 to 255; the training samples go from "
            f"{low:.6g} to {high:.6g}. Standardize in the model instead (a Normalization layer)"
        )
    return pixel_range


def _make_enhance(name: str) -> PictureOperation:
    def enhance_picture(picture: Picture, strength: float, sign: int) -> Picture:
        from PIL import ImageEnhance

        return getattr(ImageEnhance, name)(picture).enhance(1 + sign * 0.9 * strength)

    return enhance_picture


def _make_affine(matrix_fn: Callable[[float, Picture], tuple[float, ...]]) -> PictureOperation:
    def transform_picture(picture: Picture, strength: float, sign: int) -> Picture:
        from PIL import Image

        coefficients = matrix_fn(sign * strength, picture)
        return picture.transform(picture.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)

    return transform_picture


def _rotate(picture: Picture, strength: float, sign: int) -> Picture:
    from PIL import Image

    return picture.rotate(sign * strength * 30, Image.Resampling.BILINEAR)


def _autocontrast(picture: Picture, strength: float, sign: int) -> Picture:
    from PIL import ImageOps

    return ImageOps.autocontrast(picture)


def _equalize(picture: Picture, strength: float, sign: int) -> Picture:
    from PIL import ImageOps

    return ImageOps.equalize(picture)


def _solarize(picture: Picture, strength: float, sign: int) -> Picture:
    from PIL import ImageOps

    return ImageOps.solarize(picture, round(256 * (1 - strength)))


def _posterize(picture: Picture, strength: float, sign: int) -> Picture:
    from PIL import ImageOps

    return ImageOps.posterize(picture, 8 - round(4 * strength))


def _shear_coefficients(strength: float, length: float) -> tuple[float, float]:
    """Factor and offset of a shear that keeps the centre of `length` pixels fixed."""
    return 0.3 * strength, -0.3 * strength * length / 2


OPERATION_BY_NAME: dict[str, PictureOperation] = {
    "identity": lambda picture, strength, sign: picture,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "rotate": _rotate,
    "solarize": _solarize,
    "color": _make_enhance("Color"),
    "posterize": _posterize,
    "contrast": _make_enhance("Contrast"),
    "brightness": _make_enhance("Brightness"),
    "sharpness": _make_enhance("Sharpness"),
    "shear_x": _make_affine(lambda strength, picture: (1, *_shear_coefficients(strength, picture.height), 0, 1, 0)),
    "shear_y": _make_affine(
        lambda strength, picture: (1, 0, 0, 0.3 * strength, 1, _shear_coefficients(strength, picture.width)[1])
    ),
    "translate_x": _make_affine(
        lambda strength, picture: (1, 0, round(MAX_TRANSLATION * strength * picture.width), 0, 1, 0)
    ),
    "translate_y": _make_affine(
        lambda strength, picture: (1, 0, 0, 0, 1, round(MAX_TRANSLATION * strength * picture.height))
    ),
}
