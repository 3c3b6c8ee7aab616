"""Unusual graphs: no crash, function and names kept, and excluded layers reported."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tf_keras
from qat_models import COVERED

from edgepipe.compress.equalization.batch_norm_folding import fold_batch_norms
from edgepipe.compress.equalization.bias_correction import CorrectedModel, correct_biases
from edgepipe.compress.equalization.cross_layer import EqualizedModel, equalize_channels
from edgepipe.compress.equalization.weighted_layers import has_kernel
from edgepipe.compress.keras_to_tflite import convert
from edgepipe.core.arrays import Array, Arrays
from edgepipe.models.perturb import perturb
from edgepipe.tflite.interpreter import predict

K = tf_keras.layers


def _inputs(model: Any, count: int = 24) -> Arrays:
    generator, arrays = np.random.default_rng(3), {}
    index = any(isinstance(layer, K.Embedding) for layer in model.layers)
    for tensor, name in zip(model.inputs, model.input_names, strict=True):
        shape = (count, *tensor.shape[1:])
        array = generator.integers(0, 20, shape) if index else generator.normal(0, 1, shape)
        arrays[name] = array.astype("float32")
    return arrays if len(arrays) > 1 else next(iter(arrays.values()))


def _both(model: Any, samples: Arrays | None) -> tuple[EqualizedModel, CorrectedModel]:
    equal = equalize_channels(fold_batch_norms(model, samples), samples)
    return equal, correct_biases(equal.folded_model, samples)


def _outputs(model: Any, samples: Arrays) -> list[Array]:
    outputs = model(samples, training=False)
    return [np.asarray(output) for output in (outputs if isinstance(outputs, (list, tuple)) else [outputs])]


@pytest.mark.slow
@pytest.mark.parametrize("name", COVERED)
def test_every_mechanism_keeps_its_function_and_its_names(name: str) -> None:
    model = COVERED[name]()
    perturb(model)
    samples = _inputs(model)
    equal, corrected_model = _both(model, samples)
    for variant in (equal.model, corrected_model.model):
        assert variant.input_names == model.input_names
        assert variant.output_names == model.output_names
        assert [tensor.shape for tensor in variant.outputs] == [tensor.shape for tensor in model.outputs]
    for mine, theirs in zip(_outputs(equal.model, samples), _outputs(model, samples), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4 * np.abs(theirs).max())


class Doubled(K.Conv2D):  # type: ignore[misc]
    """A convolution subclass that may do anything to its kernel."""

    def call(self, inputs: Any) -> Any:
        """Twice the convolution."""
        return super().call(inputs) * 2.0


def _graph(build: Callable[[Any], Any], shape: tuple[int, ...] = (8, 8, 3)) -> Any:
    x = tf_keras.Input(shape, name="x")
    return tf_keras.Model(x, build(x), name="odd")


def _conv(name: str, activation: str | None = "relu", filters: int = 4, **options: Any) -> Any:
    return K.Conv2D(filters, 3, padding="same", activation=activation, name=name, **options)


def _branches(x: Any) -> Any:
    y = _conv("stem")(x)
    return K.Concatenate(name="joined")([_conv("left")(y), _conv("right")(y)])


def _into(x: Any, *layers: Any) -> Any:
    for layer in layers:
        x = layer(x)
    return _conv("last", None)(x)


def _shared(x: Any) -> Any:
    conv = _conv("twice")
    return _conv("last", None)(conv(conv(_conv("first")(x))))


def _two_inputs() -> Any:
    a, b = tf_keras.Input((6,), name="a"), tf_keras.Input((5,), name="b")
    features = K.Concatenate()([K.Dense(4, "relu", name="fa")(a), K.Dense(3, name="fb")(b)])
    return tf_keras.Model({"b": b, "a": a}, K.Dense(2, name="out")(features), name="odd")


Joints = list[tuple[tuple[str, ...], tuple[str, ...]]]
# the model; its scaled groups, by the weights alone; fragments of the notes on the rest
ODD: dict[str, tuple[Callable[[], Any], Joints, tuple[str, ...]]] = {
    "branches": (
        lambda: _graph(_branches),
        [(("stem",), ("left", "right"))],
        ("left: 'joined' is an output of the model", "right: 'joined' is an output of the model"),
    ),
    "concatenated, then read": (
        lambda: _graph(lambda x: _into(_branches(x))),
        [(("stem",), ("left", "right")), (("left",), ("last",)), (("right",), ("last",))],
        ("last: 'last' is an output of the model",),
    ),
    "a sum with the input": (
        lambda: _graph(lambda x: _into(K.Add(name="sum")([x, _conv("one", filters=3)(x)]))),
        [],
        ("one: 'x' is an input of the model",),
    ),
    "shared": (
        lambda: _graph(_shared, (8, 8, 4)),
        [],
        ("twice: shared: it is called 2 times", "first: read by 'twice', shared: it is called 2 times"),
    ),
    "two inputs": (
        _two_inputs,
        [(("fa",), ("out",)), (("fb",), ("out",))],
        ("out: 'out' is an output of the model",),
    ),
    "dense after flatten": (
        lambda: _graph(lambda x: K.Dense(5, name="dense")(K.Flatten()(K.MaxPooling2D(2)(_conv("one")(x))))),
        [(("one",), ("dense",))],
        (),
    ),
    "mixed by a reshape": (
        lambda: _graph(lambda x: K.Dense(5, name="dense")(K.Reshape((128, 2), name="mix")(_conv("one")(x)))),
        [],
        ("one: read by 'mix', which mixes channels, from (8, 8, 4) to (128, 2)",),
    ),
    "conv 1d": (
        lambda: _graph(lambda x: K.Conv1D(3, 3, name="b")(K.Conv1D(4, 3, activation="relu", name="a")(x)), (9, 2)),
        [(("a",), ("b",))],
        (),
    ),
    "separable": (
        lambda: _graph(lambda x: _into(x, K.SeparableConv2D(5, 3, activation="relu", name="s"))),
        [(("s_depthwise",), ("s_pointwise",)), (("s_pointwise",), ("last",))],
        (),
    ),
    "groups": (
        lambda: _graph(lambda x: _into(x, _conv("a"), _conv("grouped", groups=2))),
        [(("a",), ("grouped",)), (("grouped",), ("last",))],
        (),
    ),
    "prelu": (
        lambda: _graph(lambda x: _into(x, _conv("a", None), K.PReLU(shared_axes=[1, 2]))),
        [(("a",), ("last",))],
        (),
    ),
    "leaky": (
        lambda: _graph(lambda x: _into(x, _conv("a", None), K.LeakyReLU(0.1))),
        [(("a",), ("last",))],
        (),
    ),
    "relu6": (
        lambda: _graph(lambda x: _into(x, _conv("a", None), K.ReLU(6.0, name="six"))),
        [],
        ("a: read by 'six', which clips at 6", "'six' clips at 6, and the range of its input is not known: it stays"),
    ),
    "transposed": (
        lambda: _graph(lambda x: _into(x, K.Conv2DTranspose(4, 3, strides=2, activation="relu", name="up"))),
        [(("up",), ("last",))],
        (),
    ),
    "no bias": (
        lambda: _graph(lambda x: _into(x, _conv("a", use_bias=False))),
        [(("a",), ("last",))],
        (),
    ),
    "custom": (
        lambda: _graph(lambda x: _into(x, _conv("a"), Doubled(4, 3, name="doubled"))),
        [],
        ("doubled: a Doubled, which does not commute with a factor", "a: read by 'doubled', a Doubled"),
    ),
    "kept whole": (
        lambda: _graph(lambda x: K.Dense(3)(K.Dot(1, name="dot")([K.Flatten()(_conv("a")(x))] * 2))),
        [],
        ("'dot' is kept whole: a Dot of two tensors", "a: read by 'dot', kept whole: a Dot of two tensors"),
    ),
    "conv 3d": (
        lambda: _graph(lambda x: K.Conv3D(2, 2, name="deep")(K.Reshape((8, 8, 2, 2))(_conv("a")(x)))),
        [],
        ("deep: a Conv3D, which does not commute with a factor",),
    ),
    "only a softmax": (lambda: _graph(lambda x: K.Softmax()(K.Flatten()(x))), [], ()),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ODD)
def test_an_odd_graph(name: str) -> None:
    build, group_count, notes_expected = ODD[name]
    model = build()
    perturb(model)
    for samples in (None, _inputs(model)):
        equal, corrected_model = _both(model, samples)
        all_notes = [*equal.exclusion_notes, *equal.notes, *equal.folded_model.notes]
        if samples is None or name != "relu6":
            assert {(group.producer_names, frozenset(group.reader_names)) for group in equal.equalization_groups} == {
                (makers, frozenset(readers)) for makers, readers in group_count
            }
            for fragment in notes_expected:
                assert any(note.startswith(fragment) for note in all_notes), all_notes
        corrected_layers = {entry.layer_name for entry in corrected_model.corrections}
        excluded_layers = {note.split(":")[0] for note in corrected_model.exclusion_notes}
        assert {layer.name for layer in equal.model.layers if has_kernel(layer)} == corrected_layers | excluded_layers


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nested", "two inputs, two outputs", "conv 1d"])
def test_the_result_converts(name: str, tmp_path: Path) -> None:
    model = COVERED[name]()
    perturb(model)
    samples = _inputs(model)
    _, corrected_model = _both(model, samples)
    (tmp_path / "m.tflite").write_bytes(convert(corrected_model.model, "int8", samples))
    outputs = predict(tmp_path / "m.tflite", samples).real_values
    arrays = list(outputs.values()) if isinstance(outputs, dict) else [outputs]
    for mine, theirs in zip(arrays, _outputs(model, samples), strict=True):
        assert np.abs(np.asarray(mine) - theirs).max() < 0.1 * np.abs(theirs).max()
