"""The `edgepipe` command in tests: what the fixtures `command` and `process` are, and how one ends."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class CommandResult:
    """How a command ended: its exit code and what it printed."""

    code: int
    out: str
    err: str


Command = Callable[..., CommandResult]
