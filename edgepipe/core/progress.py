"""What a run tells while it goes: always on stderr, live on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """Told by the runner and the training loop what is going on."""

    def stage(self, name: str, number: int, of: int, status: str) -> None:
        """A stage begins (`running`), was found in the cache (`cached`), or has ended (`done in 3.1 s`)."""

    def epoch(self, epoch: int, epochs: int, values: dict[str, float]) -> None:
        """An epoch of the current stage has ended, with its loss and validation quality."""

    def note(self, text: str) -> None:
        """Something the user should know: a fallback, a warning, a damaged cache entry."""


class Silent:
    """Tells nothing; the Python API's default."""

    def stage(self, name: str, number: int, of: int, status: str) -> None:
        """Ignored."""

    def epoch(self, epoch: int, epochs: int, values: dict[str, float]) -> None:
        """Ignored."""

    def note(self, text: str) -> None:
        """Ignored here; the report keeps every note."""


class Lines:
    """One plain line an event, for logs and pipes."""

    def __init__(self) -> None:
        self.began = time.monotonic()

    def stage(self, name: str, number: int, of: int, status: str) -> None:
        """Print the stage's new status."""
        self.began = time.monotonic()
        print(f"[{number}/{of}] {name}: {status}", file=sys.stderr, flush=True)

    def epoch(self, epoch: int, epochs: int, values: dict[str, float]) -> None:
        """Print the epoch with its values and the time left at this pace."""
        left = (time.monotonic() - self.began) / epoch * (epochs - epoch)
        print(f"    epoch {epoch}/{epochs}  {_values(values)}  {left:.0f} s left", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Print the note."""
        print(f"note: {text}", file=sys.stderr, flush=True)


def _values(values: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in values.items())


@contextmanager
def shown(quiet: bool = False) -> Iterator[Progress]:
    """The progress display that fits stderr: a live bar on a terminal, lines elsewhere, nothing when `quiet`."""
    if quiet:
        yield Silent()
    elif not sys.stderr.isatty():
        yield Lines()
    else:
        with _Live() as live:
            yield live


class _Live:
    """A rich progress bar for the current stage, and a line for each one that has ended."""

    def __enter__(self) -> "_Live":
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description}"),
            BarColumn(24),
            TextColumn("{task.fields[values]}"),
            TimeRemainingColumn(),
        )
        self.bar = Bar(*columns, console=Console(stderr=True), transient=True)
        self.bar.start()
        self.task = self.bar.add_task("", total=None, values="")
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def stage(self, name: str, number: int, of: int, status: str) -> None:
        """Start a new bar, or print the line of a stage that has ended."""
        label = f"[{number}/{of}] {name}"
        if status == "running":
            self.bar.reset(self.task, description=label, total=None, values="")
        else:
            self.bar.console.print(f"{label}: {status}", markup=False, highlight=False)

    def epoch(self, epoch: int, epochs: int, values: dict[str, float]) -> None:
        """Move the bar."""
        self.bar.update(self.task, total=epochs, completed=epoch, values=_values(values))

    def note(self, text: str) -> None:
        """Print the note above the bar."""
        self.bar.console.print(f"note: {text}", markup=False, highlight=False)
