"""Models whose output is an image, a map or a list of boxes: segmentation, super-resolution, detectors, pyramids."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from .convolutional import conv_bn
from .corpus_model import corpus_model
from .samples import images

IMAGE_PIXELS = 320.0  # the side of the picture in whose pixels the detectors give their boxes


@corpus_model(images(), kinds="A", in_ci=True)
def unet() -> keras.Model:
    """U-Net: nearest upsampling, and each level joined with its encoder's."""
    inputs = keras.Input((16, 16, 3))
    fine = conv_bn(inputs, 8)
    middle = conv_bn(layers.MaxPooling2D(2)(fine), 12)
    x = conv_bn(layers.MaxPooling2D(2)(middle), 16)
    for skip, filters in ((middle, 12), (fine, 8)):
        x = layers.Concatenate()([layers.UpSampling2D(2)(x), skip])
        x = conv_bn(x, filters)
    return keras.Model(inputs, layers.Conv2D(1, 1, activation="sigmoid")(x))


@corpus_model(images(), kinds="A")
def unet_transposed() -> keras.Model:
    """U-Net with transposed convolutions on the way up and logits as output."""
    inputs = keras.Input((16, 16, 3))
    fine = conv_bn(inputs, 8)
    x = conv_bn(layers.MaxPooling2D(2)(fine), 16)
    x = layers.Conv2DTranspose(8, 2, strides=2, activation="relu")(x)
    x = conv_bn(layers.Concatenate()([fine, x]), 8)
    return keras.Model(inputs, layers.Conv2D(4, 1)(x))


@corpus_model(images(), kinds="A")
def attention_unet() -> keras.Model:
    """Attention U-Net: the skip connection is weighted by a gate from the coarser level."""
    inputs = keras.Input((16, 16, 3))
    fine = conv_bn(inputs, 8)
    coarse = layers.UpSampling2D(2)(conv_bn(layers.MaxPooling2D(2)(fine), 16))
    gate = layers.ReLU()(layers.Conv2D(8, 1)(fine) + layers.Conv2D(8, 1)(coarse))
    gate = layers.Conv2D(1, 1, activation="sigmoid")(gate)
    x = layers.Concatenate()([fine * gate, coarse])
    return keras.Model(inputs, layers.Conv2D(2, 1, activation="softmax")(conv_bn(x, 8)))


@corpus_model(images(), in_ci=True)
def fpn() -> keras.Model:
    """Feature pyramid: lateral 1x1 convolutions and sums with the upsampled coarser level."""
    inputs = keras.Input((16, 16, 3))
    stages = [conv_bn(inputs, 8)]
    for filters in (12, 16):
        stages.append(conv_bn(stages[-1], filters, strides=2))
    x = layers.Conv2D(12, 1)(stages[-1])
    for stage in stages[-2::-1]:
        x = layers.Add()([layers.UpSampling2D(2)(x), layers.Conv2D(12, 1)(stage)])
    return keras.Model(inputs, layers.Conv2D(4, 3, padding="same")(x))


@corpus_model(images(), kinds="A")
def path_aggregation() -> keras.Model:
    """PANet: a pyramid down and up again, levels joined by concatenation."""
    inputs = keras.Input((16, 16, 3))
    fine = conv_bn(inputs, 8, activation="swish")
    coarse = conv_bn(fine, 12, activation="swish", strides=2)
    down = conv_bn(layers.Concatenate()([layers.UpSampling2D(2)(coarse), fine]), 8, activation="swish")
    up = layers.Concatenate()([conv_bn(down, 8, activation="swish", strides=2), coarse])
    return keras.Model(inputs, [layers.Conv2D(4, 1, name="fine")(down), layers.Conv2D(4, 1, name="coarse")(up)])


@corpus_model(images(), kinds="A")
def weighted_feature_fusion() -> keras.Model:
    """BiFPN: levels fused with weights that sum to one, swish before the separable convolution."""
    inputs = keras.Input((16, 16, 3))
    fine = conv_bn(inputs, 12)
    coarse = layers.UpSampling2D(2, interpolation="bilinear")(conv_bn(fine, 12, strides=2))
    fused = layers.Activation("swish")(0.7 * fine + 0.3 * coarse)
    fused = layers.SeparableConv2D(12, 3, padding="same")(fused)
    return keras.Model(inputs, layers.Conv2D(3, 1)(layers.BatchNormalization()(fused)))


