"""YAML with line and column, and options that are validated all at once.

A `Document` is a parsed file together with the position of every key and value in it. `validate` checks a part of
it with an `Options` class and turns each pydantic error into a `Problem` that names file, line, column, path, what was
found and what is allowed. The scalar rules are those of YAML 1.2: `yes` is a string, `1e-3` is a number.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, ErrorDetails, core_schema
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from edgepipe.core import input_files, units
from edgepipe.core.errors import ConfigError, Problem, did_you_mean
from edgepipe.core.units import Dimension

KeyPath = tuple[str | int, ...]
JSON_SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"
MAX_CHARACTERS = 2**19  # the longest file of edgepipe's own has about 12,000
MAX_NODES = 20_000  # a pipeline has a few hundred; nested aliases reach this quickly
MAX_DEPTH = 50  # a pipeline has about eight; Python's and JSON's own limits are higher
MAX_SCAN_DEPTH = 4 * MAX_DEPTH  # at which the scanner, whose time grows with the depth, gives up


class Options(BaseModel):
    """Base of everything a user writes: frozen, strict about types, closed to unknown keys.

    `former_names` maps names that options once had to the present ones, which are suggested for them.
    """

    former_names: ClassVar[Mapping[str, str]] = {}
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Quantity:
    """Marks a number that is written with a unit: `Annotated[float, Quantity(Dimension.SECONDS)]` reads `5 ms`."""

    dimension: Dimension

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Called by pydantic: parse the unit first, then validate the number as usual."""
        return core_schema.no_info_before_validator_function(
            lambda value: units.parse(value, self.dimension),
            handler(source),
            json_schema_input_schema=core_schema.union_schema([core_schema.float_schema(), core_schema.str_schema()]),
        )


class SourcePosition(NamedTuple):
    """Where a key or a value is: a file with 1-based line and column, or `--set` with zeros."""

    source_name: str
    line: int
    column: int


class _LimitError(Exception):
    """More than is read, found while scanning at `mark`."""

    def __init__(self, problem: str, mark: Any) -> None:
        super().__init__(problem)
        self.line, self.column = mark.line + 1, mark.column + 1


