"""What surrounds a network: names, several outputs, dtype policies, states, nested models, custom objects."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
from keras import layers, ops

from .convolutional import conv_bn
from .corpus_model import corpus_model, trained_model
from .samples import grating_task, images, named, series, table


@contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Layers made inside the block have this dtype policy."""
    usual_policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(usual_policy)


@corpus_model(images(), kinds="H")
def several_outputs_list() -> keras.Model:
    """Two heads as a list, named so that the order of the alphabet is not theirs."""
    inputs = keras.Input((16, 16, 3), name="pixels")
    x = layers.GlobalAveragePooling2D()(conv_bn(conv_bn(inputs, 12), 16, strides=2))
    return keras.Model(
        inputs, [layers.Dense(3, activation="softmax", name="species")(x), layers.Dense(1, name="age")(x)]
    )


@corpus_model(images(), kinds="H", in_ci=True)
def several_outputs_dict() -> keras.Model:
    """Three heads as a dict whose keys are not the names of the layers."""
    inputs = keras.Input((16, 16, 3), name="pixels")
    x = layers.GlobalAveragePooling2D()(conv_bn(conv_bn(inputs, 12), 16, strides=2))
    heads = {"yaw": layers.Dense(1, activation="tanh"), "class": layers.Dense(4), "box": layers.Dense(4)}
    return keras.Model(inputs, {name: head(x) for name, head in heads.items()})


@corpus_model(named(a=table(6), b=table(4)), kinds="H")
def inputs_as_dict() -> keras.Model:
    """Inputs given as a dict."""
    first, second = keras.Input((6,), name="a"), keras.Input((4,), name="b")
    x = layers.Dense(12, activation="relu")(layers.Concatenate()([first, second]))
    return keras.Model({"b": second, "a": first}, {"score": layers.Dense(1)(x)})


@corpus_model(table(), kinds="H")
def output_is_input() -> keras.Model:
    """One of the outputs is the input itself."""
    inputs = keras.Input((8,), name="features")
    return keras.Model(inputs, [layers.Dense(3, name="scores")(inputs), inputs])


@corpus_model(table(), kinds="H")
def one_tensor_as_two_outputs() -> keras.Model:
    """The same tensor under two names."""
    inputs = keras.Input((8,), name="features")
    scores = layers.Dense(3, name="scores")(layers.Dense(12, activation="relu")(inputs))
    return keras.Model(inputs, {"first": scores, "second": scores})


@corpus_model(images(), kinds="H")
def output_read_inside() -> keras.Model:
    """An output that another layer reads: the embedding of a classifier."""
    inputs = keras.Input((16, 16, 3), name="image")
    embedding = layers.Dense(12, name="embedding")(layers.Flatten()(conv_bn(inputs, 4, strides=4)))
    return keras.Model(inputs, [embedding, layers.Dense(5, name="scores")(layers.ReLU()(embedding))])


@corpus_model(table(), kinds="H")
def port_named_like_inner_tensor() -> keras.Model:
    """One output has the name of an inner layer, the other that of the input."""
    inputs = keras.Input((8,), name="features")
    x = layers.Dense(12, activation="relu", name="hidden")(inputs)
    return keras.Model(inputs, {"hidden": layers.Dense(3)(x), "features": layers.Dense(2)(x)})


@corpus_model(images())
def sequential() -> keras.Model:
    """A Sequential model without an explicit name for anything."""
    convolutions = [layers.Conv2D(8, 3, activation="relu"), layers.MaxPooling2D(), layers.Conv2D(12, 3)]
    return keras.Sequential([keras.Input((16, 16, 3)), *convolutions, layers.Flatten(), layers.Dense(5)])


@corpus_model(images(), kinds="H")
def nested_model() -> keras.Model:
    """A backbone as a model inside the model, with a head around it."""
    backbone_input = keras.Input((16, 16, 3))
    backbone = keras.Model(backbone_input, conv_bn(conv_bn(backbone_input, 8), 12, strides=2), name="backbone")
    inputs = keras.Input((16, 16, 3), name="photo")
    x = backbone(layers.Rescaling(2.0, offset=-1.0)(inputs))
    return keras.Model(inputs, layers.Dense(4, name="label")(layers.GlobalAveragePooling2D()(x)))