@corpus_model(images())
def upsampling_nearest() -> keras.Model:
    """A decoder of nearest upsampling and convolutions."""
    inputs = keras.Input((16, 16, 3))
    x = conv_bn(inputs, 12, strides=4)
    for filters in (12, 8):
        x = conv_bn(layers.UpSampling2D(2, interpolation="nearest")(x), filters)
    return keras.Model(inputs, layers.Conv2D(3, 3, padding="same", activation="sigmoid")(x))


@corpus_model(images(), kinds="A")
def upsampling_bilinear() -> keras.Model:
    """Bilinear upsampling whose input is read by another layer too."""
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same")(inputs)
    upsampled = layers.UpSampling2D(2, interpolation="bilinear")(x)
    direct = layers.Conv2DTranspose(8, 3, strides=2, padding="same")(x)
    return keras.Model(inputs, layers.Conv2D(2, 3, padding="same")(layers.Add()([upsampled, direct])))


@corpus_model(images(), kinds="A")
def resized_input() -> keras.Model:
    """Resizing and rescaling as the first layers, as in exported vision models."""
    inputs = keras.Input((16, 16, 3))
    x = layers.Rescaling(2.0, offset=-1.0)(layers.Resizing(12, 12)(inputs))
    x = conv_bn(conv_bn(x, 8), 12, strides=2)
    return keras.Model(inputs, layers.Dense(5, activation="softmax")(layers.Flatten()(x)))


