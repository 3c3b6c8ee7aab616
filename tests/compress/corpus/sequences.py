"""Sequences: convolutions over time, recurrent layers unrolled and as loops, sound, masks, states."""

import math
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from .corpus_model import Training, corpus_model, trained_model
from .samples import audio, named, padded_tone_task, series, tokens, tone_task, videos

RECURRENT = Training(epochs=12, learning_rate=0.02)


def classified(inputs: Any, x: Any, classes: int = 3) -> keras.Model:
    """The model that ends in class probabilities of the vector x."""
    return keras.Model(inputs, layers.Dense(classes, activation="softmax")(x))


@corpus_model(series(32, 4), in_ci=True)
def tcn() -> keras.Model:
    """Temporal convolutional network: dilated causal convolutions in residual blocks."""
    inputs = keras.Input((32, 4))
    x = layers.Conv1D(12, 1)(inputs)
    for rate in (1, 2, 4):
        branch = layers.Conv1D(12, 3, padding="causal", dilation_rate=rate, activation="relu")(x)
        branch = layers.Conv1D(12, 3, padding="causal", dilation_rate=rate)(layers.SpatialDropout1D(0.1)(branch))
        x = layers.ReLU()(layers.Add()([x, branch]))
    return keras.Model(inputs, layers.Dense(5)(x[:, -1]))


@trained_model(tone_task(32))
def tcn_classifier() -> keras.Model:
    """A temporal convolutional classifier with batch normalization, trained."""
    inputs = keras.Input((32, 2))
    x = inputs
    for rate in (1, 2, 4):
        x = layers.Conv1D(10, 3, padding="causal", dilation_rate=rate, use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    return classified(inputs, layers.GlobalAveragePooling1D()(x))


@corpus_model(series(24, 4))
def causal_convolution() -> keras.Model:
    """Causal convolutions, the last step as output."""
    inputs = keras.Input((24, 4))
    x = inputs
    for _ in range(3):
        x = layers.Conv1D(12, 4, padding="causal", activation="relu")(x)
    return keras.Model(inputs, layers.Dense(3)(x[:, -1, :]))


@corpus_model(series(32, 6), kinds="A")
def convolution_and_pooling_1d() -> keras.Model:
    """Sensor data: convolutions with batch normalization, average and max pools over time."""
    inputs = keras.Input((32, 6))
    x = layers.Conv1D(12, 5, padding="same", use_bias=False)(inputs)
    x = layers.MaxPooling1D(2)(layers.ReLU()(layers.BatchNormalization()(x)))
    x = layers.AveragePooling1D(2)(layers.Conv1D(16, 3, activation="relu")(x))
    pooled = [layers.GlobalMaxPooling1D()(x), layers.GlobalAveragePooling1D()(x)]
    return keras.Model(inputs, layers.Dense(5)(layers.Concatenate()(pooled)))


@corpus_model(series(24, 6))
def depthwise_and_separable_convolution_1d() -> keras.Model:
    """DepthwiseConv1D and SeparableConv1D with stride."""
    inputs = keras.Input((24, 6))
    x = layers.DepthwiseConv1D(5, depth_multiplier=2, padding="same", activation="relu")(inputs)
    x = layers.SeparableConv1D(16, 3, strides=2, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling1D()(x)))


@corpus_model(series(32, 2), kinds="A")
def unet_1d() -> keras.Model:
    """A U-Net over time for denoising: transposed convolution and upsampling, skips joined."""
    inputs = keras.Input((32, 2))
    fine = layers.Conv1D(8, 5, padding="same", activation="relu")(inputs)
    middle = layers.Conv1D(12, 5, strides=2, padding="same", activation="relu")(fine)
    x = layers.UpSampling1D(2)(layers.Conv1D(16, 5, strides=2, padding="same", activation="relu")(middle))
    x = layers.Conv1DTranspose(8, 4, strides=2, padding="same")(layers.Concatenate()([x, middle]))
    return keras.Model(inputs, layers.Conv1D(2, 5, padding="same")(layers.Concatenate()([x, fine])))


