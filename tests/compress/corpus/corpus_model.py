"""What an entry of the corpus is, and the decorators that turn a function which builds an architecture into one."""

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from .samples import Array, Arrays, Sampler, SampleSet

SAMPLE_COUNT = 256
TRAINING_COUNT = 1024
KERNEL_GAIN = 1.4  # keeps the signal of deep random networks: ReLU halves the variance that Keras' default preserves
SETTLING_COUNT = 64  # samples that set the statistics of a BatchNormalization


@dataclass(frozen=True)
class Training:
    """How a model of the corpus is trained."""

    epochs: int = 8
    learning_rate: float = 0.01
    batch_size: int = 64


@dataclass(frozen=True)
class CorpusModel:
    """One small model with samples; `kinds` are the letters A-M of the quantization faults that it can show.

    The samples are none of those that the model was trained on.
    """

    name: str
    architecture: Callable[[], keras.Model]
    sampler: Sampler
    kinds: tuple[str, ...] = ()
    training: Training | None = None
    in_ci: bool = False
    float_conversion_note: str = ""  # why no float .tflite comes out of it; empty where one does

    @property
    def is_trained(self) -> bool:
        """Whether `build` trains the model, so that its labels say something."""
        return self.training is not None

    @property
    def labels(self) -> Array | None:
        """The label of each sample, or of each step of each sample, where the model is trained."""
        return self._sample_set(SAMPLE_COUNT, stream=0).labels if self.is_trained else None

    def samples(self) -> Arrays:
        """One array, or one per input name where there are several."""
        return self._sample_set(SAMPLE_COUNT, stream=0).samples

    def build(self) -> keras.Model:
        """The model, with the same weights every time.

        Trained convolutions may differ in the last bits, and so in their weights, on another number of threads.
        """
        keras.utils.clear_session()  # the names of its layers then do not depend on what was built before
        keras.utils.set_random_seed(self.seed)
        model = self.architecture()
        if self.training is not None:
            _train(model, self._sample_set(TRAINING_COUNT, stream=1), self.training)
        else:
            _settle(model, self._sample_set(SETTLING_COUNT, stream=1).samples, np.random.default_rng(self.seed))
        return model

    @property
    def seed(self) -> int:
        """The seed of its weights and samples."""
        return zlib.crc32(self.name.encode())

    def _sample_set(self, count: int, stream: int) -> SampleSet:
        return self.sampler(np.random.default_rng([self.seed, stream]), count)


def corpus_model(
    sampler: Sampler, kinds: str = "", in_ci: bool = False, float_conversion_note: str = ""
) -> Callable[[Callable[[], keras.Model]], CorpusModel]:
    """Make a corpus entry, named like the function, of a function that builds a model; its weights stay random."""

    def decorate(architecture: Callable[[], keras.Model]) -> CorpusModel:
        name = architecture.__name__
        return CorpusModel(name, architecture, sampler, tuple(kinds), None, in_ci, float_conversion_note)

    return decorate


def trained_model(
    task: Sampler, kinds: str = "", training: Training | None = None, in_ci: bool = False
) -> Callable[[Callable[[], keras.Model]], CorpusModel]:
    """As `corpus_model`, and the model, which ends in a softmax over the classes, is trained on the task."""

    def decorate(architecture: Callable[[], keras.Model]) -> CorpusModel:
        return CorpusModel(architecture.__name__, architecture, task, tuple(kinds), training or Training(), in_ci)

    return decorate


def _train(model: keras.Model, task: SampleSet, training: Training) -> None:
    optimizer = keras.optimizers.Adam(training.learning_rate)
    model.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=False)
    inputs = _ordered_inputs(model, task.samples)
    with _rolled_recurrence(model):
        model.fit(inputs, task.labels, batch_size=training.batch_size, epochs=training.epochs, verbose=0)


@contextmanager
def _rolled_recurrence(model: keras.Model) -> Iterator[None]:
    """Recurrent layers run as loops inside the block: the same numbers, and training starts in a third of the time."""
    unrolled_layers = [layer for layer in _all_layers(model) if getattr(layer, "unroll", False)]
    for layer in unrolled_layers:
        layer.unroll = False
    try:
        yield
    finally:
        for layer in unrolled_layers:
            layer.unroll = True


def _settle(model: keras.Model, samples: Arrays, generator: np.random.Generator) -> None:
    """Move the weights away from their defaults, and give BatchNormalization statistics of the samples."""
    for weight in model.weights:
        _move_from_default(weight, generator)
    batch_norms = [layer for layer in _all_layers(model) if isinstance(layer, keras.layers.BatchNormalization)]
    if not batch_norms:
        return
    for layer in batch_norms:
        layer.momentum, layer.usual_momentum = 0.0, layer.momentum
    model(_ordered_inputs(model, samples), training=True)
    for layer in batch_norms:
        layer.momentum = layer.usual_momentum
        deviation = np.sqrt(np.asarray(layer.moving_variance))
        layer.moving_mean.assign_add(generator.normal(0, 0.1, deviation.shape) * deviation)
        layer.moving_variance.assign(deviation**2 * generator.uniform(0.8, 1.25, deviation.shape) + 1e-3)


def _move_from_default(weight: Any, generator: np.random.Generator) -> None:
    role, shape = weight.name.split("/")[-1], tuple(weight.shape)
    if "float" not in str(weight.dtype):
        return
    if role in ("gamma", "scale"):
        weight.assign(generator.uniform(0.6, 1.4, shape))
    elif role in ("beta", "bias"):
        weight.assign_add(generator.normal(0, 0.1, shape))
    elif role == "alpha":
        weight.assign(generator.uniform(0.05, 0.4, shape))
    elif role in ("kernel", "depthwise_kernel", "pointwise_kernel"):
        weight.assign(KERNEL_GAIN * np.asarray(weight))
    elif role == "embeddings":
        weight.assign(generator.normal(0, 0.5, shape))


def _all_layers(model: keras.Model) -> list[Any]:
    return list(model._flatten_layers(include_self=False))


def _ordered_inputs(model: keras.Model, samples: Arrays) -> Any:
    """The samples as the model takes them: an array, or a list or dict in the structure of its inputs."""
    if not isinstance(samples, dict):
        return samples
    arrays = [samples[tensor.name] for tensor in model.inputs]
    return keras.tree.pack_sequence_as(model._inputs_struct, arrays)
