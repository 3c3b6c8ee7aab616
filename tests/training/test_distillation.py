"""A student that is taught: whole steps by hand, kept teachers against asked ones, what does not go together."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import pytest
import tf_keras

from edgepipe.compress import clustering
from edgepipe.compress.overrides import Overrides
from edgepipe.compress.qat.fake_quant import QatRecipe, build_fake_quant
from edgepipe.core.errors import InputError
from edgepipe.models.bridge import bridge
from edgepipe.tasks.quality import Task, build_task
from edgepipe.tasks.task_spec import OptimizerOptions, TaskSpec
from edgepipe.training import loss_and_optimizer
from edgepipe.training import training_loop as fitting
from edgepipe.training.distillation import feature_taps, teacher_outputs
from edgepipe.training.distillation.distiller import Distiller
from edgepipe.training.distillation.teacher_options import Teacher
from edgepipe.training.training_setup import TrainingSetup
from edgepipe.zoo import small_cnn

RANDOM = np.random.RandomState(5)
ALL = {
    "logits": {"temperature": 3, "alpha": 0.4},
    "features": {"layers": {"conv1_relu": "conv1_relu"}},
    "attention": {"layers": {"conv2_relu": "conv2_relu"}},
    "relational": {},
}


@dataclass(frozen=True)
class Samples:
    x: Any
    y: Any


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def task(**options: Any) -> Task:
    spec = TaskSpec(**{"kind": "classification", **options}, optimizer=OptimizerOptions(name="sgd"))
    return build_task(spec, base=None)  # type: ignore[arg-type]  # nothing of the user's own is loaded


def dense(library: Any, classes: int, seed: int, softmax: bool, name: str) -> Any:
    start = library.initializers.RandomNormal(seed=seed)
    inputs = library.Input((3,))
    end = library.layers.Dense(classes, activation="softmax" if softmax else None, kernel_initializer=start, name="end")
    return library.Model(inputs, end(inputs), name=name)


def run(
    model: Any,
    goal: Task,
    data: Samples,
    teaching: Distiller | None,
    epochs: int = 1,
    batch: int = 8,
    rate: float = 0.1,
) -> list[Any]:
    lesson = TrainingSetup(goal, data, data, distiller=teaching, seed=9)
    schedule = fitting.TrainingSchedule(epochs, batch, rate)
    fitting.fit(model, lesson, schedule, lambda epoch, epochs, values: None)
    return [np.asarray(weight) for weight in model.get_weights()]


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
    got = run(student, task(), Samples(x, y), Distiller(options, taught_by, task(), 8))
    np.testing.assert_allclose(got[0], kernel - 0.1 * x.T @ pull / 8, atol=2e-6)
    np.testing.assert_allclose(got[1], bias - 0.1 * pull.mean(axis=0), atol=2e-6)


@pytest.mark.parametrize("library", [keras, tf_keras])
def test_regression_learns_outputs(library: Any) -> None:
    x, y = RANDOM.randn(8, 3).astype("float32"), RANDOM.randn(8, 2).astype("float32")
    goal, student, teacher = task(kind="regression"), *(dense(library, 2, n, False, f"m{n}") for n in (1, 2))
    kernel, other = (np.asarray(m.get_weights()[0], np.float64) for m in (student, teacher))
    pull = 2 / 16 * ((x @ kernel - y) + 0.5 * (x @ kernel - x @ other))
    options = Teacher.model_validate({"outputs": {"weight": 0.5}})
    got = run(student, goal, Samples(x, y), Distiller(options, {"t": teacher}, goal, 8))
    np.testing.assert_allclose(got[0], kernel - 0.1 * x.T @ pull, atol=2e-6)


def cnn(seed: int, filters: tuple[int, ...] = (4, 6), classes: int = 3) -> Any:
    keras.utils.set_random_seed(seed)
    return small_cnn(input_shape=(8, 8, 1), classes=classes, filters=filters)


def images(number: int = 37) -> Samples:
    return Samples(RANDOM.rand(number, 8, 8, 1).astype("float32"), np.arange(number) % 3)


@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_kept_teachers_give_the_same_weights_as_asked_ones(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, options, weights, notes = images(), Teacher.model_validate(ALL), [], []
    for limit in (teacher_outputs.MAX_CACHED_BYTES, 0):
        monkeypatch.setattr(teacher_outputs, "MAX_CACHED_BYTES", limit)
        fitting.set_seeds(1)
        student, teacher = cnn(1), cnn(2, (5, 9))
        student = student if library == "keras" else bridge(student).model
        teaching = Distiller(options, {"t": teacher}, task(), 16)
        weights.append(run(student, task(), data, teaching, epochs=2, batch=16, rate=0.01))
        notes.append(teaching.notes[-1])
    assert "computed once" in notes[0]
    assert "anew in every epoch" in notes[1]
    start = [np.asarray(weight) for weight in cnn(1).get_weights()]
    for kept, asked, before in zip(*weights, start, strict=True):
        np.testing.assert_allclose(kept, asked, atol=2e-5 * max(1.0, float(np.abs(kept - before).max())))
    assert max(float(np.abs(kept - before).max()) for kept, before in zip(weights[0], start, strict=True)) > 1e-2


def test_a_teacher_changes_what_is_learned_and_is_left_as_it_was() -> None:
    data, results = images(), []
    for kinds in ({"logits": {}}, {"features": {}}, {"attention": {}}, {"relational": {}}, {"outputs": {}}):
        fitting.set_seeds(1)
        student, teacher = cnn(1), cnn(2)
        before = [np.array(w) for w in teacher.get_weights()]
        results.append(run(student, task(), data, Distiller(Teacher.model_validate(kinds), {"t": teacher}, task(), 16)))
        assert all(np.array_equal(a, b) for a, b in zip(before, teacher.get_weights(), strict=True))
        assert len(student.layers) == len(cnn(1).layers)  # adaptors are gone
    firsts = [weights[0].tobytes() for weights in results]
    assert len(set(firsts)) == len(firsts)


@dataclass
class Doubling:
    """Augments by doubling samples."""

    soft: bool = False

    def __call__(self, chosen: Any, x: Any, y: Any, random: Any) -> Any:
        return x * 2, y

    def describe(self) -> str:
        return "doubled"


def test_teachers_see_augmented_samples() -> None:
    data, options = images(16), Teacher.model_validate({"logits": {"alpha": 1.0}})
    weights = []
    for augmenter, factor in ((Doubling(), 1), (None, 2)):
        fitting.set_seeds(1)
        student, teacher = cnn(1), cnn(2)
        given = Samples(data.x * factor, data.y)
        lesson = TrainingSetup(task(), given, given, augmenter, Distiller(options, {"t": teacher}, task(), 16), seed=9)
        fitting.fit(student, lesson, fitting.TrainingSchedule(2, 16, 0.1), lambda *_, **__: None)
        weights.append(student.get_weights())
        assert any("augmented" in note for note in lesson.notes) == (augmenter is not None)
    assert all(np.array_equal(a, b) for a, b in zip(*weights, strict=True))


def test_each_epoch_has_every_sample_once_in_another_order() -> None:
    data = Samples(np.arange(10, dtype="float32")[:, None], np.arange(10))
    feed = TrainingSetup(task(), data, data, Doubling(), seed=4).iterate_batches(4, binary=False)
    batches = iter(feed)
    epochs = [np.concatenate([next(batches)[1] for _ in range(feed.steps)]) for _ in range(2)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert list(epochs[0]) != list(epochs[1])
    again = iter(TrainingSetup(task(), data, data, Doubling(), seed=4).iterate_batches(4, binary=False))
    assert np.array_equal(np.concatenate([next(again)[1] for _ in range(feed.steps)]), epochs[0])


def test_reconstruction_augments_normal_samples_and_rebuilds_what_was_given() -> None:
    data = Samples(np.arange(10, dtype="float32")[:, None], np.arange(10) % 2)
    x, y = next(
        iter(
            TrainingSetup(task(kind="reconstruction", metrics=("mse",)), data, data, Doubling()).iterate_batches(
                8, False
            )
        )
    )
    assert sorted(x[:, 0]) == [0, 4, 8, 12, 16]
    assert np.array_equal(x, y)


def test_layers_are_found_inside_wrappers() -> None:
    model = bridge(cnn(1, (32, 32))).model
    plan = clustering.ClusteringPlan(4, "linear", True, False, True, Overrides({}, {}))
    clustered = clustering.wrap(model, clustering.select_layers(model, plan), "linear")
    assert any(layer.name.startswith("cluster_") for layer in clustered.layers)
    for twin in (model, clustered, build_fake_quant(model, QatRecipe()).model):
        assert tuple(feature_taps.find_tensor(twin, "conv2_relu", "student").shape)[1:] == (4, 4, 32)
        assert tuple(feature_taps.find_embedding(twin, "student")[1].shape)[1:] == (32,)
        assert tuple(feature_taps.find_last_map(twin, "student")[1].shape)[1:] == (4, 4, 32)
    quantized = feature_taps.find_tensor(build_fake_quant(model, QatRecipe()).model, "conv2_relu", "student")
    assert "fake_quant" in quantized.name or "quantize" in quantized.name


MISMATCHES = [
    ({"logits": {}}, {"classes": 4}, "the student 'small_cnn' gives 3 classes or values, the teacher 't' 4 classes"),
    ({"features": {"layers": {"conv9": "conv1"}}}, {}, "the student 'small_cnn' has no layer 'conv9'; did you mean"),
    ({"attention": {"layers": {"conv1": "conf1"}}}, {}, "the teacher 't' 'small_cnn' has no layer 'conf1'; did you"),
    ({"features": {"layers": {"conv1": "conv1"}, "adaptor": False}}, {"filters": (7, 6)},
     "'conv1' of the student and 'conv1' of the teacher: 4 and 7 channels"),
    ({"attention": {"layers": {"average": "average"}}}, {}, r"attention needs places .* found \(6,\) and \(6,\)"),
    ({"features": {"layers": {"average": "conv1"}}}, {}, r"\(6,\) and \(8, 8, 4\): the places of neither divide"),
]  # fmt: skip


@pytest.mark.parametrize(("kinds", "made", "message"), MISMATCHES)
def test_what_does_not_go_together(kinds: dict[str, Any], made: dict[str, Any], message: str) -> None:
    teaching = Distiller(Teacher.model_validate(kinds), {"t": cnn(2, **made)}, task(), 8)
    with pytest.raises(InputError, match=message):
        teaching.build_student(cnn(1), None)


def rows(model: Any) -> Any:
    """The layers of a functional model without branches as a Sequential, with the same weights."""
    return keras.Sequential([keras.Input((8, 8, 1)), *keras.models.clone_model(model).layers[1:]], name=model.name)


@pytest.mark.slow
def test_sequential_models_teach_and_learn_as_functional_ones_do() -> None:
    x = RANDOM.rand(24, 8, 8, 1).astype("float32")
    data, results = Samples(x, np.arange(24) % 3), []
    for form in (lambda model: model, rows):
        models = []
        for seed in (1, 2):
            original = cnn(seed)
            models.append(form(original))
            models[-1].set_weights(original.get_weights())
        results.append(
            run(models[0], task(), data, Distiller(Teacher.model_validate(ALL), {"t": models[1]}, task(), 8))
        )
    for functional, sequential in zip(*results, strict=True):
        np.testing.assert_allclose(functional, sequential, atol=1e-6)


def test_the_input_is_no_map_to_attend_to() -> None:
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(3)], name="flat")
    with pytest.raises(InputError, match="the teacher 'flat' has no layer whose output has places"):
        feature_taps.find_last_map(feature_taps.as_graph(model), "teacher")


def test_a_teacher_of_several_inputs_is_refused() -> None:
    inputs = [keras.Input((3,)), keras.Input((3,))]
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Add()(inputs)), name="pair")
    with pytest.raises(InputError, match="the model 'pair' takes 2 inputs, the samples are one array"):
        loss_and_optimizer.check_shapes(model, task(), np.zeros((4, 3)), np.zeros(4))


def test_places_that_divide_are_averaged() -> None:
    options = Teacher.model_validate({"attention": {"layers": {"conv2_relu": "conv1_relu"}}})
    teaching = Distiller(options, {"t": cnn(2)}, task(), 8)
    pupil = teaching.build_student(cnn(1), None)
    assert tuple(pupil.model.outputs[1].shape)[1:] == (16,)
    assert "the teacher's averaged from (8, 8) to (4, 4)" in teaching.notes[0]


def test_a_layer_inside_a_nested_model_is_refused_by_name() -> None:
    inputs = keras.Input((8, 8, 1))
    outer = keras.Model(inputs, cnn(1)(inputs), name="outer")
    with pytest.raises(InputError, match="inside the nested model 'small_cnn'"):
        feature_taps.find_tensor(outer, "conv1", "student")


def test_the_usual_kind_is_the_tasks() -> None:
    assert Teacher().with_task_default("one").kinds == ["logits"]
    assert Teacher().with_task_default("regression").kinds == ["outputs"]
    assert Teacher.model_validate({"attention": {}}).with_task_default("one").kinds == ["attention"]


def test_early_stopping_holds_for_a_taught_student() -> None:
    data = images(24)
    teaching = Distiller(Teacher.model_validate({"logits": {}}), {"t": cnn(2)}, task(), 24)
    student = cnn(1)
    lesson = TrainingSetup(task(), data, data, distiller=teaching)
    schedule = fitting.TrainingSchedule(30, 24, 1e-9, patience=2)
    history = fitting.fit(student, lesson, schedule, lambda *_, **__: None)
    assert len(history.epochs) == history.kept_epoch + 2 < 30