class _Loader(yaml.SafeLoader):
    """The YAML 1.2 core schema: booleans are true and false only, and 1e-3 is a float. Keys may be of any length."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.node_count = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.node_count += 1
        if self.node_count > MAX_NODES:
            raise _LimitError(f"more than {MAX_NODES} values", self.get_mark())
        return super().compose_node(parent, index)

    def fetch_flow_collection_start(self, token_class: Any) -> None:
        self._check_depth()
        super().fetch_flow_collection_start(token_class)

    def add_indent(self, column: int) -> bool:
        self._check_depth()
        return bool(super().add_indent(column))

    def _check_depth(self) -> None:
        if self.flow_level + len(self.indents) > MAX_SCAN_DEPTH:
            raise _LimitError(f"values nested more than {MAX_DEPTH} deep", self.get_mark())

    def stale_possible_simple_keys(self) -> None:
        # PyYAML drops keys longer than 1,024 characters, which JSON allows; here only the line counts.
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
for _tag, _pattern, _starts in _CORE_SCHEMA:
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), [c if c != "\0" else "" for c in _starts])

_SCALAR_PARSERS: dict[str, Callable[[str], Any]] = {
    "tag:yaml.org,2002:null": lambda text: None,
    "tag:yaml.org,2002:bool": lambda text: text.lower() == "true",
    "tag:yaml.org,2002:int": int,
    "tag:yaml.org,2002:float": lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
    "tag:yaml.org,2002:str": lambda text: _join_surrogates(text),
}
_SCALAR_TYPE_NAMES = {"int": "an integer", "float": "a number", "str": "a text"}


def _join_surrogates(text: str) -> str:
    # JSON escapes a character beyond U+FFFF as two surrogates; one without the other is not valid text.
    return text.encode("utf-16", "surrogatepass").decode("utf-16")


@dataclass
class Document:
    """The text and content of a file, the position of every key and value, and the problems found so far."""

    source_name: str
    content: Any = None
    key_positions: dict[KeyPath, SourcePosition] = field(default_factory=dict)
    value_positions: dict[KeyPath, SourcePosition] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    text: str = ""

    def add_problem(self, path: KeyPath, message: str, anchor: str = "value") -> None:
        """Add a problem at `path`; with `anchor` "key" it points at the key instead of the value."""
        positions = self.key_positions if anchor == "key" and path in self.key_positions else self.value_positions
        nearest_path = path
        while nearest_path not in positions and nearest_path:
            nearest_path = nearest_path[:-1]
        position = positions.get(nearest_path, SourcePosition(self.source_name, 0, 0))
        self.problems.append(Problem(*position, ".".join(map(str, path)), message))

    def get_value(self, path: KeyPath) -> Any:
        """The value at `path` as written; None if there is none."""
        node = self.content
        for key in path:
            exists = key in node if isinstance(node, dict) else isinstance(node, list) and key in range(len(node))
            node = node[key] if exists else None
        return node

    def raise_problems(self) -> None:
        """Raise a `ConfigError` with all problems, if there are any."""
        if self.problems:
            raise ConfigError(self.problems)


def read(path: Path | str) -> Document:
    """Parse the YAML file at `path`. Problems are added to the document; only an unreadable file raises."""
    return parse(read_text(Path(path)), str(path))


def read_text(path: Path, max_bytes: int = 4 * MAX_CHARACTERS) -> str:
    """The UTF-8 text of `path`, or an `InputError` that says why it cannot be read."""
    try:
        return input_files.read_bytes(path, max_bytes).decode("utf-8")
    except UnicodeDecodeError as error:
        valid_bytes = error.object[: error.start]
        line, column = valid_bytes.count(b"\n") + 1, error.start - valid_bytes.rfind(b"\n")
        message = f"not UTF-8 text: found the byte 0x{error.object[error.start]:02x}"
        raise ConfigError([Problem(str(path), line, column, "", message)]) from None


def parse(text: str, source_name: str) -> Document:
    """Parse `text` as YAML; `source` is the file name in problems."""
    document = Document(source_name, text=text)
    if len(text) > MAX_CHARACTERS:
        message = f"{len(text):,} characters; at most {MAX_CHARACTERS:,} are read"
        document.problems.append(Problem(source_name, 1, 1, "", message))
        return document
    try:
        node = yaml.compose(text, _Loader)
    except _LimitError as error:
        document.problems.append(Problem(source_name, error.line, error.column, "", str(error)))
        return document
    except yaml.MarkedYAMLError as error:
        is_unclosed = "end of stream" in str(error.problem)  # then it helps to know where it was opened
        mark = (error.context_mark if is_unclosed else None) or error.problem_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        document.problems.append(
            Problem(source_name, line, column, "", f"not valid YAML: {_describe_yaml_error(error)}")
        )
        return document
    except yaml.reader.ReaderError as error:
        lines_before = text[: error.position].splitlines(keepends=True) or [""]
        message = f"not valid YAML: the character U+{error.character:04X} is not allowed in a file"
        document.problems.append(Problem(source_name, len(lines_before), len(lines_before[-1]) + 1, "", message))
        return document
    except RecursionError:
        document.problems.append(Problem(source_name, 1, 1, "", f"values nested more than {MAX_DEPTH} deep"))
        return document
    except (ValueError, OverflowError):
        message = "not valid YAML: a number or an escape in it is out of range"
        document.problems.append(Problem(source_name, 1, 1, "", message))
        return document
    if node is None:
        document.problems.append(Problem(source_name, 1, 1, "", "the file is empty"))
        return document
    document.content = _YamlNodeBuilder(document).build(node, ())
    return document


def _describe_yaml_error(error: yaml.MarkedYAMLError) -> str:
    message = error.problem or error.context or "cannot be read"
    if error.context and (message.startswith("but ") or "end of stream" in message):
        message = f"{error.context}, {message}"
    return f"{message}; indent with spaces, not tabs" if r"'\t'" in message else message


class _YamlNodeBuilder:
    """Turns YAML nodes into plain data, recording positions and rejecting what is ambiguous."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.open_node_ids: set[int] = set()
        self.value_count = 0

    def build(self, node: Node, path: KeyPath) -> Any:
        self.document.value_positions.setdefault(path, self._node_position(node))
        self.value_count += 1
        if id(node) in self.open_node_ids:
            return self.document.add_problem(path, "an alias that contains itself")
        if self.value_count > MAX_NODES:
            if self.value_count == MAX_NODES + 1:
                self.document.add_problem(path, f"more than {MAX_NODES} values (aliases count each time they are used)")
            return None
        if len(path) > MAX_DEPTH:
            return self.document.add_problem(path, f"values nested more than {MAX_DEPTH} deep")
        self.open_node_ids.add(id(node))
        try:
            return self._build_content(node, path)
        finally:
            self.open_node_ids.discard(id(node))

    def _build_content(self, node: Node, path: KeyPath) -> Any:
        if isinstance(node, MappingNode):
            return self._build_mapping(node, path)
        if isinstance(node, SequenceNode):
            return [self.build(child, (*path, index)) for index, child in enumerate(node.value)]
        return self._build_scalar(node, path)

    def _build_scalar(self, node: Node, path: KeyPath) -> Any:
        parse_scalar = _SCALAR_PARSERS.get(node.tag)
        if parse_scalar is None or not isinstance(node, ScalarNode):
            return self.document.add_problem(path, f"the tag {node.tag} is not allowed; write a plain value")
        try:
            return parse_scalar(node.value)
        except ValueError:
            type_name = _SCALAR_TYPE_NAMES[node.tag.rsplit(":", 1)[1]]
            return self.document.add_problem(path, f"{node.value[:40]!r} cannot be read as {type_name}")

    def _build_mapping(self, node: MappingNode, path: KeyPath) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = _read_key(key_node)
            key_path = (*path, key)
            if not isinstance(key_node, ScalarNode):
                self._add_problem(key_node, key_path, "the key must be a text, found a list or a mapping")
            elif key_node.tag != "tag:yaml.org,2002:str" or not _is_valid_text(key_node.value):
                self._add_problem(key_node, key_path, f"the key must be a text, found '{key}'")
            elif key in mapping:
                self._add_problem(
                    key_node,
                    key_path,
                    f"duplicate key; the first is on line {self.document.key_positions[key_path].line}",
                )
            else:
                self.document.key_positions[key_path] = self._node_position(key_node)
                mapping[key] = self.build(value_node, key_path)
        return mapping

    def _add_problem(self, node: Node, path: KeyPath, message: str) -> None:
        self.document.problems.append(Problem(*self._node_position(node), ".".join(map(str, path)), message))

    def _node_position(self, node: Node) -> SourcePosition:
        return SourcePosition(self.document.source_name, node.start_mark.line + 1, node.start_mark.column + 1)