@corpus_model(audio(64))
def wavenet_gates() -> keras.Model:
    """WaveNet: tanh times sigmoid of dilated causal convolutions, residual sums, skips added up."""
    inputs = keras.Input((64, 1))
    x, skips = layers.Conv1D(10, 2, padding="causal")(inputs), []
    for rate in (1, 2, 4, 8):
        value = layers.Conv1D(10, 2, padding="causal", dilation_rate=rate, activation="tanh")(x)
        gate = layers.Conv1D(10, 2, padding="causal", dilation_rate=rate, activation="sigmoid")(x)
        gated = layers.Multiply()([value, gate])
        skips.append(layers.Conv1D(12, 1)(gated))
        x = layers.Add()([x, layers.Conv1D(10, 1)(gated)])
    return keras.Model(inputs, layers.Conv1D(6, 1)(layers.ReLU()(layers.Add()(skips))))


@corpus_model(series(16, 8))
def squeeze_excite_1d() -> keras.Model:
    """ECAPA: a squeeze-excite over time and attentive statistics, mean and deviation."""
    inputs = keras.Input((16, 8))
    x = layers.Conv1D(12, 3, padding="same", activation="relu")(inputs)
    gates = layers.Dense(12, activation="sigmoid")(layers.Dense(4, activation="relu")(ops.mean(x, axis=1)))
    x = x * ops.expand_dims(gates, 1)
    weights = layers.Softmax(axis=1)(layers.Conv1D(12, 1)(x))
    mean = ops.sum(weights * x, axis=1)
    variance = ops.sum(weights * ops.square(x), axis=1) - ops.square(mean)
    deviation = ops.sqrt(ops.maximum(variance, 1e-4))
    return keras.Model(inputs, layers.Dense(5)(layers.Concatenate()([mean, deviation])))


@trained_model(tone_task(), kinds="I", training=RECURRENT, in_ci=True)
def lstm_unrolled() -> keras.Model:
    """An LSTM of 16 steps, unrolled, trained."""
    inputs = keras.Input((16, 2))
    return classified(inputs, layers.LSTM(12, unroll=True)(inputs))


@trained_model(tone_task(), kinds="AI", training=RECURRENT)
def gru_unrolled() -> keras.Model:
    """A GRU of 16 steps, unrolled, trained."""
    inputs = keras.Input((16, 2))
    return classified(inputs, layers.GRU(12, unroll=True)(inputs))


@trained_model(tone_task(12), kinds="I", training=RECURRENT)
def simple_rnn_unrolled() -> keras.Model:
    """A SimpleRNN of 12 steps, unrolled, trained."""
    inputs = keras.Input((12, 2))
    return classified(inputs, layers.SimpleRNN(16, unroll=True)(inputs))


@trained_model(tone_task(12), kinds="AI", training=RECURRENT)
def bidirectional_lstm_unrolled() -> keras.Model:
    """An LSTM in both directions, unrolled, trained."""
    inputs = keras.Input((12, 2))
    return classified(inputs, layers.Bidirectional(layers.LSTM(8, unroll=True))(inputs))


@trained_model(tone_task(12), kinds="AI", training=RECURRENT)
def bidirectional_gru_unrolled() -> keras.Model:
    """A GRU in both directions that returns sequences, averaged, unrolled, trained."""
    inputs = keras.Input((12, 2))
    x = layers.Bidirectional(layers.GRU(8, unroll=True, return_sequences=True))(inputs)
    return classified(inputs, layers.GlobalAveragePooling1D()(x))


@trained_model(tone_task(12), kinds="I", training=RECURRENT)
def stacked_lstm_unrolled() -> keras.Model:
    """Two LSTMs, one upon the other, unrolled, trained."""
    inputs = keras.Input((12, 2))
    x = layers.LSTM(10, unroll=True, return_sequences=True)(inputs)
    return classified(inputs, layers.LSTM(10, unroll=True)(x))


@trained_model(padded_tone_task(), kinds="CI", training=RECURRENT)
def masking_lstm() -> keras.Model:
    """Masking(-10) before an unrolled LSTM, trained on series of different length."""
    inputs = keras.Input((16, 2))
    return classified(inputs, layers.LSTM(12, unroll=True)(layers.Masking(-10.0)(inputs)))


@trained_model(padded_tone_task(12), kinds="ACI", training=RECURRENT, in_ci=True)
def masking_gru() -> keras.Model:
    """Masking(-10) before an unrolled GRU, trained on series of different length."""
    inputs = keras.Input((12, 2))
    return classified(inputs, layers.GRU(12, unroll=True)(layers.Masking(-10.0)(inputs)))


