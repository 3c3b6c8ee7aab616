"""Tasks as a file describes them, and quality against scikit-learn and numbers worked out by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics

from edgepipe import Measure, Task
from edgepipe.core.config import parse as parse_yaml
from edgepipe.core.errors import InputError
from edgepipe.core.units import Dimension
from edgepipe.tasks.quality import build_task, compute_quality
from edgepipe.tasks.task_spec import MEASURES_BY_FAMILY, TaskSpec, parse_task

RANDOM = np.random.RandomState(5)
X = RANDOM.rand(60, 4).astype(np.float32)


def task_of(**options: Any) -> Task:
    return build_task(TaskSpec.model_validate_json(json.dumps(options)), Path())


def all_metrics(kind: str, family: str, **options: Any) -> Task:
    return task_of(kind=kind, metrics=list(MEASURES_BY_FAMILY[family]), **options)


def softmax(scores: Any) -> Any:
    powers = np.exp(scores)
    return powers / powers.sum(axis=1, keepdims=True)


def test_one_label_against_scikit_learn() -> None:
    scores, y = RANDOM.randn(60, 7), RANDOM.randint(0, 7, 60)
    labels = scores.argmax(axis=1)
    expected = {
        "accuracy": metrics.accuracy_score(y, labels),
        "balanced_accuracy": metrics.balanced_accuracy_score(y, labels),
        "f1_macro": metrics.f1_score(y, labels, average="macro"),
        "top5_accuracy": metrics.top_k_accuracy_score(y, scores, k=5, labels=range(7)),
    }
    found = compute_quality(all_metrics("classification", "one"), X, y, scores, is_logits=True)
    assert found == pytest.approx(expected)
    assert (
        compute_quality(all_metrics("classification", "one"), X, y[:, None], softmax(scores), is_logits=False) == found
    )


@pytest.mark.parametrize("shape", [(60,), (60, 1)])
def test_one_output_for_two_classes(shape: tuple[int, ...]) -> None:
    logits, y = RANDOM.randn(60), RANDOM.randint(0, 2, 60)
    expected = metrics.accuracy_score(y, logits > 0)
    task = task_of(kind="classification")
    assert compute_quality(task, X, y, logits.reshape(shape), is_logits=True) == pytest.approx({"accuracy": expected})
    probabilities = 1 / (1 + np.exp(-logits.reshape(shape)))
    assert compute_quality(task, X, y, probabilities, is_logits=False) == pytest.approx({"accuracy": expected})


def test_many_labels_against_scikit_learn() -> None:
    logits, y = RANDOM.randn(60, 3), RANDOM.randint(0, 2, (60, 3))
    expected = {
        "f1_macro": metrics.f1_score(y, logits > 0, average="macro"),
        "exact_match": metrics.accuracy_score(y, logits > 0),
        "label_accuracy": 1 - metrics.hamming_loss(y, logits > 0),
    }
    task = all_metrics("classification", "many", labels="many")
    assert compute_quality(task, X, y, logits, is_logits=True) == pytest.approx(expected)
    assert compute_quality(task, X, y, 1 / (1 + np.exp(-logits)), is_logits=False) == pytest.approx(expected)


@pytest.mark.parametrize("outputs", [1, 3])
def test_regression_against_scikit_learn(outputs: int) -> None:
    y, found = RANDOM.randn(60, outputs), RANDOM.randn(60, outputs)
    expected = {
        "mae": metrics.mean_absolute_error(y, found),
        "rmse": metrics.mean_squared_error(y, found) ** 0.5,
        "r2": metrics.r2_score(y, found, multioutput="variance_weighted"),
    }
    given = y.ravel() if outputs == 1 else y
    assert compute_quality(all_metrics("regression", "regression"), X, given, found, is_logits=True) == pytest.approx(
        expected
    )


def test_reconstruction_against_scikit_learn() -> None:
    x, y = RANDOM.rand(60, 4, 2), np.repeat([0, 1], 30)
    outputs = x + RANDOM.randn(60, 4, 2) * (1 + y[:, None, None])
    errors = ((x - outputs) ** 2).mean(axis=(1, 2))
    expected = {"roc_auc": metrics.roc_auc_score(y, errors), "mse": errors[:30].mean()}
    task = all_metrics("reconstruction", "reconstruction")
    assert compute_quality(task, x, y, outputs, is_logits=True) == pytest.approx(expected)
    plain = task_of(kind="reconstruction", metrics=["mse"])
    assert compute_quality(plain, x, None, outputs, is_logits=True) == pytest.approx({"mse": errors.mean()})


def test_by_hand() -> None:
    scores = np.array([[0.6, 0.4], [0.3, 0.7], [0.9, 0.1], [0.2, 0.8]])
    y = np.array([0, 1, 1, 1])
    found = compute_quality(
        task_of(kind="classification", metrics=["accuracy", "balanced_accuracy"]), X, y, scores, is_logits=False
    )
    assert found == pytest.approx({"accuracy": 3 / 4, "balanced_accuracy": (1 + 2 / 3) / 2})
    found = compute_quality(
        task_of(kind="regression"), X, np.array([1.0, 2.0]), np.array([[2.0], [0.0]]), is_logits=False
    )
    assert found == {"mae": 1.5}


SCORES, CLASSES = np.eye(4), np.arange(4)
NAN = np.where(np.eye(4) > 0, np.nan, 0.0)
WRONG = [  # task, y, outputs, message
    ({"kind": "classification"}, None, SCORES, "a classification task needs labels, and the data has none"),
    ({"kind": "classification"}, CLASSES, NAN, "4 of 4 outputs of the model hold NaN; did its training diverge?"),
    ({"kind": "classification"}, np.eye(4), SCORES, r"labels have the shape \(4, 4\), `labels: one` takes \(4,\)"),
    ({"kind": "classification", "labels": "many"}, CLASSES, SCORES, r"the shape \(4,\), `labels: many` takes \(4, 4\)"),
    ({"kind": "classification"}, CLASSES, {"a": SCORES}, "takes one output; for several write a custom task"),
    ({"kind": "regression"}, CLASSES, SCORES, r"labels of shape \(4,\) do not fit outputs of shape \(4, 4\)"),
    ({"kind": "regression"}, CLASSES, NAN[:, :1] * np.nan, "the quality metric 'mae' is nan; is the model's output"),
    ({"kind": "regression", "metrics": ["r2"]}, np.ones(4), SCORES[0], "'r2' failed: ValueError: all labels are equal"),
    ({"kind": "reconstruction"}, None, SCORES, "'roc_auc' failed: ValueError: ROC AUC needs labels with 0 for normal"),
    ({"kind": "reconstruction"}, np.zeros(4), SCORES, "and some of both"),
    ({"kind": "reconstruction", "metrics": ["mse"]}, np.ones(4), SCORES, "no sample is labelled 0, normal"),
    ({"kind": "reconstruction", "metrics": ["mse"]}, None, SCORES[:, :3], "'mse' failed: ValueError: operands"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "y", "outputs", "message"), WRONG)
def test_outputs_that_do_not_fit(options: dict[str, Any], y: Any, outputs: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        compute_quality(task_of(**options), SCORES, y, outputs, is_logits=False)


OWN = """
import numpy as np
import edgepipe

