"""Progress of a run: always on stderr, a live bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from edgepipe.core.escape import escape_line
from edgepipe.core.output import print_line


class Progress(Protocol):
    """Receives events from the runner and the training loop."""

    def stage(self, name: str, number: int, stage_count: int, status: str) -> None:
        """A stage begins, was found in the cache, or has ended.

        Args:
            name: of the stage.
            number: its place in the pipeline, from 1.
            stage_count: how many stages the pipeline has.
            status: `running`, `cached`, or for example `done in 3.1 s`.
        """

    def epoch(self, epoch: int, epochs: int, metrics: dict[str, float]) -> None:
        """An epoch of the current stage has ended, with its loss and validation quality."""

    def note(self, text: str) -> None:
        """Something the user should know: a fallback, a warning, a damaged cache entry."""


class SilentProgress:
    """Shows nothing; the default of the Python API."""

    def stage(self, name: str, number: int, stage_count: int, status: str) -> None:
        """Ignored."""

    def epoch(self, epoch: int, epochs: int, metrics: dict[str, float]) -> None:
        """Ignored."""

    def note(self, text: str) -> None:
        """Ignored here; the report keeps every note."""


class LineProgress:
    """One plain line per event, for logs and pipes."""

    def __init__(self) -> None:
        self.start_time = time.monotonic()

    def stage(self, name: str, number: int, stage_count: int, status: str) -> None:
        """Print the stage's new status."""
        self.start_time = time.monotonic()
        print_line(f"[{number}/{stage_count}] {name}: {status}", to_stderr=True)

    def epoch(self, epoch: int, epochs: int, metrics: dict[str, float]) -> None:
        """Print the epoch with its values and the time left at this pace."""
        seconds_left = (time.monotonic() - self.start_time) / epoch * (epochs - epoch)
        line = f"    epoch {epoch}/{epochs}  {_format_metrics(metrics)}  {seconds_left:.0f} s left"
        print_line(line, to_stderr=True)

    def note(self, text: str) -> None:
        """Print the note."""
        print_line(f"note: {text}", to_stderr=True)


def _format_metrics(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())


@contextmanager
def show_progress(quiet: bool = False) -> Iterator[Progress]:
    """The progress display that fits stderr: a live bar on a terminal, lines elsewhere, nothing when `quiet`."""
    if quiet:
        yield SilentProgress()
    elif not sys.stderr.isatty():
        yield LineProgress()
    else:
        with _LiveProgress() as live_progress:
            yield live_progress


class _LiveProgress:
    """A rich progress bar for the current stage, and a line for each finished stage."""

    def __enter__(self) -> "_LiveProgress":
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(24),
            TextColumn("{task.fields[values]}", markup=False),
            TimeRemainingColumn(),
        )
        self.progress_bar = Bar(*columns, console=Console(stderr=True), transient=True)
        self.progress_bar.start()
        self.bar_task_id = self.progress_bar.add_task("", total=None, values="")
        return self

    def __exit__(self, *_: object) -> None:
        self.progress_bar.stop()

    def stage(self, name: str, number: int, stage_count: int, status: str) -> None:
        """Start a new bar, or print the line of a stage that has ended."""
        label = escape_line(f"[{number}/{stage_count}] {name}")
        if status == "running":
            self.progress_bar.reset(self.bar_task_id, description=label, total=None, values="")
        else:
            self._print(f"{label}: {status}")

    def epoch(self, epoch: int, epochs: int, metrics: dict[str, float]) -> None:
        """Move the bar."""
        values_text = escape_line(_format_metrics(metrics))
        self.progress_bar.update(self.bar_task_id, total=epochs, completed=epoch, values=values_text)

    def note(self, text: str) -> None:
        """Print the note above the bar."""
        self._print(f"note: {text}")

    def _print(self, line: str) -> None:
        self.progress_bar.console.print(escape_line(line), markup=False, highlight=False, emoji=False)
