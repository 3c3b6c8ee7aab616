"""Distillation: training steps computed by hand, cached against recomputed targets, mismatches."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import pytest
import tf_keras
from training_references import softmax

from edgepipe.compress import clustering
from edgepipe.compress.overrides import Overrides
from edgepipe.compress.qat.fake_quant import QatRecipe, build_fake_quant
from edgepipe.core.errors import InputError
from edgepipe.models.bridge import bridge
from edgepipe.tasks.quality import Task, build_task
from edgepipe.tasks.task_spec import OptimizerOptions, TaskSpec
from edgepipe.training import loss_and_optimizer, training_loop
from edgepipe.training.distillation import feature_taps, teacher_outputs
from edgepipe.training.distillation.distiller import Distiller
from edgepipe.training.distillation.teacher_options import Teacher
from edgepipe.training.training_setup import TrainingSetup
from edgepipe.zoo import small_cnn

RANDOM = np.random.RandomState(5)
ALL_KINDS = {
    "logits": {"temperature": 3, "alpha": 0.4},
    "features": {"layers": {"conv1_relu": "conv1_relu"}},
    "attention": {"layers": {"conv2_relu": "conv2_relu"}},
    "relational": {},
}


@dataclass(frozen=True)
class Samples:
    x: Any
    y: Any


def make_task(**options: Any) -> Task:
    spec = TaskSpec(**{"kind": "classification", **options}, optimizer=OptimizerOptions(name="sgd"))
    return build_task(spec, base_folder=None)  # type: ignore[arg-type]  # nothing of the user's own is loaded


def dense(library: Any, classes: int, seed: int, softmax: bool, name: str) -> Any:
    start = library.initializers.RandomNormal(seed=seed)
    inputs = library.Input((3,))
    end = library.layers.Dense(classes, activation="softmax" if softmax else None, kernel_initializer=start, name="end")
    return library.Model(inputs, end(inputs), name=name)


def train(
    model: Any,
    task: Task,
    samples: Samples,
    distiller: Distiller | None,
    epochs: int = 1,
    batch: int = 8,
    rate: float = 0.1,
) -> list[Any]:
    setup = TrainingSetup(task, samples, samples, distiller=distiller, seed=9)
    schedule = training_loop.TrainingSchedule(epochs, batch, rate)
    training_loop.fit(model, setup, schedule, lambda epoch, epochs, metrics: None)
    return [np.asarray(weight) for weight in model.get_weights()]


@pytest.mark.slow
@pytest.mark.parametrize("library", [keras, tf_keras])
@pytest.mark.parametrize("as_probabilities", [True, False])
def test_one_step_by_hand(library: Any, as_probabilities: bool) -> None:
    """A linear student, one step of SGD: -0.1 x'((1-a)(q1 - y) + a T (q - p)) / n, of two teachers the mean of p."""
    x, y = RANDOM.randn(8, 3).astype("float32"), RANDOM.randint(0, 4, 8)
    student = dense(library, 4, 1, as_probabilities, "student")
    taught_by = {"a": dense(keras, 4, 2, True, "a"), "b": dense(tf_keras, 4, 3, False, "b")}
    options = Teacher.model_validate({"logits": {"temperature": 2.0, "alpha": 0.7}})
    kernel, bias = (np.asarray(w, np.float64) for w in student.get_weights())
    z = x @ kernel + bias
    p = np.mean([softmax((x @ np.asarray(m.get_weights()[0])) / 2) for m in taught_by.values()], axis=0)
    pull = 0.3 * (softmax(z) - np.eye(4)[y]) + 0.7 * 2 * (softmax(z / 2) - p)
    got = train(student, make_task(), Samples(x, y), Distiller(options, taught_by, make_task(), 8))
    np.testing.assert_allclose(got[0], kernel - 0.1 * x.T @ pull / 8, atol=2e-6)
    np.testing.assert_allclose(got[1], bias - 0.1 * pull.mean(axis=0), atol=2e-6)