def goal():
    return edgepipe.Task(loss="mse", measures={"hits": edgepipe.Measure(hits, unit="fraction")}, decode=boxes)

def boxes(outputs):
    return np.round(outputs["boxes"])

def hits(y, decoded):
    return np.mean(y == decoded)

def loss(y_true, y_pred):
    return ((y_true - y_pred) ** 2).mean()

def nothing():
    return None

def broken(*_):
    return {}["gone"]

def text(*_):
    return "many"
"""


@pytest.fixture
def own(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[str, Path]:
    """A module of the user's own, under a name that no other test uses, and its folder."""
    module = f"own_task_{abs(hash(request.node.name))}"
    (tmp_path / f"{module}.py").write_text(OWN)
    return module, tmp_path


def test_a_task_of_the_users_own(own: tuple[str, Path]) -> None:
    module, folder = own
    task = build_task(TaskSpec(kind="custom", function=f"{module}:goal"), folder)
    y, outputs = np.array([1.0, 2.0]), {"boxes": np.array([1.2, 2.9]), "other": np.zeros(2)}
    assert compute_quality(task, X, y, outputs, is_logits=True) == {"hits": 0.5}
    assert (task.primary_measure, task.kind) == ("hits", "custom")


def test_functions_beside_a_built_in_kind(own: tuple[str, Path]) -> None:
    module, folder = own
    spec = TaskSpec.model_validate_json(
        '{"kind": "regression", "metrics": ["rmse"], "loss": "M:loss", "custom_metrics": '
        '{"hits": {"function": "M:hits", "unit": "fraction"}}}'.replace("M:", f"{module}:")
    )
    task = build_task(spec, folder)
    found = compute_quality(task, X, np.array([1.0, 2.0]), np.array([1.0, 4.0]), is_logits=True)
    assert found == pytest.approx({"rmse": 2**0.5, "hits": 0.5})
    assert callable(task.loss)
    assert {name: (m.unit, m.higher_is_better) for name, m in task.measures.items()} == {
        "rmse": (Dimension.NUMBER, False), "hits": (Dimension.FRACTION, True),
    }  # fmt: skip
    assert spec.code_references == [f"{module}:loss", f"{module}:hits"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"kind": "custom", "function": "M:nothing"},
            "must return an edgepipe.Task with at least one measure, found None",
        ),
        ({"kind": "custom", "function": "M:broken"}, "'M:broken' failed: KeyError: 'gone'"),
        ({"kind": "regression", "decode": "M:broken"}, "the task's decode function failed: KeyError: 'gone'"),
        ({"kind": "regression", "custom_metrics": {"own": {"function": "M:broken"}}}, "metric 'own' failed: KeyError"),
        ({"kind": "regression", "custom_metrics": {"own": {"function": "M:text"}}}, "metric 'own' failed: ValueError"),
        ({"kind": "regression", "custom_metrics": {"own": {"function": "M:gone"}}}, "'M:gone' cannot be loaded"),
    ],
)
def test_functions_that_fail_are_the_users(options: dict[str, Any], message: str, own: tuple[str, Path]) -> None:
    module, folder = own
    spec = TaskSpec.model_validate_json(json.dumps(options).replace("M:", f"{module}:"))
    with pytest.raises(InputError, match=message.replace("M:", f"{module}:")):
        compute_quality(build_task(spec, folder), X, np.ones(2), np.ones(2), is_logits=True)


