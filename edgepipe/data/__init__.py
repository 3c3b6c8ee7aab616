"""Datasets. The two below ship with edgepipe; a pipeline names them as `data: edgepipe.data:digits`.

`data_spec` parses the `data:` key, `dataset_identity` digests its source for the cache, `dataset_loading` loads the
splits.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgepipe.core.arrays import Array


def digits() -> "tuple[Array, Array]":
    """The 1797 handwritten digits of scikit-learn.

    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.

    Returns:
        Images (1797, 8, 8, 1), float32 in [0, 1] (sixteen grey levels), and labels (1797,), int64 in 0..9.
    """
    from sklearn.datasets import load_digits

    digit_set = load_digits()
    images = (digit_set.images[..., None] / 16).astype("float32")
    return images, digit_set.target.astype("int64")


def fashion_mnist() -> "dict[str, tuple[Array, Array]]":
    """Fashion-MNIST, 60 000 + 10 000 images of clothes, from its four IDX files as installed by Debian or the user.

    Source: H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset", arXiv 1708.07747, 2017.

    Returns:
        `train` and `test`: images (n, 28, 28, 1), float32 in [0, 1], and labels (n,), int64 in 0..9.

    Raises:
        InputError: the files are not found; the message lists the folders searched.
    """
    import numpy as np

    from edgepipe.data import idx

    arrays_by_split = idx.read(idx.find_fashion_folder())
    return {name: (x.astype(np.float32) / 255, y.astype(np.int64)) for name, (x, y) in arrays_by_split.items()}