@corpus_model(images())
def transposed_convolution() -> keras.Model:
    """A decoder of transposed convolutions with stride and either padding."""
    inputs = keras.Input((16, 16, 3))
    x = conv_bn(inputs, 12, strides=4)
    x = layers.Conv2DTranspose(8, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.BatchNormalization()(layers.Conv2DTranspose(6, 4, strides=2)(x))
    return keras.Model(inputs, layers.Conv2DTranspose(2, 3, padding="same", activation="tanh")(x))


@corpus_model(images())
def pixel_shuffle() -> keras.Model:
    """ESPCN: sub-pixel convolution by reshapes and a transpose."""
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(12, 5, padding="same", activation="tanh")(inputs)
    x = layers.Conv2D(12, 3, padding="same")(x)
    x = ops.transpose(ops.reshape(x, (-1, 16, 16, 2, 2, 3)), (0, 1, 3, 2, 4, 5))
    return keras.Model(inputs, ops.reshape(x, (-1, 32, 32, 3)))


@corpus_model(images(), kinds="A")
def super_resolution() -> keras.Model:
    """Residual super-resolution: details are added to the bilinear enlargement and clipped to [0, 1]."""
    inputs = keras.Input((16, 16, 3))
    x = conv_bn(inputs, 12)
    for _ in range(2):
        x = layers.Add()([x, conv_bn(conv_bn(x, 12), 12, activation=None)])
    details = layers.Conv2DTranspose(3, 3, strides=2, padding="same")(x)
    enlarged = layers.UpSampling2D(2, interpolation="bilinear")(inputs)
    return keras.Model(inputs, ops.clip(enlarged + 0.1 * details, 0.0, 1.0))


@corpus_model(images(channels=1))
def denoiser() -> keras.Model:
    """DnCNN: the network estimates the noise, and the output is the input without it."""
    inputs = keras.Input((16, 16, 1))
    x = layers.Conv2D(12, 3, padding="same", activation="relu")(inputs)
    for _ in range(3):
        x = conv_bn(x, 12)
    return keras.Model(inputs, layers.Subtract()([inputs, layers.Conv2D(1, 3, padding="same")(x)]))


@corpus_model(images(channels=1))
def convolutional_autoencoder() -> keras.Model:
    """A convolutional encoder and decoder with a dense bottleneck."""
    inputs = keras.Input((16, 16, 1))
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(inputs)
    x = layers.Conv2D(12, 3, strides=2, padding="same", activation="relu")(x)
    code = layers.Dense(16, name="code")(layers.Flatten()(x))
    x = layers.Reshape((4, 4, 12))(layers.Dense(192, activation="relu")(code))
    x = layers.BatchNormalization()(layers.Conv2DTranspose(8, 3, strides=2, padding="same", activation="relu")(x))
    return keras.Model(inputs, layers.Conv2DTranspose(1, 3, strides=2, padding="same", activation="sigmoid")(x))


def _predictions(x: Any, outputs: int, **options: Any) -> Any:
    """One row of predictions per cell of the map."""
    cells = x.shape[1] * x.shape[2]
    return layers.Reshape((cells, outputs))(layers.Conv2D(outputs, 1, **options)(x))


@corpus_model(images(), kinds="AJ", in_ci=True)
def detector_boxes_and_scores() -> keras.Model:
    """A detector whose boxes, in pixels of a large picture, and scores in [0, 1] are concatenated."""
    inputs = keras.Input((16, 16, 3))
    x = conv_bn(conv_bn(inputs, 12, strides=2), 16, strides=2)
    boxes = _predictions(x, 4, activation="sigmoid") * IMAGE_PIXELS
    scores = _predictions(x, 3, activation="sigmoid")
    return keras.Model(inputs, layers.Concatenate()([boxes, scores]))


@corpus_model(images(), kinds="J")
def detector_normalized_boxes() -> keras.Model:
    """The same detector with boxes in [0, 1]: what the remedy looks like."""
    inputs = keras.Input((16, 16, 3))
    x = conv_bn(conv_bn(inputs, 12, strides=2), 16, strides=2)
    boxes, scores = _predictions(x, 4, activation="sigmoid"), _predictions(x, 3, activation="sigmoid")
    return keras.Model(inputs, layers.Concatenate()([boxes, scores]))


@corpus_model(images(), kinds="AHJ")
def detector_separate_outputs() -> keras.Model:
    """A detector with boxes in pixels and scores as two outputs."""
    inputs = keras.Input((16, 16, 3), name="image")
    x = conv_bn(conv_bn(inputs, 12, strides=2), 16, strides=2)
    boxes = layers.Rescaling(IMAGE_PIXELS, name="boxes")(_predictions(x, 4, activation="sigmoid"))
    scores = layers.Activation("sigmoid", name="scores")(_predictions(x, 3))
    return keras.Model(inputs, {"boxes": boxes, "scores": scores})


@corpus_model(images(), kinds="ADJ")
def yolo_head() -> keras.Model:
    """YOLOv3: sigmoid centres on a grid, exponential sizes times anchors, objectness and classes, all in one tensor."""
    inputs = keras.Input((16, 16, 3))
    x = conv_bn(conv_bn(inputs, 12, activation="leaky_relu", strides=2), 16, activation="leaky_relu", strides=2)
    raw = _predictions(x, 8)
    grid = np.stack(np.meshgrid(np.arange(4), np.arange(4)), axis=-1).reshape(1, 16, 2).astype("float32")
    centres = (ops.sigmoid(raw[..., :2]) + grid) * (IMAGE_PIXELS / 4)
    sizes = ops.exp(raw[..., 2:4]) * np.array([60.0, 90.0], "float32")
    return keras.Model(inputs, layers.Concatenate()([centres, sizes, ops.sigmoid(raw[..., 4:])]))


@corpus_model(images(), kinds="AJ")
def distribution_focal_boxes() -> keras.Model:
    """YOLOv8: each side of a box is the expectation of a softmax over bins; boxes and scores are joined."""
    inputs = keras.Input((16, 16, 3))
    x = conv_bn(conv_bn(inputs, 12, activation="swish", strides=2), 16, activation="swish", strides=2)
    bins = ops.softmax(ops.reshape(_predictions(x, 32), (-1, 16, 4, 8)), axis=-1)
    sides = ops.sum(bins * np.arange(8, dtype="float32"), axis=-1) * 8.0
    corners = ops.concatenate([IMAGE_PIXELS / 2 - sides[..., :2], IMAGE_PIXELS / 2 + sides[..., 2:]], axis=-1)
    return keras.Model(inputs, ops.concatenate([corners, _predictions(x, 3, activation="sigmoid")], axis=-1))


@corpus_model(images(), kinds="AH")
def ssd_head() -> keras.Model:
    """SSD: predictions of two scales concatenated, box offsets and class probabilities as a list of outputs."""
    inputs = keras.Input((16, 16, 3))
    fine = conv_bn(conv_bn(inputs, 8, activation="relu6", strides=2), 12, activation="relu6", strides=2)
    maps = [fine, conv_bn(fine, 16, activation="relu6", strides=2)]
    offsets = layers.Concatenate(axis=1, name="offsets")([_predictions(x, 4) for x in maps])
    classes = layers.Concatenate(axis=1)([_predictions(x, 4) for x in maps])
    return keras.Model(inputs, [offsets, layers.Softmax(name="classes")(classes)])


@corpus_model(images(), kinds="AHJ")
def centernet_heads() -> keras.Model:
    """CenterNet: heat map, sizes in pixels and offsets as a dict of outputs; peaks by a max pool and a comparison."""
    inputs = keras.Input((16, 16, 3), name="image")
    x = conv_bn(conv_bn(inputs, 12, strides=2), 12)
    heat = layers.Conv2D(2, 1, activation="sigmoid")(x)
    is_peak = ops.cast(ops.equal(heat, layers.MaxPooling2D(3, 1, padding="same")(heat)), "float32")
    sizes = layers.Conv2D(2, 1, activation="relu")(x) * 64.0
    return keras.Model(inputs, {"heat": heat * is_peak, "sizes": sizes, "offsets": layers.Conv2D(2, 1)(x)})


@corpus_model(images(channels=1))
def keypoints_soft_argmax() -> keras.Model:
    """Key points: a softmax over the map and the expectation of its coordinates."""
    inputs = keras.Input((16, 16, 1))
    heat = layers.Conv2D(4, 3, padding="same")(conv_bn(inputs, 12, strides=2))
    weights = ops.softmax(ops.reshape(ops.transpose(3.0 * heat, (0, 3, 1, 2)), (-1, 4, 64)), axis=-1)
    grid = np.stack(np.meshgrid(np.arange(8), np.arange(8)), axis=-1).reshape(64, 2).astype("float32")
    return keras.Model(inputs, ops.matmul(weights, ops.convert_to_tensor(grid / 8)))


class ClassIndex(layers.Layer):
    """The index of the largest channel, by TensorFlow's own operator."""

    def call(self, inputs: Any) -> Any:
        """The index as int32."""
        return tf.argmax(inputs, axis=-1, output_type=tf.int32)


@corpus_model(images(), kinds="AK")
def segmentation_class_index() -> keras.Model:
    """Segmentation whose output is the index of the class of each pixel."""
    inputs = keras.Input((16, 16, 3))
    x = layers.UpSampling2D(2, interpolation="bilinear")(conv_bn(conv_bn(inputs, 12), 12, strides=2))
    return keras.Model(inputs, ClassIndex()(layers.Conv2D(4, 1)(x)))


@corpus_model(images(), kinds="D")
def depth_estimation() -> keras.Model:
    """Monocular depth: an exponential output over a wide range."""
    inputs = keras.Input((16, 16, 3))
    x = layers.UpSampling2D(2)(conv_bn(conv_bn(inputs, 12), 12, activation="elu", strides=2))
    return keras.Model(inputs, ops.exp(layers.Conv2D(1, 3, padding="same")(x)))


@corpus_model(images(), kinds="A")
def image_mean_removed() -> keras.Model:
    """Each picture is standardized inside the model: its mean is taken off and its deviation divided by."""
    inputs = keras.Input((16, 16, 3))
    mean = ops.mean(inputs, axis=(1, 2), keepdims=True)
    deviation = ops.std(inputs, axis=(1, 2), keepdims=True)
    x = conv_bn((inputs - mean) / (deviation + 0.05), 12, strides=2)
    return keras.Model(inputs, layers.Dense(5)(layers.Flatten()(x)))


@corpus_model(images(), kinds="A")
def patches_by_slicing() -> keras.Model:
    """YOLOv5's focus: every second pixel of both axes, four times, concatenated."""
    inputs = keras.Input((16, 16, 3))
    parts = [inputs[:, row::2, column::2] for row in (0, 1) for column in (0, 1)]
    x = conv_bn(layers.Concatenate()(parts), 12, activation="swish")
    return keras.Model(inputs, layers.Conv2D(4, 1)(x))


@corpus_model(images(), kinds="K")
def bicubic_resize() -> keras.Model:
    """Bicubic resizing inside the model."""
    inputs = keras.Input((16, 16, 3))
    x = layers.Resizing(12, 12, interpolation="bicubic")(inputs)
    return keras.Model(inputs, layers.Conv2D(4, 3, activation="relu")(x))


@corpus_model(images(), kinds="K")
def dilated_transposed_convolution() -> keras.Model:
    """A transposed convolution with dilation."""
    inputs = keras.Input((16, 16, 3))
    x = conv_bn(inputs, 8, strides=2)
    x = layers.Conv2DTranspose(6, 3, dilation_rate=2, padding="same", activation="relu")(x)
    return keras.Model(inputs, layers.Conv2D(2, 1)(x))


@corpus_model(images(), kinds="K")
def segmentation_argmax() -> keras.Model:
    """Segmentation whose output is the index of the class of each pixel."""
    inputs = keras.Input((16, 16, 3))
    x = layers.UpSampling2D(2, interpolation="bilinear")(conv_bn(conv_bn(inputs, 12), 12, strides=2))
    return keras.Model(inputs, ops.argmax(layers.Conv2D(4, 1)(x), axis=-1))
