"""Small architectures for small devices. Importing this loads no TensorFlow; calling one of the functions does.

Every layer has a name of its own, so that names never depend on what was built before in the same process.
"""

from edgepipe.zoo.autoencoder import autoencoder
from edgepipe.zoo.convolutional import ds_cnn, small_cnn

__all__ = ["autoencoder", "ds_cnn", "small_cnn"]
