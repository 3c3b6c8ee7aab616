"""`report.md`."""

from edgepipe.render import report_tables
from edgepipe.render.report import Report
from edgepipe.render.report_tables import Rows


def render(report: Report) -> str:
    """The report as Markdown."""
    parts = [f"# {report.name}", report.description, _facts(report)]
    parts += [_table(table) for table in report_tables.tables(report)]
    noted = report_tables.notes(report)
    parts += ["## Notes\n\n" + "\n".join(f"- {note}" for note in noted)] if noted else []
    parts += [f"**{report_tables.verdict(report)}**", _versions(report)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(report: Report) -> str:
    return f"Pipeline `{report.pipeline}`, seed {report.seed}, {report.created}."


def _versions(report: Report) -> str:
    return "Versions: " + ", ".join(f"{name} {version}" for name, version in report.versions.items()) + "."


def _table(table: Rows) -> str:
    rule = "|".join("---:" if index in table.right else "---" for index, _ in enumerate(table.columns))
    body = "\n".join(f"| {' | '.join(_escape(cell) for cell in row)} |" for row in table.rows)
    return f"## {table.title}\n\n| {' | '.join(table.columns)} |\n|{rule}|\n{body}"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