@pytest.mark.parametrize("library", [keras, tf_keras])
def test_regression_learns_outputs(library: Any) -> None:
    x, y = RANDOM.randn(8, 3).astype("float32"), RANDOM.randn(8, 2).astype("float32")
    goal, student, teacher = make_task(kind="regression"), *(dense(library, 2, n, False, f"m{n}") for n in (1, 2))
    kernel, teacher_kernel = (np.asarray(m.get_weights()[0], np.float64) for m in (student, teacher))
    pull = 2 / 16 * ((x @ kernel - y) + 0.5 * (x @ kernel - x @ teacher_kernel))
    options = Teacher.model_validate({"outputs": {"weight": 0.5}})
    got = train(student, goal, Samples(x, y), Distiller(options, {"t": teacher}, goal, 8))
    np.testing.assert_allclose(got[0], kernel - 0.1 * x.T @ pull, atol=2e-6)


def cnn(seed: int, filters: tuple[int, ...] = (4, 6), classes: int = 3) -> Any:
    keras.utils.set_random_seed(seed)
    return small_cnn(input_shape=(8, 8, 1), classes=classes, filters=filters)


def make_samples(number: int = 37) -> Samples:
    return Samples(RANDOM.rand(number, 8, 8, 1).astype("float32"), np.arange(number) % 3)


