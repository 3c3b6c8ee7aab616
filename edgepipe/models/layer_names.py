"""Names for the twin's layers: unique, legal for TensorFlow, and as close to the original's as can be."""

import re

from edgepipe.models.input_shapes import input_name
from edgepipe.models.keras3_graph import Graph, calls


def legal(name: str) -> str:
    """`name` with what TensorFlow's scopes forbid replaced."""
    clean = re.sub(r"[^A-Za-z0-9_.\-]", "_", name)
    return clean if re.match(r"[A-Za-z0-9.]", clean) else f"layer{clean}"


class Names:
    """The top's names are kept; what was inside a model or custom layer gets that one's name in front."""

    def __init__(self, graph: Graph) -> None:
        self.taken = {legal(input_name(tensor)) for tensor in graph.inputs}
        self.of: dict[int, str] = {}
        for prefix, call in sorted(calls(graph), key=lambda pair: bool(pair[0])):
            if id(call.operation) not in self.of:
                self.of[id(call.operation)] = self.fresh(f"{prefix}{call.operation.name}")

    def fresh(self, wanted: str) -> str:
        """`wanted`, made legal, with a number behind it if it is taken."""
        name, number = legal(wanted), 2
        while name in self.taken:
            name, number = f"{legal(wanted)}_{number}", number + 1
        self.taken.add(name)
        return name
