"""The report as Markdown: `report.md`."""

from edgepipe.render import report_tables
from edgepipe.render.report import Report
from edgepipe.render.report_tables import TextTable


def render(report: Report) -> str:
    """The text of `report.md`."""
    sections = [f"# {report.name}", report.description, _run_line(report)]
    sections += [_format_table(table) for table in report_tables.tables(report)]
    notes = report_tables.stage_notes(report)
    sections += ["## Notes\n\n" + "\n".join(f"- {note}" for note in notes)] if notes else []
    sections += [f"**{report_tables.verdict_line(report)}**", _versions_line(report)]
    return "\n\n".join(section for section in sections if section) + "\n"


def _run_line(report: Report) -> str:
    return f"Pipeline `{report.pipeline}`, seed {report.seed}, {report.created}."


def _versions_line(report: Report) -> str:
    return "Versions: " + ", ".join(f"{name} {version}" for name, version in report.versions.items()) + "."


def _format_table(table: TextTable) -> str:
    alignment_row = "|".join("---:" if index in table.right_aligned else "---" for index, _ in enumerate(table.columns))
    body_text = "\n".join(f"| {' | '.join(_escape(cell) for cell in row)} |" for row in table.rows)
    return f"## {table.title}\n\n| {' | '.join(table.columns)} |\n|{alignment_row}|\n{body_text}"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