@pytest.mark.slow
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_cached_targets_give_the_same_weights_as_recomputed_ones(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, options, weights, notes = make_samples(), Teacher.model_validate(ALL_KINDS), [], []
    for limit in (teacher_outputs.MAX_CACHED_BYTES, 0):
        monkeypatch.setattr(teacher_outputs, "MAX_CACHED_BYTES", limit)
        training_loop.set_seeds(1)
        student, teacher = cnn(1), cnn(2, (5, 9))
        student = student if library == "keras" else bridge(student).model
        distiller = Distiller(options, {"t": teacher}, make_task(), 16)
        weights.append(train(student, make_task(), samples, distiller, epochs=2, batch=16, rate=0.01))
        notes.append(distiller.notes[-1])
    assert "computed once" in notes[0]
    assert "recomputed in every epoch" in notes[1]
    start = [np.asarray(weight) for weight in cnn(1).get_weights()]
    for cached_weight, recomputed_weight, initial_weight in zip(*weights, start, strict=True):
        np.testing.assert_allclose(
            cached_weight, recomputed_weight, atol=2e-5 * max(1.0, float(np.abs(cached_weight - initial_weight).max()))
        )
    changes = [float(np.abs(weight - initial).max()) for weight, initial in zip(weights[0], start, strict=True)]
    assert max(changes) > 1e-2


@pytest.mark.slow
def test_a_teacher_affects_training_and_is_unchanged() -> None:
    samples, weights_by_run = make_samples(), []
    for kinds in ({"logits": {}}, {"features": {}}, {"attention": {}}, {"relational": {}}, {"outputs": {}}):
        training_loop.set_seeds(1)
        student, teacher = cnn(1), cnn(2)
        weights_before = [np.array(w) for w in teacher.get_weights()]
        weights_by_run.append(
            train(
                student, make_task(), samples, Distiller(Teacher.model_validate(kinds), {"t": teacher}, make_task(), 16)
            )
        )
        assert all(np.array_equal(a, b) for a, b in zip(weights_before, teacher.get_weights(), strict=True))
        assert len(student.layers) == len(cnn(1).layers)  # adaptors are gone
    firsts = [weights[0].tobytes() for weights in weights_by_run]
    assert len(set(firsts)) == len(firsts)


@dataclass
class Doubling:
    """Augments by doubling samples."""

    has_soft_labels: bool = False

    def __call__(self, chosen: Any, x: Any, y: Any, random: Any) -> Any:
        return x * 2, y

    def describe(self) -> str:
        return "doubled"


@pytest.mark.slow
def test_teachers_see_augmented_samples() -> None:
    samples, options = make_samples(16), Teacher.model_validate({"logits": {"alpha": 1.0}})
    weights = []
    for augmenter, factor in ((Doubling(), 1), (None, 2)):
        training_loop.set_seeds(1)
        student, teacher = cnn(1), cnn(2)
        train_samples = Samples(samples.x * factor, samples.y)
        setup = TrainingSetup(
            make_task(),
            train_samples,
            train_samples,
            augmenter,
            Distiller(options, {"t": teacher}, make_task(), 16),
            seed=9,
        )
        training_loop.fit(student, setup, training_loop.TrainingSchedule(2, 16, 0.1), lambda *_, **__: None)
        weights.append(student.get_weights())
        assert any("augmented" in note for note in setup.notes) == (augmenter is not None)
    assert all(np.array_equal(a, b) for a, b in zip(*weights, strict=True))


def test_each_epoch_has_every_sample_once_in_a_new_order() -> None:
    samples = Samples(np.arange(10, dtype="float32")[:, None], np.arange(10))
    batch_iterator = TrainingSetup(make_task(), samples, samples, Doubling(), seed=4).iterate_batches(
        4, is_binary=False
    )
    batches = iter(batch_iterator)
    epochs = [np.concatenate([next(batches)[1] for _ in range(batch_iterator.steps_per_epoch)]) for _ in range(2)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert list(epochs[0]) != list(epochs[1])
    repeated_batches = iter(
        TrainingSetup(make_task(), samples, samples, Doubling(), seed=4).iterate_batches(4, is_binary=False)
    )
    assert np.array_equal(
        np.concatenate([next(repeated_batches)[1] for _ in range(batch_iterator.steps_per_epoch)]), epochs[0]
    )


def test_reconstruction_targets_are_the_augmented_normal_samples() -> None:
    samples = Samples(np.arange(10, dtype="float32")[:, None], np.arange(10) % 2)
    x, y = next(
        iter(
            TrainingSetup(
                make_task(kind="reconstruction", metrics=("mse",)), samples, samples, Doubling()
            ).iterate_batches(8, False)
        )
    )
    assert sorted(x[:, 0]) == [0, 4, 8, 12, 16]
    assert np.array_equal(x, y)


def test_layers_are_found_inside_wrappers() -> None:
    model = bridge(cnn(1, (32, 32))).model
    plan = clustering.ClusteringPlan(4, "linear", True, False, True, Overrides({}, {}))
    clustered_model = clustering.wrap(model, clustering.select_layers(model, plan), "linear")
    assert any(layer.name.startswith("cluster_") for layer in clustered_model.layers)
    for twin in (model, clustered_model, build_fake_quant(model, QatRecipe()).model):
        assert tuple(feature_taps.find_layer_output(twin, "conv2_relu", "student").shape)[1:] == (4, 4, 32)
        assert tuple(feature_taps.find_embedding(twin, "student")[1].shape)[1:] == (32,)
        assert tuple(feature_taps.find_last_feature_map(twin, "student")[1].shape)[1:] == (4, 4, 32)
    quantized_tensor = feature_taps.find_layer_output(
        build_fake_quant(model, QatRecipe()).model, "conv2_relu", "student"
    )
    assert "fake_quant" in quantized_tensor.name or "quantize" in quantized_tensor.name


MISMATCHES = [
    ({"logits": {}}, {"classes": 4}, "the student 'small_cnn' gives 3 classes or values, the teacher 't' 4 classes"),
    ({"features": {"layers": {"conv9": "conv1"}}}, {}, "the student 'small_cnn' has no layer 'conv9'; did you mean"),
    ({"attention": {"layers": {"conv1": "conf1"}}}, {}, "the teacher 't' 'small_cnn' has no layer 'conf1'; did you"),
    ({"features": {"layers": {"conv1": "conv1"}, "adaptor": False}}, {"filters": (7, 6)},
     "'conv1' of the student and 'conv1' of the teacher: 4 and 7 channels"),
    ({"attention": {"layers": {"average": "average"}}}, {},
     r"attention needs spatial tensors .* found \(6,\) and \(6,\)"),
    ({"features": {"layers": {"average": "conv1"}}}, {},
     r"\(6,\) and \(8, 8, 4\): neither grid is a multiple of the other"),
]  # fmt: skip


@pytest.mark.parametrize(("kinds", "teacher_options", "message"), MISMATCHES)
def test_mismatches(kinds: dict[str, Any], teacher_options: dict[str, Any], message: str) -> None:
    distiller = Distiller(Teacher.model_validate(kinds), {"t": cnn(2, **teacher_options)}, make_task(), 8)
    with pytest.raises(InputError, match=message):
        distiller.build_student(cnn(1), None)


def to_sequential(model: Any) -> Any:
    """The layers of a functional model without branches as a Sequential, with the same weights."""
    return keras.Sequential([keras.Input((8, 8, 1)), *keras.models.clone_model(model).layers[1:]], name=model.name)


@pytest.mark.slow
def test_sequential_models_equal_functional_ones() -> None:
    x = RANDOM.rand(24, 8, 8, 1).astype("float32")
    samples, weights_by_run = Samples(x, np.arange(24) % 3), []
    for form in (lambda model: model, to_sequential):
        models = []
        for seed in (1, 2):
            original = cnn(seed)
            models.append(form(original))
            models[-1].set_weights(original.get_weights())
        weights_by_run.append(
            train(
                models[0],
                make_task(),
                samples,
                Distiller(Teacher.model_validate(ALL_KINDS), {"t": models[1]}, make_task(), 8),
            )
        )
    for functional, sequential in zip(*weights_by_run, strict=True):
        np.testing.assert_allclose(functional, sequential, atol=1e-6)


def test_the_input_is_not_an_attention_map() -> None:
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(3)], name="flat")
    with pytest.raises(InputError, match="the teacher 'flat' has no layer with a spatial output"):
        feature_taps.find_last_feature_map(feature_taps.as_functional_model(model), "teacher")


