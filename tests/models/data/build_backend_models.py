"""Builds jax.keras, torch.keras and their .npz, in separate environments with keras 3.15.1 and jax or torch.

`KERAS_BACKEND=jax python build_backend_models.py jax`, and the same for torch; the zips were then deflated.
"""

import sys
from typing import Any

import keras
import numpy as np

K = keras.layers


def build_model() -> Any:
    """One small layer of every kind that could differ between backends."""
    x = keras.Input((8, 8, 2), name="pixels")
    y = K.Rescaling(0.5, name="scale")(K.RandomFlip("horizontal", name="flip")(x))
    y = K.Conv2D(4, 3, strides=2, padding="same", activation="hard_silu", name="conv")(y)
    y = K.Dropout(0.3, name="drop")(K.BatchNormalization(name="bn")(y))
    y = K.ZeroPadding2D(1, name="pad")(K.DepthwiseConv2D(3, padding="same", name="dw")(y))
    y = K.Conv2DTranspose(3, 3, strides=2, padding="same", name="up")(y)
    y = keras.ops.relu(K.AveragePooling2D(2, padding="same", name="pool")(y) * 2.0 - 0.1)
    y = K.LayerNormalization(name="ln")(K.Reshape((-1, 3), name="rows")(y))
    z = K.GRU(4, return_sequences=True, name="gru")(K.MultiHeadAttention(2, 3, dropout=0.1, name="mha")(y, y))
    z = K.Bidirectional(K.LSTM(3), name="bi")(z)
    return keras.Model(x, K.Dense(3, activation="softmax", name="out")(z), name="delicate")


def main(name: str) -> None:
    """Train for two epochs; save the model without its optimizer, and its outputs for four samples."""
    keras.utils.set_random_seed(1)
    model, generator = build_model(), np.random.default_rng(0)
    x, y = generator.normal(size=(16, 8, 8, 2)).astype("float32"), generator.integers(0, 3, 16)
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    model.fit(x, y, epochs=2, verbose=0)
    uncompiled_model = build_model()
    uncompiled_model.set_weights(model.get_weights())
    uncompiled_model.save(f"{name}.keras")
    np.savez(f"{name}.npz", x=x[:4], y=np.asarray(model.predict(x[:4], verbose=0)))


if __name__ == "__main__":
    main(sys.argv[1])
