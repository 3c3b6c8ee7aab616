"""YAML with line and column, and options that are validated all at once.

A `Document` is a parsed file together with the position of every key and value in it. `validate` holds a part of it
against an `Options` class and turns each pydantic error into a `Problem` that names file, line, column, path, what
was found and what is allowed. The scalar rules are those of YAML 1.2: `yes` is a text, `1e-3` is a number.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, ErrorDetails, core_schema
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from edgepipe.core import units
from edgepipe.core.errors import ConfigError, InputError, Problem, did_you_mean
from edgepipe.core.units import Dimension

Path_ = tuple[str | int, ...]
MAX_NODES = 100_000  # a pipeline has a few hundred; aliases of aliases reach this in no time
MAX_DEPTH = 50  # a pipeline has about eight; Python's and JSON's own limits lie above


class Options(BaseModel):
    """Base of everything a user writes: frozen, strict about types, closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Quantity:
    """Marks a number that is written with a unit: `Annotated[float, Quantity(Dimension.SECONDS)]` reads `5 ms`."""

    dimension: Dimension

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """What pydantic asks a mark for: read the unit first, then hold the number as before."""
        read = core_schema.no_info_before_validator_function
        return read(lambda value: units.parse(value, self.dimension), handler(source))


class Position(NamedTuple):
    """Where a key or a value stands: a file with 1-based line and column, or `--set` with zeros."""

    source: str
    line: int
    column: int


class _Loader(yaml.SafeLoader):
    """The YAML 1.2 core schema: booleans are true and false only, and 1e-3 is a float. Keys may be of any length."""

    def stale_possible_simple_keys(self) -> None:
        # YAML forgets a key that is longer than 1,024 characters, JSON does not: here only its line counts.
        for key in self.possible_simple_keys.values():
            key.index = self.index
        super().stale_possible_simple_keys()


_Loader.yaml_implicit_resolvers = {}
_CORE_SCHEMA = [
    ("tag:yaml.org,2002:null", r"(?:~|null|Null|NULL|)", "~nN\0"),
    ("tag:yaml.org,2002:bool", r"(?:true|True|TRUE|false|False|FALSE)", "tTfF"),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
]
for _tag, _pattern, _first in _CORE_SCHEMA:
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), [c if c != "\0" else "" for c in _first])

_SCALARS: dict[str, Callable[[str], Any]] = {
    "tag:yaml.org,2002:null": lambda text: None,
    "tag:yaml.org,2002:bool": lambda text: text.lower() == "true",
    "tag:yaml.org,2002:int": int,
    "tag:yaml.org,2002:float": lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
    "tag:yaml.org,2002:str": lambda text: _text(text),
}
_NAMES = {"int": "an integer", "float": "a number", "str": "a text"}


def _text(value: str) -> str:
    # JSON escapes a character beyond U+FFFF as two surrogates, which belong together; half of a pair is no text.
    return value.encode("utf-16", "surrogatepass").decode("utf-16")


@dataclass
class Document:
    """The data of a file, where everything in it stands, and the problems found so far."""

    source: str
    data: Any = None
    keys: dict[Path_, Position] = field(default_factory=dict)
    values: dict[Path_, Position] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def problem(self, path: Path_, message: str, at: str = "value") -> None:
        """Note what is wrong at `path`; `at` is "key" to point at the key instead of the value."""
        table = self.keys if at == "key" and path in self.keys else self.values
        place = path
        while place not in table and place:
            place = place[:-1]
        position = table.get(place, Position(self.source, 0, 0))
        self.problems.append(Problem(*position, ".".join(map(str, path)), message))

    def at(self, path: Path_) -> Any:
        """What stands at `path`, as it was written; None if nothing does."""
        found = self.data
        for part in path:
            inside = part in found if isinstance(found, dict) else isinstance(found, list) and part in range(len(found))
            found = found[part] if inside else None
        return found

    def raise_problems(self) -> None:
        """Raise a `ConfigError` with all problems, if there are any."""
        if self.problems:
            raise ConfigError(self.problems)


def read(path: Path | str) -> Document:
    """Parse the YAML file at `path`. Problems are noted in the document; only an unreadable file raises."""
    return parse(read_text(Path(path)), str(path))


