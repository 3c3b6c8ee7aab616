"""Text of unknown origin, made safe for where it is shown.

Names of operators, layers, classes, files and devices come from whoever wrote the file. One that moves the cursor, ends
a table row or reverses the direction of reading could forge what edgepipe says.
"""

import json
import re
import unicodedata
from typing import Any

# Letters and marks that show nothing; Unicode does not count them as format characters.
INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
_SHORT_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_SURROGATE = re.compile("[\ud800-\udfff]")
_NOT_ASCII = re.compile(r"[^\n -~]")
# Only where Markdown does not take it literally, for the sake of those who read the source: `a_b`, `[1, 4]`, `x <= 3`.
_MARKDOWN = re.compile(r"[\\`*~$]|&(?=[#\w]+;)|<(?=[\w/!?])|\](?=[(\[:])|(?<![^\W_])_+|_+(?![^\W_])")
_MARKDOWN_BLOCK = re.compile(r"^(\d*)(?=[-+=#>\[.)])")


def escape_line(text: str) -> str:
    """`text` as one line: characters that control a terminal, show nothing or change the direction as `\\x1b`."""
    if text.isprintable() and INVISIBLE.isdisjoint(text):
        return text
    return "".join(character if _is_visible(character) else _escape(character) for character in text)


def _is_visible(character: str) -> bool:
    if character in INVISIBLE:
        return False
    return character.isprintable() or unicodedata.category(character) == "Zs"  # wide and no-break spaces are harmless


def _escape(character: str) -> str:
    if character in _SHORT_ESCAPES:
        return _SHORT_ESCAPES[character]
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte of a file name that is not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def escape_markdown(text: str) -> str:
    """`text` as literal text inside a paragraph of Markdown."""
    return _MARKDOWN.sub(lambda match: "".join(f"\\{character}" for character in match[0]), escape_line(text))


def escape_markdown_cell(text: str) -> str:
    """`text` as literal text inside a cell of a Markdown table."""
    return escape_markdown(text).replace("|", "\\|")


def escape_markdown_paragraph(text: str) -> str:
    """`text` as a paragraph or a list item of Markdown, which begins no heading or list."""
    return _MARKDOWN_BLOCK.sub(r"\1\\", escape_markdown(text).strip())


def markdown_code(text: str) -> str:
    """`text` as a code span of Markdown, between more backticks than it holds itself."""
    line = escape_line(text)
    fence = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    padding = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{padding}{line}{padding}{fence}"


def json_text(value: Any, indent: int | None = 2) -> str:
    """`value` as JSON in ASCII, valid in any encoding; half of a surrogate pair, which no parser takes, is spelled."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    text = _SURROGATE.sub(lambda match: "\\" + _escape(match[0]), text)
    return _NOT_ASCII.sub(lambda match: json.dumps(match[0])[1:-1], text)
