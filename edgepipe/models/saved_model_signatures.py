"""The signatures of a SavedModel, and the choice of the one that is converted."""

import re
from dataclasses import dataclass
from pathlib import Path

from edgepipe.core.errors import InputError, did_you_mean
from edgepipe.models.port_names import DEFAULT_SIGNATURE

_INTERNAL_PREFIX = "__saved_model"  # of signatures that only initialize or train the model


@dataclass(frozen=True)
class SavedModelSignature:
    """One signature of the SavedModel at `path`."""

    path: Path
    name: str = DEFAULT_SIGNATURE


def choose_signature(path: Path, wanted_name: str | None) -> tuple[SavedModelSignature, tuple[str, ...]]:
    """The signature to convert, and a note on those that are dropped.

    Args:
        path: the folder of the SavedModel.
        wanted_name: the user's choice; None takes `serving_default`, or the only signature there is.

    Raises:
        InputError: not a readable SavedModel, no signature of that name, or several and none is the default.
    """
    names = list_signatures(path)
    if not names:
        raise InputError(f"{path}: the SavedModel has no signature to call it by; save it with signatures=...")
    name = wanted_name or (names[0] if len(names) == 1 else DEFAULT_SIGNATURE)
    if name not in names:
        if wanted_name is None:
            raise InputError(
                f"{path}: no signature '{name}'; choose one of {', '.join(names)} (`signature`, --signature)"
            )
        raise InputError(f"{path}: no signature '{name}'; it has {', '.join(names)}{_suggestion(name, names)}")
    return SavedModelSignature(path, name), _choice_notes(name, wanted_name, names)


def list_signatures(path: Path) -> list[str]:
    """The names of the signatures of the SavedModel at `path`, sorted.

    Raises:
        InputError: it cannot be read.
    """
    from tensorflow.python.saved_model.loader_impl import parse_saved_model

    try:
        saved_model = parse_saved_model(str(path))
    except Exception as error:
        first_line = (str(error).strip().splitlines() or [""])[0]
        raise InputError(f"{path}: not a readable SavedModel: {type(error).__name__}: {first_line}") from error
    names = {name for graph in saved_model.meta_graphs for name in graph.signature_def}
    return sorted(name for name in names if not name.startswith(_INTERNAL_PREFIX))


def natural_order(name: str) -> list[tuple[int, str]]:
    """A sorting key by which `output_2` precedes `output_10`, the order in which Keras numbers them."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _suggestion(name: str, names: list[str]) -> str:
    suggestion = did_you_mean(name, names)
    return suggestion if "did you mean" in suggestion else ""


def _choice_notes(name: str, wanted_name: str | None, names: list[str]) -> tuple[str, ...]:
    notes = []
    if wanted_name is None and name != DEFAULT_SIGNATURE:
        notes.append(f"signature '{name}' is converted: the SavedModel has no '{DEFAULT_SIGNATURE}'")
    if dropped_names := [f"'{other}'" for other in names if other != name]:
        notes.append(f"of the SavedModel, signature '{name}' is converted; dropped: {', '.join(dropped_names)}")
    return tuple(notes)