def test_every_kind_has_a_default() -> None:
    given = (("classification", "accuracy"), ("regression", "mae"), ("reconstruction", "roc_auc"))
    for kind, name in given:
        assert list(task_of(kind=kind).measures) == [name]
    assert list(task_of(kind="classification", labels="many").measures) == ["f1_macro"]
    assert Measure(len).higher_is_better
    assert task_of(kind="classification").loss == "auto"
    assert task_of(kind="regression", loss="huber").loss == "huber"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("3", "f:1:1: task: must be a kind, module:function or a mapping; found the number 3"),
        ("{kind: regression, metrics: [rmse, acuracy]}", "f:1:36: task.metrics.1: no metric 'acuracy' for a regression "
         "task; allowed: mae, r2, rmse"),
        ("{kind: regression, optimizer: {name: admn}}", "f:1:38: task.optimizer.name: found 'admn'; allowed: "
         "adam, adamw, nadam, rmsprop, sgd, adagrad; did you mean 'adam'?"),
        ("{kind: regression, optimizer: {learning_rate: 0}}", "f:1:47: task.optimizer.learning_rate: should be greater "
         "than 0; found the number 0"),
        ("{kind: regression, custom_metrics: {own: {function: f}}}", "f:1:53: task.custom_metrics.own.function: 'f' is "
         "not of the form module:function"),
        ("{kind: regression, custom_metrics: {own: {function: 'edgepipe.zoo:f'}}}", "f:1:53: "
         "task.custom_metrics.own.function: module 'edgepipe.zoo' has no 'f'"),
    ],
)  # fmt: skip
def test_the_task_of_a_file(text: str, problem: str) -> None:
    document = parse_yaml(text, "f")
    document.value_positions = {("task", *path): place for path, place in document.value_positions.items()}
    document.key_positions = {("task", *path): place for path, place in document.key_positions.items()}
    assert parse_task(document, ("task",), document.content, Path()) is None
    assert [str(found) for found in document.problems] == [problem]