def read_text(path: Path) -> str:
    """The UTF-8 text of `path`, or an `InputError` that says why it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        message = f"not UTF-8 text: found the byte 0x{error.object[error.start]:02x}"
        raise ConfigError([Problem(str(path), line, column, "", message)]) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def parse(text: str, source: str) -> Document:
    """Parse `text` as YAML; `source` is the name that problems carry."""
    document = Document(source)
    try:
        node = yaml.compose(text, _Loader)
    except yaml.MarkedYAMLError as error:
        unclosed = "end of stream" in str(error.problem)  # then it helps to know where it was opened
        mark = (error.context_mark if unclosed else None) or error.problem_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        document.problems.append(Problem(source, line, column, "", f"not valid YAML: {_complaint(error)}"))
        return document
    except yaml.reader.ReaderError as error:
        before = text[: error.position].splitlines(keepends=True) or [""]
        message = f"not valid YAML: the character U+{error.character:04X} may not stand in a file"
        document.problems.append(Problem(source, len(before), len(before[-1]) + 1, "", message))
        return document
    except RecursionError:
        document.problems.append(Problem(source, 1, 1, "", f"values nested more than {MAX_DEPTH} deep"))
        return document
    except (ValueError, OverflowError):
        message = "not valid YAML: a number or an escape in it is out of range"
        document.problems.append(Problem(source, 1, 1, "", message))
        return document
    if node is None:
        document.problems.append(Problem(source, 1, 1, "", "the file is empty"))
        return document
    document.data = _Builder(document).build(node, ())
    return document


def _complaint(error: yaml.MarkedYAMLError) -> str:
    what = error.problem or error.context or "cannot be read"
    if error.context and (what.startswith("but ") or "end of stream" in what):
        what = f"{error.context}, {what}"
    return f"{what}; indent with spaces, not tabs" if r"'\t'" in what else what


class _Builder:
    """Turns YAML nodes into plain data, recording positions and rejecting what is ambiguous."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.open: set[int] = set()
        self.count = 0

    def build(self, node: Node, path: Path_) -> Any:
        self.document.values.setdefault(path, self._position(node))
        self.count += 1
        if id(node) in self.open:
            return self.document.problem(path, "an alias that contains itself")
        if self.count > MAX_NODES:
            if self.count == MAX_NODES + 1:
                self.document.problem(path, f"more than {MAX_NODES} values (aliases count each time they are used)")
            return None
        if len(path) > MAX_DEPTH:
            return self.document.problem(path, f"values nested more than {MAX_DEPTH} deep")
        self.open.add(id(node))
        try:
            return self._plain(node, path)
        finally:
            self.open.discard(id(node))

    def _plain(self, node: Node, path: Path_) -> Any:
        if isinstance(node, MappingNode):
            return self._mapping(node, path)
        if isinstance(node, SequenceNode):
            return [self.build(child, (*path, index)) for index, child in enumerate(node.value)]
        return self._scalar(node, path)

    def _scalar(self, node: Node, path: Path_) -> Any:
        convert = _SCALARS.get(node.tag)
        if convert is None or not isinstance(node, ScalarNode):
            return self.document.problem(path, f"the tag {node.tag} is not allowed; write a plain value")
        try:
            return convert(node.value)
        except ValueError:
            name = _NAMES[node.tag.rsplit(":", 1)[1]]
            return self.document.problem(path, f"{node.value[:40]!r} cannot be read as {name}")

    def _mapping(self, node: MappingNode, path: Path_) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = _key(key_node)
            inner = (*path, key)
            if not isinstance(key_node, ScalarNode):
                self._at(key_node, inner, "the key must be a text, found a list or a mapping")
            elif key_node.tag != "tag:yaml.org,2002:str" or not _is_text(key_node.value):
                self._at(key_node, inner, f"the key must be a text, found '{key}'")
            elif key in result:
                self._at(
                    key_node, inner, f"this key stands twice; the first is on line {self.document.keys[inner].line}"
                )
            else:
                self.document.keys[inner] = self._position(key_node)
                result[key] = self.build(value_node, inner)
        return result

    def _at(self, node: Node, path: Path_, message: str) -> None:
        self.document.problems.append(Problem(*self._position(node), ".".join(map(str, path)), message))

    def _position(self, node: Node) -> Position:
        return Position(self.document.source, node.start_mark.line + 1, node.start_mark.column + 1)


def _key(node: Node) -> str:
    if not isinstance(node, ScalarNode):
        return "?"
    return _text(node.value) if _is_text(node.value) else ascii(node.value)[1:-1]


def _is_text(value: str) -> bool:
    try:
        _text(value)
    except ValueError:
        return False
    return True


def assign(document: Document, path: Path_, text: str, source: str) -> None:
    """Replace the value at `path` by the YAML value `text`, as `--set` does; later problems name `source`."""
    value = parse(text, source)
    if not text.strip():
        document.problems.append(Problem(source, 0, 0, "", "no value stands after the '='; write null for nothing"))
    elif value.problems:
        document.problems.extend(problem._replace(line=0, column=0) for problem in value.problems)
    elif (parent := _holder(document, path, source)) is not None:
        for table in (document.keys, document.values):
            for inner in [key for key in table if key[: len(path)] == path]:
                del table[inner]
            table[path] = Position(source, 0, 0)
        parent[str(path[-1])] = value.data


