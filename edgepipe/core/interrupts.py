"""Ctrl-C, SIGTERM and a closed terminal, seen at the next step wherever they arrive.

The handler raises KeyboardInterrupt. In a callback of the interpreter (a weak reference, a finalizer) Python drops it,
and a library may turn it into an error of its own; the request stays, and whoever calls `check` raises it again.
"""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
_SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
_received_signals: list[int] = []


@contextmanager
def handled() -> Iterator[None]:
    """Treat all of them as an interrupt, but those that whoever started this process ignores (`nohup`, `&`)."""
    _received_signals.clear()
    hook, handlers = sys.unraisablehook, {number: signal.getsignal(number) for number in _SIGNALS}
    sys.unraisablehook = _without_interrupts(hook)
    for number, handler in handlers.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _handle)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in handlers.items():
            signal.signal(number, handler)


def ignore() -> None:
    """From now on an interrupt changes nothing: the work is done, and Python ends."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def is_requested() -> bool:
    """Whether an interrupt has arrived."""
    return bool(_received_signals)


def check() -> None:
    """Raise a KeyboardInterrupt if one has arrived."""
    if _received_signals:
        raise KeyboardInterrupt


def _handle(number: int, _frame: FrameType | None) -> None:
    _received_signals.append(number)
    raise KeyboardInterrupt


def _without_interrupts(hook: Callable[[Any], object]) -> Callable[[Any], None]:
    """`hook`, which prints what Python drops, but silent on interrupts: they are not lost."""

    def report(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            hook(unraisable)

    return report