@trained_model(padded_tone_task(12, padding=-999.0), kinds="C", training=RECURRENT)
def masking_convolution() -> keras.Model:
    """Masking(-999) before a convolution, which knows no masks: what is masked is zero, trained."""
    inputs = keras.Input((12, 2))
    x = layers.Conv1D(12, 3, activation="relu")(_without_mask(layers.Masking(-999.0)(inputs)))
    return classified(inputs, layers.GlobalMaxPooling1D()(x))


@corpus_model(padded_tone_task(12, padding=-999.0), kinds="C")
def masking_average() -> keras.Model:
    """Masking(-999), dense layers for each step, and the average of the steps that are there."""
    inputs = keras.Input((12, 2))
    x = layers.Masking(-999.0)(inputs)
    x = layers.Dense(16, activation="relu")(layers.Dense(16, activation="relu")(x))
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))


def _without_mask(x: Any) -> Any:
    return ops.multiply(x, 1.0)


@corpus_model(series(12, 4), kinds="I")
def lstm_return_sequences() -> keras.Model:
    """An unrolled LSTM that gives a value for each step."""
    inputs = keras.Input((12, 4))
    return keras.Model(inputs, layers.TimeDistributed(layers.Dense(2))(_sequence_of_lstm(inputs)))


def _sequence_of_lstm(x: Any, units: int = 10) -> Any:
    return layers.LSTM(units, unroll=True, return_sequences=True)(x)


@corpus_model(series(12, 6), kinds="I")
def residual_lstm() -> keras.Model:
    """LSTMs with residual sums and layer normalization between them."""
    inputs = keras.Input((12, 6))
    x = layers.Dense(10)(inputs)
    for _ in range(2):
        x = layers.LayerNormalization()(layers.Add()([x, _sequence_of_lstm(x)]))
    return keras.Model(inputs, layers.Dense(3)(x[:, -1]))


@corpus_model(series(10, 6), kinds="I")
def lstm_with_attention() -> keras.Model:
    """An unrolled LSTM whose steps are weighted by a softmax."""
    inputs = keras.Input((10, 6))
    x = _sequence_of_lstm(inputs)
    weights = layers.Softmax(axis=1)(layers.Dense(1, activation="tanh")(x))
    return keras.Model(inputs, layers.Dense(4)(ops.sum(weights * x, axis=1)))


@corpus_model(series(10, 4), kinds="I")
def sequence_to_sequence_lstm() -> keras.Model:
    """Forecast: an encoder's state starts the decoder, which reads the repeated code."""
    inputs = keras.Input((10, 4))
    code, hidden, cell = layers.LSTM(10, unroll=True, return_state=True)(inputs)
    decoder = layers.LSTM(10, unroll=True, return_sequences=True)
    x = decoder(layers.RepeatVector(6)(code), initial_state=[hidden, cell])
    return keras.Model(inputs, layers.TimeDistributed(layers.Dense(2))(x))


@corpus_model(series(12, 4), kinds="AI")
def gru_reset_before() -> keras.Model:
    """An unrolled GRU in its first form, with the reset gate before the product."""
    inputs = keras.Input((12, 4))
    return keras.Model(inputs, layers.Dense(3)(layers.GRU(12, unroll=True, reset_after=False)(inputs)))


@corpus_model(series(12, 4), kinds="AI")
def gru_backwards() -> keras.Model:
    """An unrolled GRU that reads the series from its end."""
    inputs = keras.Input((12, 4))
    return keras.Model(inputs, layers.Dense(3)(layers.GRU(12, unroll=True, go_backwards=True)(inputs)))


@corpus_model(series(12, 4), kinds="I")
def stacked_cells_unrolled() -> keras.Model:
    """keras.layers.RNN over stacked cells."""
    inputs = keras.Input((12, 4))
    cells = layers.StackedRNNCells([layers.GRUCell(8), layers.LSTMCell(8)])
    return keras.Model(inputs, layers.Dense(3)(layers.RNN(cells, unroll=True)(inputs)))


@corpus_model(series(20, 4), kinds="I")
def lstm_loop() -> keras.Model:
    """An LSTM as Keras makes it by default: a loop."""
    inputs = keras.Input((20, 4))
    return keras.Model(inputs, layers.Dense(3)(layers.LSTM(12)(inputs)))


@corpus_model(series(20, 4), kinds="I")
def gru_loop() -> keras.Model:
    """A GRU as Keras makes it by default: a loop."""
    inputs = keras.Input((20, 4))
    return keras.Model(inputs, layers.Dense(3)(layers.GRU(12)(inputs)))