def test_a_teacher_of_several_inputs_is_refused() -> None:
    inputs = [keras.Input((3,)), keras.Input((3,))]
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Add()(inputs)), name="pair")
    with pytest.raises(InputError, match="the model 'pair' takes 2 inputs, the samples are one array"):
        loss_and_optimizer.check_data_shapes(model, make_task(), np.zeros((4, 3)), np.zeros(4))


def test_finer_grid_is_averaged() -> None:
    options = Teacher.model_validate({"attention": {"layers": {"conv2_relu": "conv1_relu"}}})
    distiller = Distiller(options, {"t": cnn(2)}, make_task(), 8)
    student = distiller.build_student(cnn(1), None)
    assert tuple(student.model.outputs[1].shape)[1:] == (16,)
    assert "the teacher's averaged from (8, 8) to (4, 4)" in distiller.notes[0]


def test_a_layer_inside_a_nested_model_is_refused_by_name() -> None:
    inputs = keras.Input((8, 8, 1))
    outer = keras.Model(inputs, cnn(1)(inputs), name="outer")
    with pytest.raises(InputError, match="inside the nested model 'small_cnn'"):
        feature_taps.find_layer_output(outer, "conv1", "student")


def test_the_default_kind_depends_on_the_task() -> None:
    assert Teacher().with_task_default("one").kinds == ["logits"]
    assert Teacher().with_task_default("regression").kinds == ["outputs"]
    assert Teacher.model_validate({"attention": {}}).with_task_default("one").kinds == ["attention"]


@pytest.mark.slow
def test_early_stopping_of_a_distilled_student() -> None:
    samples = make_samples(24)
    distiller = Distiller(Teacher.model_validate({"logits": {}}), {"t": cnn(2)}, make_task(), 24)
    student = cnn(1)
    setup = TrainingSetup(make_task(), samples, samples, distiller=distiller)
    schedule = training_loop.TrainingSchedule(30, 24, 1e-9, patience=2)
    history = training_loop.fit(student, setup, schedule, lambda *_, **__: None)
    assert len(history.epoch_metrics) == history.kept_epoch + 2 < 30
