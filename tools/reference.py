"""Writes docs/cli.md from the commands and docs/stages.md from the stages: `python tools/reference.py`.

`tests/test_docs.py` fails when a page is no longer what this would write.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from edgepipe.cli import cli
from edgepipe.render import catalogue
from edgepipe.stages.registry import STAGES

DOCS = Path(__file__).resolve().parent.parent / "docs"
MADE = "<!-- made by tools/reference.py; do not edit -->"


def pages() -> dict[str, str]:
    """The text of every generated page, by file name."""
    return {"cli.md": cli_page(), "stages.md": stages_page()}


def cli_page() -> str:
    """One section a command: its help, usage and options."""
    top = click.Context(cli, info_name="edgepipe")
    parts = [MADE, "# The command line", *_command(top)]
    for context in _below(top):
        parts += [f"## {context.command_path}", *_command(context)]
    return "\n\n".join(parts) + "\n"


def _below(context: click.Context) -> Iterator[click.Context]:
    group = context.command
    if not isinstance(group, click.Group):
        return
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is not None:
            inner = click.Context(command, info_name=name, parent=context)
            yield inner
            yield from _below(inner)


def _command(context: click.Context) -> list[str]:
    command = context.command
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    told = [
        p.get_help_record(context)
        for p in command.get_params(context)
        if p.param_type_name == "option" and "--help" not in p.opts
    ]
    options = [(f"`{record[0]}`", record[1]) for record in told if record is not None]
    help_text = "\n".join(line.strip() for line in (command.help or "").strip().splitlines())
    return [help_text, f"```\n{usage}\n```", *([table(("option", "meaning"), options)] if options else [])]


def stages_page() -> str:
    """The list of stages, then one section a stage: what it takes and gives, and its options."""
    listed = catalogue.stages(None)[0]
    parts = [MADE, "# Stages", _EVERY, table(listed.columns, listed.rows)]
    for name in STAGES:
        options = catalogue.stages(name)[0]
        rows = [(f"`{option}`", kind, f"`{default}`", meaning) for option, kind, default, meaning in options.rows]
        title, _, summary = options.title.partition(": ")
        parts += [f"## {title}", summary, table(options.columns, rows)]
    return "\n\n".join(parts) + "\n"


_EVERY = (
    "`edgepipe stages` prints the same. Every stage also takes `as: name`, the name under which `--set`, `against:`\n"
    "and the report know it; a stage that occurs twice needs one."
)


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [list(columns), *(list(row) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


if __name__ == "__main__":
    for file, text in pages().items():
        (DOCS / file).write_text(text, encoding="utf-8")