def _read_key(node: Node) -> str:
    if not isinstance(node, ScalarNode):
        return "?"
    return _join_surrogates(node.value) if _is_valid_text(node.value) else ascii(node.value)[1:-1]


def _is_valid_text(text: str) -> bool:
    try:
        _join_surrogates(text)
    except ValueError:
        return False
    return True


def assign(document: Document, path: KeyPath, text: str, source_name: str) -> None:
    """Replace the value at `path` by the YAML value `text`, as `--set` does; later problems name `source_name`.

    Args:
        document: changed in place; collects the problems.
        path: keys and list indices; missing mappings on the way are created.
        text: the new value in YAML.
        source_name: replaces the file name in problems, for example `--set`.
    """
    new_document = parse(text, source_name)
    if not text.strip():
        document.problems.append(Problem(source_name, 0, 0, "", "no value after the '='; write null for nothing"))
    elif new_document.problems:
        document.problems.extend(problem._replace(line=0, column=0) for problem in new_document.problems)
    elif (parent_mapping := _find_parent(document, path, source_name)) is not None:
        for positions in (document.key_positions, document.value_positions):
            for stale_path in [key for key in positions if key[: len(path)] == path]:
                del positions[stale_path]
            positions[path] = SourcePosition(source_name, 0, 0)
        parent_mapping[str(path[-1])] = new_document.content


