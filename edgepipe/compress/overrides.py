"""Options for some layers only: by class, then by name; the more specific override wins.

A layer takes the override of the last regular expression that matches its whole name, otherwise that of its class; None
excludes the layer.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from edgepipe.core.errors import InputError, did_you_mean

Override = TypeVar("Override")


@dataclass(frozen=True)
class Overrides(Generic[Override]):
    """Overrides by layer class (`types`) and by layer name (`layers`, regular expressions)."""

    override_by_class: Mapping[str, Override | None] = field(default_factory=dict)
    override_by_pattern: Mapping[str, Override | None] = field(default_factory=dict)

    def for_layer(self, layer: Any) -> list[Override | None]:
        """The overrides that apply to the Keras layer `layer`, the strongest last; empty if none does."""
        class_overrides = [
            self.override_by_class[class_name]
            for class_name in (type(layer).__name__,)
            if class_name in self.override_by_class
        ]
        return class_overrides + [
            override for pattern, override in self.override_by_pattern.items() if re.fullmatch(pattern, layer.name)
        ]

    def is_excluded(self, layer: Any) -> bool:
        """Whether the strongest override of `layer` is null."""
        overrides = self.for_layer(layer)
        return bool(overrides) and overrides[-1] is None

    def check(self, layers: list[Any]) -> None:
        """Raise an `InputError` for a class or a regular expression that matches none of `layers`."""
        layer_names, class_names = [layer.name for layer in layers], sorted({type(layer).__name__ for layer in layers})
        for pattern in self.override_by_pattern:
            if not any(re.fullmatch(pattern, name) for name in layer_names):
                raise InputError(
                    f"no layer is called '{pattern}' (a regular expression){did_you_mean(pattern, layer_names)}"
                )
        for class_name in self.override_by_class:
            if class_name not in class_names:
                raise InputError(f"no layer is of the class '{class_name}'{did_you_mean(class_name, class_names)}")