@corpus_model(series(128, 2), kinds="AI")
def gru_loop_of_128_steps() -> keras.Model:
    """A GRU loop over as many steps as can just be unrolled."""
    inputs = keras.Input((128, 2))
    return keras.Model(inputs, layers.Dense(3)(layers.GRU(8)(inputs)))


@corpus_model(series(8, 4), kinds="GI")
def recurrent_dropout_lstm() -> keras.Model:
    """LSTM with dropout on input and state, idle at inference."""
    inputs = keras.Input((8, 4))
    x = layers.LSTM(10, unroll=True, dropout=0.2, recurrent_dropout=0.2, recurrent_activation="hard_sigmoid")(inputs)
    return keras.Model(inputs, layers.Dense(3)(x))


@corpus_model(series(10, 4), kinds="I")
def minimal_gated_unit() -> keras.Model:
    """A recurrent cell written by hand, step after step, with shared dense layers."""
    inputs = keras.Input((10, 4))
    gate_layer, candidate_layer = layers.Dense(10, activation="sigmoid"), layers.Dense(10, activation="tanh")
    state = ops.zeros_like(layers.Dense(10)(inputs[:, 0]))
    for step in range(10):
        gate = gate_layer(ops.concatenate([inputs[:, step], state], axis=-1))
        candidate = candidate_layer(ops.concatenate([inputs[:, step], gate * state], axis=-1))
        state = (1.0 - gate) * state + gate * candidate
    return keras.Model(inputs, layers.Dense(3)(state))


@corpus_model(videos(), kinds="I")
def convolutional_lstm() -> keras.Model:
    """ConvLSTM2D over a few frames, unrolled."""
    inputs = keras.Input((4, 8, 8, 1))
    x = layers.ConvLSTM2D(6, 3, padding="same", unroll=True)(inputs)
    return keras.Model(inputs, layers.Conv2D(1, 1)(x))


@corpus_model(videos())
def time_distributed_convolution() -> keras.Model:
    """One convolutional network for each frame, then a convolution over time."""
    inputs = keras.Input((4, 8, 8, 1))
    frame_layers = [layers.Conv2D(8, 3, strides=2, activation="relu"), layers.Flatten(), layers.Dense(12)]
    x = layers.TimeDistributed(keras.Sequential(frame_layers))(inputs)
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(layers.Conv1D(8, 3, activation="relu")(x))))


@corpus_model(series(24, 8), kinds="I")
def convolutional_recurrent() -> keras.Model:
    """CRNN for keywords: a strided convolution, an unrolled GRU, a dense layer."""
    inputs = keras.Input((24, 8))
    x = layers.Conv1D(12, 5, strides=3, padding="same", activation="relu")(inputs)
    return keras.Model(inputs, layers.Dense(4)(layers.GRU(10, unroll=True)(x)))


@trained_model(tone_task(16, 4))
def keyword_spotting() -> keras.Model:
    """DS-CNN: a spectrogram as an image through depthwise-separable blocks, trained."""
    inputs = keras.Input((16, 4))
    x = layers.Conv2D(12, (5, 3), padding="same", activation="relu")(layers.Reshape((16, 4, 1))(inputs))
    for _ in range(2):
        x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
        x = layers.Conv2D(16, 1, activation="relu")(x)
    return classified(inputs, layers.GlobalAveragePooling2D()(x))


def _power_spectrogram(sound: Any, window: int = 32, hop: int = 16) -> Any:
    """The squared magnitudes of a Fourier transform by convolutions with sines and cosines."""
    angles = 2 * np.pi * np.outer(np.arange(window), np.arange(window // 2)) / window
    taper = np.hanning(window)[:, None]
    kernels = [(wave(angles) * taper)[:, None].astype("float32") for wave in (np.cos, np.sin)]
    parts = [ops.conv(sound, kernel, strides=hop, padding="valid") for kernel in kernels]
    return ops.square(parts[0]) + ops.square(parts[1])


@corpus_model(audio(), kinds="L", in_ci=True)
def log_square_spectrogram() -> keras.Model:
    """A spectrogram computed inside the model: the logarithm of a sum of squares, then convolutions."""
    inputs = keras.Input((256, 1))
    x = ops.log(_power_spectrogram(inputs) + 1e-6)
    x = layers.Conv1D(12, 3, activation="relu")(layers.BatchNormalization()(x))
    return keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling1D()(x)))


