"""Small architectures for small devices. Importing this loads no TensorFlow; calling one of the functions does.

Every layer has a name of its own, so that names never depend on what was built before in the same process.
"""

from edgepipe.zoo.attention_classifier import attention
from edgepipe.zoo.autoencoder import autoencoder
from edgepipe.zoo.convolutional import ds_cnn, small_cnn
from edgepipe.zoo.mobilenet import mobilenet_v1, mobilenet_v2
from edgepipe.zoo.residual import resnet8
from edgepipe.zoo.temporal import temporal_cnn

__all__ = [
    "attention",
    "autoencoder",
    "ds_cnn",
    "mobilenet_v1",
    "mobilenet_v2",
    "resnet8",
    "small_cnn",
    "temporal_cnn",
]
