"""`python -m edgepipe`."""

from edgepipe.cli import run_program

run_program()