@corpus_model(images(), kinds="F", in_ci=True)
def mixed_float16_policy() -> keras.Model:
    """A network under mixed_float16 with a float32 softmax, as Keras' guide has it."""
    with dtype_policy("mixed_float16"):
        inputs = keras.Input((16, 16, 3))
        x = layers.GlobalAveragePooling2D()(conv_bn(conv_bn(inputs, 12), 16, strides=2))
        scores = layers.Dense(4)(x)
    return keras.Model(inputs, layers.Activation("softmax", dtype="float32")(scores))


@corpus_model(images(), kinds="F")
def mixed_bfloat16_policy() -> keras.Model:
    """A network under mixed_bfloat16."""
    with dtype_policy("mixed_bfloat16"):
        inputs = keras.Input((16, 16, 3))
        x = layers.GlobalAveragePooling2D()(conv_bn(conv_bn(inputs, 12), 16, strides=2))
        scores = layers.Dense(4)(x)
    return keras.Model(inputs, layers.Activation("softmax", dtype="float32")(scores))


@corpus_model(images(), kinds="F")
def float16_policy() -> keras.Model:
    """A network with float16 weights, inputs and outputs."""
    with dtype_policy("float16"):
        inputs = keras.Input((16, 16, 3))
        x = layers.Conv2D(12, 3, strides=2, activation="relu")(inputs)
        return keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))


@corpus_model(table(), kinds="F")
def float64_policy() -> keras.Model:
    """A tabular network in float64."""
    with dtype_policy("float64"):
        inputs = keras.Input((8,))
        return keras.Model(inputs, layers.Dense(2)(layers.Dense(16, activation="tanh")(inputs)))


@corpus_model(series(8, 4), kinds="GI", float_conversion_note="it keeps a state in variables")
def stateful_lstm() -> keras.Model:
    """An LSTM that keeps its state from call to call."""
    inputs = keras.Input(batch_shape=(1, 8, 4))
    return keras.Model(inputs, layers.Dense(3)(layers.LSTM(8, stateful=True, unroll=True)(inputs)))


@keras.saving.register_keras_serializable("edgepipe_corpus")
class LayerScale(layers.Layer):
    """One learned factor per channel, as keras.applications' ConvNeXt has it."""

    def __init__(self, initial: float = 0.1, **options: Any) -> None:
        super().__init__(**options)
        self.initial = initial

    def build(self, input_shape: tuple[int, ...]) -> None:
        """One factor per channel."""
        self.gamma = self.add_weight(shape=input_shape[-1:], initializer=keras.initializers.Constant(self.initial))

    def call(self, inputs: Any) -> Any:
        """The inputs times the factors."""
        return inputs * self.gamma

    def get_config(self) -> dict[str, Any]:
        """What the constructor takes."""
        return {**super().get_config(), "initial": self.initial}


@keras.saving.register_keras_serializable("edgepipe_corpus")
def bent_identity(x: Any) -> Any:
    """An activation that Keras does not have."""
    return 0.5 * (ops.sqrt(ops.square(x) + 1.0) - 1.0) + x


@corpus_model(images(), kinds="M", in_ci=True)
def custom_layer() -> keras.Model:
    """A custom layer with a weight inside residual blocks."""
    inputs = keras.Input((16, 16, 3))
    x = conv_bn(inputs, 12)
    for _ in range(2):
        x = layers.Add()([x, LayerScale()(conv_bn(x, 12))])
    return keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))


@trained_model(grating_task(), kinds="M")
def custom_activation_classifier() -> keras.Model:
    """A custom activation in a trained classifier."""
    inputs = keras.Input((12, 12, 1))
    x = layers.Conv2D(12, 3, strides=2, activation=bent_identity)(inputs)
    x = layers.Conv2D(12, 3, activation=bent_identity)(x)
    return keras.Model(inputs, layers.Dense(4, activation="softmax")(layers.Flatten()(x)))


@corpus_model(table(), kinds="M")
def custom_layer_without_weights() -> keras.Model:
    """A lambda layer among dense ones."""
    inputs = keras.Input((8,))
    x = layers.Lambda(lambda x: x - 0.5 * ops.mean(x, axis=-1, keepdims=True), output_shape=(8,))(inputs)
    return keras.Model(inputs, layers.Dense(3)(layers.Dense(12, activation="relu")(x)))