def _find_parent(document: Document, path: KeyPath, source_name: str) -> dict[str, Any] | None:
    """The mapping that holds the last key of `path`, created if missing; None, with a problem, if it cannot be."""
    node: Any = document.content
    for depth, key in enumerate(path):
        if not isinstance(node, dict) and not (isinstance(node, list) and isinstance(key, int)):
            prefix = ".".join(map(str, path[:depth]))
            message = f"`{prefix}` is {describe_value(node)}, which has no options of its own; set it as a whole"
            document.problems.append(Problem(source_name, 0, 0, ".".join(map(str, path)), message))
            return None
        if depth == len(path) - 1:
            return node if isinstance(node, dict) else None
        if isinstance(node, dict) and node.get(str(key)) is None:
            node[str(key)] = {}
            document.key_positions[path[: depth + 1]] = document.value_positions[path[: depth + 1]] = SourcePosition(
                source_name, 0, 0
            )
        node = node[key]
    return None


OptionsT = TypeVar("OptionsT", bound=BaseModel)


def validate(document: Document, path: KeyPath, raw_options: Any, cls: type[OptionsT]) -> OptionsT | None:
    """Validate a part of `document`; None if there is any problem.

    Args:
        document: collects the problems.
        path: where `raw_options` is in `document`.
        raw_options: the YAML value at `path`; None counts as no options.
        cls: the class that the options must fit.
    """
    if raw_options is None:
        raw_options = {}
    if not isinstance(raw_options, Mapping):
        document.add_problem(path, f"must be a mapping of options, found {describe_value(raw_options)}")
        return None
    try:
        # Through JSON: strict mode then accepts lists as tuples, but neither 1 as true nor "1" as 1.
        return cls.model_validate_json(json.dumps(_read_percentages(cls, raw_options)), strict=True)
    except ValidationError as error:
        for error_details in error.errors():
            _add_validation_problem(document, path, cls, error_details)
        return None


def _read_percentages(cls: type[BaseModel], raw_options: Mapping[str, Any]) -> dict[str, Any]:
    """`raw_options` with texts such as `30 %` as numbers wherever `cls`, or a class nested in it, has a fraction."""
    return {
        name: _read_percentage(cls.model_fields[name], option) if name in cls.model_fields else option
        for name, option in raw_options.items()
    }


def _read_percentage(field: FieldInfo, option: Any) -> Any:
    if isinstance(option, str) and (match := _PERCENT_PATTERN.fullmatch(option)) and _is_fraction(field):
        return units.parse(f"{match[1]} %", Dimension.FRACTION)
    nested_model = next(_nested_models(field.annotation), None)
    if nested_model is None or not isinstance(option, dict):
        return option
    if not any(get_origin(annotation) is dict for annotation in (field.annotation, *get_args(field.annotation))):
        return _read_percentages(nested_model, option)
    return {  # names to options, such as `layers:`
        key: _read_percentages(nested_model, entry) if isinstance(entry, dict) else entry
        for key, entry in option.items()
    }


def _is_fraction(field: FieldInfo) -> bool:
    """Whether the option is a number that is at most, or below, one."""
    marks = [*field.metadata, *(mark for annotation in get_args(field.annotation) for mark in _bound_marks(annotation))]
    is_number = any(annotation is float for annotation in _plain_types(field.annotation))
    return is_number and any(getattr(mark, "le", getattr(mark, "lt", None)) == 1 for mark in marks)


def _bound_marks(annotation: Any) -> list[Any]:
    return [inner for mark in getattr(annotation, "__metadata__", ()) for inner in getattr(mark, "metadata", [mark])]


def _plain_types(annotation: Any) -> Iterator[Any]:
    """The types that a union or an annotated type is of."""
    if not get_args(annotation) or get_origin(annotation) in (dict, tuple, list):
        yield annotation
        return
    for argument in get_args(annotation):
        yield from _plain_types(argument)


def _option_suggestion(cls: type[BaseModel], option_path: KeyPath) -> str:
    """The present name of an option that was renamed, else the nearest name, else all."""
    name = str(option_path[-1])
    former_names = getattr(cls, "former_names", {}) if len(option_path) == 1 else {}
    return did_you_mean(former_names.get(name, name), _field_names(cls, option_path[:-1]))


