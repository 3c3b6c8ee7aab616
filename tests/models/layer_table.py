"""One obvious construction of every layer class of Keras 3: (layer, shapes of its inputs, dtype of them)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras

K = keras.layers


@dataclass(frozen=True)
class Case:
    """A layer class and how it is called; more than one shape means a list of inputs."""

    make: Callable[[], Any]
    shapes: tuple[tuple[int, ...], ...] = ((6,),)
    dtype: str = "float32"
    separate_inputs: bool = False  # the inputs are arguments of their own instead of one list


IMAGE, LINE, CUBE, VIDEO = ((8, 8, 3),), ((8, 3),), ((4, 4, 4, 2),), ((3, 6, 6, 2),)
TWO_VECTORS = ((6,), (6,))
SEQUENCES = ((5, 4), (7, 4))

LAYERS: dict[str, Case] = {
    "Activation": Case(lambda: K.Activation("relu")),
    "ActivityRegularization": Case(lambda: K.ActivityRegularization(l2=0.1)),
    "AdaptiveAveragePooling1D": Case(lambda: K.AdaptiveAveragePooling1D(4), LINE),
    "AdaptiveAveragePooling2D": Case(lambda: K.AdaptiveAveragePooling2D(4), IMAGE),
    "AdaptiveAveragePooling3D": Case(lambda: K.AdaptiveAveragePooling3D(2), CUBE),
    "AdaptiveMaxPooling1D": Case(lambda: K.AdaptiveMaxPooling1D(4), LINE),
    "AdaptiveMaxPooling2D": Case(lambda: K.AdaptiveMaxPooling2D(4), IMAGE),
    "AdaptiveMaxPooling3D": Case(lambda: K.AdaptiveMaxPooling3D(2), CUBE),
    "Add": Case(lambda: K.Add(), TWO_VECTORS),
    "AdditiveAttention": Case(lambda: K.AdditiveAttention(), SEQUENCES),
    "AlphaDropout": Case(lambda: K.AlphaDropout(0.2)),
    "Attention": Case(lambda: K.Attention(use_scale=True), SEQUENCES),
    "AugMix": Case(lambda: K.AugMix(), IMAGE),
    "AutoContrast": Case(lambda: K.AutoContrast(), IMAGE),
    "Average": Case(lambda: K.Average(), TWO_VECTORS),
    "AveragePooling1D": Case(lambda: K.AveragePooling1D(2), LINE),
    "AveragePooling2D": Case(lambda: K.AveragePooling2D(2, padding="same"), IMAGE),
    "AveragePooling3D": Case(lambda: K.AveragePooling3D(2), CUBE),
    "BatchNormalization": Case(lambda: K.BatchNormalization()),
    "Bidirectional": Case(lambda: K.Bidirectional(K.GRU(3, return_sequences=True), merge_mode="sum"), LINE),
    "CategoryEncoding": Case(lambda: K.CategoryEncoding(9, output_mode="multi_hot"), dtype="int32"),
    "CenterCrop": Case(lambda: K.CenterCrop(5, 4), IMAGE),
    "Concatenate": Case(lambda: K.Concatenate(), TWO_VECTORS),
    "ContrastLimitedAdaptiveHistogramEqualization": Case(
        lambda: K.ContrastLimitedAdaptiveHistogramEqualization(), IMAGE
    ),
    "Conv1D": Case(lambda: K.Conv1D(6, 3, groups=3, dilation_rate=2, activation="squareplus"), LINE),
    "Conv1DTranspose": Case(lambda: K.Conv1DTranspose(4, 3, strides=2, activation="tanh_shrink"), LINE),
    "Conv2D": Case(lambda: K.Conv2D(6, 3, groups=3, activation="celu"), IMAGE),
    "Conv2DTranspose": Case(lambda: K.Conv2DTranspose(4, 3, strides=2, output_padding=1, padding="same"), IMAGE),
    "Conv3D": Case(lambda: K.Conv3D(3, 2, activation="hard_tanh"), CUBE),
    "Conv3DTranspose": Case(lambda: K.Conv3DTranspose(3, 2, strides=2), CUBE),
    "ConvLSTM1D": Case(lambda: K.ConvLSTM1D(3, 2, return_sequences=True), ((3, 6, 2),)),
    "ConvLSTM2D": Case(lambda: K.ConvLSTM2D(3, 2), VIDEO),
    "ConvLSTM3D": Case(lambda: K.ConvLSTM3D(2, 2), ((2, 4, 4, 4, 2),)),
    "Cropping1D": Case(lambda: K.Cropping1D((1, 2)), LINE),
    "Cropping2D": Case(lambda: K.Cropping2D(((1, 2), (0, 1))), IMAGE),
    "Cropping3D": Case(lambda: K.Cropping3D(1), CUBE),
    "CutMix": Case(lambda: K.CutMix(), IMAGE),
    "Dense": Case(lambda: K.Dense(4, activation="sparse_plus"), IMAGE),
    "DepthwiseConv1D": Case(lambda: K.DepthwiseConv1D(3, depth_multiplier=2), LINE),
    "DepthwiseConv2D": Case(lambda: K.DepthwiseConv2D(3, depth_multiplier=2, activation="sparse_sigmoid"), IMAGE),
    "Discretization": Case(lambda: K.Discretization(bin_boundaries=[-0.5, 0.0, 0.5])),
    "Dot": Case(lambda: K.Dot(axes=1, normalize=True), TWO_VECTORS),
    "Dropout": Case(lambda: K.Dropout(0.2)),
    "ELU": Case(lambda: K.ELU(0.7)),
    "EinsumDense": Case(lambda: K.EinsumDense("abc,cd->abd", (None, 5), bias_axes="d", activation="soft_shrink"), LINE),
    "Embedding": Case(lambda: K.Embedding(9, 4), dtype="int32"),
    "Flatten": Case(lambda: K.Flatten(), IMAGE),
    "GRU": Case(lambda: K.GRU(3), LINE),
    "GRUCell": Case(lambda: K.RNN(K.GRUCell(3)), LINE),
    "GaussianDropout": Case(lambda: K.GaussianDropout(0.2)),
    "GaussianNoise": Case(lambda: K.GaussianNoise(0.2)),
    "GlobalAveragePooling1D": Case(lambda: K.GlobalAveragePooling1D(), LINE),
    "GlobalAveragePooling2D": Case(lambda: K.GlobalAveragePooling2D(keepdims=True), IMAGE),
    "GlobalAveragePooling3D": Case(lambda: K.GlobalAveragePooling3D(), CUBE),
    "GlobalMaxPooling1D": Case(lambda: K.GlobalMaxPooling1D(), LINE),
    "GlobalMaxPooling2D": Case(lambda: K.GlobalMaxPooling2D(), IMAGE),
    "GlobalMaxPooling3D": Case(lambda: K.GlobalMaxPooling3D(), CUBE),
    "GroupNormalization": Case(lambda: K.GroupNormalization(3), IMAGE),
    "GroupQueryAttention": Case(lambda: K.GroupQueryAttention(4, 4, 2), SEQUENCES, separate_inputs=True),
    "HashedCrossing": Case(lambda: K.HashedCrossing(5), ((1,), (1,)), dtype="int32"),
    "Hashing": Case(lambda: K.Hashing(5), dtype="int32"),
    "Identity": Case(lambda: K.Identity()),
    "IntegerLookup": Case(lambda: K.IntegerLookup(vocabulary=[1, 2, 3]), dtype="int32"),
    "LSTM": Case(lambda: K.LSTM(3, go_backwards=True), LINE),
    "LSTMCell": Case(lambda: K.RNN(K.LSTMCell(3), return_sequences=True), LINE),
    "Lambda": Case(lambda: K.Lambda(lambda x: keras.ops.square(x) + 1)),
    "LayerNormalization": Case(lambda: K.LayerNormalization(axis=[1, 2]), LINE),
    "LeakyReLU": Case(lambda: K.LeakyReLU(0.1)),
    "Masking": Case(lambda: K.Masking(0.0), LINE),
    "MaxNumBoundingBoxes": Case(lambda: K.MaxNumBoundingBoxes(4), IMAGE),
    "MaxPooling1D": Case(lambda: K.MaxPooling1D(2), LINE),
    "MaxPooling2D": Case(lambda: K.MaxPooling2D(2), IMAGE),
    "MaxPooling3D": Case(lambda: K.MaxPooling3D(2), CUBE),
    "Maximum": Case(lambda: K.Maximum(), TWO_VECTORS),
    "MelSpectrogram": Case(lambda: K.MelSpectrogram(fft_length=64, sequence_stride=32, num_mel_bins=8), ((256,),)),
    "Minimum": Case(lambda: K.Minimum(), TWO_VECTORS),
    "MixUp": Case(lambda: K.MixUp(), IMAGE),
    "MultiHeadAttention": Case(lambda: K.MultiHeadAttention(2, 3, value_dim=4), SEQUENCES, separate_inputs=True),
    "Multiply": Case(lambda: K.Multiply(), TWO_VECTORS),
    "Normalization": Case(lambda: K.Normalization(mean=1.0, variance=2.0)),
    "PReLU": Case(lambda: K.PReLU(shared_axes=[1]), IMAGE),
    "Permute": Case(lambda: K.Permute((2, 1)), LINE),
    "Pipeline": Case(lambda: K.Pipeline([K.Rescaling(2.0), K.Rescaling(0.5)]), IMAGE),
    "RMSNormalization": Case(lambda: K.RMSNormalization()),
    "RNN": Case(lambda: K.RNN([K.SimpleRNNCell(3), K.GRUCell(2)]), LINE),
    "RandAugment": Case(lambda: K.RandAugment(), IMAGE),
    "RandomBrightness": Case(lambda: K.RandomBrightness(0.2), IMAGE),
    "RandomColorDegeneration": Case(lambda: K.RandomColorDegeneration(0.2), IMAGE),
    "RandomColorJitter": Case(lambda: K.RandomColorJitter(brightness_factor=0.2), IMAGE),
    "RandomContrast": Case(lambda: K.RandomContrast(0.2), IMAGE),
    "RandomCrop": Case(lambda: K.RandomCrop(5, 5), IMAGE),
    "RandomElasticTransform": Case(lambda: K.RandomElasticTransform(), IMAGE),
    "RandomErasing": Case(lambda: K.RandomErasing(), IMAGE),
    "RandomFlip": Case(lambda: K.RandomFlip("horizontal"), IMAGE),
    "RandomGaussianBlur": Case(lambda: K.RandomGaussianBlur(), IMAGE),
    "RandomGrayscale": Case(lambda: K.RandomGrayscale(), IMAGE),
    "RandomHue": Case(lambda: K.RandomHue(0.2), IMAGE),
    "RandomInvert": Case(lambda: K.RandomInvert(), IMAGE),
    "RandomPerspective": Case(lambda: K.RandomPerspective(), IMAGE),
    "RandomPosterization": Case(lambda: K.RandomPosterization(4), IMAGE),
    "RandomRotation": Case(lambda: K.RandomRotation(0.2), IMAGE),
    "RandomSaturation": Case(lambda: K.RandomSaturation(0.2), IMAGE),
    "RandomSharpness": Case(lambda: K.RandomSharpness(0.2), IMAGE),
    "RandomShear": Case(lambda: K.RandomShear(), IMAGE),
    "RandomTranslation": Case(lambda: K.RandomTranslation(0.2, 0.2), IMAGE),
    "RandomZoom": Case(lambda: K.RandomZoom(0.2), IMAGE),
    "ReLU": Case(lambda: K.ReLU(6.0, negative_slope=0.1, threshold=0.1)),
    "RepeatVector": Case(lambda: K.RepeatVector(3)),
    "Rescaling": Case(lambda: K.Rescaling(0.5, offset=-1.0)),
    "Reshape": Case(lambda: K.Reshape((-1, 2))),
    "Resizing": Case(lambda: K.Resizing(5, 7), IMAGE),
    "ReversibleEmbedding": Case(lambda: K.ReversibleEmbedding(9, 4), dtype="int32"),
    "STFTSpectrogram": Case(lambda: K.STFTSpectrogram(frame_length=32, frame_step=16, fft_length=32), ((128, 1),)),
    "SeparableConv1D": Case(lambda: K.SeparableConv1D(4, 3, activation="hard_shrink"), LINE),
    "SeparableConv2D": Case(lambda: K.SeparableConv2D(4, 3, activation="log_sigmoid"), IMAGE),
    "SimpleRNN": Case(lambda: K.SimpleRNN(3), LINE),
    "SimpleRNNCell": Case(lambda: K.RNN(K.SimpleRNNCell(3)), LINE),
    "Softmax": Case(lambda: K.Softmax(axis=1), LINE),
    "Solarization": Case(lambda: K.Solarization(), IMAGE),
    "SpatialDropout1D": Case(lambda: K.SpatialDropout1D(0.2), LINE),
    "SpatialDropout2D": Case(lambda: K.SpatialDropout2D(0.2), IMAGE),
    "SpatialDropout3D": Case(lambda: K.SpatialDropout3D(0.2), CUBE),
    "SpectralNormalization": Case(lambda: K.SpectralNormalization(K.Dense(4))),
    "StackedRNNCells": Case(lambda: K.RNN(K.StackedRNNCells([K.LSTMCell(3), K.GRUCell(2)])), LINE),
    "Subtract": Case(lambda: K.Subtract(), TWO_VECTORS),
    "TimeDistributed": Case(lambda: K.TimeDistributed(K.Conv2D(3, 2, activation="relu6")), VIDEO),
    "UnitNormalization": Case(lambda: K.UnitNormalization()),
    "UpSampling1D": Case(lambda: K.UpSampling1D(2), LINE),
    "UpSampling2D": Case(lambda: K.UpSampling2D(2, interpolation="bilinear"), IMAGE),
    "UpSampling3D": Case(lambda: K.UpSampling3D(2), CUBE),
    "ZeroPadding1D": Case(lambda: K.ZeroPadding1D(1), LINE),
    "ZeroPadding2D": Case(lambda: K.ZeroPadding2D(((1, 0), (2, 1))), IMAGE),
    "ZeroPadding3D": Case(lambda: K.ZeroPadding3D(1), CUBE),
}
# text in, foreign programs, classes that are no layer by themselves, and one that Keras itself cannot put in a graph
WITHOUT_CASE = {
    "Equalization", "FlaxLayer", "InputLayer", "JaxLayer", "Layer", "StringLookup", "TFSMLayer", "TextVectorization",
    "TorchModuleWrapper", "Wrapper",
}  # fmt: skip


def model_of(case: Case) -> Any:
    """A functional model of nothing but the layer."""
    inputs = [keras.Input(shape, dtype=case.dtype, name=f"in{i}") for i, shape in enumerate(case.shapes)]
    layer = case.make()
    outputs = layer(*inputs) if case.separate_inputs or len(inputs) == 1 else layer(inputs)
    return keras.Model(inputs, outputs, name="single")
