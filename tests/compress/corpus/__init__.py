"""A corpus of small Keras models made by code: the compositions people use, each with samples that suit it.

`CORPUS` maps the name of a model to it. A module per subject holds the models; a model is a function that builds an
architecture, decorated with the samples it takes and the kinds of quantization fault that it can show:

    A  ranges shared backwards (concatenation, maximum, split, pooling ...)   H  names, several outputs, signatures
    B  sentinels: mask fills and pad values                                   I  recurrent loops
    C  equality with a constant                                               J  one tensor, parts of different range
    D  exponentials over a wide range, then a logarithm or a choice           K  operators with few integer kernels
    E  integers and booleans carried in floats                                L  logarithm of a square
    F  dtype policies                                                         M  custom objects
    G  state

`REFUSED` maps the names of models that TFLite cannot express, for tests of what the user is told.
"""

from types import ModuleType

from . import (
    activations,
    arithmetic,
    attention,
    convolutional,
    image_outputs,
    interfaces,
    refused,
    sequences,
    text_tabular,
)
from .corpus_model import CorpusModel

_MODULES = (
    convolutional,
    image_outputs,
    activations,
    attention,
    sequences,
    text_tabular,
    arithmetic,
    interfaces,
)


def _entries(module: ModuleType) -> dict[str, CorpusModel]:
    return {entry.name: entry for entry in vars(module).values() if isinstance(entry, CorpusModel)}


CORPUS: dict[str, CorpusModel] = {name: entry for module in _MODULES for name, entry in _entries(module).items()}
REFUSED: dict[str, CorpusModel] = _entries(refused)

__all__ = ["CORPUS", "REFUSED", "CorpusModel"]