def _add_validation_problem(
    document: Document, path: KeyPath, cls: type[BaseModel], error_details: ErrorDetails
) -> None:
    error_location = tuple(
        key for key in error_details["loc"] if not str(key).startswith(("function-", "constrained-"))
    )
    is_at_key = error_location[-1:] == ("[key]",)  # pydantic's mark for a key of a mapping
    option_path = (*path, *(error_location[:-1] if is_at_key else error_location))
    if error_details["type"] == "extra_forbidden":
        suggestion = _option_suggestion(cls, error_location)
        document.add_problem(option_path, f"unknown option{suggestion}", anchor="key")
    elif error_details["type"] == "missing":
        document.add_problem(option_path, "is required but missing", anchor="key")
    else:
        document.add_problem(
            option_path, _describe_validation_error(error_details), anchor="key" if is_at_key else "value"
        )


_MESSAGE_BY_ERROR_TYPE = {  # pydantic speaks of JSON and Python, the user writes YAML
    "int_type": "should be an integer",
    "float_type": "should be a number",
    "string_type": "should be a text",
    "bool_type": "should be true or false",
    "dict_type": "should be a mapping",
    "model_type": "should be a mapping",
    "tuple_type": "should be a list",
    "list_type": "should be a list",
}
_PERCENT_PATTERN = re.compile(r"\s*(\d+(?:\.\d*)?)\s*%\s*")


def _describe_validation_error(error_details: ErrorDetails) -> str:
    context = error_details.get("ctx", {})
    input_text = describe_value(error_details["input"])
    if error_details["type"] in ("too_short", "too_long"):
        bound_word, length_key = (
            ("least", "min_length") if error_details["type"] == "too_short" else ("most", "max_length")
        )
        return (
            f"should have at {bound_word} {units.plural(context[length_key], 'item')}, found {context['actual_length']}"
        )
    if error_details["type"] == "literal_error":
        allowed_names = re.findall(r"'([^']*)'", str(context["expected"]))
        is_choice = bool(allowed_names) and isinstance(error_details["input"], str)
        hint = did_you_mean(error_details["input"], allowed_names) if is_choice else ""
        found_text = describe_choice(error_details["input"]) if is_choice else input_text
        return f"found {found_text}; allowed: {', '.join(allowed_names) or context['expected']}" + (
            hint if hint.startswith("; did") else ""
        )
    if error_details["type"] == "value_error":
        return str(context["error"])
    message = _MESSAGE_BY_ERROR_TYPE.get(error_details["type"]) or error_details["msg"].removeprefix("Input ")
    return f"{message[0].lower()}{message[1:]}; found {input_text}{_fraction_hint(error_details)}"


def _fraction_hint(error_details: ErrorDetails) -> str:
    """How to write a percentage where a fraction of one is expected."""
    input_value, context = error_details["input"], error_details.get("ctx", {})
    match = (
        _PERCENT_PATTERN.fullmatch(input_value)
        if isinstance(input_value, str) and error_details["type"] == "float_type"
        else None
    )
    percentage = float(match[1]) if match else None
    if error_details["type"] in ("less_than", "less_than_equal") and context.get("lt", context.get("le")) == 1:
        percentage = input_value if 2 <= input_value < 100 else None
    return f"; {percentage:g} % is written {percentage / 100:g}" if percentage is not None else ""


def describe_value(value: Any) -> str:
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


def describe_choice(value: Any) -> str:
    """A value of a file as a message shows it that lists what is allowed: there a text is known to be one."""
    return f"'{value[:60]}'" if isinstance(value, str) else describe_value(value)


def _field_names(cls: type[BaseModel], option_path: KeyPath) -> list[str]:
    model_class: type[BaseModel] | None = cls
    for key in option_path:
        if model_class is not None and str(key) in model_class.model_fields:
            model_class = next(_nested_models(model_class.model_fields[str(key)].annotation), None)
    return list(model_class.model_fields) if model_class is not None else []


def _nested_models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _nested_models(argument)
