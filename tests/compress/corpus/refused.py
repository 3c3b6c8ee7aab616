"""Models of which TensorFlow's converter makes no float .tflite: the user must be told why, and what to do.

They are no part of CORPUS, for there is nothing to compare: `float_conversion_note` says what stands in the way. A
rewrite that gives one of them an integer form moves it to the module of its subject.
"""

import keras
from keras import layers

from .convolutional import conv_bn, scored
from .corpus_model import corpus_model
from .samples import categories, images, series, table


@corpus_model(images(), kinds="K", float_conversion_note="the height and width of its input are open")
def open_spatial_dimensions() -> keras.Model:
    """A fully convolutional model for images of any size: it needs --input-shape."""
    inputs = keras.Input((None, None, 3))
    x = conv_bn(conv_bn(inputs, 12), 12, strides=2)
    return scored(inputs, x)


@corpus_model(categories(6, 6, 6), kinds="E", float_conversion_note="TFLite has no operator that counts integers")
def category_encoding_multi_hot() -> keras.Model:
    """keras.layers.CategoryEncoding, multi-hot over three columns."""
    inputs = keras.Input((3,), dtype="int32")
    x = layers.CategoryEncoding(6, output_mode="multi_hot")(inputs)
    return keras.Model(inputs, layers.Dense(3)(layers.Dense(8, activation="relu")(x)))


@corpus_model(series(300, 2), kinds="I", float_conversion_note="its loop is too long to be unrolled")
def lstm_loop_of_300_steps() -> keras.Model:
    """An LSTM over more steps than can be unrolled."""
    inputs = keras.Input((300, 2))
    return keras.Model(inputs, layers.Dense(3)(layers.LSTM(8)(inputs)))


@corpus_model(table(), kinds="F", float_conversion_note="Keras has quantized it already")
def quantized_by_keras() -> keras.Model:
    """A network after Keras' own quantization to int8."""
    inputs = keras.Input((8,))
    dense_layers = [layers.Dense(16, activation="relu"), layers.Dense(3)]
    model = keras.Model(inputs, dense_layers[1](dense_layers[0](inputs)))
    for layer in dense_layers:
        layer.quantize("int8")
    return model
