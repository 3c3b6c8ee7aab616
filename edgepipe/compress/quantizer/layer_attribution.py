"""Which layer of the Keras model an operator of the .tflite comes from, told from the names of its tensors.

A tensor is named after every operation that was fused into it: `net/relu/Relu;net/bn/add_1;net/conv/convolution`. Keras
3 numbers the scopes of a model that is called again (`net_1/relu_1/Relu`), tf_keras does not.
"""

import re
from collections.abc import Collection, Iterable

from edgepipe.tflite.model import Model, Operator

NUMBERED = re.compile(r"_\d+$")
IDENTITY = re.compile(r"Identity(_?\d+)*$")
COMPUTING = re.compile(r"/(convolution|depthwise|Conv2D|MatMul|BiasAdd)\d*$")  # how TensorFlow calls what computes


def parts(tensor: str) -> list[str]:
    """The scopes in a tensor's name, each once, in order; without the prefix of tfmot's wrappers."""
    scopes = (part for path in tensor.split(";") for part in re.split("[/:]", path))
    return list(dict.fromkeys(scope.removeprefix("quant_") for scope in scopes))


def layers_of(model: Model, layers: Collection[str]) -> list[list[str]]:
    """For each operator of `model` those of the Keras `layers` that it computes, the last one first."""
    scopes = [_scopes(operator) for operator in model.operators]
    known = set(layers)
    every = {part for found in scopes for part in found}
    # `conv_1` is a layer of that name, or the layer `conv` with a number: if one scope needs its number off, all do
    numbered = any(part not in known and NUMBERED.sub("", part) in known for part in every)
    return [_known((NUMBERED.sub("", part) if numbered else part for part in found), known) for found in scopes]


def _scopes(operator: Operator) -> list[str]:
    return [part for name in _named(operator) for part in parts(name)]


def _named(operator: Operator) -> list[str]:
    """The names that tell where an operator comes from: of its outputs, or if it makes an output of the model, which is
    called `Identity`, of its weights."""
    outputs = [tensor.name for tensor in operator.outputs if tensor is not None]
    if any(not IDENTITY.match(name) for name in outputs):
        return outputs
    return [t.name for t in operator.inputs if t is not None and t.constant and "/" in t.name] or outputs


def _known(scopes: Iterable[str], known: set[str]) -> list[str]:
    return list(dict.fromkeys(scope for scope in scopes if scope in known))


def short(operator: Operator) -> str:
    """A name for an operator of a model whose layers are not known: the scope of the operation that computes."""
    paths = next(iter(_named(operator)), "").split(";")
    computing = [path for path in paths if COMPUTING.search(path)]
    scopes = [scope for scope in re.split("[/:]", (computing or paths)[0]) if scope]
    return scopes[-2] if len(scopes) > 1 else scopes[0] if scopes else operator.place


def unnumbered(names: list[str]) -> list[str]:
    """The names without the number that Keras 3 gives all scopes of a model that is called again."""
    numbers = {found.group() for name in names if (found := NUMBERED.search(name))}
    all_alike = len(numbers) == 1 and all(NUMBERED.search(name) for name in names)
    return [NUMBERED.sub("", name) for name in names] if all_alike else names


def unique(names: Iterable[str]) -> list[str]:
    """The names, those that stand again with a number."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return found
