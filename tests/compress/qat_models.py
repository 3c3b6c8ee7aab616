"""Small models, one for each mechanism that quantization-aware training has to get right."""

import json
from collections.abc import Callable
from typing import Any

import tf_keras

from edgepipe.models.bridge_layers import OperatorLayer

K = tf_keras.layers
Built = Callable[[], Any]


def _image(*layers: Any, shape: tuple[int, ...] = (8, 8, 4)) -> Any:
    return tf_keras.Sequential([tf_keras.Input(shape, name="x"), *layers], name="user")


def _sequence(*layers: Any, shape: tuple[int, ...] = (12, 6)) -> Any:
    return _image(*layers, shape=shape)


def _graph(build: Callable[[Any], Any], shape: tuple[int, ...] = (8, 8, 4)) -> Any:
    x = tf_keras.Input(shape, name="x")
    return tf_keras.Model(x, build(x), name="user")


def _two_inputs() -> Any:
    a, b = tf_keras.Input((6,), name="a"), tf_keras.Input((5,), name="b")
    joined = K.Concatenate(name="joined")([K.Dense(4, "relu", name="fa")(a), K.Dense(3, name="fb")(b)])
    return tf_keras.Model([a, b], [K.Dense(2, name="out1")(joined), K.Dense(3, "softmax", name="out2")(joined)])


def _shared() -> Any:
    dense = K.Dense(6, name="shared")

    def build(x: Any) -> Any:
        return K.Add(name="sum")([dense(x), dense(K.Dense(5, "relu", name="first")(x))])

    return _graph(build, (5,))


def _nested() -> Any:
    inner = tf_keras.Sequential([tf_keras.Input((6, 6, 4)), K.Conv2D(4, 3, name="deep"), K.BatchNormalization()])
    return _image(K.Conv2D(4, 3, name="outer"), inner, K.ReLU(), K.Flatten(), K.Dense(3))


def _residual(x: Any) -> Any:
    y = K.Conv2D(4, 3, padding="same", use_bias=False, name="conv")(x)
    y = K.BatchNormalization(name="norm")(y)
    return K.ReLU(name="relu")(K.Add(name="sum")([x, y]))


def _squeeze_excite(x: Any) -> Any:
    y = K.GlobalAveragePooling2D(keepdims=True, name="squeeze")(x)
    y = K.Dense(2, "relu", name="reduce")(y)
    return K.Multiply(name="excite")([x, K.Dense(4, "sigmoid", name="expand")(y)])


def _dense_block(x: Any) -> Any:
    for number in range(3):
        y = K.ReLU(name=f"relu{number}")(K.BatchNormalization(name=f"norm{number}")(x))
        x = K.Concatenate(name=f"join{number}")([x, K.Conv2D(3, 3, padding="same", name=f"conv{number}")(y)])
    return x


def _pools(x: Any) -> Any:
    a = K.AveragePooling2D(2, name="average")(K.Conv2D(4, 1, name="left")(x))
    b = K.MaxPooling2D(2, name="largest")(K.Conv2D(4, 1, activation="relu", name="right")(x))
    return K.Concatenate(name="joined")([a, b])


def _attention(x: Any) -> Any:
    x = K.Add(name="residual")([x, K.MultiHeadAttention(2, 4, name="attention")(x, x)])
    x = K.LayerNormalization(name="norm")(x)
    return K.Dense(3, "softmax", name="out")(K.GlobalAveragePooling1D(name="mean")(x))


def _cross_attention() -> Any:
    a, b = tf_keras.Input((5, 8), name="a"), tf_keras.Input((7, 8), name="b")
    y = K.MultiHeadAttention(2, 4, name="cross")(a, b)
    return tf_keras.Model([a, b], K.Dense(3, name="out")(K.Flatten(name="flat")(y)))


def _shared_on_two_lengths() -> Any:
    a, b = tf_keras.Input((5, 6), name="a"), tf_keras.Input((7, 6), name="b")
    dense = K.Dense(4, activation="relu", name="shared")
    pools = [K.GlobalAveragePooling1D(name=f"mean_{x.name}")(dense(x)) for x in (a, b)]
    return tf_keras.Model([a, b], K.Dense(3, name="out")(K.Concatenate(name="joined")(pools)))


def _operators(x: Any) -> Any:
    def op(name: str, tensors: Any, *constants: Any) -> Any:
        count = len(tensors) if isinstance(tensors, list) else 1
        args = [*({"tensor": index} for index in range(count)), *constants]
        return OperatorLayer(name, json.dumps({"args": args, "kwargs": {}}))(tensors)

    y = K.Conv2D(4, 1, name="conv")(x)
    y = op("Maximum", [op("Negative", y), op("Multiply", op("Square", y), 0.5)])
    return op("TrueDivide", op("Add", op("Elu", y), 1.0), 3.0)


def _one_tensor_clipped_twice(x: Any) -> Any:
    y = K.Conv2D(4, 1, name="conv")(x)
    branches = [K.ReLU(name="first")(y), K.Activation("relu", name="second")(y), K.Activation("elu", name="third")(y)]
    convolutions = [K.Conv2D(3, 1, name=f"part{number}")(part) for number, part in enumerate(branches)]
    return K.Concatenate(name="joined")([*convolutions, K.Activation("linear", name="nothing")(y)])


def _three(x: Any) -> Any:
    convolutions = [K.Conv2D(4, 1, name=f"part{number}")(x) for number in range(3)]
    return K.Add(name="three")(convolutions)


def _average(x: Any) -> Any:
    return K.Average(name="mean")([K.Conv2D(4, 1, name="left")(x), K.Conv2D(4, 1, name="right")(x)])


def _maximum(x: Any) -> Any:
    return K.Maximum(name="most")([K.Conv2D(4, 1, name="left")(x), K.Conv2D(4, 1, name="right")(x)])


