"""Convolutional backbones: residual, attention over channels, branches that are joined, cheap convolutions, pooling."""

from typing import Any

import keras
from keras import layers, ops

from .corpus_model import Training, corpus_model, trained_model
from .samples import grating_task, images, videos

BRIEF = Training(epochs=5)


def conv_bn(x: Any, filters: int, kernel: int = 3, activation: str | None = "relu", **options: Any) -> Any:
    """A convolution without bias, batch normalization and an activation."""
    x = layers.Conv2D(filters, kernel, padding="same", use_bias=False, **options)(x)
    x = layers.BatchNormalization(momentum=0.9)(x)
    return layers.Activation(activation)(x) if activation else x


def depthwise_bn(x: Any, kernel: int = 3, activation: str | None = "relu", **options: Any) -> Any:
    """A depthwise convolution without bias, batch normalization and an activation."""
    x = layers.DepthwiseConv2D(kernel, padding="same", use_bias=False, **options)(x)
    x = layers.BatchNormalization(momentum=0.9)(x)
    return layers.Activation(activation)(x) if activation else x


def squeeze_excited(x: Any, reduction: int = 4, gate: str = "sigmoid") -> Any:
    """The channels of x, each weighted by a gate that reads the average of all."""
    channels = x.shape[-1]
    gates = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gates = layers.Conv2D(max(channels // reduction, 2), 1, activation="relu")(gates)
    gates = layers.Conv2D(channels, 1, activation=gate)(gates)
    return layers.Multiply()([x, gates])


def classified(inputs: Any, x: Any, classes: int = 4) -> keras.Model:
    """The model that averages x over the image and ends in class probabilities."""
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(classes, activation="softmax")(x))


def scored(inputs: Any, x: Any, outputs: int = 6) -> keras.Model:
    """The model that averages x over the image and ends in scores without activation."""
    return keras.Model(inputs, layers.Dense(outputs)(layers.GlobalAveragePooling2D()(x)))


@corpus_model(images(), in_ci=True)
def residual_block() -> keras.Model:
    """ResNet: two basic blocks with identity shortcuts."""
    inputs = keras.Input((16, 16, 3))
    x = conv_bn(inputs, 12)
    for _ in range(2):
        branch = conv_bn(conv_bn(x, 12), 12, activation=None)
        x = layers.ReLU()(layers.Add()([x, branch]))
    return scored(inputs, x)


@corpus_model(images())
def residual_bottleneck() -> keras.Model:
    """ResNet-50: 1x1, 3x3, 1x1 with stride and a projected shortcut."""
    inputs = keras.Input((16, 16, 3))
    x = conv_bn(inputs, 12)
    branch = conv_bn(conv_bn(x, 8, 1), 8, 3, strides=2)
    branch = conv_bn(branch, 24, 1, activation=None)
    shortcut = conv_bn(x, 24, 1, activation=None, strides=2)
    return scored(inputs, layers.ReLU()(layers.Add()([branch, shortcut])))


@corpus_model(images())
def preactivation_residual() -> keras.Model:
    """ResNet V2: normalization and activation before each convolution, sums without activation."""
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(12, 3, padding="same")(inputs)
    for _ in range(3):
        branch = layers.ReLU()(layers.BatchNormalization()(x))
        branch = layers.Conv2D(12, 3, padding="same")(branch)
        x = layers.Add()([x, branch])
    return scored(inputs, layers.ReLU()(layers.BatchNormalization()(x)))


@corpus_model(images())
def resnext_block() -> keras.Model:
    """ResNeXt: grouped 3x3 convolution inside a bottleneck."""
    inputs = keras.Input((16, 16, 3))
    x = conv_bn(inputs, 16)
    branch = conv_bn(conv_bn(x, 16, 1), 16, 3, groups=4)
    branch = conv_bn(branch, 16, 1, activation=None)
    return scored(inputs, layers.ReLU()(layers.Add()([x, branch])))


@corpus_model(images(), in_ci=True)
def squeeze_excite() -> keras.Model:
    """SENet: convolution blocks whose channels are gated by their averages."""
    inputs = keras.Input((16, 16, 3))
    x = squeeze_excited(conv_bn(inputs, 16))
    x = squeeze_excited(conv_bn(x, 24, strides=2))
    return scored(inputs, x)


@trained_model(grating_task(), kinds="A", training=BRIEF, in_ci=True)
def cbam() -> keras.Model:
    """CBAM: channel attention from average and maximum, then spatial attention from both, joined."""
    inputs = keras.Input((12, 12, 1))
    x = conv_bn(inputs, 12)
    reduce, expand = layers.Dense(4, activation="relu"), layers.Dense(12)
    pooled = [pool(keepdims=True)(x) for pool in (layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D)]
    gates = layers.Add()([expand(reduce(value)) for value in pooled])
    x = layers.Multiply()([x, layers.Activation("sigmoid")(gates)])
    planes = [ops.mean(x, axis=-1, keepdims=True), ops.max(x, axis=-1, keepdims=True)]
    attention = layers.Conv2D(1, 5, padding="same", activation="sigmoid")(layers.Concatenate()(planes))
    return classified(inputs, conv_bn(layers.Multiply()([x, attention]), 12))


@corpus_model(images(), kinds="A")
def cbam_residual() -> keras.Model:
    """CBAM inside a residual block, untrained: the averages and maxima have very different ranges."""
    inputs = keras.Input((16, 16, 3))
    x = conv_bn(inputs, 12)
    branch = conv_bn(x, 12, activation=None)
    planes = [ops.mean(branch, axis=-1, keepdims=True), ops.max(branch, axis=-1, keepdims=True)]
    attention = layers.Conv2D(1, 7, padding="same", activation="sigmoid")(layers.Concatenate()(planes))
    return scored(inputs, layers.ReLU()(layers.Add()([x, layers.Multiply()([branch, attention])])))


@corpus_model(images())
def efficient_channel_attention() -> keras.Model:
    """ECA: a 1-D convolution over the averages of the channels gates them."""
    inputs = keras.Input((16, 16, 3))
    x = conv_bn(inputs, 16)
    gates = layers.Reshape((16, 1))(layers.GlobalAveragePooling2D()(x))
    gates = layers.Conv1D(1, 3, padding="same", activation="sigmoid", use_bias=False)(gates)
    return scored(inputs, layers.Multiply()([x, layers.Reshape((1, 1, 16))(gates)]))


@corpus_model(images(), kinds="A")
def coordinate_attention() -> keras.Model:
    """Coordinate attention: averages along both axes are joined, convolved, split and gate the rows and columns."""
    inputs = keras.Input((16, 16, 3))
    x = conv_bn(inputs, 12)
    rows, columns = ops.mean(x, axis=2, keepdims=True), ops.mean(x, axis=1, keepdims=True)
    joined = layers.Concatenate(axis=1)([rows, layers.Permute((2, 1, 3))(columns)])
    joined = conv_bn(joined, 6, 1, "hard_swish")
    rows, columns = ops.split(joined, 2, axis=1)
    row_gates = layers.Conv2D(12, 1, activation="sigmoid")(rows)
    column_gates = layers.Conv2D(12, 1, activation="sigmoid")(layers.Permute((2, 1, 3))(columns))
    return scored(inputs, layers.Multiply()([x, row_gates, column_gates]))


@corpus_model(images(), kinds="A")
def selective_kernel() -> keras.Model:
    """SKNet: branches of two kernel sizes, weighted by a softmax over the branches."""
    inputs = keras.Input((16, 16, 3))
    x = conv_bn(inputs, 12)
    branches = [conv_bn(x, 12, 3), conv_bn(x, 12, 3, dilation_rate=2)]
    summary = layers.Dense(6, activation="relu")(layers.GlobalAveragePooling2D()(layers.Add()(branches)))
    weights = ops.softmax(ops.stack([layers.Dense(12)(summary) for _ in branches], axis=1), axis=1)
    weighted = [branch * ops.reshape(weights[:, i], (-1, 1, 1, 12)) for i, branch in enumerate(branches)]
    return scored(inputs, layers.Add()(weighted))


def channel_shuffle(x: Any, groups: int) -> Any:
    """The channels of x, interleaved between its groups."""
    height, width, channels = x.shape[1:]
    x = ops.reshape(x, (-1, height, width, groups, channels // groups))
    return ops.reshape(ops.transpose(x, (0, 1, 2, 4, 3)), (-1, height, width, channels))


@corpus_model(images(), kinds="A", in_ci=True)
def shufflenet_block() -> keras.Model:
    """ShuffleNet V2: split, one half through a branch, concatenation and channel shuffle, twice."""
    inputs = keras.Input((16, 16, 3))
    x = conv_bn(inputs, 16)
    for _ in range(2):
        kept, branch = ops.split(x, 2, axis=-1)
        branch = depthwise_bn(conv_bn(branch, 8, 1), activation=None)
        x = layers.Concatenate()([kept, conv_bn(branch, 8, 1)])
        x = channel_shuffle(x, 2)
    return scored(inputs, x)


@corpus_model(images(), kinds="A")
def shufflenet_v1_block() -> keras.Model:
    """ShuffleNet V1: grouped 1x1 convolutions with a shuffle between them; the strided block joins an average pool."""
    inputs = keras.Input((16, 16, 3))
    x = conv_bn(inputs, 12)
    branch = channel_shuffle(conv_bn(x, 12, 1, groups=3), 3)
    branch = depthwise_bn(branch, activation=None, strides=2)
    branch = conv_bn(branch, 12, 1, activation=None, groups=3)
    pooled = layers.AveragePooling2D(3, 2, padding="same")(x)
    return scored(inputs, layers.ReLU()(layers.Concatenate()([pooled, branch])))


@corpus_model(images(), kinds="A", in_ci=True)
def c2f_block() -> keras.Model:
    """C2f of YOLOv8: split, a chain of bottlenecks, and everything on the way concatenated."""
    inputs = keras.Input((16, 16, 3))
    x = conv_bn(conv_bn(inputs, 16, activation="swish"), 16, 1, "swish")
    parts = list(ops.split(x, 2, axis=-1))
    for _ in range(2):
        branch = conv_bn(conv_bn(parts[-1], 8, activation="swish"), 8, activation="swish")
        parts.append(layers.Add()([parts[-1], branch]))
    return scored(inputs, conv_bn(layers.Concatenate()(parts), 16, 1, "swish"))


@corpus_model(images(), kinds="A")
def csp_block() -> keras.Model:
    """CSPNet: half of the channels pass the residual blocks by and are joined afterwards."""
    inputs = keras.Input((16, 16, 3))
    x = conv_bn(inputs, 16, activation="leaky_relu")
    bypass, main = conv_bn(x, 8, 1, "leaky_relu"), conv_bn(x, 8, 1, "leaky_relu")
    for _ in range(2):
        branch = conv_bn(conv_bn(main, 8, 1, "leaky_relu"), 8, 3, "leaky_relu")
        main = layers.Add()([main, branch])
    return scored(inputs, conv_bn(layers.Concatenate()([main, bypass]), 16, 1, "leaky_relu"))


@corpus_model(images(), kinds="A", in_ci=True)
def densenet_block() -> keras.Model:
    """DenseNet: each layer reads the concatenation of all before it; a transition pools."""
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(12, 3, padding="same")(inputs)
    for _ in range(4):
        branch = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.Concatenate()([x, layers.Conv2D(6, 3, padding="same")(branch)])
    x = layers.ReLU()(layers.BatchNormalization()(x))
    return scored(inputs, layers.AveragePooling2D(2)(layers.Conv2D(16, 1)(x)))


@corpus_model(images(), kinds="A")
def inception_block() -> keras.Model:
    """GoogLeNet: 1x1, 3x3, 5x5 and max-pool branches concatenated."""
    inputs = keras.Input((16, 16, 3))
    x = conv_bn(inputs, 12)
    pooled = layers.MaxPooling2D(3, 1, padding="same")(x)
    branches = [conv_bn(x, 6, 1), conv_bn(conv_bn(x, 6, 1), 8, 3), conv_bn(conv_bn(x, 4, 1), 6, 5)]
    return scored(inputs, layers.Concatenate()([*branches, conv_bn(pooled, 6, 1)]))


@corpus_model(images(), kinds="A")
def fire_module() -> keras.Model:
    """SqueezeNet: a narrow 1x1 convolution, then 1x1 and 3x3 ones joined."""
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(12, 3, strides=2, activation="relu", padding="same")(inputs)
    for filters in (8, 12):
        squeezed = layers.Conv2D(filters // 2, 1, activation="relu")(x)
        expanded = [layers.Conv2D(filters, k, padding="same", activation="relu")(squeezed) for k in (1, 3)]
        x = layers.Concatenate()(expanded)
    return scored(inputs, x)


@corpus_model(images(), kinds="A")
def ghostnet_block() -> keras.Model:
    """GhostNet: half of the feature maps are made of the other half by a depthwise convolution."""
    inputs = keras.Input((16, 16, 3))
    x = conv_bn(inputs, 12)
    primary = conv_bn(x, 12, 1)
    expanded = layers.Concatenate()([primary, depthwise_bn(primary)])
    narrow = conv_bn(squeeze_excited(expanded, gate="hard_sigmoid"), 6, 1, activation=None)
    ghosts = layers.Concatenate()([narrow, depthwise_bn(narrow, activation=None)])
    return scored(inputs, layers.Add()([x, ghosts]))


@corpus_model(images())
def mobilenet_v1_block() -> keras.Model:
    """MobileNet V1: depthwise and pointwise convolutions with ReLU6."""
    inputs = keras.Input((16, 16, 3))
    x = conv_bn(inputs, 8, activation="relu6", strides=2)
    for filters in (16, 24):
        x = conv_bn(depthwise_bn(x, activation="relu6"), filters, 1, "relu6")
    return classified(inputs, x)


@corpus_model(images())
def mobilenet_v2_block() -> keras.Model:
    """MobileNet V2: inverted residuals with linear bottlenecks."""
    inputs = keras.Input((16, 16, 3))
    x = conv_bn(inputs, 8, activation="relu6", strides=2)
    for _ in range(2):
        branch = depthwise_bn(conv_bn(x, 32, 1, "relu6"), activation="relu6")
        x = layers.Add()([x, conv_bn(branch, 8, 1, activation=None)])
    return classified(inputs, x)


@corpus_model(images())
def mobilenet_v3_block() -> keras.Model:
    """MobileNet V3: inverted residuals with hard-swish and a squeeze-excite gated by a hard sigmoid."""
    inputs = keras.Input((16, 16, 3))
    x = conv_bn(inputs, 8, activation="hard_swish", strides=2)
    for _ in range(2):
        branch = depthwise_bn(conv_bn(x, 24, 1, "hard_swish"), 5, "hard_swish")
        branch = squeeze_excited(branch, gate="hard_sigmoid")
        x = layers.Add()([x, conv_bn(branch, 8, 1, activation=None)])
    return classified(inputs, x)


@corpus_model(images())
def efficientnet_mbconv() -> keras.Model:
    """EfficientNet: MBConv with swish and squeeze-excite."""
    inputs = keras.Input((16, 16, 3))
    x = conv_bn(layers.Rescaling(2.0, -1.0)(inputs), 8, activation="swish", strides=2)
    for _ in range(2):
        branch = depthwise_bn(conv_bn(x, 32, 1, "swish"), activation="swish")
        x = layers.Add()([x, conv_bn(squeeze_excited(branch, 8), 8, 1, activation=None)])
    return classified(inputs, x)


@corpus_model(images())
def convnext_block() -> keras.Model:
    """ConvNeXt: patches, 7x7 depthwise convolution, layer normalization, GELU and a small learned scale."""
    inputs = keras.Input((16, 16, 3))
    x = layers.LayerNormalization()(layers.Conv2D(16, 2, strides=2)(inputs))
    for _ in range(2):
        branch = layers.LayerNormalization()(layers.DepthwiseConv2D(7, padding="same")(x))
        branch = layers.Dense(16)(layers.Dense(48, activation="gelu")(branch))
        scale = layers.DepthwiseConv2D(1, use_bias=False, depthwise_initializer=keras.initializers.Constant(0.1))
        x = layers.Add()([x, scale(branch)])
    return scored(inputs, x)


@corpus_model(images())
def repvgg_block() -> keras.Model:
    """RepVGG in training form: 3x3, 1x1 and a batch-normalized identity summed."""
    inputs = keras.Input((16, 16, 3))
    x = conv_bn(inputs, 12)
    for _ in range(2):
        branches = [conv_bn(x, 12, 3, None), conv_bn(x, 12, 1, None), layers.BatchNormalization()(x)]
        x = layers.ReLU()(layers.Add()(branches))
    return scored(inputs, x)


@corpus_model(images())
def dilated_convolutions() -> keras.Model:
    """Dilated context module: rates 1, 2, 4."""
    inputs = keras.Input((16, 16, 3))
    x = inputs
    for rate in (1, 2, 4):
        x = conv_bn(x, 12, 3, dilation_rate=rate)
    return scored(inputs, x)


@corpus_model(images(channels=4))
def grouped_convolution() -> keras.Model:
    """Grouped convolutions with 2 and 4 groups."""
    inputs = keras.Input((16, 16, 4))
    x = layers.Conv2D(16, 3, groups=2, padding="same", activation="relu")(inputs)
    x = layers.Conv2D(16, 3, groups=4, strides=2, padding="same", activation="relu")(x)
    return scored(inputs, x)


@corpus_model(images())
def depthwise_multiplier() -> keras.Model:
    """Depthwise convolutions that give several maps per channel."""
    inputs = keras.Input((16, 16, 3))
    x = layers.DepthwiseConv2D(3, depth_multiplier=4, padding="same", activation="relu")(inputs)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, strides=2, activation="relu")(x)
    return scored(inputs, x)


@corpus_model(images())
def separable_convolution() -> keras.Model:
    """Xception: separable convolutions with a residual sum."""
    inputs = keras.Input((16, 16, 3))
    x = conv_bn(inputs, 16)
    branch = layers.BatchNormalization()(layers.SeparableConv2D(16, 3, padding="same", activation="relu")(x))
    branch = layers.BatchNormalization()(layers.SeparableConv2D(16, 3, padding="same")(branch))
    return scored(inputs, layers.Add()([x, branch]))


@corpus_model(images(), kinds="A")
def spatial_pyramid_pooling() -> keras.Model:
    """SPPF: a chain of max pools with stride 1, every stage concatenated."""
    inputs = keras.Input((16, 16, 3))
    stages = [conv_bn(inputs, 8, activation="swish", strides=2)]
    for _ in range(3):
        stages.append(layers.MaxPooling2D(5, 1, padding="same")(stages[-1]))
    return scored(inputs, conv_bn(layers.Concatenate()(stages), 16, 1, "swish"))


@corpus_model(images(), kinds="A")
def aspp() -> keras.Model:
    """DeepLab's ASPP: dilated branches and an image-level average that is spread over the map again."""
    inputs = keras.Input((16, 16, 3))
    x = conv_bn(inputs, 12, strides=2)
    pooled = conv_bn(layers.GlobalAveragePooling2D(keepdims=True)(x), 6, 1)
    pooled = layers.UpSampling2D(8, interpolation="bilinear")(pooled)
    branches = [conv_bn(x, 6, 1), conv_bn(x, 6, 3, dilation_rate=2), conv_bn(x, 6, 3, dilation_rate=3), pooled]
    return scored(inputs, conv_bn(layers.Concatenate()(branches), 12, 1))


@corpus_model(images(), kinds="A")
def pooling_kinds() -> keras.Model:
    """Average and max pools with either padding, overlapping and not."""
    inputs = keras.Input((16, 16, 3))
    x = conv_bn(inputs, 12, activation="tanh")
    pooled = [
        layers.AveragePooling2D(3, 2, padding="same")(x),
        layers.AveragePooling2D(2)(x),
        layers.MaxPooling2D(3, 2, padding="same")(x),
        layers.MaxPooling2D(2)(x),
    ]
    return scored(inputs, layers.Conv2D(12, 3, activation="relu")(layers.Concatenate()(pooled)))


@corpus_model(images(), kinds="A")
def average_pool_beside_reader() -> keras.Model:
    """An average pool of wide windows beside another reader of its input: the average spans far less."""
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(12, 3, padding="same")(inputs)
    averages = layers.AveragePooling2D(8)(x)
    details = layers.Conv2D(8, 3, strides=8, padding="same", activation="relu")(x)
    joined = layers.Concatenate()([layers.Conv2D(8, 1, activation="relu")(averages), details])
    return keras.Model(inputs, layers.Dense(6)(layers.Flatten()(joined)))


@corpus_model(images(), kinds="A")
def global_pooling_kinds() -> keras.Model:
    """Global average and maximum concatenated before the classifier."""
    inputs = keras.Input((16, 16, 3))
    x = conv_bn(conv_bn(inputs, 12), 16, strides=2)
    pooled = [layers.GlobalAveragePooling2D()(x), layers.GlobalMaxPooling2D()(x)]
    return keras.Model(inputs, layers.Dense(6)(layers.Concatenate()(pooled)))


@corpus_model(images())
def padding_kinds() -> keras.Model:
    """Zero padding on one side, cropping, valid and same convolutions."""
    inputs = keras.Input((16, 16, 3))
    x = layers.ZeroPadding2D(((0, 1), (0, 1)))(inputs)
    x = layers.Conv2D(12, 3, strides=2, activation="relu")(x)
    x = layers.Cropping2D(((1, 0), (0, 1)))(layers.Conv2D(12, 3, padding="same")(x))
    return scored(inputs, layers.ReLU()(layers.ZeroPadding2D(2)(x)))


@corpus_model(images())
def reflect_padding() -> keras.Model:
    """Style transfer: reflect and symmetric padding before valid convolutions."""
    inputs = keras.Input((16, 16, 3))
    x = ops.pad(inputs, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    x = layers.Conv2D(8, 5, activation="relu")(x)
    x = ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="symmetric")
    return keras.Model(inputs, layers.Conv2D(3, 3)(x))


@corpus_model(images(), kinds="B")
def constant_padding_before_max_pool() -> keras.Model:
    """A map padded with a very low constant so that the max pool never takes the border."""
    inputs = keras.Input((16, 16, 3))
    x = conv_bn(inputs, 12, activation=None)
    x = ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-1e9)
    return scored(inputs, layers.Conv2D(12, 3, activation="relu")(layers.MaxPooling2D(3, 2)(x)))


@corpus_model(images(), kinds="A")
def maxout_convolution() -> keras.Model:
    """Maxout: the larger of two convolutions, which are read by others too."""
    inputs = keras.Input((16, 16, 3))
    first, second = conv_bn(inputs, 12, activation=None), 3 * conv_bn(inputs, 12, activation=None)
    largest = layers.Maximum()([first, second])
    return scored(inputs, layers.Concatenate()([layers.Conv2D(8, 3)(largest), layers.Conv2D(8, 3)(first)]))


@corpus_model(images(), kinds="A")
def minimum_of_branches() -> keras.Model:
    """The smaller of two branches of different range."""
    inputs = keras.Input((16, 16, 3))
    first, second = conv_bn(inputs, 12), 4 * conv_bn(inputs, 12)
    smallest = layers.Minimum()([first, second])
    return scored(inputs, layers.Add()([conv_bn(smallest, 12), conv_bn(second, 12)]))


@corpus_model(images())
def highway_convolution() -> keras.Model:
    """Highway network: a gate mixes a convolution with its input."""
    inputs = keras.Input((16, 16, 3))
    x = conv_bn(inputs, 12)
    for _ in range(2):
        gate = layers.Conv2D(12, 3, padding="same", activation="sigmoid")(x)
        x = gate * conv_bn(x, 12) + (1.0 - gate) * x
    return scored(inputs, x)


@corpus_model(images())
def training_only_layers() -> keras.Model:
    """Dropout, spatial dropout, noise and activity regularization, all of them idle at inference."""
    inputs = keras.Input((16, 16, 3))
    x = layers.GaussianNoise(0.1)(inputs)
    x = layers.SpatialDropout2D(0.2)(conv_bn(x, 12))
    x = layers.ActivityRegularization(l2=1e-4)(layers.AlphaDropout(0.1)(conv_bn(x, 16, strides=2)))
    return scored(inputs, layers.Dropout(0.3)(layers.GaussianDropout(0.1)(x)))


@corpus_model(images())
def spectral_normalization() -> keras.Model:
    """A GAN's critic: spectrally normalized convolutions with leaky ReLU."""
    inputs = keras.Input((16, 16, 3))
    x = layers.SpectralNormalization(layers.Conv2D(12, 3, strides=2, padding="same"))(inputs)
    x = layers.LeakyReLU(negative_slope=0.2)(x)
    x = layers.SpectralNormalization(layers.Conv2D(16, 3, strides=2, padding="same"))(x)
    return scored(inputs, layers.LeakyReLU(negative_slope=0.2)(x), 1)


@corpus_model(images())
def batch_norm_without_convolution() -> keras.Model:
    """Normalization of the input and after a sum, where no convolution can take it in."""
    inputs = keras.Input((16, 16, 3))
    x = layers.BatchNormalization()(inputs)
    branches = [layers.Conv2D(12, 3, padding="same", activation="relu")(x) for _ in range(2)]
    x = layers.BatchNormalization(scale=False)(layers.Add()(branches))
    return scored(inputs, layers.BatchNormalization(center=False)(layers.MaxPooling2D(2)(x)))


@corpus_model(videos(), kinds="K")
def factorized_video_convolution() -> keras.Model:
    """R(2+1)D: spatial and temporal convolutions in turn, with a global maximum."""
    inputs = keras.Input((4, 8, 8, 1))
    x = inputs
    for filters in (6, 8):
        x = layers.Conv3D(filters, (1, 3, 3), padding="same", activation="relu")(x)
        x = layers.Conv3D(filters, (3, 1, 1), padding="same", activation="relu")(x)
    return keras.Model(inputs, layers.Dense(5)(layers.GlobalMaxPooling3D()(x)))


@trained_model(grating_task(), training=BRIEF)
def depthwise_classifier() -> keras.Model:
    """A trained depthwise-separable classifier, the usual network of small devices."""
    inputs = keras.Input((12, 12, 1))
    x = conv_bn(inputs, 12)
    for filters in (16, 20):
        x = conv_bn(depthwise_bn(x), filters, 1)
    return classified(inputs, x)


@trained_model(grating_task(), kinds="A", training=BRIEF)
def densenet_classifier() -> keras.Model:
    """A trained DenseNet block."""
    inputs = keras.Input((12, 12, 1))
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    for _ in range(3):
        x = layers.Concatenate()([x, conv_bn(x, 6)])
    return classified(inputs, x)


@trained_model(grating_task(), kinds="A", training=BRIEF)
def shufflenet_classifier() -> keras.Model:
    """A trained ShuffleNet V2 block."""
    inputs = keras.Input((12, 12, 1))
    x = conv_bn(inputs, 12)
    kept, branch = ops.split(x, 2, axis=-1)
    branch = conv_bn(depthwise_bn(conv_bn(branch, 6, 1), activation=None), 6, 1)
    x = channel_shuffle(layers.Concatenate()([kept, branch]), 2)
    return classified(inputs, conv_bn(x, 16))


@corpus_model(videos(), kinds="K")
def volumetric_pooling() -> keras.Model:
    """A 3-D network on short videos: Conv3D with average and max pools."""
    inputs = keras.Input((4, 8, 8, 1))
    x = layers.Conv3D(6, 3, padding="same", activation="relu")(inputs)
    x = layers.MaxPooling3D((1, 2, 2))(x)
    x = layers.AveragePooling3D(2)(layers.Conv3D(8, 3, padding="same", activation="relu")(x))
    return keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling3D()(x)))
