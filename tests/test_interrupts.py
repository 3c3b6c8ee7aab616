"""Interrupts that Python drops, those that a parent ignores, and processes that start with closed streams."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest

LINE = f"{sys.executable} -m edgepipe"


def _reset_signals() -> None:
    """Whatever started the tests may ignore some: a shell's background job, `nohup`."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _run_python(code: str, prepare: Callable[[], object]) -> "subprocess.CompletedProcess[str]":
    line = [sys.executable, "-c", code]
    return subprocess.run(line, capture_output=True, text=True, check=False, preexec_fn=prepare)


SWALLOWED = {
    "in a weak reference's callback": """
class Target: pass
target = Target()
reference = weakref.ref(target, lambda _: os.kill(os.getpid(), NUMBER))
del target
""",
    "in a finalizer": """
class Target:
    def __del__(self):
        os.kill(os.getpid(), NUMBER)
Target()
""",
    "by a library that catches everything": """
try:
    os.kill(os.getpid(), NUMBER)
except BaseException:
    pass
""",
}


@pytest.mark.parametrize("place", SWALLOWED)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_dropped_interrupt_is_raised_at_the_next_step(place: str, number: signal.Signals) -> None:
    code = f"""
import os, weakref
from edgepipe.core import interrupts
NUMBER = {int(number)}
with interrupts.handled():
    assert not interrupts.is_requested()
{textwrap.indent(SWALLOWED[place], "    ")}
    assert interrupts.is_requested()
    try:
        interrupts.check()
    except KeyboardInterrupt:
        print("raised")
"""
    done = _run_python(code, _reset_signals)
    assert (done.stdout, done.stderr, done.returncode) == ("raised\n", "", 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_what_the_parent_ignores_stays_ignored(number: signal.Signals) -> None:
    """`nohup edgepipe run ..`, and a shell's background job."""
    code = f"""
import os
from edgepipe.core import interrupts
with interrupts.handled():
    os.kill(os.getpid(), {int(number)})
print(interrupts.is_requested())
"""
    done = _run_python(code, lambda: signal.signal(number, signal.SIG_IGN))
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_an_error_that_a_library_makes_of_an_interrupt_is_one() -> None:
    code = f"""
import os, sys
from edgepipe import cli
def fail(*_, **__):
    try:
        os.kill(os.getpid(), {int(signal.SIGINT)})
    except KeyboardInterrupt:
        raise RuntimeError("cancelled") from None
cli.cli.invoke = fail
sys.argv = ["edgepipe", "stages"]
cli.main()
"""
    done = _run_python(code, _reset_signals)
    assert done.returncode == 130
    assert done.stderr == "edgepipe: interrupted; finished work is kept, the same command resumes it\n"


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(("arguments", "code"), [("stages", 0), ("run missing.yaml", 2), ("stages --nope", 2)])
def test_closed_streams_change_no_exit_code(closed: str, arguments: str, code: int) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f"{LINE} {arguments} {closed}"], capture_output=True, text=True, check=False, env=os.environ
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