ACTIVATIONS = ("relu", "relu6", "sigmoid", "tanh", "softmax", "swish", "gelu", "elu", "edgepipe>hard_silu",
               "edgepipe>hard_sigmoid", "edgepipe>leaky_relu")  # fmt: skip

# every tensor trained, no float operator, agreement tensor by tensor
COVERED: dict[str, Built] = {
    **{
        f"activation {name}": lambda name=name: _image(K.Conv2D(4, 3, activation=name), K.Flatten(), K.Dense(3))  # type: ignore[misc]
        for name in ACTIVATIONS
    },
    "conv, batch norm, relu": lambda: _image(K.Conv2D(4, 3, use_bias=False), K.BatchNormalization(), K.ReLU()),
    "conv, batch norm": lambda: _image(K.Conv2D(4, 3), K.BatchNormalization(), K.Flatten(), K.Dense(3)),
    "depthwise": lambda: _image(K.DepthwiseConv2D(3, depth_multiplier=2), K.BatchNormalization(), K.ReLU(6.0)),
    "depthwise of groups": lambda: _image(K.Conv2D(8, 3, groups=4, activation="relu")),
    "separable": lambda: _image(K.SeparableConv2D(5, 3), K.BatchNormalization(), K.ReLU()),
    "transposed": lambda: _image(K.Conv2DTranspose(5, 3, strides=2), K.ReLU()),
    "transposed, batch norm": lambda: _image(K.Conv2DTranspose(5, 3, strides=2), K.BatchNormalization(), K.ReLU()),
    "dense, batch norm, relu": lambda: _image(K.Dense(5), K.BatchNormalization(), K.ReLU(), K.Dense(2), shape=(6,)),
    "batch norm first": lambda: _image(K.BatchNormalization(), K.ReLU(), K.Conv2D(3, 3)),
    "batch norm of a vector": lambda: _image(K.BatchNormalization(), K.Dense(3), shape=(6,)),
    "rescaling": lambda: _image(K.Rescaling(1 / 127.5, offset=-1), K.Conv2D(3, 3)),
    "normalization": lambda: _image(K.Normalization(mean=[1, 2, 3, 4], variance=[1, 2, 3, 4]), K.Conv2D(3, 3)),
    "resize": lambda: _image(K.Conv2D(3, 3), K.UpSampling2D(2, interpolation="bilinear"), K.Conv2D(3, 3)),
    "nearest": lambda: _image(K.Conv2D(3, 3), K.UpSampling2D(2), K.Conv2D(3, 3)),
    "resizing": lambda: _image(K.Resizing(5, 5), K.Conv2D(3, 3)),
    "padding and cropping": lambda: _image(K.ZeroPadding2D(1), K.Conv2D(3, 3), K.Cropping2D(1), K.Dropout(0.5)),
    "layer norm": lambda: _sequence(K.LayerNormalization(), K.Dense(3)),
    "layer norm of an image": lambda: _image(K.Conv2D(4, 3), K.LayerNormalization(), K.Conv2D(3, 1)),
    "group norm": lambda: _image(K.Conv2D(4, 3), K.GroupNormalization(2), K.Conv2D(3, 1)),
    "conv 1d": lambda: _sequence(K.Conv1D(5, 3), K.BatchNormalization(), K.ReLU(), K.Conv1D(4, 3), K.Flatten()),
    "causal, dilated": lambda: _sequence(K.Conv1D(5, 3, padding="causal", dilation_rate=2, activation="relu")),
    "pools 1d": lambda: _sequence(K.Conv1D(5, 3), K.MaxPooling1D(2), K.AveragePooling1D(2), K.Flatten(), K.Dense(3)),
    "separable 1d": lambda: _sequence(K.SeparableConv1D(5, 3), K.BatchNormalization(), K.ReLU()),
    "depthwise 1d": lambda: _sequence(K.DepthwiseConv1D(3), K.ReLU()),
    "dense on a sequence": lambda: _sequence(K.Dense(5, activation="relu"), K.Dense(3)),
    "dense on an image": lambda: _image(K.Dense(5, activation="gelu"), K.Dense(3)),
    "time distributed": lambda: _sequence(K.TimeDistributed(K.Dense(5, activation="relu")), K.Flatten(), K.Dense(3)),
    "einsum dense": lambda: _sequence(K.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de"), K.Flatten()),
    "leaky relu": lambda: _image(K.Conv2D(4, 3), K.LeakyReLU(), K.Conv2D(3, 1)),
    "prelu": lambda: _image(K.Conv2D(4, 3), K.PReLU(shared_axes=[1, 2]), K.Conv2D(3, 1)),
    "residual": lambda: _graph(_residual),
    "three summands": lambda: _graph(_three),
    "one tensor clipped twice": lambda: _graph(_one_tensor_clipped_twice),
    "average of two": lambda: _graph(_average),
    "maximum of two": lambda: _graph(_maximum),
    "squeeze and excite": lambda: _graph(_squeeze_excite),
    "dense block": lambda: _graph(_dense_block),
    "pools into a concatenation": lambda: _graph(_pools),
    "attention": lambda: _graph(_attention, (12, 8)),
    "embedding": lambda: _sequence(K.Embedding(20, 6), K.GlobalAveragePooling1D(), K.Dense(3), shape=(7,)),
    "two inputs, two outputs": _two_inputs,
    "shared": _shared,
    "operators": lambda: _graph(_operators),
    "cross attention": _cross_attention,
    "shared on two lengths": _shared_on_two_lengths,
    "nested": _nested,
    "autoencoder": lambda: _image(K.Dense(4, "relu"), K.Dense(16, "sigmoid"), shape=(16,)),
}
