"""Progress of a run: always on stderr, a live bar on a terminal, plain lines elsewhere."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar

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
        """An epoch of the current stage has ended; each metric is named with the split that it is of."""

    def step(self, text: str, item_number: int = 0, item_count: int = 0) -> None:
        """What is being done now, such as `reading photos`, and how far; `item_count` is 0 where that is not known."""

    def note(self, text: str) -> None:
        """Something the user should know: a fallback, a warning, a damaged cache entry."""


class SilentProgress:
    """Shows nothing; the default of the Python API."""

    def stage(self, name: str, number: int, stage_count: int, status: str) -> None:
        """Ignored."""

    def epoch(self, epoch: int, epochs: int, metrics: dict[str, float]) -> None:
        """Ignored."""

    def step(self, text: str, item_number: int = 0, item_count: int = 0) -> None:
        """Ignored."""

    def note(self, text: str) -> None:
        """Ignored here; the report keeps every note."""


class EpochRecorder:
    """Passes everything on to another progress, and keeps the values of every epoch."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.epochs: list[tuple[int, dict[str, float]]] = []

    def stage(self, name: str, number: int, stage_count: int, status: str) -> None:
        """Passed on."""
        self.progress.stage(name, number, stage_count, status)

    def epoch(self, epoch: int, epochs: int, metrics: dict[str, float]) -> None:
        """Kept and passed on."""
        self.epochs.append((epoch, dict(metrics)))
        self.progress.epoch(epoch, epochs, metrics)

    def step(self, text: str, item_number: int = 0, item_count: int = 0) -> None:
        """Passed on."""
        self.progress.step(text, item_number, item_count)

    def note(self, text: str) -> None:
        """Passed on."""
        self.progress.note(text)


class LineProgress:
    """One plain line per event, for logs and pipes; of a step that is counted, one in so many seconds."""

    SECONDS_BETWEEN_LINES = 5.0

    def __init__(self) -> None:
        self.start_time = self.line_time = time.monotonic()
        self.step_text = ""

    def stage(self, name: str, number: int, stage_count: int, status: str) -> None:
        """Print the stage's new status."""
        self.start_time, self.step_text = time.monotonic(), ""
        print_line(f"[{number}/{stage_count}] {name}: {status}", to_stderr=True)

    def epoch(self, epoch: int, epochs: int, metrics: dict[str, float]) -> None:
        """Print the epoch with its values and the time left at this pace."""
        print_line(f"    {_describe_epoch(epoch, epochs, metrics, self.start_time)}", to_stderr=True)

    def step(self, text: str, item_number: int = 0, item_count: int = 0) -> None:
        """Print a new step at once, or one that is counted when it takes long, and then how far it is."""
        now, is_new = time.monotonic(), text != self.step_text
        if is_new:
            self.step_text, self.start_time, self.line_time = text, now, now
        if (is_new and not item_count) or now - self.line_time >= self.SECONDS_BETWEEN_LINES:
            self.line_time = now
            print_line(f"    {_describe_step(text, item_number, item_count, self.start_time)}", to_stderr=True)

    def note(self, text: str) -> None:
        """Print the note."""
        print_line(f"note: {text}", to_stderr=True)


def _describe_epoch(epoch: int, epochs: int, metrics: dict[str, float], start_time: float) -> str:
    values_text = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    return f"epoch {epoch}/{epochs}  {values_text}  {_time_left(epoch, epochs, start_time)}"


def _describe_step(text: str, item_number: int, item_count: int, start_time: float) -> str:
    if not item_count:
        return text
    time_text = f"  {_time_left(item_number, item_count, start_time)}" if item_number else ""
    return f"{text}: {item_number:,} of {item_count:,}{time_text}"


def _time_left(item_number: int, item_count: int, start_time: float) -> str:
    """What remains at the pace so far."""
    seconds = round((time.monotonic() - start_time) / item_number * (item_count - item_number))
    return f"{seconds} s left" if seconds < 120 else f"{seconds // 60} min left"


_active_progress: ContextVar[Progress] = ContextVar("active_progress")
ItemT = TypeVar("ItemT")


@contextmanager
def active(progress: Progress) -> Iterator[None]:
    """While the body runs, steps that are reported anywhere in it go to `progress`."""
    token = _active_progress.set(progress)
    try:
        yield
    finally:
        _active_progress.reset(token)


def report_step(text: str, item_number: int = 0, item_count: int = 0) -> None:
    """Say what is being done now; see `Progress.step`. Nothing is shown where no progress is active."""
    progress = _active_progress.get(None)
    if progress is not None:
        progress.step(text, item_number, item_count)


def count_steps(items: Sequence[ItemT], text: str) -> Iterator[ItemT]:
    """`items` one by one; how many are done is reported as the step `text`."""
    for number, item in enumerate(items):
        report_step(text, number, len(items))
        yield item


@contextmanager
def show_progress(quiet: bool = False, has_lines: bool = True) -> Iterator[Progress]:
    """The progress display that fits stderr, active in the body: a live bar on a terminal, lines elsewhere.

    Args:
        quiet: show nothing.
        has_lines: whether there are lines where stderr is no terminal.
    """
    with _choose_display(quiet, has_lines) as progress, active(progress):
        yield progress


@contextmanager
def _choose_display(quiet: bool, has_lines: bool) -> Iterator[Progress]:
    if not quiet and sys.stderr.isatty():
        with _LiveProgress() as live_progress:
            yield live_progress
    else:
        yield LineProgress() if has_lines and not quiet else SilentProgress()


class _LiveProgress:
    """A rich progress bar for the current stage, and a line for each finished stage."""

    def __enter__(self) -> "_LiveProgress":
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(24),
            TextColumn("{task.fields[values]}", markup=False),
        )
        # A terminal of its own: what libraries write to stderr while they load is captured.
        self.terminal = os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding=sys.stderr.encoding, errors="replace")
        self.progress_bar = Bar(*columns, console=Console(file=self.terminal), transient=True)
        self.progress_bar.start()
        self.bar_task_id = self.progress_bar.add_task("", total=None, values="")
        self.start_time, self.step_text = time.monotonic(), ""
        return self

    def __exit__(self, *_: object) -> None:
        self.progress_bar.stop()
        self.terminal.close()

    def stage(self, name: str, number: int, stage_count: int, status: str) -> None:
        """Start a new bar, or print the line of a stage that has ended."""
        label = escape_line(f"[{number}/{stage_count}] {name}")
        self.start_time, self.step_text = time.monotonic(), ""
        if status == "running":
            self.progress_bar.reset(self.bar_task_id, description=label, total=None, values="")
        else:
            self._print(f"{label}: {status}")

    def epoch(self, epoch: int, epochs: int, metrics: dict[str, float]) -> None:
        """Move the bar."""
        self._update(_describe_epoch(epoch, epochs, metrics, self.start_time), epoch, epochs)

    def step(self, text: str, item_number: int = 0, item_count: int = 0) -> None:
        """Show the step beside the bar."""
        if text != self.step_text:
            self.start_time, self.step_text = time.monotonic(), text
        self._update(_describe_step(text, item_number, item_count, self.start_time), item_number, item_count)

    def _update(self, values_text: str, item_number: int, item_count: int) -> None:
        self.progress_bar.update(
            self.bar_task_id, total=item_count or None, completed=item_number, values=escape_line(values_text)
        )

    def note(self, text: str) -> None:
        """Print the note above the bar."""
        self._print(f"note: {text}")

    def _print(self, line: str) -> None:
        self.progress_bar.console.print(escape_line(line), markup=False, highlight=False, emoji=False)