@corpus_model(audio(), kinds="L")
def log_square_spectrogram_output() -> keras.Model:
    """The spectrogram in decibels as the output itself."""
    inputs = keras.Input((256, 1))
    decibels = 10.0 / math.log(10.0) * ops.log(ops.maximum(_power_spectrogram(inputs), 1e-8))
    return keras.Model(inputs, decibels)


@corpus_model(audio(), kinds="L")
def log_mel_spectrogram() -> keras.Model:
    """Squares through a bank of triangular filters, the logarithm, and depthwise-separable convolutions."""
    inputs = keras.Input((256, 1))
    bank = np.maximum(0, 1 - np.abs(np.subtract.outer(np.arange(16) / 2, np.arange(8)))).astype("float32")
    x = ops.log(ops.matmul(_power_spectrogram(inputs), bank) + 1e-5)
    x = layers.SeparableConv1D(12, 3, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(4)(layers.Flatten()(x)))


@corpus_model(audio(), kinds="L")
def magnitude_spectrogram() -> keras.Model:
    """The square root of the sum of squares, compressed by a power."""
    inputs = keras.Input((256, 1))
    x = ops.power(ops.sqrt(_power_spectrogram(inputs) + 1e-7), 0.3)
    return keras.Model(inputs, layers.Dense(4)(layers.Flatten()(layers.Conv1D(8, 3, activation="relu")(x))))


@corpus_model(audio(), kinds="L")
def stft_spectrogram_layer() -> keras.Model:
    """keras.layers.STFTSpectrogram with its logarithm mode."""
    inputs = keras.Input((256, 1))
    x = layers.STFTSpectrogram(mode="log", frame_length=32, frame_step=16, fft_length=32)(inputs)
    return keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling1D()(layers.Conv1D(8, 3)(x))))


@corpus_model(audio(), kinds="L")
def log_energy() -> keras.Model:
    """The logarithm of the mean square of each frame, joined with the number of zero crossings' smooth form."""
    inputs = keras.Input((256, 1))
    frames = layers.Reshape((16, 16))(inputs)
    energy = ops.log(ops.mean(ops.square(frames), axis=-1, keepdims=True) + 1e-6)
    crossings = ops.mean(ops.tanh(-100.0 * frames[..., 1:] * frames[..., :-1]), axis=-1, keepdims=True)
    x = layers.Conv1D(8, 3, activation="relu")(layers.Concatenate()([energy, crossings]))
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


@corpus_model(audio())
def raw_audio_convolution() -> keras.Model:
    """M5: strided convolutions on the waveform."""
    inputs = keras.Input((256, 1))
    x = layers.Conv1D(12, 16, strides=8, use_bias=False)(inputs)
    x = layers.MaxPooling1D(2)(layers.ReLU()(layers.BatchNormalization()(x)))
    x = layers.Conv1D(16, 3, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling1D()(x)))


@corpus_model(named(frame=series(1, 6), state=series(1, 10, 0.3)), kinds="AGHI", in_ci=True)
def streaming_gru_step() -> keras.Model:
    """One step of a GRU whose state is an input and an output: how a stream is exported."""
    frame, state = keras.Input((1, 6), name="frame"), keras.Input((1, 10), name="state")
    cell = layers.GRUCell(10)
    output, states = cell(frame[:, 0], [state[:, 0]])
    new_state = layers.Reshape((1, 10), name="new_state")(states[0])
    return keras.Model([frame, state], {"scores": layers.Dense(3, name="scores")(output), "new_state": new_state})


@corpus_model(named(frame=series(1, 4), history=series(8, 4)), kinds="AGH")
def streaming_convolution_step() -> keras.Model:
    """One step of a causal convolution: the past frames are an input, moved on by one as an output."""
    frame, history = keras.Input((1, 4), name="frame"), keras.Input((8, 4), name="history")
    window = layers.Concatenate(axis=1)([history, frame])
    x = layers.Conv1D(10, 9, activation="relu")(window)
    scores = layers.Dense(3, name="scores")(layers.Flatten()(x))
    return keras.Model([frame, history], [scores, layers.Identity(name="new_history")(window[:, 1:])])


@corpus_model(tokens(12, 30), kinds="BI")
def embedding_lstm_mask_zero() -> keras.Model:
    """A text model: an embedding that masks zeros before an unrolled LSTM."""
    inputs = keras.Input((12,), dtype="int32")
    x = layers.Embedding(30, 8, mask_zero=True)(inputs)
    return keras.Model(inputs, layers.Dense(3)(layers.LSTM(10, unroll=True)(x)))
