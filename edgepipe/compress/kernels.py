"""Which weights of a tf_keras layer compression works on."""

from typing import Any


def kernel(layer: Any) -> Any:
    """The kernel of a convolution or dense layer, or None for a layer without one."""
    return next((w for w in layer.weights if "kernel" in w.name.rsplit("/", 1)[-1]), None)
