"""Text of unknown origin is harmless on a terminal, in Markdown and in JSON, and nothing prints past the escaping."""

import ast
import json
import logging
import re
import sys
import warnings
from pathlib import Path

import pytest
from commands import Command
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from edgepipe.core import escape, output
from edgepipe.core.escape import escape_line, json_text
from edgepipe.core.progress import LineProgress

PACKAGE = Path(escape.__file__).resolve().parents[1]
LINES = [  # text, how it is shown
    ("plain", "plain"),
    ("größe 寸法 😀", "größe 寸法 😀"),
    ("wide\u3000and no-break\xa0spaces", "wide\u3000and no-break\xa0spaces"),
    ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
    ("\x1b]8;;http://x\x07link", "\\x1b]8;;http://x\\x07link"),
    ("\x9b2J", "\\x9b2J"),
    ("a\nb\r\tc", "a\\nb\\r\\tc"),
    ("\x00\x7f\x85", "\\x00\\x7f\\x85"),
    ("line\u2028paragraph\u2029", "line\\u2028paragraph\\u2029"),
    ("abc\u202ecba\u2066x\u2069\u200f", "abc\\u202ecba\\u2066x\\u2069\\u200f"),
    ("in\u200bvis\ufeffi\xadble\u2060\u3164", "in\\u200bvis\\ufeffi\\xadble\\u2060\\u3164"),
    ("\U000e0041tag", "\\U000e0041tag"),
    ("caf\udce9", "caf\\xe9"),  # a byte of a file name in another encoding
    ("\ud800", "\\ud800"),
]


@pytest.mark.parametrize(("text", "shown"), LINES, ids=[ascii(text) for text, _ in LINES])
def test_a_line_is_one_line_of_visible_characters(text: str, shown: str) -> None:
    assert escape_line(text) == shown
    assert escape_line(shown) == shown
    shown.encode()


@given(st.text(st.characters()))
def test_any_text_is_visible_and_json_gives_it_back(text: str) -> None:
    line = escape_line(text)
    assert len(line.splitlines()) <= 1
    assert all(character.isprintable() or character.isspace() for character in line)
    document = json_text({text: [text]})
    assert document.isascii()
    spelled = re.sub("[\ud800-\udfff]", lambda match: escape_line(match[0]), text)
    assert json.loads(document) == {spelled: [spelled]}


MARKDOWN = [
    *("[a](http://x)", "![a](http://x)", "[a][b]", "[a]: http://x", "<b>a</b>", "<http://x>", "<!-- a", "&lt;b&gt;"),
    *("`a`", "``", "*a*", "**a**", "_a_", "__a__", "a_b_c", "~~a~~", "# a", "- a", "1. a", "2) a", "> a", "+ a", "==="),
    *("a|b", "a\\|b", "\\", "a\n\n# b", "[1, 4]", "x <= 3", "a_", "$a$", "[ ] a", "[^1]: a"),
]


@pytest.mark.parametrize("text", MARKDOWN)
def test_markdown_shows_the_text_itself(text: str) -> None:
    markdown = MarkdownIt("gfm-like", {"linkify": False})
    shown = escape_line(text)

    def inner_texts(source: str) -> list[tuple[str, str]]:
        tokens = [child for token in markdown.parse(source) for child in token.children or []]
        return [(token.type, token.content) for token in tokens if token.content]

    def joined(source: str) -> tuple[set[str], str]:
        tokens = inner_texts(source)
        return {kind for kind, _ in tokens}, "".join(content for _, content in tokens)

    kinds = {"text", "text_special"}
    for source in (escape.escape_markdown_paragraph(text), f"- {escape.escape_markdown_paragraph(text)}"):
        used, content = joined(source)
        assert used <= kinds
        assert content == shown
    assert joined(escape.markdown_code(text)) == ({"code_inline"}, shown)
    used, content = joined(f"| x | y |\n|---|---|\n| {escape.escape_markdown_cell(text)} | end |")
    assert used <= kinds
    assert content == f"xy{shown}end"


EVIL = "a\x1b[31m\x07\nb\u202e\udcff"


def test_what_libraries_warn_and_log_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    handler = logging.StreamHandler(sys.stderr)
    logger = logging.getLogger("edgepipe.test")
    logger.addHandler(handler)
    with output.escaped_output(), warnings.catch_warnings():
        warnings.simplefilter("always")
        sys.stderr.write(warnings.formatwarning(EVIL, UserWarning, "file.py", 1, ""))
        logger.warning("layer %s", EVIL)
    logger.removeHandler(handler)
    shown = escape_line(EVIL)
    lines = [line for line in capsys.readouterr().err.split("\n") if line.strip()]
    assert lines == [f"file.py:1: UserWarning: {shown}", f"layer {shown}"]
    assert warnings.formatwarning("a\n", UserWarning, "file.py", 1, "").startswith("file.py:1: UserWarning: a\n\n")


def test_progress_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    progress = LineProgress()
    progress.stage(EVIL, 1, 2, "running")
    progress.epoch(1, 2, {EVIL: 0.5})
    progress.note(EVIL)
    assert capsys.readouterr().err.count("\n") == 3


ALLOWED = {  # module: why it may print, or build what prints
    "core/output.py": "the one place",
    "core/progress.py": "a live bar, whose texts are escaped",
    "render/terminal.py": "tables, whose cells are escaped",
    "tflite/sandbox.py": "writes its answer into a pipe to edgepipe",
}
PRINTS = {"print", "echo", "secho", "Console", "print_exc", "showwarning"}


def _printing_calls(file: Path) -> list[str]:
    calls = [node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    names = [ast.unparse(function) for function in calls]
    return [
        name for name in names if name.rpartition(".")[2] in PRINTS or re.search(r"std(out|err)\.write|os\.write", name)
    ]


def test_nothing_prints_past_the_one_place() -> None:
    printing = {file.relative_to(PACKAGE).as_posix(): _printing_calls(file) for file in PACKAGE.rglob("*.py")}
    assert {name: calls for name, calls in printing.items() if calls and name not in ALLOWED} == {}
    assert printing["core/output.py"] == ["print"]


def test_an_argument_that_click_refuses_is_escaped(command: Command) -> None:
    for arguments in ([f"ch{EVIL}"], ["check", f"--{EVIL}"], ["convert", "m", "--scheme", EVIL], ["zoo", EVIL]):
        ended = command(*arguments)
        assert ended.code == 2
        assert all(character.isprintable() or character == "\n" for character in ended.err)
        assert "\nb" not in ended.err
