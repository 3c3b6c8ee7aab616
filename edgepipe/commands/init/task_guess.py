"""Which task a model is for, guessed from its last activation, its shapes and its labels, with the reason."""

from dataclasses import dataclass
from typing import Any

from edgepipe.commands.init.data_source import Labels
from edgepipe.commands.init.model_info import FROM_DATA, Function, Seen
from edgepipe.models.model_description import Shape

_DECODE = "write a task of your own, see docs/tasks.md"


@dataclass(frozen=True)
class Guess:
    """A task and why. `options` is what stands under `task:`; None where none of the built-in ones fits."""

    name: str
    options: str | dict[str, Any] | None
    why: str
    measure: str = ""  # the quality metric that decides
    points: bool = True  # it is a share, so that a drop of it counts in points


def guess(seen: Seen, labels: Labels) -> Guess:
    """The task that `seen` is most likely for; `labels` is what is known of the data."""
    if seen.function is not None:
        return _by_source(seen.function, labels)
    if len(seen.outputs) > 1:
        return _none(f"{len(seen.outputs)} outputs; {_DECODE}")
    if not seen.outputs:
        return _by_labels(labels, "the model's file does not say what it gives")
    return _by_output(seen, seen.outputs[0].shape, labels)


def _by_output(seen: Seen, shape: Shape, labels: Labels) -> Guess:
    rebuilt = any(_same(shape, port.shape) for port in seen.inputs[:1])
    if labels == "none" and not rebuilt:
        return _none("the data has no labels to hold its outputs against; add an array y")
    if len(shape) > 2 and seen.activation in ("softmax", "sigmoid") and not rebuilt:
        return _none(f"{seen.activation} at every position of an output with {len(shape) - 1} dimensions; {_DECODE}")
    return _by_activation(seen, shape, labels, rebuilt)


def _by_activation(seen: Seen, shape: Shape, labels: Labels, rebuilt: bool) -> Guess:
    size = shape[-1] if len(shape) > 1 else None
    if seen.activation == "softmax" and size != 1:
        return _classes(f"it ends in softmax over {size or 'its'} outputs")
    if seen.activation == "sigmoid" and size == 1:
        return _classes("it ends in one sigmoid: two classes, 0 and 1")
    if rebuilt:
        return _rebuilt(f"its output has the shape of its input, {shape[1:]}", labels)
    if seen.activation == "sigmoid":
        return _many(f"it ends in sigmoid over {size or 'its'} outputs: each label may hold or not")
    if labels == "classes" and size != 1:
        return _classes(f"the labels are integers, one a sample, and {size or 'its'} outputs are class scores (logits)")
    return _regression(f"it ends in {seen.activation}; if its outputs are class scores, write `classification`")


def _by_labels(labels: Labels, otherwise: str) -> Guess:
    if labels == "classes":
        return _classes("the labels are integers, one a sample")
    return _none(f"{otherwise}; write `task: classification`, regression or reconstruction")


def _by_source(function: Function, labels: Labels) -> Guess:
    if "classes" in function.parameters:
        return _classes(f"'{function.name}' takes `classes`")
    if "autoencoder" in function.name.lower():
        return _rebuilt(f"the name '{function.name}'", labels)
    if "softmax" in function.words:
        return _classes(f"the source of '{function.name}' says softmax")
    if labels == "classes":
        return _classes("the labels are integers, one a sample")
    if "sigmoid" in function.words:
        return _classes(f"the source of '{function.name}' says sigmoid; for several labels a sample: `labels: many`")
    unknown = "" if set(function.parameters) <= set(FROM_DATA) else " of a model that only your code knows"
    return _regression(f"nothing in '{function.name}' says classes{unknown}")


def _same(output: Shape, given: Shape) -> bool:
    """Whether both have the same sizes wherever the file says them, the last one included, and more than one value."""
    pairs = list(zip(output[1:], given[1:], strict=False))
    agree = all(a == b or None in (a, b) for a, b in pairs)
    several = any((b or 2) > 1 for _, b in pairs)
    return len(output) == len(given) > 1 and output[-1] == given[-1] is not None and agree and several


def _classes(why: str) -> Guess:
    return Guess("classification", "classification", why, "accuracy")


def _many(why: str) -> Guess:
    return Guess("classification with many labels", {"kind": "classification", "labels": "many"}, why, "f1_macro")


def _rebuilt(why: str, labels: Labels) -> Guess:
    if labels in ("classes", "values"):
        return Guess("reconstruction", "reconstruction", why, "roc_auc")
    # without labels there is no ROC AUC to take
    return Guess("reconstruction", {"kind": "reconstruction", "metrics": ["mse"]}, why, "mse", points=False)


def _regression(why: str) -> Guess:
    return Guess("regression", "regression", why, "mae", points=False)


def _none(why: str) -> Guess:
    return Guess("", None, why)
