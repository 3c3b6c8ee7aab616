"""Names for the twin's layers: unique, legal in TensorFlow, and as close to the original names as possible."""

import re

from edgepipe.models.input_shapes import input_name
from edgepipe.models.keras3_graph import Keras3Graph, iter_calls


def legal_name(name: str) -> str:
    """`name` with the characters replaced that TensorFlow's scopes forbid."""
    clean_name = re.sub(r"[^A-Za-z0-9_.\-]", "_", name)
    return clean_name if re.match(r"[A-Za-z0-9.]", clean_name) else f"layer{clean_name}"


class LayerNames:
    """Top-level layers keep their names; layers inside a model or custom layer get its name as a prefix."""

    def __init__(self, graph: Keras3Graph) -> None:
        self.taken_names = {legal_name(input_name(tensor)) for tensor in graph.inputs}
        self.name_by_id: dict[int, str] = {}
        self.add(graph)

    def add(self, graph: Keras3Graph) -> None:
        """Name the operations of `graph` that have no name yet."""
        for prefix, call in sorted(iter_calls(graph), key=lambda pair: bool(pair[0])):
            if id(call.operation) not in self.name_by_id:
                self.name_by_id[id(call.operation)] = self.make_unique(f"{prefix}{call.operation.name}")

    def make_unique(self, wanted_name: str) -> str:
        """`wanted_name` made legal, with a number appended if it is taken."""
        name, number = legal_name(wanted_name), 2
        while name in self.taken_names:
            name, number = f"{legal_name(wanted_name)}_{number}", number + 1
        self.taken_names.add(name)
        return name
