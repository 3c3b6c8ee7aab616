"""Small networks for the saliency tests, trained on the digits in a few seconds."""

from typing import Any

import numpy as np
import tf_keras

from edgepipe.compress.pruning.saliency_loss import Objective, build_objective
from edgepipe.core.arrays import Array
from edgepipe.data import digits
from edgepipe.data.splits import SplitData
from edgepipe.tasks.quality import Measure, Task
from edgepipe.training.training_loop import set_seeds

K = tf_keras.layers
TASK = Task("auto", {"accuracy": Measure(lambda truth, scores: 0.0)}, "classification")
DECAY = tf_keras.regularizers.L2(1e-3)


def samples(number: int = 300) -> SplitData:
    """Digits in [0, 1]."""
    x, y = digits()
    return SplitData(x[:number], y[:number])


def network(*layers: Any) -> Any:
    """A model of `layers` and a ten-class output."""
    return tf_keras.Sequential(
        [tf_keras.Input((8, 8, 1), name="image"), *layers, _dense(10, "softmax", name="probabilities")], name="small"
    )


def _dense(units: int, activation: Any = None, name: str | None = None) -> Any:
    return K.Dense(units, activation, kernel_regularizer=DECAY, name=name)


def _conv(filters: int, activation: Any) -> Any:
    return K.Conv2D(filters, 3, activation=activation, kernel_regularizer=DECAY)


NETWORKS = {
    "relu": lambda: network(K.Flatten(), _dense(8, "relu")),
    "tanh": lambda: network(K.Flatten(), _dense(8, "tanh"), _dense(8, "tanh")),
    "convolutions": lambda: network(_conv(4, "relu"), K.MaxPooling2D(), _conv(6, "relu"), K.Flatten()),
    "smooth convolutions": lambda: network(_conv(4, "swish"), K.AveragePooling2D(), _conv(6, "swish"), K.Flatten()),
}


def train_network(name: str, epochs: int = 60) -> tuple[Any, Objective, list[Any]]:
    """The network, its loss on the samples, and its kernels."""
    set_seeds(0)
    model, data = NETWORKS[name](), samples()
    model.compile(tf_keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
    model.fit(data.x, data.y, epochs=epochs, batch_size=32, verbose=0)
    kernels = [weight for weight in model.trainable_weights if "kernel" in weight.name]
    return model, build_objective(model, TASK, data, len(data.x), 0), kernels


def flat(arrays: Any) -> Array:
    """All values, concatenated."""
    return np.concatenate([np.ravel(array) for array in arrays])
