"""The report as Markdown: `report.md`."""

from edgepipe.core.escape import escape_markdown, escape_markdown_cell, escape_markdown_paragraph, markdown_code
from edgepipe.render import report_tables
from edgepipe.render.next_step import size_text
from edgepipe.render.report import Report
from edgepipe.render.report_tables import TextTable


def render(report: Report) -> str:
    """The text of `report.md`."""
    sections = [f"# {escape_markdown(report.name)}", f"**{escape_markdown(report_tables.verdict_line(report))}**"]
    sections += [_model_line(report), escape_markdown_paragraph(report.description), _run_line(report)]
    sections += [_format_table(table) for table in report_tables.tables(report)]
    notes = report_tables.stage_notes(report)
    sections += ["## Notes\n\n" + "\n".join(f"- {escape_markdown_paragraph(note)}" for note in notes)] if notes else []
    sections += [_versions_line(report)]
    return "\n\n".join(section for section in sections if section) + "\n"


def _model_line(report: Report) -> str:
    """The file to deploy, which is beside the report."""
    return f"Model to deploy: {markdown_code(report.model)}{size_text(report)}." if report.model is not None else ""


def _run_line(report: Report) -> str:
    return f"Pipeline {markdown_code(report.pipeline)}, seed {report.seed}, {escape_markdown(report.created)}."


def _versions_line(report: Report) -> str:
    return escape_markdown(f"Versions: {', '.join(f'{name} {version}' for name, version in report.versions.items())}.")


def _format_table(table: TextTable) -> str:
    alignment_row = "|".join("---:" if index in table.right_aligned else "---" for index, _ in enumerate(table.columns))
    body_text = "\n".join(map(_format_row, table.rows))
    return f"## {escape_markdown(table.title)}\n\n{_format_row(table.columns)}\n|{alignment_row}|\n{body_text}"


def _format_row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(map(escape_markdown_cell, cells))} |"