def _holder(document: Document, path: Path_, source: str) -> dict[str, Any] | None:
    """The mapping that `path` ends in, made where nothing stands yet; None, and a problem, where there is no such."""
    current: Any = document.data
    for depth, part in enumerate(path):
        if not isinstance(current, dict) and not (isinstance(current, list) and isinstance(part, int)):
            where = ".".join(map(str, path[:depth]))
            message = f"`{where}` is {describe(current)}, which has no options of its own; set it as a whole"
            document.problems.append(Problem(source, 0, 0, ".".join(map(str, path)), message))
            return None
        if depth == len(path) - 1:
            return current if isinstance(current, dict) else None
        if isinstance(current, dict) and current.get(str(part)) is None:
            current[str(part)] = {}
            document.keys[path[: depth + 1]] = document.values[path[: depth + 1]] = Position(source, 0, 0)
        current = current[part]
    return None


OptionsT = TypeVar("OptionsT", bound=BaseModel)


def validate(document: Document, path: Path_, data: Any, cls: type[OptionsT]) -> OptionsT | None:
    """Hold `data`, which stands at `path`, against `cls`; note every problem and give None if there is any."""
    if data is None:
        data = {}
    if not isinstance(data, Mapping):
        document.problem(path, f"must be a mapping of options, found {describe(data)}")
        return None
    try:
        # Through JSON: strict mode then takes lists for tuples, yet neither 1 for true nor "1" for 1.
        return cls.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        for details in error.errors():
            _note(document, path, cls, details)
        return None


def _note(document: Document, path: Path_, cls: type[BaseModel], details: ErrorDetails) -> None:
    location = tuple(part for part in details["loc"] if not str(part).startswith(("function-", "constrained-")))
    at_key = location[-1:] == ("[key]",)  # pydantic's mark for a key of a mapping
    here = (*path, *(location[:-1] if at_key else location))
    if details["type"] == "extra_forbidden":
        allowed = _fields(cls, location[:-1])
        document.problem(here, f"unknown option{did_you_mean(str(location[-1]), allowed)}", at="key")
    elif details["type"] == "missing":
        document.problem(here, "is required but missing", at="key")
    else:
        document.problem(here, _say(details), at="key" if at_key else "value")


_SHOULD = {  # pydantic speaks of JSON and Python, the user writes YAML
    "int_type": "should be an integer",
    "float_type": "should be a number",
    "string_type": "should be a text",
    "bool_type": "should be true or false",
    "dict_type": "should be a mapping",
    "model_type": "should be a mapping",
    "tuple_type": "should be a list",
    "list_type": "should be a list",
}
_PERCENT = re.compile(r"\s*(\d+(?:\.\d*)?)\s*%\s*")


def _say(details: ErrorDetails) -> str:
    context = details.get("ctx", {})
    found = describe(details["input"])
    if details["type"] in ("too_short", "too_long"):
        bound, number = ("least", "min_length") if details["type"] == "too_short" else ("most", "max_length")
        return f"should have at {bound} {context[number]} item(s), found {context['actual_length']}"
    if details["type"] == "literal_error":
        names = re.findall(r"'([^']*)'", str(context["expected"]))
        hint = did_you_mean(str(details["input"]), names) if isinstance(details["input"], str) else ""
        return f"found {found}; allowed: {', '.join(names) or context['expected']}" + (
            hint if hint.startswith("; did") else ""
        )
    if details["type"] == "value_error":
        return str(context["error"])
    message = _SHOULD.get(details["type"]) or details["msg"].removeprefix("Input ")
    return f"{message[0].lower()}{message[1:]}; found {found}{_as_share(details)}"


def _as_share(details: ErrorDetails) -> str:
    """How to write what was meant as a percentage, where a share of one is wanted."""
    value, context = details["input"], details.get("ctx", {})
    percent = _PERCENT.fullmatch(value) if isinstance(value, str) and details["type"] == "float_type" else None
    share = float(percent[1]) if percent else None
    if details["type"] in ("less_than", "less_than_equal") and context.get("lt", context.get("le")) == 1:
        share = value if 1 < value < 100 else None
    return f"; {share:g} % is written {share / 100:g}" if share is not None else ""


def describe(value: Any) -> str:
    """A value of a file as a message shows it, with its kind where that helps."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the text '{value[:60]}'"
    if isinstance(value, (int, float)):
        return f"the number {value}"
    kind = "list" if isinstance(value, (list, tuple)) else "mapping"
    return f"a {kind}" if value else f"an empty {kind}"


def _fields(cls: type[BaseModel], location: Path_) -> list[str]:
    current: type[BaseModel] | None = cls
    for part in location:
        if current is not None and str(part) in current.model_fields:
            current = next(_models(current.model_fields[str(part)].annotation), None)
    return list(current.model_fields) if current is not None else []


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)
